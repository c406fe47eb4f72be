"""The examples in the docstrings, of every room that has some."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "activeo3"


@pytest.mark.parametrize("room", sorted(path.stem for path in PACKAGE.glob("*.py") if ">>> " in path.read_text()))
def test_the_examples_hold(room: str) -> None:
    results = doctest.testmod(import_module(f"activeo3.{room}"))
    assert results.attempted > 0 and results.failed == 0
