"""Between the command line and a config: the dataclass is the command line, and its source holds the help.

A field ``group`` is the flag ``--group``, the text under it is its help, the comment ``# ---- heading`` above it names
its part of the help. Under a heading that ends with ``--FLAG`` the fields have that flag together: ``--FLAG tile=0
absent=0.2``. Nothing here imports torch, so a wrong flag is answered within a second.
"""

import argparse
import ast
import dataclasses
import difflib
import inspect
import os
import re
import shutil
import sys
import textwrap
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Collection, Iterable, Literal, Mapping, NamedTuple, NoReturn, Sequence, get_args, get_origin

from activeo3 import processes, terminal
from activeo3.data_io import read_json
from activeo3.terminal import OneLine

LARGEST = 1e30
"""The largest number that a flag takes: what is multiplied by a larger one overflows in single precision."""


class ConfigError(OneLine):
    """A flag that cannot be used, in one sentence that names it and says what to do."""


def read_command_line(cls: Any, known: Mapping[str, Collection[str]]) -> Any:
    """The config of a script, read before anything slow is imported; a wrong flag ends the program with its
    sentence."""
    terminal.protect()
    processes.watch()
    with processes.one_sentence(OneLine):
        config = cls.from_args(known=known)
    if os.environ.get("RANK", "0") == "0":
        print("activeo3: loading torch and transformers takes some seconds", file=sys.stderr, flush=True)
    return config


def check_known(flag: str, names: Iterable[str], known: Collection[str]) -> None:
    """Raise ConfigError, with the nearest known name, for names that are not known; ``name:split`` counts as
    ``name``."""
    if strangers := [name for name in names if name.partition(":")[0] not in known]:
        near = did_you_mean(strangers[0], known)
        raise ConfigError(f"--{flag} {' '.join(strangers)} is not known{near}; there are: {', '.join(known)}.")


def refuse(rules: Mapping[str, Any]) -> None:
    """Raise ConfigError with the first sentence, written without its full stop, whose condition is true."""
    for sentence, wrong in rules.items():
        if wrong:
            raise ConfigError(f"{sentence}.")


def check_regex(flag: str, text: str) -> None:
    """Raise ConfigError if a text is no regular expression."""
    try:
        re.compile(text)
    except re.error as error:
        raise ConfigError(f"{flag} {text!r} is no regular expression: {error}.") from None


def did_you_mean(name: str, known: Iterable[str], dashes: str = "") -> str:
    """`` (did you mean NAME?)`` with the nearest known name, or nothing if none is near.

    >>> did_you_mean("stepz", ["lr", "steps"], "--")
    ' (did you mean --steps?)'
    """
    near = difflib.get_close_matches(name, list(known), 1, 0.61)
    return f" (did you mean {dashes}{near[0]}?)" if near else ""


# ---------------------------------------------------------------------- a dataclass as a command line


@dataclass(frozen=True)
class Range:
    """Limits of a number, as ``Annotated[int, Range(1)]``; with ``open`` the lower one is excluded."""

    low: float
    high: float = LARGEST
    open: bool = False

    def check(self, flag: str, value: float) -> None:
        """Raise ConfigError unless the value lies in the range."""
        if (self.low < value if self.open else self.low <= value) and value <= self.high:
            return
        least = f"above {self.low}" if self.open else f"at least {self.low}"
        limits = least if self.high == LARGEST else f"{least} and at most {self.high}"
        raise ConfigError(f"{flag} is {value}; it must be {limits}.")


OR_CODE = "or FILE.py:NAME"
"""Marks a field whose value may also name code of the user's (user_code.py): ``Annotated[Literal[...], OR_CODE]``."""


def is_code(value: Any) -> bool:
    """Whether a value names code of the user's, or at least its file.

    >>> is_code("my_detector.py:find"), is_code("coco:val")
    (True, False)
    """
    return str(value).partition(":")[0].endswith(".py")


class Field(NamedTuple):
    """A field of a config as a flag: ``kind`` is the type of one value, ``limits`` its ranges, ``doc`` the text under
    it.

    ``or_code`` says that a value that is none of its choices may name code of the user's. ``joint`` is the flag of
    several rarely changed fields, "" for a flag of its own.
    """

    name: str
    kind: Any
    many: bool
    choices: tuple[Any, ...]
    or_code: bool
    limits: tuple[Range, ...]
    default: Any
    doc: str
    group: str
    joint: str

    @property
    def flag(self) -> str:
        """How a sentence names the field: ``--group``, or ``--data_options tile``."""
        return f"--{self.joint} {self.name}" if self.joint else f"--{self.name}"


