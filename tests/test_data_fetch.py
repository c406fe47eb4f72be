"""data_fetch.py against a local server: dead, slow and broken urls, wrong contents, and a download that is killed."""

import hashlib
import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Iterator

import pytest
from PIL import Image

from activeo3 import data, data_fetch
from activeo3.data_fetch import PART, UNAVAILABLE, Fetched, Limits, Wanted, fetch
from activeo3.data_io import DataError

ROOT = Path(__file__).parent.parent
QUICK = Limits(workers=4, stall=0.3, seconds=0.7, max_bytes=300_000, pause=0.01)
BODIES = {
    f"/{kind}": kind.encode() * 30_000
    for kind in ("plain", "spoilt", "breaks", "stalls", "trickles", "refuses", "busy")
}
BODIES |= {"/huge": b"x" * 400_000, "/endless": b"y" * 400_000, "/moved": b"z" * 9, "/with space": b"umlaut" * 9}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Server(ThreadingHTTPServer):
    """Misbehaves by the path that it is asked for, and remembers what it was asked."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.asked: Counter[str] = Counter()
        self.ranges: dict[str, list[str | None]] = {}
        self.slow = threading.Event()  # set: what stalled, goes on
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


class Answer(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *words: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        path, server = self.path.replace("%20", " "), self.server
        server.asked[path] += 1
        wanted = self.headers.get("Range")
        server.ranges.setdefault(path, []).append(wanted)
        body, first = BODIES.get(path), server.asked[path] == 1
        if path == "/moved" and first:
            self.send_response(302)
            self.send_header("Location", "/moved")
            return self.end_headers()
        if path == "/to a file":
            self.send_response(302)
            self.send_header("Location", "file:///etc/hostname")
            return self.end_headers()
        if path == "/busy" and server.asked[path] < 3:
            return self.send_error(503)
        if body is None:
            return self.send_error(404)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and path != "/refuses" else 0
        if start >= len(body):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Type", "image/jpeg")
        if path != "/endless":
            self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        body = body[start:] if path != "/spoilt" else b"!" * len(body)
        if path in ("/breaks", "/refuses") and first:
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
        elif path == "/stalls" and not server.slow.is_set():
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            server.slow.wait(20)
        elif path == "/trickles":
            for byte in body:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(0.1)
        else:
            self.wfile.write(body)


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield running
    running.slow.set()
    running.shutdown()
    running.server_close()


def wanted(server: Server, *paths: str) -> list[Wanted]:
    return [Wanted(sha256(BODIES.get(path, path.encode())), (server.url + path,)) for path in paths]


def whole(folder: Path) -> set[str]:
    """The names of the files that look complete, each of which must be."""
    names = {path.name for path in folder.iterdir() if path.suffix != PART and path.name != UNAVAILABLE}
    for name in names:
        assert sha256((folder / name).read_bytes()) == name.split(".")[0], f"{name} looks complete and is not"
    return names


def test_good_dead_slow_broken_and_wrong_urls_in_one_list(tmp_path: Path, server: Server) -> None:
    good = ("/plain", "/breaks", "/refuses", "/busy", "/moved", "/with space")
    dead = {
        "/none": "HTTP 404",
        "/spoilt": "not that of the data set any more",
        "/huge": "larger than",
        "/endless": "larger than",
    }
    later = {"/stalls": "stopped sending", "/trickles": "not all of it came in 0.7 seconds"}
    said: list[str] = []
    found = fetch(wanted(server, *good, *dead, *later), tmp_path / "new" / "images", QUICK, say=said.append)
    assert (found.there, found.new) == (0, len(good))
    assert whole(tmp_path / "new" / "images") == {f"{sha256(BODIES[path])}.jpg" for path in good}
    for problems, kinds in ((found.dead, dead), (found.later, later)):
        assert {url.partition(": ")[0].removeprefix(server.url) for url in problems.values()} == set(kinds)
        assert all(words in problems[sha256(BODIES.get(path, path.encode()))] for path, words in kinds.items())
    assert server.asked["/none"] == server.asked["/spoilt"] == 1  # asking again would not help
    assert server.asked["/stalls"] == data_fetch.TRIES and server.asked["/busy"] == 3
    half = len(BODIES["/breaks"]) // 2
    assert server.ranges["/breaks"] == [None, f"bytes={half}-"] and server.ranges["/refuses"][0] is None
    assert "6 files came, 4 are unavailable, 2 may come when you try again" in said
    assert any("404 Not Found" in line and f"{server.url}/none" in line for line in said)


def test_a_second_run_asks_for_what_is_missing_alone(tmp_path: Path, server: Server) -> None:
    files = wanted(server, "/plain", "/none", "/stalls")
    fetch(files, tmp_path, QUICK, say=str)
    before, part = server.asked.copy(), tmp_path / f"{sha256(BODIES['/stalls'])}{PART}"
    kept = part.stat().st_size  # under a name that no reader takes for a picture; every try got half of the rest
    assert kept == len(BODIES["/stalls"]) * 7 // 8
    server.slow.set()
    said: list[str] = []
    found = fetch(files, tmp_path, QUICK, say=said.append)
    assert said[0] == f"{tmp_path}: 1 of 3 files are there, 1 are known to be unavailable"
    assert (found.there, found.new, len(found.dead), found.later) == (1, 1, 1, {})
    assert server.ranges["/stalls"][-1] == f"bytes={kept}-"
    assert server.asked - before == Counter({"/stalls": 1})
    assert len(whole(tmp_path)) == 2 and not part.exists()
    assert (tmp_path / UNAVAILABLE).read_text().count("\n") == 1
    with (tmp_path / UNAVAILABLE).open("a") as file:
        file.write(f"{files[0].sha256}\tcut of")  # as a kill leaves it
    assert fetch(files, tmp_path, QUICK, say=str).new == 0
    assert len(fetch(files, tmp_path, QUICK, retry=True, say=str).dead) == 1 and server.asked["/none"] == 2


def test_a_part_that_is_whole_too_long_or_of_another_file(tmp_path: Path, server: Server) -> None:
    for path, content in (
        ("/plain", BODIES["/plain"]),
        ("/with space", BODIES["/with space"] + b"more"),
        ("/breaks", b"other" * 40),
    ):
        (tmp_path / f"{sha256(BODIES[path])}{PART}").write_bytes(content)
    found = fetch(wanted(server, "/plain", "/with space", "/breaks"), tmp_path, QUICK, say=str)
    assert found.new == 3 and len(whole(tmp_path)) == 3 and server.asked["/plain"] == 0


def test_one_of_several_urls_is_enough(tmp_path: Path, server: Server) -> None:
    file = Wanted(sha256(BODIES["/plain"]), tuple(server.url + path for path in ("/none", "/spoilt", "/plain")))
    assert fetch([file], tmp_path, QUICK, say=str) == Fetched(0, 1, {}, {})


def test_only_the_web_is_read(tmp_path: Path, server: Server) -> None:
    """A list from elsewhere may name any file of this machine, directly or by way of a server."""
    secret = tmp_path / "secret"
    secret.write_text("mine")
    urls = (secret.as_uri(), f"{server.url}/to a file", "no url", "http://", "ftp://127.0.0.1/x")
    files = [Wanted(sha256(secret.read_bytes() + bytes([k])), (url,)) for k, url in enumerate(urls)]
    found = fetch(files, tmp_path / "images", QUICK, say=str)
    assert found.new == 0 and len(found.dead) == 5 and whole(tmp_path / "images") == set()


def test_nobody_is_there(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/x"
        found = fetch([Wanted("0" * 64, (url,))], tmp_path, QUICK, say=str)
    assert found.dead == {} and "refused" in found.later["0" * 64]


def test_folders_that_cannot_be_used(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file: the folder cannot be written to"):
        fetch([], tmp_path / "file", QUICK, say=str)
    with data_fetch._alone_in(tmp_path / "images"), pytest.raises(DataError, match="another download is writing there"):
        fetch([], tmp_path / "images", QUICK, say=str)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(data_fetch.os, "fsync", full)
    with pytest.raises(DataError, match="images: a file cannot be written .*No space left on device"):
        fetch(wanted(server, "/plain"), tmp_path / "images", QUICK, say=str)
    assert whole(tmp_path / "images") == set()


# ---------------------------------------------------------------------- the command


def picture(red: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), (red, 0, 0)).save(file, "PNG")
    return file.getvalue()


def counting_set(root: Path, rows: list[dict], split: str = "train") -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (root / "pixmo-count" / "data").mkdir(parents=True, exist_ok=True)
    parquet.write_table(
        pyarrow.Table.from_pylist(rows), root / "pixmo-count" / "data" / f"{split}-00000-of-00001.parquet"
    )


def row(url: str, content: bytes) -> dict[str, Any]:
    return {
        "image_url": url,
        "image_sha256": sha256(content),
        "count": 1,
        "points": {"x": [1.0], "y": [2.0]},
        "label": "cup",
    }


def test_a_killed_command_goes_on_where_it_was(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command itself, killed while it writes: no picture looks complete; again, and the data set can be read."""
    monkeypatch.setitem(BODIES, "/plain", picture(1))
    monkeypatch.setitem(BODIES, "/stalls", picture(2) + b"\0" * 50_000)  # Pillow reads what comes before
    rows = [row(server.url + path, BODIES[path]) for path in ("/plain", "/stalls")] + [
        row(f"{server.url}/none", b"gone")
    ]
    counting_set(tmp_path, rows)
    counting_set(tmp_path, rows[:1], "validation")
    counting_set(tmp_path, rows[:1], "test")
    command = [sys.executable, "-m", "activeo3.data", "--fetch", "pixmo_count", "--data_root", str(tmp_path)]
    images = tmp_path / "pixmo-count" / "images"
    part = images / f"{sha256(BODIES['/stalls'])}{PART}"
    half = len(BODIES["/stalls"]) // 2
    running = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    try:
        until = time.monotonic() + 30
        while len(whole(images) if images.is_dir() else ()) < 1 or not part.is_file():
            assert running.poll() is None and time.monotonic() < until
            time.sleep(0.05)
    finally:
        running.send_signal(signal.SIGKILL)
        running.wait()
    assert whole(images) == {f"{sha256(BODIES['/plain'])}.jpg"}
    server.slow.set()
    monkeypatch.setattr(data_fetch, "fetch", lambda *a, **k: fetch(*a, **(k | {"limits": QUICK})))
    data.main(["--fetch", "pixmo_count", "--data_root", str(tmp_path)])
    assert len(whole(images)) == 2 and server.asked["/plain"] == 1
    assert server.ranges["/stalls"][-1] in (f"bytes={half}-", None)  # what the kill left in memory is asked for again
    counted = data.open_dataset("pixmo_count", "train", str(tmp_path))
    assert counted[1].image.getpixel((0, 0)) == (2, 0, 0)
    with pytest.raises(DataError, match="missing, get it from http://127.0.0.1"):
        counted[2]


def test_what_cannot_be_fetched_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="vstar: its pictures are not a list of urls; --fetch is for pixmo_count"):
        data.main(["--fetch", "vstar", "--data_root", str(tmp_path)])
    with pytest.raises(DataError, match="there is neither train-.*parquet in pixmo-count/data or"):
        data.main(["--fetch", "pixmo_count", "--data_root", str(tmp_path)])
