"""Whether two runs of one command left the same: every file, and in it everything that is no clock and no memory."""

import json
import re
from pathlib import Path
from typing import Any

import torch

_OF_THE_MACHINE = ("time/", "memory_gb", "seconds")


def differences(folder: Path, wanted: Path) -> list[str]:
    """What is not the same in two output folders, a sentence each; leftovers are among it."""
    names, expected = names_in(folder), names_in(wanted)
    found = [f"{name} is left over" for name in sorted(names - expected)]
    found += [f"{name} is missing" for name in sorted(expected - names)]
    return found + [
        f"{name} differs"
        for name in sorted(names & expected)
        if not _same(_content(folder / name), _content(wanted / name))
    ]


def names_in(folder: Path) -> set[str]:
    """All files and folders below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def _content(path: Path) -> Any:
    """What a file says that does not depend on the machine."""
    if path.is_dir() or path.name.startswith("libraries-"):  # every start adds to the libraries' log
        return None
    if path.suffix == ".pt":  # one value is pickled in several ways
        return torch.load(path, weights_only=False)
    content = path.read_bytes()
    match path.name:
        case ".activeo3":
            return {name for name in content.decode().splitlines() if (path.parent / name).is_file()}
        case "metrics.jsonl" | "evaluations.jsonl":
            return [_lasting(json.loads(line)) for line in content.splitlines()]
        case name if name in ("results.json", "report.json") or name.startswith("answers-"):  # they have seconds, too
            return _lasting(json.loads(content))
        case "digests.json":  # a card has the table with its seconds
            digests = json.loads(content)
            return {name: entry for name, entry in digests.items() if not name.endswith((".pt", "README.md"))}
    if path.suffix in (
        ".html",
        ".md",
        ".tex",
    ):  # they show seconds among other numbers, which are all in the files above
        return re.sub(rb"<svg.*?</svg>|[-\d.]+|\s+", b" ", content, flags=re.DOTALL)
    return content


def _lasting(value: Any) -> Any:
    """JSON without what the machine measured; order counts."""
    if isinstance(value, dict):
        return [
            (name, _lasting(part))
            for name, part in value.items()
            if not name.startswith(_OF_THE_MACHINE) and not name.endswith("/seconds")
        ]
    return [_lasting(part) for part in value] if isinstance(value, list) else repr(value)


def _same(a: Any, b: Any) -> bool:
    """Whether two nested values are equal, bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(_same, a, b))
    return type(a) is type(b) and (a == b or hasattr(a, "__dict__") and _same(vars(a), vars(b)))
