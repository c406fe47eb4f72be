"""outputs.py: what is not ours stays byte for byte, and is named before the work; one process at a time in a folder."""

import errno
import fcntl
import json
import os
import runpy
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Iterator

import pytest
from PIL import Image

from activeo3 import checkpoints, eval_output, html_report, log, outputs, samples
from activeo3.config import ConfigError, TrainConfig
from activeo3.eval_runner import Runner

ROOT = Path(__file__).parent.parent


def test_our_own_file_is_replaced_and_anothers_is_not(tmp_path: Path) -> None:
    (tmp_path / "results.md").write_text("my notes")
    outputs.leave(tmp_path / "results.json", b"1")
    outputs.leave(tmp_path / "results.json", b"2")
    outputs.leave_picture(tmp_path / "plot.png", Image.new("RGB", (3, 2), "red"))
    assert (tmp_path / "results.json").read_bytes() == b"2"
    with Image.open(tmp_path / "plot.png") as image:
        assert image.size == (3, 2) and image.getpixel((0, 0)) == (255, 0, 0)
    for _ in range(2):
        with pytest.raises(ConfigError, match=f"^{tmp_path / 'results.md'} was not written by activeo3 .*--output_dir"):
            outputs.leave(tmp_path / "results.md", b"ours")
    assert (tmp_path / "results.md").read_text() == "my notes"


def test_a_dangling_link_of_a_name_of_ours_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "results.json").symlink_to("elsewhere.json")
    with pytest.raises(ConfigError, match="was not written by activeo3"):
        outputs.leave(tmp_path / "results.json", b"ours")
    assert not (tmp_path / "elsewhere.json").exists()


def test_a_claim_before_the_work_keeps_its_word(tmp_path: Path) -> None:
    outputs.claim(tmp_path / "nowhere", "results.json")  # there is nothing to be refused, and nothing is made
    assert not (tmp_path / "nowhere").exists()
    outputs.claim(tmp_path, "results.json")
    (tmp_path / "results.json").write_text("left by our own killed run")
    outputs.claim(tmp_path, "results.json")
    outputs.leave(tmp_path / "results.json", b"ours")


def test_a_list_whose_last_name_is_half_written_goes_on_behind_it(tmp_path: Path) -> None:
    outputs.claim(tmp_path, "libraries-0.log")
    with open(tmp_path / outputs.LIST, "ab") as file:
        file.write("left_out-é".encode()[:-1])  # cut inside of a letter
    for _ in range(2):
        outputs.claim(tmp_path, "metrics.jsonl")
        (tmp_path / "metrics.jsonl").write_text("ours")
    assert (tmp_path / outputs.LIST).read_bytes().split(b"\n")[::2] == [b"libraries-0.log", b"metrics.jsonl"]


@pytest.mark.parametrize("older", ["a run", "in a checkpoint", "an evaluation"])
def test_folders_from_before_there_were_lists_are_ours(older: str, tmp_path: Path) -> None:
    folder = tmp_path / "eval"
    folder.mkdir()
    for name in ("results.json", "report.html"):
        (folder / name).write_text('{"rows": []}' if older == "an evaluation" else "older")
    if older == "a run":
        (folder / "checkpoint-3").mkdir()
        (folder / "checkpoint-3" / "activeo3.json").write_text("{}")
    if older == "in a checkpoint":
        (tmp_path / "activeo3.json").write_text("{}")
    outputs.leave(folder / "results.json", b"new")
    outputs.leave(folder / "report.html", b"new")
    (folder / "mine.html").write_text("made since")
    with pytest.raises(ConfigError):
        outputs.leave(folder / "mine.html", b"new")


# ---------------------------------------------------------------------- both scripts


def test_an_evaluation_names_a_file_in_its_way_before_it_loads_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "results.json").write_text('{"my": "thesis"}')
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--checkpoint", "no/such/model", "--output_dir", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "evaluate.py"), run_name="__main__")
    assert stop.value.code.startswith(f"activeo3: {tmp_path / 'results.json'} was not written by activeo3")
    assert (tmp_path / "results.json").read_text() == '{"my": "thesis"}'


def test_a_run_does_not_replace_anothers_checkpoints(tmp_path: Path) -> None:
    """Other trainers name their checkpoints alike."""
    (tmp_path / "checkpoint-40").mkdir()
    (tmp_path / "checkpoint-40" / "model.safetensors").write_text("weights of another trainer")
    config, ranks = TrainConfig(output_dir=str(tmp_path), steps=90, save_every=20), SimpleNamespace(world=1, rank=0)
    with pytest.raises(
        ConfigError, match=f"^{tmp_path / 'checkpoint-40'} is no checkpoint of activeo3 and would be replaced"
    ):
        checkpoints.resumable(config, ranks)
    for harmless in (replace(config, save_every=30), replace(config, steps=30)):
        assert checkpoints.resumable(harmless, ranks) is None
    with pytest.raises(ConfigError):
        checkpoints.resumable(replace(config, save_every=30, steps=40), ranks)  # the last step is always saved