@cache
def fields_of(cls: type) -> dict[str, Field]:
    """The fields of a config dataclass, parents included, with the text under each and the heading above it (``# ----
    heading``)."""
    docs, groups = {}, {}
    for owner in reversed(cls.__mro__[:-1]):
        lines, first = inspect.getsourcelines(owner)
        body = ast.parse(textwrap.dedent("".join(lines))).body[0].body  # type: ignore[attr-defined]
        for statement, text in zip(body, body[1:]):
            if isinstance(statement, ast.AnnAssign) and isinstance(text, ast.Expr):
                name = statement.target.id  # type: ignore[attr-defined]
                docs[name] = " ".join(text.value.value.split())  # type: ignore[attr-defined]
                above = [line for line in lines[: statement.lineno] if line.startswith("    # ---- ")]
                groups[name] = above[-1][11:].strip() if above else groups.get(name, "")
    return {field.name: _field(field, docs[field.name], groups[field.name]) for field in dataclasses.fields(cls)}


def flags_of(cls: type) -> list[str]:
    """The names of all flags of a config, without dashes, in the order of the help."""
    return list(dict.fromkeys(field.joint or field.name for field in fields_of(cls).values()))


def _field(field: dataclasses.Field, doc: str, heading: str) -> Field:
    group, _, joint = heading.partition(": --")
    many = get_origin(field.type) is tuple
    kind = get_args(field.type)[0] if many else field.type
    notes = getattr(kind, "__metadata__", ())
    kind = kind.__origin__ if notes else kind
    limits = tuple(note for note in notes if isinstance(note, Range))
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    return Field(field.name, kind, many, choices, OR_CODE in notes, limits, field.default, doc, group, joint)


def check_fields(config: Any) -> None:
    """Raise ConfigError for a value of a config that is none of its choices, or outside its range."""
    for field in fields_of(type(config)).values():
        for value in getattr(config, field.name) if field.many else [getattr(config, field.name)]:
            if field.choices and value not in field.choices and not (field.or_code and is_code(value)):
                known = list(map(str, field.choices))
                near = did_you_mean(str(value), known)
                raise ConfigError(f"{field.flag} is {value!r}; it can be one of: {', '.join(known)}{near}.")
            if isinstance(value, float) and not abs(value) <= LARGEST:
                raise ConfigError(f"{field.flag} is {value}; it must be a finite number of at most {LARGEST:g}.")
            for limit in field.limits:
                limit.check(field.flag, value)


def read_flags(cls: type, argv: Sequence[str] | None, everyday: Collection[str], epilog: str = "") -> dict[str, Any]:
    """The flags of a command line as values of the fields of ``cls``; those that are not given are left out.

    ``--help`` prints the ``everyday`` flags and ends the program, ``--help all`` prints all of them. Raises ConfigError
    for a flag that is not known and for a value that cannot be read.
    """
    fields, words = fields_of(cls), list(sys.argv[1:] if argv is None else argv)
    if {"--help", "-h"} & set(words):
        shown = flags_of(cls) if "all" in words else everyday
        _parser(cls, shown).print_help()
        print(f"\n{epilog}", *["--help all prints all flags."] * (shown is everyday), sep="\n")
        raise SystemExit(0)
    given, strangers = _parser(cls, ()).parse_known_args(words)
    for word in strangers:
        raise ConfigError(_no_flag(word.partition("=")[0], cls))
    values: dict[str, Any] = {}
    for flag, text in vars(given).items():
        if text is None or flag == "local_rank":
            continue
        values |= {flag: _read(fields[flag], text)} if flag in fields else _read_joint(cls, flag, text)
    return values


def _no_flag(word: str, cls: type) -> str:
    """The sentence about a word that is no flag."""
    name = word.lstrip("-")
    if field := fields_of(cls).get(name):
        return f"{word} is set by --{field.joint} {name}={field.default}."
    near = did_you_mean(name, flags_of(cls), "--") if word.startswith("-") else ""
    return f"{word} is no flag{near}; --help all lists them."


