"""Uploading a checkpoint, to a server that takes what the hub's own library sends."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Iterator

import pytest
from huggingface_hub import HfApi

from activeo3 import checkpoint_files, push
from activeo3.cli import ConfigError

FILES = (
    "config.json", "model.safetensors", "README.md", "activeo3.json", "adapters/adapter_config.json",
    "training_state/random-0.pt", "training_state/deepspeed/x_optim_states.pt", "training_state/zero_to_fp32.py",
    "deepspeed/old.pt", "random-0.pt", ".activeo3.lock",
)  # fmt: skip


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's API that an upload of small files uses."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append((self.path, body))  # type: ignore[attr-defined]
        if self.path == "/api/repos/create":
            return self._say({"url": "https://huggingface.co/me/model", "name": "me/model", "id": "1"})
        if "/preupload/" in self.path:
            files = [file["path"] for file in json.loads(body)["files"]]
            kinds = [{"path": path, "uploadMode": "regular", "shouldIgnore": False, "oid": None} for path in files]
            return self._say({"files": kinds})
        self._say({"commitUrl": "https://huggingface.co/me/model/commit/1", "commitOid": "1" * 40, "success": True})

    def do_GET(self) -> None:
        self._say({"id": "me/model", "sha": "0" * 40, "siblings": []})

    def _say(self, content: Any) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / "checkpoint-4" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "checkpoint-4" / name).write_text(json.dumps({"name": name}))
    checkpoint_files.seal(tmp_path / "checkpoint-4", checkpoint_files.alone, writes=True)
    (tmp_path / "best").symlink_to("checkpoint-4")
    return tmp_path / "best"


def test_the_states_of_a_run_stay_here(checkpoint: Path, hub: ThreadingHTTPServer) -> None:
    api = HfApi(endpoint=f"http://127.0.0.1:{hub.server_port}", token="hf_x")
    assert push.push(checkpoint, "me/model", api=api).endswith("/me/model")
    asked: list[tuple[str, bytes]] = hub.asked  # type: ignore[attr-defined]
    assert asked[0][0] == "/api/repos/create" and json.loads(asked[0][1])["name"] == "model"
    (commit,) = (body for path, body in asked if "/commit/" in path)
    sent = {}
    for line in map(json.loads, commit.splitlines()):
        if line["key"] == "file":
            sent[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
    wanted = {"config.json", "model.safetensors", "README.md", "activeo3.json", "adapters/adapter_config.json"}
    assert set(sent) == wanted | {"digests.json"}
    assert all(data == (checkpoint / name).read_bytes() for name, data in sent.items())


def test_what_is_not_uploaded_is_a_sentence(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no checkpoint: it has no config.json"):
        push.push(tmp_path, "me/model")
    with pytest.raises(ConfigError, match="a/b/c is no hub id: write NAME/MODEL"):
        push.push(checkpoint, "a/b/c")
    with pytest.raises(ConfigError, match="usage: python -m activeo3.push CHECKPOINT HUB_ID"):
        push.main([str(checkpoint)])
    (checkpoint / "model.safetensors").write_text("other")
    with pytest.raises(ConfigError, match="model.safetensors is damaged: .*; it is not uploaded"):
        push.push(checkpoint, "me/model")


def test_a_hub_that_cannot_be_reached_is_a_sentence(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="could not be uploaded to me/model: ") as caught:
        push.push(checkpoint, "me/model", api=HfApi(endpoint="http://127.0.0.1:9"))
    assert "\n" not in str(caught.value)
