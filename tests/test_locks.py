"""locks.py: one process at a time in a folder, named to the others, and nothing left behind by one that was killed."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

import pytest

from activeo3 import locks
from activeo3.cli import ConfigError

ROOT = Path(__file__).parent.parent
HOLDER = "import sys, time; from pathlib import Path; from activeo3 import locks; locks.take(Path(sys.argv[1])); print('locked', flush=True); time.sleep(60)"


@pytest.fixture(autouse=True)
def nothing_stays_locked() -> Iterator[None]:
    yield
    locks.release()


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
        refused = locks.refusal(tmp_path)
        assert refused.startswith(f"{tmp_path} is in use by process {other.pid} on {os.uname().nodename} (-c ")
        assert refused.endswith("): wait until it ends, or choose another --output_dir.") and "since 20" in refused
        assert refused.isprintable()  # no escape, no line break
        assert locks.in_use(tmp_path) and not locks.died_silently(tmp_path)
        assert locks.refusal(tmp_path) == refused  # looking gives nobody the lock, and takes it from nobody
    assert not locks.in_use(tmp_path)
    assert locks.refusal(tmp_path) == "" and (tmp_path / locks.LOCK).read_text().startswith(f"{os.getpid()}\n")


def test_who_was_killed_has_died_silently_and_is_told_of_once(tmp_path: Path) -> None:
    assert not locks.died_silently(tmp_path)
    with another_process(tmp_path):
        pass
    assert [locks.died_silently(tmp_path) for _ in range(2)] == [True, False]
    locks.take(tmp_path)
    locks.release()
    assert not locks.died_silently(tmp_path)


def test_a_process_may_lock_a_folder_again_and_keeps_it_while_it_looks(tmp_path: Path) -> None:
    locks.take(tmp_path)
    locks.take(tmp_path / ".." / tmp_path.name)
    assert not locks.in_use(tmp_path) and not locks.in_use(tmp_path.parent)
    check = f"from pathlib import Path; from activeo3 import locks; print(locks.refusal(Path({str(tmp_path)!r})))"
    run = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert f"is in use by process {os.getpid()} on " in run.stdout


def test_an_evaluation_inside_a_checkpoint_is_a_use_of_the_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "eval").mkdir()
    with another_process(tmp_path / "eval"):
        assert locks.in_use(tmp_path)
        assert locks.refusal(tmp_path) == ""  # but not of the folder itself


def test_a_lock_file_that_was_removed_is_made_again(tmp_path: Path) -> None:
    locks.take(tmp_path)
    (tmp_path / locks.LOCK).unlink()
    locks.take(tmp_path)
    assert (tmp_path / locks.LOCK).read_text().startswith(f"{os.getpid()}\n")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_without_locks_there_is_one_warning(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def none(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", none)
    locks.take(tmp_path)
    locks.take(tmp_path)
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith(f"activeo3: {tmp_path} has no locks (") and "start no second run" in warning


def test_a_lock_file_of_a_stranger_leads_nowhere(tmp_path: Path) -> None:
    """A run folder from elsewhere may hold anything under the name of the lock, and a list that says that it is ours."""
    (tmp_path / ".activeo3").write_text(f"{locks.LOCK}\n")
    precious = tmp_path / "precious"
    precious.write_text("text")
    lock = tmp_path / locks.LOCK
    lock.symlink_to(precious)
    assert "cannot be opened" in locks.refusal(tmp_path) and precious.read_text() == "text"
    lock.unlink()
    os.mkfifo(lock)
    assert "is no regular file" in locks.refusal(tmp_path) and not locks.in_use(tmp_path)


def test_a_file_of_that_name_that_is_not_ours_stays(tmp_path: Path) -> None:
    (tmp_path / locks.LOCK).write_text("mine")
    with pytest.raises(ConfigError, match="was not written by activeo3"):
        locks.take(tmp_path)
    assert (tmp_path / locks.LOCK).read_text() == "mine"


def test_a_process_that_is_being_stopped_still_holds_its_folder(tmp_path: Path) -> None:
    with another_process(tmp_path) as other:
        other.send_signal(signal.SIGSTOP)
        assert f"process {other.pid} " in locks.refusal(tmp_path)
        other.send_signal(signal.SIGCONT)