def test_only_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    for name in ("building-checkpoint-4", "building-plans", "building-checkpoint-plans"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("here")
    checkpoints.sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["building-checkpoint-plans", "building-plans"]


def test_an_evaluation_removes_its_own_files_alone(tmp_path: Path) -> None:
    folder = tmp_path / "unfinished"
    folder.mkdir()
    (folder / "novel.json").write_text("chapter 1")
    runner = Runner(folder=folder)
    assert runner.map(lambda part: part, [7], ()) == [7] and len(list(folder.iterdir())) == 2
    runner.close()
    assert [path.name for path in folder.iterdir()] == ["novel.json"]


def test_a_run_names_a_file_in_its_way_before_it_loads_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from launch import rank_environment

    monkeypatch.syspath_prepend(str(ROOT))
    import train

    for name, value in rank_environment(0, 1).items():
        monkeypatch.setenv(name, value)
    rows = json.dumps({"step": 1, "loss": 2.5}) + "\n"  # as another trainer writes them
    for name in ("metrics.jsonl", "libraries-0.log"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_text(rows)
        with pytest.raises(ConfigError, match=f"{name} was not written by activeo3"):
            train.main(TrainConfig(output_dir=str(folder), model="no/such/model"))
        assert (folder / name).read_text() == rows


# ---------------------------------------------------------------------- a full disk


def full(tmp_path: Path, name: str) -> Path:
    """A path at which writing meets a device without room."""
    path = tmp_path / name
    path.symlink_to("/dev/full")
    return path


def test_a_full_disk_is_one_sentence_and_keeps_the_older_file(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("older")
    full(tmp_path, ".results.json.tmp")
    with pytest.raises(
        ConfigError, match=f"^{tmp_path / 'results.json'} could not be written, the disk is full \\(.* MB free\\)"
    ):
        outputs.replace_file(tmp_path / "results.json", b"newer")
    assert (tmp_path / "results.json").read_text() == "older" and [path.name for path in tmp_path.iterdir()] == [
        "results.json"
    ]


def test_what_a_run_writes_in_each_step_says_so_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with log.RunLog(tmp_path, 3) as run_log:
        full(tmp_path, "metrics.jsonl")
        with pytest.raises(ConfigError, match="metrics.jsonl could not be written, the disk is full"):
            run_log.step({"step": 1})
    write = samples._write_cards
    monkeypatch.setattr(
        samples,
        "_write_cards",
        lambda folder, *cards: write(folder, *cards) or full(folder, "one.jpg").write_bytes(b"1" * 9000),
    )
    with pytest.raises(ConfigError, match="step-000004 could not be written, the disk is full"):
        samples.save_samples(tmp_path, 4, [])
    assert not list((tmp_path / "samples").iterdir())  # nothing half drawn takes room either


def test_a_folder_that_takes_no_list_is_named(tmp_path: Path) -> None:
    (tmp_path / outputs.LIST).mkdir()
    with pytest.raises(ConfigError, match=f"^{tmp_path / outputs.LIST} could not be written \\(.*--output_dir"):
        outputs.leave(tmp_path / "results.json", b"ours")
    assert not (tmp_path / "results.json").exists()


def test_a_folder_that_is_gone_is_one_sentence_and_errors_that_are_not_of_the_disk_surface(tmp_path: Path) -> None:
    path = tmp_path / "no folder" / "results.json"
    with pytest.raises(
        ConfigError,
        match=f"^{path} could not be written \\(No such file or directory; [0-9,]+ MB free\\): see to its folder",
    ):
        outputs.replace_file(path, b"newer")
    with pytest.raises(OSError, match="cannot write mode"), outputs.enough_room(path):  # of Pillow
        Image.new("RGBA", (1, 1)).save(tmp_path / "a.jpg")


def test_a_folder_in_whose_place_there_is_a_file_is_one_sentence(tmp_path: Path) -> None:
    """Whoever writes into it: tables, pages, samples, and the finished parts of an evaluation."""
    (tmp_path / "eval").write_text("somebody's")
    for write in (
        lambda: eval_output.write_results(tmp_path / "eval", []),
        lambda: html_report.write_page(tmp_path / "eval" / "page.html", html_report.Page("title")),
        lambda: samples.save_samples(tmp_path / "eval", 1, []),
        lambda: Runner(folder=tmp_path / "eval" / "unfinished").map(lambda block: block, ["a"], ("one",)),
        lambda: log.RunLog(tmp_path / "eval", 3),
    ):
        with pytest.raises(
            ConfigError,
            match=f"^{tmp_path / 'eval'}.* could not be written \\((Not a directory|File exists); .* MB free\\): see to",
        ):
            write()
    assert (tmp_path / "eval").read_text() == "somebody's"


def test_what_a_killed_process_left_half_written_is_swept(tmp_path: Path) -> None:
    outputs.leave(tmp_path / "results.json", b"{}")
    for name in (".results.json.tmp", ".mine.tmp", ".tmp"):
        (tmp_path / name).write_text("half")
    (tmp_path / ".report.html.tmp").mkdir()
    outputs.claim(tmp_path, "report.html")
    outputs.sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.glob(".*")) == [".activeo3", ".mine.tmp", ".report.html.tmp", ".tmp"]


def test_only_a_file_of_ours_is_removed(tmp_path: Path) -> None:
    (tmp_path / "left-out.txt").write_text("a list of my own")
    outputs.remove(tmp_path / "left-out.txt")
    assert (tmp_path / "left-out.txt").exists()
    outputs.leave(tmp_path / "ours.txt", b"1")
    outputs.remove(tmp_path / "ours.txt")
    outputs.remove(tmp_path / "ours.txt")
    assert not (tmp_path / "ours.txt").exists()


# ---------------------------------------------------------------------- one run at a time

HOLDER = "import sys, time; from pathlib import Path; from activeo3 import outputs; outputs.lock(Path(sys.argv[1])); print('locked', flush=True); time.sleep(60)"


@pytest.fixture(autouse=True)
def nothing_stays_locked() -> Iterator[None]:
    yield
    outputs.unlock_all()


@contextmanager
def another_process(folder: Path) -> Iterator[subprocess.Popen]:
    """A process that has locked a folder, with words in its command that nobody would want on a terminal."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), "\x1b[31m\nred"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stdout.readline() == "locked\n"
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_folder_in_use_names_its_process_and_is_free_when_that_is_killed(tmp_path: Path) -> None:
    with another_process(tmp_path) as other:
        refused = outputs.lock_refusal(tmp_path)
        assert refused.startswith(f"{tmp_path} is in use by process {other.pid} on {os.uname().nodename} (-c ")
        assert refused.endswith("): wait until it ends, or choose another --output_dir.") and "since 20" in refused
        assert refused.isprintable()  # no escape, no line break
        assert outputs.in_use(tmp_path) and not outputs.died_silently(tmp_path)
        assert outputs.lock_refusal(tmp_path) == refused  # looking gives nobody the lock, and takes it from nobody
    assert not outputs.in_use(tmp_path)
    assert outputs.lock_refusal(tmp_path) == "" and (tmp_path / outputs.LOCK).read_text().startswith(f"{os.getpid()}\n")


def test_who_was_killed_has_died_silently_and_is_told_of_once(tmp_path: Path) -> None:
    assert not outputs.died_silently(tmp_path)
    with another_process(tmp_path):
        pass
    assert [outputs.died_silently(tmp_path) for _ in range(2)] == [True, False]
    outputs.lock(tmp_path)
    outputs.unlock_all()
    assert not outputs.died_silently(tmp_path)


def test_a_process_may_lock_a_folder_again_and_keeps_it_while_it_looks(tmp_path: Path) -> None:
    outputs.lock(tmp_path)
    outputs.lock(tmp_path / ".." / tmp_path.name)
    assert not outputs.in_use(tmp_path) and not outputs.in_use(tmp_path.parent)
    check = (
        f"from pathlib import Path; from activeo3 import outputs; print(outputs.lock_refusal(Path({str(tmp_path)!r})))"
    )
    run = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert f"is in use by process {os.getpid()} on " in run.stdout


def test_an_evaluation_inside_a_checkpoint_is_a_use_of_the_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "eval").mkdir()
    with another_process(tmp_path / "eval"):
        assert outputs.in_use(tmp_path)
        assert outputs.lock_refusal(tmp_path) == ""  # but not of the folder itself


def test_a_lock_file_that_was_removed_is_made_again(tmp_path: Path) -> None:
    outputs.lock(tmp_path)
    (tmp_path / outputs.LOCK).unlink()
    outputs.lock(tmp_path)
    assert (tmp_path / outputs.LOCK).read_text().startswith(f"{os.getpid()}\n")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_without_locks_there_is_one_warning(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def none(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", none)
    outputs.lock(tmp_path)
    outputs.lock(tmp_path)
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith(f"activeo3: {tmp_path} has no locks (") and "start no second run" in warning


def test_a_lock_file_of_a_stranger_leads_nowhere(tmp_path: Path) -> None:
    """A run folder from elsewhere may hold anything under the name of the lock, and a list that says that it is
    ours."""
    (tmp_path / ".activeo3").write_text(f"{outputs.LOCK}\n")
    precious = tmp_path / "precious"
    precious.write_text("text")
    lock = tmp_path / outputs.LOCK
    lock.symlink_to(precious)
    assert "cannot be opened" in outputs.lock_refusal(tmp_path) and precious.read_text() == "text"
    lock.unlink()
    os.mkfifo(lock)
    assert "is no regular file" in outputs.lock_refusal(tmp_path) and not outputs.in_use(tmp_path)


def test_a_file_of_that_name_that_is_not_ours_stays(tmp_path: Path) -> None:
    (tmp_path / outputs.LOCK).write_text("mine")
    with pytest.raises(ConfigError, match="was not written by activeo3"):
        outputs.lock(tmp_path)
    assert (tmp_path / outputs.LOCK).read_text() == "mine"


def test_a_process_that_is_being_stopped_still_holds_its_folder(tmp_path: Path) -> None:
    with another_process(tmp_path) as other:
        other.send_signal(signal.SIGSTOP)
        assert f"process {other.pid} " in outputs.lock_refusal(tmp_path)
        other.send_signal(signal.SIGCONT)
