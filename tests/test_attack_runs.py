"""A small version of tests/attack/kills.py and disks.py: the real command, in forks, killed and without its disk."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Killed in writing a row; no room for the last file of the first checkpoint; killed before that has its name; killed as
# an old one is removed; a closed folder at the end. Each time the same command goes on.
WORK = """
from tests.attack.disks import Harm, faults_on_a_disk, refusal
from tests.attack.kills import Kill
from tests.attack.trials import Trial, attack

kills = "half open metrics.jsonl", "os.rename building-checkpoint-1", "os.remove building-checkpoint-1/model.safetensors"
harms = "full torch.save building-checkpoint-1/training_state/random-0.pt", "closed open .results.json.tmp"
(row, rename, removal), (full, closed) = map(Kill.read, kills), map(Harm.read, harms)
disk = () if refusal() else (full,)
attack("runs", [Trial("two steps", (row, *disk, rename, removal, closed))], faults_on_a_disk)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="file operations are watched through /proc")
def test_a_run_that_is_killed_and_loses_its_disk_is_the_run_that_nothing_disturbed() -> None:
    """In a process of its own, since it forks."""
    said = subprocess.run([sys.executable, "-c", WORK], cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert said.stdout.endswith("runs 1 0\n"), said.stdout + said.stderr
