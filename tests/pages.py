"""The pages that a reader sees, and what their text holds: code blocks, commands, words between backticks."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [README, *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("data/**/README.md")), *sorted(ROOT.glob("tests/*/README.md"))]
}  # fmt: skip
"""The text of every page by its path."""


def code_lines(text: str) -> list[str]:
    """The lines of code blocks, fenced or indented, without their indentation of four."""
    fenced, lines = False, []
    for line in text.splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            lines.append(line if fenced else line[4:])
    return lines


def commands(text: str) -> list[list[str]]:
    """Every command of the code blocks, in words; comments and ``&&`` are taken apart."""
    found = []
    for line in code_lines(text):
        for part in re.split(r"&&", re.sub(r"\s#.*", "", line)):
            if re.match(r"\s*(pip|deepspeed|python3?|pytest)\b", part):
                found.append(shlex.split(part))
    return found


def inline_code(text: str) -> list[str]:
    """What stands between backticks in prose, also across a line break."""
    prose = "\n".join(line for line in text.splitlines() if not line.startswith("    "))
    return [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose)]
