"""processes.py: how a process ends. Real processes that import nothing else; test_endings.py ends real runs."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

import pytest

from activeo3 import processes

ROOT = Path(__file__).parent.parent
BEGIN = """
import os, signal, sys, time
sys.path.insert(0, %r)
from activeo3 import processes
processes.watch()
processes.tell(kept=lambda: "all is kept")
def ready(): os.write(1, b"ready\\n")
""" % str(ROOT)


@contextmanager
def running(program: str, *before: str, **environment: str) -> Iterator[subprocess.Popen]:
    """A process that has begun with ``program`` and says when it is ready; ``before`` are words before its command."""
    command = [*before, sys.executable, "-c", BEGIN + program]
    environment = {"PYTHONUNBUFFERED": ""} | environment
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment
    )
    try:
        assert process.stdout and process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait()


WAITS = "sys.stdout.write('not flushed'); ready(); time.sleep(60)"
SWALLOWS = """
class Late:
    def __del__(self): ready(); time.sleep(60)
sys.stdout.write('not flushed')
try: Late()
except BaseException: pass
time.sleep(60)
"""


@pytest.mark.parametrize(
    "number, name", [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM"), (signal.SIGHUP, "SIGHUP")]
)
@pytest.mark.parametrize("program", [WAITS, SWALLOWS], ids=["waits", "swallows exceptions"])
def test_a_signal_ends_a_process_with_one_sentence(program: str, number: int, name: str) -> None:
    with running(program) as process:
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert err == f"activeo3: ended by {name}; all is kept.\n" and out == "not flushed"


def test_only_rank_0_says_it() -> None:
    with running(WAITS, RANK="1") as process:
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=20)[1] == "" and process.returncode == 143


def test_what_nohup_ignores_stays_ignored() -> None:
    ignoring = ("sh", "-c", "trap '' HUP INT; exec \"$@\"", "sh")
    with running(WAITS, *ignoring) as process:
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=20)[1].startswith("activeo3: ended by SIGTERM;")


HOLDS = """
with processes.held("the file"):
    ready()
    while not processes.asked(): time.sleep(0.01)
    time.sleep(0.3)
    os.write(1, b"finished")
os.write(1, b"never")
"""


def test_what_is_held_is_finished_first() -> None:
    with running(HOLDS) as process:
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)  # as DeepSpeed's launcher adds one to the other
        out, err = process.communicate(timeout=20)
    first, last = err.splitlines()
    assert first.endswith(": the file is finished first; a second Ctrl-C ends at once.")
    assert last in ("activeo3: ended by Ctrl-C; all is kept.", "activeo3: ended by SIGTERM; all is kept.")
    assert out == "finished" and process.returncode in (130, 143)


def test_a_second_ctrl_c_ends_at_once() -> None:
    with running("with processes.held('the file'): ready(); time.sleep(60)") as process:
        process.send_signal(signal.SIGINT)
        assert process.stderr and "is finished first" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=20)[1] == "activeo3: ended by Ctrl-C; all is kept.\n"
    assert process.returncode == 130


FORKS = """
with processes.held("the file"):
    copy = os.fork()
    if not copy: time.sleep(60)
    ready()
    time.sleep(0.2)
    os.kill(copy, signal.SIGINT)
    os.write(1, b"%d" % os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1]))
    time.sleep(0.2)
os.write(1, b" and goes on")
"""


def test_a_signal_to_a_copy_is_none_to_the_process() -> None:
    """As processes.run_limited makes one."""
    with running(FORKS) as process:
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "-2 and goes on", "")


STARTS = "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))"


@pytest.mark.parametrize("killed", ["outer", "inner", "none"])
def test_a_process_ends_with_its_launchers_and_only_with_them(killed: str, tmp_path: Path) -> None:
    """As under DeepSpeed: a program that starts another, which starts the worker. A shell around them may end."""
    outer, inner = tmp_path / "deepspeed", tmp_path / "torchrun"
    for launcher in (outer, inner):
        launcher.write_text(STARTS)
    worker = BEGIN + "os.write(1, ' '.join(map(str, processes.launchers())).encode() + b'\\n'); time.sleep(60)"
    words = [sys.executable, str(outer), sys.executable, str(inner), sys.executable, "-c", worker]
    shell = ["sh", "-c", '"$@" & wait', "deepspeed train.py", *words]
    process = subprocess.Popen(shell, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout and process.stderr
    mine, its_parent, outermost = map(int, process.stdout.readline().split())
    try:
        process.kill() if killed == "none" else os.kill(outermost if killed == "outer" else its_parent, signal.SIGKILL)
        if killed == "none":
            time.sleep(2.5 * processes.CHECK_EVERY)
            os.kill(mine, 0)  # it is still there
        else:
            assert process.stderr.readline() == "activeo3: ended by the end of its launcher; all is kept.\n"
    finally:
        for pid in (outermost, its_parent, mine) if killed == "none" else ():
            os.kill(pid, signal.SIGKILL)
        process.kill()
        process.communicate(timeout=20)


@pytest.mark.parametrize(
    "error, code, words",
    [("ValueError('bad flag')", 1, "activeo3: bad flag\n"),
     ("RuntimeError('[/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1')", 1,
      "activeo3: ended by the end of another process of this run; all is kept.\n"),
     ("RuntimeError('a bug')", 1, "Traceback")],
    ids=["known", "another rank is gone", "unknown"],
)  # fmt: skip
def test_the_frame_of_a_program(error: str, code: int, words: str) -> None:
    program = f"ready(); processes.OF_LAUNCHER = 0.1\nwith processes.one_sentence(ValueError): raise {error}"
    with running(program) as process:
        _, err = process.communicate(timeout=20)
    assert process.returncode == code and err.startswith(words) and (err == words or "Traceback" in words)