def _read_joint(cls: type, flag: str, texts: Sequence[str]) -> dict[str, Any]:
    """The fields that the ``NAME=VALUE`` words of a joint flag set."""
    known = {name: field for name, field in fields_of(cls).items() if field.joint == flag}
    pairs = [text.partition("=") for text in texts]
    check_known(flag, [name for name, *_ in pairs], known)
    if missing := [name for name, equals, _ in pairs if not equals and known[name].kind is not bool]:
        raise ConfigError(f"--{flag} {missing[0]} has no value: give {missing[0]}={known[missing[0]].default}.")
    return {name: _read_one(known[name], value if equals else "true") for name, equals, value in pairs}


class _Parser(argparse.ArgumentParser):
    """argparse, with a ConfigError in place of a page about the usage."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message.removeprefix('argument ')}; --help all lists all flags.")


class _Lines(argparse.HelpFormatter):
    """Help in which every option of a joint flag begins a line."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return [line for part in text.splitlines() for line in super(_Lines, self)._split_lines(part, width)]


def _parser(cls: type, shown: Collection[str]) -> argparse.ArgumentParser:
    """The parser of all flags of ``cls``, whose help has those that are shown, in their groups."""
    width = shutil.get_terminal_size().columns
    parser = _Parser(
        description=inspect.cleandoc(cls.__doc__ or ""),
        allow_abbrev=False,
        add_help=False,
        usage="%(prog)s [--FLAG VALUE ...]",
        formatter_class=lambda prog: _Lines(prog, max_help_position=30, width=width),
    )
    groups: dict[str, Any] = {}
    for flag in flags_of(cls):
        parts = [field for field in fields_of(cls).values() if (field.joint or field.name) == flag]
        field = parts[0]
        group = groups.get(field.group) or groups.setdefault(field.group, parser.add_argument_group(field.group))
        values = "NAME=VALUE" if field.joint else _values(field) or "X"
        many = field.many or field.joint
        count = {"nargs": "*"} if many else {"nargs": "?", "const": "true"} if field.kind is bool else {}
        text = _help(parts) if flag in shown else argparse.SUPPRESS
        group.add_argument(f"--{flag}", metavar=values, help=text, **count)
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # set by the deepspeed launcher
    return parser


def _values(field: Field) -> str:
    """The choices of a field, ``{square,aspect}``; "" if there are none."""
    return "{" + ",".join(map(str, field.choices)) + "}" if field.choices else ""


def _help(fields: Sequence[Field]) -> str:
    """The texts of a flag's fields with their default values; argparse reads % as a format, so it is doubled."""
    texts = []
    for field in fields:
        default = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        name = f"{field.name} {_values(field)}".rstrip() + ": " if field.joint else ""
        texts.append(f"{name}{field.doc} [{default}]")
    return "\n".join(texts).replace("%", "%%")


def _read(field: Field, text: Any) -> Any:
    """A flag's text as a value of its field."""
    return tuple(_read_one(field, word) for word in text) if field.many else _read_one(field, text)


def _read_one(field: Field, text: str) -> Any:
    """One word as a value. What is none of the choices is left to ``check_fields``."""
    if field.choices:
        return next((choice for choice in field.choices if str(choice) == text), text)
    if field.kind is bool:
        if text.lower() not in ("true", "false"):
            raise ConfigError(f"{field.flag} is {text!r}; it takes true or false.")
        return text.lower() == "true"
    if field.kind in (int, float):
        try:
            return field.kind(text)
        except ValueError:
            number = "a whole number" if field.kind is int else "a number"
            raise ConfigError(f"{field.flag} is {text!r}; it takes {number}.") from None
    return text


def numbers(flag: str, texts: Sequence[str]) -> dict[str, float]:
    """The numbers of ``NAME=NUMBER`` words by name; the last one counts. Raises ConfigError.

    >>> numbers("--reward_weights", ["format=0", "task=2", "task=1"])
    {'format': 0.0, 'task': 1.0}
    """
    found = {}
    for text in texts:
        name, _, number = text.partition("=")
        try:
            found[name] = float(number)
        except ValueError:
            raise ConfigError(f"{flag} {text!r}: give NAME=NUMBER, e.g. {flag} format=0 task=1.") from None
        if not abs(found[name]) <= LARGEST:
            raise ConfigError(f"{flag} {text}: it must be a finite number of at most {LARGEST:g}.")
    return found


# ---------------------------------------------------------------------- what flags name on disk


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
