"""Downloads the pictures of data sets that are lists of urls: in parallel, resumable, checked.

    python -m activeo3.data --fetch pixmo_count --data_root FOLDER

A picture lies under the SHA-256 that the data set gives for its content, and only there once that is right: what has
arrived so far has the ending ``.part``. So the same command again, after Ctrl-C, a kill or a lost connection, asks for
what is missing, from the byte at which it broke off where the server can do that.

A url that is dead for good (404, another content, a file above the limit) is written to ``unavailable.tsv`` with the
reason, and passed over from then on, unless ``retry`` asks for it again. What may work later (time-outs, 5xx, 429)
is tried TRIES times in a run and left for the next one.
"""

import fcntl
import hashlib
import http.client
import mimetypes
import os
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterator, NamedTuple, Sequence

import numpy as np
from tqdm import tqdm

from activeo3.data_io import DataError

CHUNK = 1 << 16
"""Bytes that are read at a time."""
TRIES = 3
PART = ".part"
UNAVAILABLE = "unavailable.tsv"
"""One line per dead url: SHA-256, url, reason."""
_LATER = (408, 425, 429, 500, 502, 503, 504)
"""HTTP statuses after which the same request may work."""


class Wanted(NamedTuple):
    """A file to have: the SHA-256 of its content in hexadecimal, and the urls it may be had from."""

    sha256: str
    urls: tuple[str, ...]


@dataclass(frozen=True)
class Limits:
    """``stall`` and ``seconds`` are seconds: without a byte, and for one file in one try. ``pause`` is what the first
    of the waits between two tries lasts; each is twice the one before."""

    workers: int = 16
    stall: float = 15.0
    seconds: float = 120.0
    max_bytes: int = 100 * 2**20
    pause: float = 1.0


class Fetched(NamedTuple):
    """How many files were there before, came now, and why the others did not: reason by SHA-256."""

    there: int
    new: int
    dead: dict[str, str]
    later: dict[str, str]


class _Dead(Exception):
    """A url will not give its file."""


class _Later(Exception):
    """A url did not give its file this time."""


class _Stopped(Exception):
    """The download was asked to stop."""


# ---------------------------------------------------------------------------- all files


def fetch(
    wanted: Sequence[Wanted],
    folder: Path,
    limits: Limits = Limits(),
    retry: bool = False,
    say: Callable[[str], None] = print,
) -> Fetched:
    """Downloads what is missing of ``wanted`` into ``folder`` and says what came of it.

    Raises DataError if the folder cannot be written to, or another download is writing to it.
    """
    with _alone_in(folder):
        there = {path.stem for path in folder.iterdir() if path.suffix != PART}
        known = {} if retry else _read_dead(folder / UNAVAILABLE)
        missing = [file for file in wanted if file.sha256 not in there and file.sha256 not in known]
        dead = {file.sha256: known[file.sha256] for file in wanted if file.sha256 in known and file.sha256 not in there}
        there_before = len(wanted) - len(missing) - len(dead)
        say(f"{folder}: {there_before:,} of {len(wanted):,} files are there, {len(dead):,} are known to be unavailable")
        new, later = 0, {}
        for file, problem in _outcomes(missing, folder, limits):
            if problem is None:
                new += 1
            elif isinstance(problem, _Dead):
                dead[file.sha256] = str(problem)
                _append(folder / UNAVAILABLE, f"{file.sha256}\t{file.urls[0]}\t{problem}\n")
            else:
                later[file.sha256] = str(problem)
    found = Fetched(there_before, new, dead, later)
    _summary(found, folder, say)
    return found


def _outcomes(missing: Sequence[Wanted], folder: Path, limits: Limits) -> Iterator[tuple[Wanted, Exception | None]]:
    """Every file with what was in its way, None if it is there now; in the order in which they are done."""
    # A random order, because neighbours in a list are often on one server; the same one on every run.
    order = np.random.default_rng(0).permutation(len(missing))
    stop = threading.Event()
    pool = ThreadPoolExecutor(limits.workers)
    running = {pool.submit(_one, missing[k], folder, limits, stop): missing[k] for k in order}
    try:
        with tqdm(total=len(missing), unit="file", disable=None if missing else True) as bar:
            for future in as_completed(running):
                try:
                    problem = future.result()
                except OSError as error:
                    raise DataError(
                        f"{folder}: a file cannot be written ({error}), make room or correct the rights"
                    ) from None
                bar.update()
                yield running[future], problem
    finally:  # after an interrupt the files under way end with what they have, and go on there next time
        stop.set()
        pool.shutdown(cancel_futures=True)


def _summary(found: Fetched, folder: Path, say: Callable[[str], None]) -> None:
    say(
        f"{found.new:,} files came, {len(found.dead):,} are unavailable, {len(found.later):,} may come when you try "
        "again"
    )
    for name, problems in (("unavailable", found.dead), ("not this time", found.later)):
        reasons = Counter(reason.rpartition(": ")[2] for reason in problems.values())
        for reason, count in reasons.most_common(5):
            example = next(text for text in problems.values() if text.endswith(reason))
            say(f"    {name}: {count:,} x {reason}, for example {example.removesuffix(reason).removesuffix(': ')}")
    if found.dead:
        say(f"    all of them, by url: {folder / UNAVAILABLE}")


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """The folder, made if need be, for one download at a time; the lock goes with the process."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / f"lock{PART}").open("w")
    except OSError as error:
        raise DataError(f"{folder}: the folder cannot be written to ({error.strerror}), correct its rights") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DataError(f"{folder}: another download is writing there, wait for it or stop it") from None
        yield


def _read_dead(path: Path) -> dict[str, str]:
    """Reason by SHA-256; a line that was cut off by a kill counts for nothing."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    rows = [line.rstrip("\n").split("\t") for line in lines if line.endswith("\n")]
    return {row[0]: row[2] for row in rows if len(row) == 3}


