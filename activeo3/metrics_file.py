"""``metrics.jsonl``, a line of JSON per step: read, and cut back to the step that a run is continued from."""

import json
from collections import Counter
from pathlib import Path
from typing import Any, Sequence

from activeo3.cli import ConfigError
from activeo3.outputs import replace_file


def read_rows(path: Path | str) -> list[dict[str, Any]]:
    """The rows of a ``metrics.jsonl``; a half-written last line is left out.

    Raises ConfigError naming the line for any other line that is not JSON.
    """
    return [row for _, row in _whole_lines(Path(path))]


def cut(path: Path, first_step: int) -> str:
    """Drop the rows from ``first_step`` on; earlier ones stay as they are, byte for byte.

    Returns which of the steps 1, 2, ... before it have no row or several, or "" if each has one.
    Raises ConfigError for a line that is no row of a step.
    """
    kept, steps = [], []
    for line, row in _whole_lines(path) if path.exists() else []:
        if not isinstance(row, dict) or type(row.get("step")) is not int:
            raise ConfigError(f"{path} has a row without 'step': {line[:80]!r}; mend or delete the file.")
        if row["step"] < first_step:
            kept.append(line)
            steps.append(row["step"])
    if path.exists():
        replace_file(path, b"".join(kept))
    missing = sorted(set(range(1, first_step)) - set(steps))
    several = sorted(step for step, rows in Counter(steps).items() if rows > 1)
    wrong = [
        f"{what} {_ranges(found)}"
        for what, found in (("no row of step", missing), ("several rows of step", several))
        if found
    ]
    return (
        f"{path} has {' and '.join(wrong)}; the curves of this run have gaps or doubled steps there." if wrong else ""
    )


def _ranges(steps: Sequence[int]) -> str:
    """Ascending numbers with their runs drawn together.

    >>> _ranges([1, 2, 3, 7])
    '1–3, 7'
    """
    runs: list[list[int]] = []
    for step in steps:
        if runs and step == runs[-1][-1] + 1:
            runs[-1].append(step)
        else:
            runs.append([step])
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _whole_lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """The (bytes, row) of every line that ends in a newline; a torn last line is left out."""
    lines = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            break  # only the last line can lack it: the run was killed while writing it
        try:
            lines.append((line, json.loads(line)))
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path}, line {number} is not JSON: {line[:80]!r}; mend or delete the file.") from error
    return lines
