"""How real runs begin and end: two commands in one folder, and a launcher that is killed. The small parts are in
test_processes.py."""

import os
import re
import runpy
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Callable

import pytest
from launch import rank_environment

from activeo3 import outputs
from activeo3.config import ConfigError, TrainConfig
from activeo3.eval_config import EvalConfig
from activeo3.log import read_rows

ROOT = Path(__file__).parent.parent
SMALL = (
    "--prompts", "1", "--micro_prompts", "1", "--group", "2", "--regions", "1", "--max_new_tokens", "32", "--task_max_new_tokens", "8",
    "--steps", "500", "--save_every", "500", "--samples_every", "0", "--eval_examples", "0",
)  # fmt: skip
PATIENCE = 240.0  # seconds; a test that waits for so long fails


def until(happened: Callable[[], object], what: str) -> None:
    """Return when something has happened."""
    end = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < end, f"{what} did not happen"
        time.sleep(0.1)


def of_run(folder: Path) -> list[int]:
    """The process ids of all that has a folder in its command line: launchers and workers."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += [int(path.parent.name)] if str(folder) in path.read_text() else []
        except OSError:
            continue  # it has just ended
    return found


def test_a_folder_has_one_run_which_ends_with_its_launcher_and_saves_the_step_in_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``deepspeed`` on two ranks. While it trains, a second run and an evaluation want its folder; then it is
    killed."""
    folder, said = tmp_path / "run", tmp_path / "said.txt"
    port = rank_environment(0, 2)["MASTER_PORT"]
    launcher = [
        sys.executable,
        str(Path(sys.executable).with_name("deepspeed")),
        "--num_accelerators",
        "2",
        "--master_port",
        port,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for name, value in rank_environment(0, 1).items():
        monkeypatch.setenv(name, value)  # of what is started in this process
    with said.open("w") as output:
        command = [*launcher, "train.py", "--output_dir", str(folder), *SMALL, "--save_on_exit", "true"]
        outer = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
    try:
        until(lambda: (folder / "metrics.jsonl").is_file() and read_rows(folder / "metrics.jsonl"), "the first step")
        rank_0 = int((folder / outputs.LOCK).read_text().split()[0])
        before = {path.name for path in folder.iterdir()}
        for script, config in (
            ("train", TrainConfig()),
            ("evaluate", EvalConfig(checkpoint=(str(ROOT / "data/tiny"),))),
        ):
            main = runpy.run_path(str(ROOT / f"{script}.py"), run_name=script)["main"]
            with pytest.raises(
                ConfigError, match=f"^{re.escape(str(folder))} is in use by process {rank_0} on .* since "
            ):
                main(replace(config, output_dir=str(folder)))
        assert {path.name for path in folder.iterdir()} == before
        assert len(of_run(folder)) == 4  # two launchers and two workers
        outer.send_signal(signal.SIGKILL)
        outer.wait()
        until(lambda: not of_run(folder), "the end of all workers")
    finally:
        for pid in of_run(folder):
            os.kill(pid, signal.SIGKILL)
    kept = folder / f"checkpoint-{read_rows(folder / 'metrics.jsonl')[-1]['step']}"
    assert (kept / "activeo3.json").is_file()
    sentences = re.findall(r"^activeo3: .*", said.read_text(), re.MULTILINE)
    assert sentences[-2:] == [
        "activeo3: the end of its launcher: the step in hand is finished first; a second Ctrl-C ends at once.",
        f"activeo3: ended by the end of its launcher; {kept} is kept, and the same command goes on from it.",
    ]
    assert "Traceback" not in said.read_text()
    assert (folder / outputs.LOCK).read_text() == ""
