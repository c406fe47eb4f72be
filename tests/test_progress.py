"""progress.py: how far, how long still; known work says nothing about the time of the rest."""

import io
import sys

import pytest

from activeo3 import progress
from activeo3.progress import Progress


def test_the_time_left_is_that_of_the_work_that_was_done(capsys: pytest.CaptureFixture) -> None:
    now = [0.0]
    counted = Progress(10, clock=lambda: now[0])
    counted.known(4)
    assert counted.left is None
    now[0] = 20.0
    counted.done(), counted.done()
    assert counted.left == 40.0 and capsys.readouterr().err == ""  # four questions of ten seconds each
    now[0] = 31.0
    counted.done()
    assert capsys.readouterr().err == "evaluating: 7 of 10 questions  ETA 0:31\n"
    counted.done()
    assert capsys.readouterr().err == ""  # not again so soon
    counted.say("a row")
    assert capsys.readouterr().out == "a row\n"


def test_ranks_count_together_and_the_estimate_becomes_exact() -> None:
    now = [0.0]
    counted = Progress(10, at_once=4, speaks=False, clock=lambda: now[0])
    now[0] = 8.0
    counted.done()
    assert counted.left == 8.0 / 4 * 6
    counted.arrived(3)  # there were only three
    assert counted.left == 8.0 / 3 * 7


def test_others_are_silent(capsys: pytest.CaptureFixture) -> None:
    now = [0.0]
    silent = Progress(2, speaks=False, clock=lambda: now[0])
    now[0] = 1e6
    silent.done(), silent.say("x"), silent.close()
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        isatty = lambda self: True  # noqa: E731

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    now = [0.0]
    shown = Progress(4, clock=lambda: now[0])
    now[0] = 90.0
    shown.done()
    shown.close()
    assert "evaluating" in terminal.getvalue() and "1/4" in terminal.getvalue() and "ETA 4:30" in terminal.getvalue()
    assert progress.EVERY > 1
