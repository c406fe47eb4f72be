"""How a process ends early: Ctrl-C, SIGTERM, a dead launcher, a dead rank; and copies of a process that can be ended.

Everything on disk can be cut off at any moment, so a process ends at once when it is asked to. A thread listens for
signals and ends the process by ``os._exit``: nothing that the main thread waits for (a collective, an image, C code)
delays it, and no library prints a traceback. One sentence names what is kept, and the exit code follows the shell's
convention: 128 plus the number of the signal. Only work inside ``held`` is finished first: a checkpoint that is being
written or, with ``--save_on_exit``, the current step.

A launcher of several processes passes no kill -9 on to them, and DeepSpeed's passes on nothing if only its outer
process is killed. So the thread also checks, once a second, whether the launchers above this process are alive.

``run_limited`` runs work that may never end in a copy of this process that can be ended.
"""

import json
import math
import os
import re
import resource
import select
import signal
import sys
import threading
import time
import warnings
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, NoReturn

from activeo3 import terminal

SIGNALS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGHUP: "SIGHUP"}
LAUNCHERS = {"deepspeed", "deepspeed.launcher.runner", "deepspeed.launcher.launch", "torchrun", "torch.distributed.run"}
"""Programs and modules that start one process for each GPU."""
_FROM_A_LAUNCHER = ("CROSS_SIZE", "TORCHELASTIC_RUN_ID")  # what DeepSpeed's and torch's leave in the environment
GONE = "the end of its launcher"
CHECK_EVERY = 1.0  # seconds
GRACE = 600.0  # seconds that held work may take after the launcher's death: nothing else would end the process
OF_LAUNCHER = 5.0  # seconds in which a launcher ends all processes after one has ended
_PEER_GONE = re.compile(
    r"gloo.*(closed by peer|reset by peer|broken pipe|socket closed)|NCCL.*(remote|abort|peer)", re.I | re.S
)


class _State:
    """The state of the end of this process. There is one, because signals belong to the whole process."""

    asked, why = 0, ""  # the signal that asked for the end, and its name
    interrupts = 0  # how often Ctrl-C was pressed
    held: list[str] = []  # what is finished before the end
    terminal = 2  # where the sentence goes, also while the libraries' chatter goes to a log
    leaving = threading.Lock()
    kept: Callable[[], str] = staticmethod(lambda: "the work had not begun")
    speaks: Callable[[], bool] = staticmethod(lambda: os.environ.get("RANK", "0") == "0")
    at_end: Callable[[], None] = staticmethod(lambda: None)


def watch() -> None:
    """From now on a signal, or the death of the launcher, ends this process as the module's docstring describes.

    An ignored signal stays ignored: under nohup, and Ctrl-C for a background process of a shell script.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda *_: None)  # the thread hears of it through the pipe, whatever this one does
    os.register_at_fork(after_in_child=_forget)
    _State.terminal = os.dup(2)
    chain = launchers()
    if not chain and os.getppid() == 1 and any(name in os.environ for name in _FROM_A_LAUNCHER):
        _ask(signal.SIGTERM, GONE)  # before this process could look for it
    threading.Thread(target=_listen, args=(reader, chain), name="end", daemon=True).start()


def tell(
    kept: Callable[[], str] | None = None,
    at_end: Callable[[], None] | None = None,
    speaks: Callable[[], bool] | None = None,
) -> None:
    """Set what the last sentence says is ``kept``, what is called ``at_end``, and whether this process prints at
    all."""
    _State.kept, _State.at_end, _State.speaks = kept or _State.kept, at_end or _State.at_end, speaks or _State.speaks


def asked() -> int:
    """The signal that asked this process to end inside ``held``; 0 if there was none."""
    return _State.asked


def why() -> str:
    """What asked this process to end, in words; "" if nothing has."""
    return _State.why


@contextmanager
def held(what: str) -> Iterator[None]:
    """A request to end inside the block takes effect after it, except a second Ctrl-C."""
    _State.held.append(what)
    try:
        yield
    finally:
        _State.held.pop()
    if _State.asked and not _State.held:
        leave()


def whole(steps: Iterable[int], really: bool) -> Iterator[int]:
    """The steps of a loop. If ``really``, a request to end takes effect after it; the loop checks ``asked``."""
    with held("the step in hand") if really else nullcontext():
        yield from steps


def leave(number: int = 0) -> NoReturn:
    """Print what is kept and end, with the exit code of the signal that asked this process, or another rank
    (``number``)."""
    if not _State.leaving.acquire(blocking=False):
        time.sleep(GRACE)  # the other thread is leaving
    number = _State.asked or number
    flush = threading.Thread(target=_flush, daemon=True)
    flush.start()
    flush.join(1.0)  # the reader of our output may have stopped
    if _State.speaks():
        say(f"ended by {_State.why or SIGNALS[signal.Signals(number)]}; {_State.kept()}.")
    _State.at_end()
    os._exit(128 + number if number else 1)


def say(sentence: str) -> None:
    """Write a sentence to the terminal that this process was started from, even while output is redirected."""
    start = "\n" if os.isatty(_State.terminal) else ""
    os.write(_State.terminal, f"{start}activeo3: {terminal.one_line(sentence)}\n".encode())


@contextmanager
def one_sentence(*known: type[Exception]) -> Iterator[None]:
    """The frame of a program: a known error ends it with its sentence and exit code 1, and so does the end of another
    rank."""
    try:
        yield
    except known as error:
        sys.exit(f"activeo3: {error}")
    except Exception as error:
        if not _State.asked and not _PEER_GONE.search(str(error)):
            raise
        _State.why = _State.why or "the end of another process of this run"
        time.sleep(OF_LAUNCHER)  # the launcher, or the signal that has ended the other process, ends this one now
        leave()
    finally:
        _State.at_end()


@contextmanager
def together(gather: Callable[[Any], list[Any]]) -> Iterator[None]:
    """An error of one rank inside the block is raised on all ranks after it; ``gather`` is Distributed.all_gather.

    For rank-local work: if one rank left it alone, the others would wait in the next collective.
    """
    stopped: terminal.OneLine | None = None
    try:
        yield
    except terminal.OneLine as error:
        stopped = error
    if first := next(filter(None, gather(stopped)), None):
        raise first from None


def launchers() -> list[int]:
    """The process ids from this process up to its outermost launcher, each the child of the next; [] without a
    launcher."""
    chain, found = [os.getpid()], 0
    while parent := _parent(chain[-1]):
        chain.append(parent)
        if _is_launcher(parent):
            found = len(chain)
    return chain[:found]


def _is_launcher(pid: int) -> bool:
    """Is a process one of LAUNCHERS, run by Python? A shell whose command line names it is not."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace").split("\0")
    except OSError:
        return False
    return "python" in Path(words[0]).name and any(Path(word).name in LAUNCHERS for word in words[1:4])


