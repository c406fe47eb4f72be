"""A file of the user's own prompts: ``--prompt_file my_prompts.toml``, or json, with templates that replace those of
prompts.py by name.

    python -m activeo3.prompt_file --wording paper > my_prompts.toml     # all templates, to be changed

    sensing = "Where in this photo could {object} be? Name {regions} as JSON, ..."

Placeholders are words in braces, as the template has them already; other braces are what they are, so that JSON can be
written as it is. Templates that the file leaves out stay as they are. How answers are read does not change with the
words: they must ask for the same form.
"""

import argparse
import json
import re
import string
from pathlib import Path
from typing import Any, Mapping, Sequence

from activeo3 import processes, terminal
from activeo3.cli import ConfigError, did_you_mean, read_object
from activeo3.prompts import EPISODE_WORDINGS, TEMPLATES

_PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*+)\}")
SUBJECTS = ("object", "question")
"""Placeholders without which a model is not told what to look for."""


def read_templates(path: Path) -> dict[str, str]:
    """The templates of a file by name, as ``str.format`` takes them.

    Raises ConfigError for a file that cannot be read, a template that does not exist, and a placeholder that it does
    not have, or lacks.
    """
    what = f"--prompt_file {path}"
    return {name: _checked(what, name, text) for name, text in _content(path, what).items()}


def _content(path: Path, what: str) -> Mapping[str, Any]:
    """What a toml or json file holds."""
    if path.suffix != ".toml":
        return read_object(path, what)
    import tomllib

    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{what} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise ConfigError(f"{what} is no toml: {error}.") from None


def _checked(what: str, name: str, text: Any) -> str:
    """One template, checked, with its literal braces doubled."""
    if name not in TEMPLATES:
        near = did_you_mean(name, TEMPLATES)
        raise ConfigError(f"{what}: there is no template {name!r}{near}; there are: {', '.join(TEMPLATES)}.")
    if not isinstance(text, str):
        raise ConfigError(f"{what}: {name} is a {type(text).__name__}, and must be a text.")
    used, known = _PLACEHOLDER.findall(text), set().union(*map(placeholders, TEMPLATES[name].values()))
    if strangers := [word for word in used if word not in known]:
        near, there = did_you_mean(strangers[0], known), ", ".join(f"{{{word}}}" for word in sorted(known)) or "none"
        raise ConfigError(f"{what}: {name} has no placeholder {{{strangers[0]}}}{near}; it can have: {there}.")
    needed = set(SUBJECTS).intersection(*map(placeholders, TEMPLATES[name].values()))
    if missing := needed - set(used):
        raise ConfigError(f"{what}: {name} must have {{{min(missing)}}}, or the model is not told what is asked for.")
    doubled = text.replace("{", "{{").replace("}", "}}")
    return re.sub(r"\{\{([A-Za-z_]\w*+)\}\}", r"{\1}", doubled)


def placeholders(template: str) -> set[str]:
    """The words in braces of a template.

    >>> placeholders('{object} as {{"label": 1}}')
    {'object'}
    """
    return {name for _, name, _, _ in string.Formatter().parse(template) if name}


def main(argv: Sequence[str] | None = None) -> None:
    """Print every template of a wording as a toml file."""
    parser = argparse.ArgumentParser(description="Print every prompt template as toml, to be changed.")
    parser.add_argument("--wording", choices=EPISODE_WORDINGS, default="paper", help="which wording to print [paper]")
    wording = parser.parse_args(argv).wording
    for name, texts in TEMPLATES.items():
        text = texts.get(wording, texts["paper"]).replace("{{", "{").replace("}}", "}")
        print(f"{name} = {json.dumps(text, ensure_ascii=False)}")


if __name__ == "__main__":
    terminal.protect()
    processes.watch()
    with processes.one_sentence(ConfigError):
        main()
