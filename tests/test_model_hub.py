"""model_hub.py: a misspelt folder, a hub that does not answer, a model that it lacks, and a download that can be seen.

The hub is a server of ours that speaks its protocol; the library that asks is the hub's own.
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Iterator

import pytest

ROOT = Path(__file__).parent.parent
COMMIT = "a" * 40
MODEL = {"config.json": b'{"model_type": "qwen3_vl"}', "model.safetensors": b"weights", "README.md": b"a card"}


class Hub(BaseHTTPRequestHandler):
    """Has one model, owner/tiny; hangs up on owner/cut, and knows no other."""

    asked: list[str] = []

    def log_message(self, *words: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = self.path.partition("?")[0].strip("/")
        self.asked.append(f"{self.command} {path}")
        if path.startswith("owner/cut"):
            return self.connection.close()
        if path.startswith("api/models/owner/tiny/tree"):
            tree = [{"type": "file", "path": n, "size": len(c), "oid": "b" * 40} for n, c in MODEL.items()]
            return self.send(json.dumps(tree).encode())
        if path.startswith("api/models/owner/tiny"):
            about = {"id": "owner/tiny", "sha": COMMIT, "siblings": [{"rfilename": name} for name in MODEL]}
            return self.send(json.dumps(about).encode())
        content = MODEL.get(path.rpartition("/")[2]) if path.startswith("owner/tiny/") else None
        if content is None:
            missing = "EntryNotFound" if path.startswith("owner/tiny/") else "RepoNotFound"
            return self.send(b"", 404, {"X-Error-Code": missing, "X-Repo-Commit": COMMIT})
        return self.send(content, 200, {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'})

    def send(self, content: bytes, status: int = 200, headers: dict[str, str] = {}) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


PROGRAM = """
import sys, threading, time
from huggingface_hub import constants
from activeo3 import hub
from activeo3.model_files import ModelError
from activeo3.model_hub import check_there, download

for source in ("owner/cut", "owner/none", "data/tinyy"):
    began = time.monotonic()
    try:
        check_there(source)
    except ModelError as error:
        print(f"{time.monotonic() - began:.1f} {error}")
download("owner/tiny")
hub.why_not.cache_clear()
constants.ENDPOINT = constants.HUGGINGFACE_CO_URL_TEMPLATE = "http://127.0.0.1:9"
constants.HUGGINGFACE_CO_URL_TEMPLATE += "/{repo_id}/resolve/{revision}/{filename}"
check_there("owner/tiny")
print(constants.is_offline_mode())
"""


def test_the_hub_is_asked_once_and_a_download_is_seen(hub: str, tmp_path: Path) -> None:
    (tmp_path / "data" / "tiny").mkdir(parents=True)
    environment = os.environ | {"HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "cache")}
    environment |= {"PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_TELEMETRY": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    lines = ran.stdout.splitlines()
    assert ran.returncode == 0 and len(lines) == 4, ran.stderr
    seconds, cut = lines[0].split(" ", 1)
    assert cut.startswith("owner/cut: there is no such folder, and the hub cannot be reached") and float(seconds) < 1
    assert sum("owner/cut" in one for one in Hub.asked) == 1
    assert "owner/none: the hub has no model of this name" in lines[1]
    assert lines[2].endswith("the model folder data/tinyy does not exist; did you mean data/tiny?")
    assert not any("tinyy" in one for one in Hub.asked)
    snapshot = tmp_path / "cache" / "hub" / "models--owner--tiny" / "snapshots" / COMMIT
    assert {path.name: path.read_bytes() for path in snapshot.iterdir()} == {
        name: content for name, content in MODEL.items() if name != "README.md"
    }
    assert "2/2" in ran.stderr and "100%" in ran.stderr  # the bar
    assert lines[3] == "True"  # what is in the cache is used when the hub is gone
