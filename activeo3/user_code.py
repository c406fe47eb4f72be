"""Code of the user's, which a flag names as ``FILE.py:NAME``: the only code beside this project's own that is run.

    --task_model my_detector.py:find    --reward my_reward.py:score    --task my_task.py:MyTask

A name is first looked up in the text of its file (``check``), so that a wrong one is answered before torch is imported.
The file is run when the object is needed (``load``), once in a process unless it changes, so that objects of one file
share its globals.
"""

import ast
import hashlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, Sequence, TypeVar

from activeo3.cli import ConfigError, did_you_mean

T = TypeVar("T")
PREFIX = "user_code_"
"""The names of the modules that such files become begin with it."""
_MODULES: dict[str, ModuleType] = {}
"""What has been run, by place and content."""


def parts_of(named: str) -> tuple[Path, str]:
    """The file and the name of ``FILE.py:NAME``."""
    path, _, name = named.rpartition(":")
    return Path(path).expanduser(), name


def digest(path: Path) -> str:
    """The SHA-256 of a file's content; "" if it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


# ---------------------------------------------------------------------- without running it


def check(flag: str, named: str) -> None:
    """Raise ConfigError if there is no such file, or it defines no such name. Nothing is run."""
    if not named.rpartition(":")[0].endswith(".py"):
        raise ConfigError(f"{flag} {named}: say what to take from the file, as {named.rstrip(':')}:NAME.")
    path, name = parts_of(named)
    known = _defined_in(f"{flag} {named}", path)
    if name not in known:
        there = ", ".join(known) or "nothing"
        raise ConfigError(f"{flag} {named}: {path} defines no {name!r}{did_you_mean(name, known)}; it defines {there}.")


def _defined_in(what: str, path: Path) -> list[str]:
    """The names of the functions, classes and values that a file defines, read from its text.

    Raises ConfigError, which begins with ``what``, if it is not there or is no Python.
    """
    try:
        body = ast.parse(path.read_bytes()).body
    except OSError:
        near = did_you_mean(path.name, [other.name for other in path.parent.glob("*.py")])
        raise ConfigError(f"{what}: there is no such Python file{near}.") from None
    except (SyntaxError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise ConfigError(f"{what}: this is no Python file ({first_line(error)}{line}).") from None
    return [name for statement in body for name in _names(statement)]


def _names(statement: ast.stmt) -> list[str]:
    """What one statement of a file defines, imports included."""
    match statement:
        case ast.FunctionDef() | ast.ClassDef():
            return [statement.name]
        case ast.ImportFrom() | ast.Import():
            return [alias.asname or alias.name.partition(".")[0] for alias in statement.names]
        case ast.Assign():
            return [target.id for target in statement.targets if isinstance(target, ast.Name)]
    return []


# ---------------------------------------------------------------------- running it


def load(flag: str, named: str) -> Any:
    """The object that ``FILE.py:NAME`` names. Raises ConfigError as ``check`` does, and if the file fails when run."""
    check(flag, named)
    path, name = parts_of(named)
    known = f"{path.resolve()} {digest(path)}"
    if known not in _MODULES:
        _MODULES[known] = run_file(f"{flag} {named}", path)
    return getattr(_MODULES[known], name)


def load_function(flag: str, named: str, parameters: Sequence[str]) -> Callable[..., Any]:
    """``load``, of a function that is called with these values; ``parameters`` say what they are.

    Raises ConfigError if it takes another number of them.
    """
    function, called = load(flag, named), f"{parts_of(named)[1]}({', '.join(parameters)})"
    if not callable(function):
        raise ConfigError(f"{flag} {named} is a {type(function).__name__}, and must be a function {called}.")
    try:
        taken = inspect.signature(function)
    except ValueError:  # a function of C says nothing of its parameters
        return function
    try:
        taken.bind(*parameters)
    except TypeError:
        raise ConfigError(
            f"{flag} {named} is called as {called}, and takes {taken}; give it these parameters."
        ) from None
    return function


def call(what: str, path: Path, function: Callable[..., T], *values: Any) -> T:
    """``function(*values)`` of a file of the user's. Raises ConfigError, ``what`` and its error in a few words, if it
    fails; torch's OutOfMemoryError is left to those who can ask for less."""
    try:
        return function(*values)
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":
            raise
        raise ConfigError(f"{what} fails ({told(error, path)}).") from error


def run_file(what: str, path: Path) -> ModuleType:
    """Run a Python file and return its module. Raises ConfigError, which begins with ``what``, if that is not
    possible."""
    _defined_in(what, path)
    spec = importlib.util.spec_from_file_location(f"{PREFIX}{path.stem}", path.resolve())
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where a dataclass looks for its module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"{what}: the file fails when it is run ({told(error, path)}).") from error
    return module


def defines(kind: type) -> bool:
    """Whether a class is one of the user's."""
    return kind.__module__.startswith(PREFIX)


def told(error: Exception, path: Path) -> str:
    """An error of a file's code in a few words, with the last line of the file that it went through."""
    lines, traced = [], error.__traceback__
    while traced:
        if traced.tb_frame.f_code.co_filename == str(path.resolve()):
            lines.append(traced.tb_lineno)
        traced = traced.tb_next
    where = f", line {lines[-1]}" if lines else ""
    return f"{type(error).__name__}: {first_line(error)}{where}"


def first_line(error: Exception) -> str:
    """The first line of an error's words."""
    return (str(error).splitlines() or [""])[0]