def _parent(pid: int) -> int:
    """The parent of a process; 0 if it has none, or where the system does not say."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0


def _listen(reader: int, chain: list[int]) -> None:
    """The thread that receives signals, and checks that the launchers are alive."""
    orphaned = 0.0
    while True:
        ready, _, _ = select.select([reader], [], [], CHECK_EVERY)
        for number in os.read(reader, 64) if ready else b"":
            if number in SIGNALS:
                _State.interrupts += number == signal.SIGINT
                _ask(number, SIGNALS[signal.Signals(number)])
        if any(_parent(child) != parent for child, parent in zip(chain, chain[1:])):
            orphaned = orphaned or time.monotonic()
            _ask(signal.SIGTERM, GONE)
            if time.monotonic() - orphaned > GRACE:
                leave()


def _forget() -> None:
    """Restore the default signals in a copy of this process."""
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def _ask(number: int, why: str) -> None:
    """End now, or note the request while something is held."""
    first = not _State.asked
    if first:
        _State.why = _State.why or why
        _State.asked = number
    if not _State.held or _State.interrupts > 1:
        leave()
    if first and _State.speaks():
        say(f"{why}: {_State.held[-1]} is finished first; a second Ctrl-C ends at once.")


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


# ---------------------------------------------------------------------- work that may never end

# A chat template of a model folder is a program. jinja2's sandbox denies it files, Python and ranges above 100,000, but
# allows nested loops and texts of any length.
LIMIT_SECONDS = 20.0
"""Time limit. A chat template takes a thousandth of a second."""
LIMIT_BYTES = 2**30
"""Memory limit, on top of what this process has."""


class Failed(Exception):
    """The work failed; the text is the reason, on one line."""


def run_limited(work: Callable[[], Any]) -> Any:
    """What ``work`` returns, a JSON value. Raises TimeoutError after LIMIT_SECONDS, Failed for any error or a dead
    copy.

    The copy has one thread and must not touch a GPU. A process that has reserved more memory than the machine has
    (DeepSpeed reserves some) cannot be copied: it does the work itself, without limits.
    """
    reading, writing = os.pipe()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12: this work needs no thread's locks
            child = os.fork()
    except OSError:
        os.close(reading), os.close(writing)
        return _unlimited(work)
    if not child:
        _write_result(work, writing)
    os.close(writing)
    try:
        with os.fdopen(reading, "rb") as answer:
            if not select.select([answer], [], [], LIMIT_SECONDS)[0]:
                raise TimeoutError
            content = answer.read()
    finally:
        os.kill(child, signal.SIGKILL)  # does nothing to one that has ended
        os.waitpid(child, 0)
    if not content:
        raise Failed("its process was ended")
    value, reason = json.loads(content)
    if reason:
        raise Failed(reason)
    return value


def _unlimited(work: Callable[[], Any]) -> Any:
    """``work`` in this process, with the same result and errors."""
    try:
        return json.loads(json.dumps(work()))
    except Exception as error:
        raise Failed(_reason(error)) from None


def _reason(error: BaseException) -> str:
    """An error in a line."""
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(":")[:200]


def _write_result(work: Callable[[], Any], writing: int) -> NoReturn:
    """In the copy: write the result or the error, and end without Python's own cleanup."""
    try:
        signal.set_wakeup_fd(-1)  # signals are the other process's matter
        _limit()
        answer = json.dumps([work(), ""])
    except BaseException as error:  # there is no caller that could see it
        answer = json.dumps([None, _reason(error)])
    with suppress(OSError):
        os.write(writing, answer.encode())
    os._exit(0)


def _limit() -> None:
    """Limit this process's CPU time, in case its parent dies, and on Linux its memory."""
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(LIMIT_SECONDS), math.ceil(LIMIT_SECONDS)))
    held = Path("/proc/self/statm")
    if held.exists():
        now = int(held.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + LIMIT_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
