"""Between the command line and a config: flags read from text, the help that a dataclass's source holds, and
what a flag names on disk."""

import ast
import inspect
import textwrap
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Literal, get_args, get_origin

from activeo3.data_io import read_json
from activeo3.terminal import OneLine

LARGEST = 1e30
"""The largest number that a flag takes: what is multiplied by a larger one overflows in single precision."""


class ConfigError(OneLine):
    """A flag that cannot be used, in one sentence that names it and says what to do."""


@cache
def field_docs(cls: type) -> dict[str, str]:
    """The text under every field of a config dataclass, parents included."""
    docs: dict[str, str] = {}
    for owner in reversed(cls.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0].body  # type: ignore[attr-defined]
        for statement, text in zip(body, body[1:]):
            if isinstance(statement, ast.AnnAssign) and isinstance(text, ast.Expr):
                docs[statement.target.id] = " ".join(text.value.value.split())  # type: ignore[attr-defined]
    return docs


def flag_help(doc: str, default: Any) -> str:
    """A field's text and its default value; argparse reads % as a format, so it is doubled."""
    plain = " ".join(map(str, default)) if isinstance(default, tuple) else default
    return f"{doc} [{plain}]".replace("%", "%%")


def read_flag(name: str, kind: Any, text: Any) -> Any:
    """A flag's text as its field's type."""
    if get_origin(kind) is tuple:
        return tuple(read_flag(name, get_args(kind)[0], word) for word in text)
    if get_origin(kind) is Literal:  # of words or of numbers; what is none of them is complained about by the config
        return next((choice for choice in get_args(kind) if str(choice) == text), text)
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ConfigError(f"--{name} is {text!r}; it takes true or false.")
        return text.lower() == "true"
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            raise ConfigError(
                f"--{name} is {text!r}; it takes {'a whole number' if kind is int else 'a number'}."
            ) from None
    return text


def read_object(path: Path, what: str) -> dict[str, Any]:
    """The JSON object of a settings file; ``what`` names the file in a complaint.

    Raises ConfigError for a file that is not there, cannot be read, or holds something else.
    """
    found = read_json(path, what, ConfigError)
    if not isinstance(found, dict):
        raise ConfigError(f"{what}: this holds no json object, it must begin with {{ and end with }}")
    return found


def writable_folder(path: Path) -> Path:
    """The folder of --output_dir, made if need be. Raises ConfigError if nothing can be written there."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise ConfigError(f"--output_dir {path} is no folder that can be written to: {error.strerror}.") from None