def _append(path: Path, line: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(line)


# ---------------------------------------------------------------------------- one file


def _one(file: Wanted, folder: Path, limits: Limits, stop: threading.Event) -> Exception | None:
    """Downloads a file from the first of its urls that gives it; None, or what is in the way. Raises OSError."""
    part = folder / f"{file.sha256}{PART}"
    problem: Exception | None = None
    for url in file.urls:
        for attempt in range(TRIES):
            if stop.is_set():
                return _Later(f"{url}: stopped")
            try:
                return _get(url, file.sha256, part, limits, stop)
            except _Dead as error:
                part.unlink(missing_ok=True)
                problem = problem if isinstance(problem, _Later) else error
                break
            except _Later as error:
                problem = error
                if attempt + 1 < TRIES:
                    stop.wait(limits.pause * 2**attempt)
            except _Stopped as error:
                return _Later(str(error))
    return problem


def _get(url: str, sha256: str, part: Path, limits: Limits, stop: threading.Event) -> None:
    """One try of one url. Raises _Dead, _Later, _Stopped, or OSError if the disk is at fault."""
    began_at = part.stat().st_size if part.is_file() else 0
    whole = began_at and _sha256(part) == sha256  # it was killed before it could be renamed
    ending = "" if whole else _receive(url, part, began_at, limits, stop)
    if whole or _sha256(part) == sha256:
        part.replace(part.with_name(f"{sha256}{ending}"))
        return
    part.unlink()
    if began_at:  # the file may have changed between two tries: once more from the start
        raise _Later(f"{url}: the two halves do not belong together")
    raise _Dead(f"{url}: the content is not that of the data set any more")


def _sha256(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _receive(url: str, part: Path, began_at: int, limits: Limits, stop: threading.Event) -> str:
    """Writes to ``part`` what is missing from byte ``began_at`` on; returns the ending of a file of this kind."""
    with _opened(url, part, began_at, limits) as response:
        goes_on = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {began_at}-")
        size = began_at if goes_on else 0
        length = response.headers.get("Content-Length", "")
        whole = size + int(length) if length.isdigit() else None
        deadline = time.monotonic() + limits.seconds
        with part.open("ab" if goes_on else "wb") as file:
            while True:
                if max(size, whole or 0) > limits.max_bytes:
                    file.truncate(0)
                    raise _Dead(f"{url}: the file is larger than {limits.max_bytes:,} bytes")
                if time.monotonic() > deadline:
                    raise _Later(f"{url}: not all of it came in {limits.seconds:g} seconds")
                if stop.is_set():
                    raise _Stopped(f"{url}: stopped")
                chunk = _read(response, url)
                if not chunk:
                    break
                file.write(chunk)
                size += len(chunk)
            file.flush()
            os.fsync(file.fileno())  # before it gets the name of a whole file
        # A connection that breaks looks like the end of the file; only the length tells.
        if whole is not None and size < whole:
            raise _Later(f"{url}: the connection broke")
        kind = response.headers.get_content_type()
    return (mimetypes.guess_extension(kind) or "") if kind.startswith("image/") else ""


def _read(response: http.client.HTTPResponse, url: str) -> bytes:
    """What has come of a file by now; nothing at its end."""
    try:
        return response.read1(CHUNK)
    except TimeoutError:
        raise _Later(f"{url}: the server stopped sending") from None
    except (OSError, http.client.HTTPException) as error:
        raise _Later(f"{url}: {_named(error)}") from None


def _opened(url: str, part: Path, began_at: int, limits: Limits) -> http.client.HTTPResponse:
    """The answer of the server. Raises _Dead or _Later if it has none that helps."""
    headers = {"User-Agent": "activeo3-fetch", "Accept-Encoding": "identity"}
    if began_at:
        headers["Range"] = f"bytes={began_at}-"
    quoted = urllib.parse.quote(url, safe="%/:=&?~#+!$,;'@()*[]")  # lists have spaces and umlauts in their urls
    try:
        return _OPENER.open(urllib.request.Request(quoted, headers=headers), timeout=limits.stall)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # the part is as long as the file, or longer
            part.unlink()
            raise _Later(f"{url}: the file has another length now") from None
        raise (_Later if error.code in _LATER else _Dead)(f"{url}: HTTP {error.code} {error.reason}") from None
    except TimeoutError:
        raise _Later(f"{url}: no answer in {limits.stall:g} seconds") from None
    except urllib.error.URLError as error:  # a reason in words: it is no url of the web; else the network's own error
        raise (_Dead if isinstance(error.reason, str) else _Later)(f"{url}: {_named(error.reason)}") from None
    except (OSError, http.client.HTTPException) as error:
        raise (_Dead if isinstance(error, http.client.InvalidURL) else _Later)(f"{url}: {_named(error)}") from None
    except ValueError as error:
        raise _Dead(f"{url}: this is no url ({error})") from None


def _named(error: object) -> str:
    """What went wrong in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _web_only() -> urllib.request.OpenerDirector:
    """An opener for http and https alone: a list from elsewhere must not make us read ``file://``."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler, urllib.request.UnknownHandler, urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler, urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler, urllib.request.HTTPErrorProcessor,
    ):  # fmt: skip
        opener.add_handler(handler())
    return opener


_OPENER = _web_only()
