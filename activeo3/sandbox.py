"""Runs what may never end, or ask for all memory there is, in a copy of this process that can be ended.

A chat template of a model folder is a program. jinja2's sandbox keeps it from files and from Python, and allows no range of
more than 100,000, but loops inside of loops, and texts as long as they like.
"""

import json
import math
import os
import resource
import select
import signal
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable, NoReturn

SECONDS = 20.0
"""What the work may take. A chat template takes a thousandth of a second."""
BYTES = 2**30
"""How much more memory than this process it may have."""


class Failed(Exception):
    """Work came to nothing; the text says why, on one line."""


def limited(work: Callable[[], Any]) -> Any:
    """What ``work`` returns, a value of JSON. Raises TimeoutError after SECONDS, and Failed for any error or end of the process.

    The copy has one thread and must not touch a GPU. A process that has reserved more memory than the machine has (DeepSpeed
    reserves some) cannot be copied: it does the work itself, without limits.
    """
    reading, writing = os.pipe()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # Python 3.12 warns of threads, whose locks this work does not need
            child = os.fork()
    except OSError:
        os.close(reading), os.close(writing)
        return _unlimited(work)
    if not child:
        _answer(work, writing)
    os.close(writing)
    try:
        with os.fdopen(reading, "rb") as answer:
            if not select.select([answer], [], [], SECONDS)[0]:
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
    """``work`` in this process, with what its copy would have returned or raised."""
    try:
        return json.loads(json.dumps(work()))
    except Exception as error:
        raise Failed(_reason(error)) from None


def _reason(error: BaseException) -> str:
    """An error in a line."""
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(":")[:200]


def _answer(work: Callable[[], Any], writing: int) -> NoReturn:
    """In the copy: write the result or what went wrong, and end without any of what a Python program does at its end."""
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
    """Allow this process a time of the processor, so that it ends if nothing is there to end it, and BYTES more than there are
    now, where the system says how many there are (Linux)."""
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(SECONDS), math.ceil(SECONDS)))
    held = Path("/proc/self/statm")
    if held.exists():
        now = int(held.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
