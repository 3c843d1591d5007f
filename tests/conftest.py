"""What tests of several folders share."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lightning_modules.networks.rt4ksr import RT4KSR

ROOT = Path(__file__).resolve().parents[1]

_OUTER = (
    ("head.", "head.0."),
    ("hf_branch.", "hfb.0."),
    ("tail.", "tail.1."),
    ("tail_norm.", "tail.0."),
    ("upsample.", "upsample.0."),
)
_INNER = ((".rrb.", ".conv1."), (".expand.", ".expand_conv."), (".reduce.", ".reduce_conv."))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real test data named by SR_SHARED; tests that need it skip where it is missing."""
    folder = ROOT / os.environ.get("SR_SHARED", "../shared") / "data"
    if not folder.is_dir():
        pytest.skip(f"real test data not found at {folder}; set SR_SHARED to the folder that holds data/")
    return folder


@pytest.fixture(scope="session")
def released_form() -> Callable[[RT4KSR], dict[str, Any]]:
    """A network as the released code saves it: its tensors under other names."""
    return lambda network: {
        "epoch": 1,
        "state_dict": {f"module.{_released(name)}": tensor for name, tensor in network.state_dict().items()},
    }


def _released(name: str) -> str:
    for ours, theirs in _OUTER:
        if name.startswith(ours):
            name = theirs + name.removeprefix(ours)
            break
    for part in ("hfb.0.", "tail.1.", ".rrb."):
        name = name.replace(f"{part}conv.", f"{part}fea_conv.")
    for ours, theirs in _INNER:
        name = name.replace(ours, theirs)
    return name


class Handler(SimpleHTTPRequestHandler):
    """Serves ranges of files over HTTP; `server.misbehave(path, number of the request)` may name what goes wrong."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        with self.server.counting:
            self.server.requests += 1
            number = self.server.requests
        fault = self.server.misbehave(self.path, number)
        path = self.translate_path(self.path)
        if fault == "error":
            return self.send_error(500)
        if fault == "reset":
            return self.hang_up()
        if not os.path.isfile(path):
            return self.send_error(404)
        with open(path, "rb") as file:
            data = file.read()
        return self.answer(data, self.headers.get("Range"), fault)

    def answer(self, data, wanted, fault):
        status, first, last = 200, 0, len(data) - 1
        if wanted and fault != "no range":
            status, limits = 206, wanted.removeprefix("bytes=").split("-")
            first, last = int(limits[0]), min(int(limits[1]), last)
            if first > last:
                return self.send_error(416)
        body = data[first : last + 1]
        if fault == "flip":
            body = bytes([body[0] ^ 1]) + body[1:]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if fault == "cut" else body)
        return self.hang_up() if fault == "cut" else None

    def hang_up(self):
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def handle(self):
        try:
            super().handle()
        except (ConnectionError, ValueError):  # a client that was killed, a connection we closed
            self.close_connection = True

    def finish(self):
        try:
            super().finish()
        except (ConnectionError, ValueError):
            self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def serve() -> Iterator[Callable[..., tuple[str, ThreadingHTTPServer]]]:
    """serve(folder) -> (address, server) of a folder over HTTP."""
    servers = []

    def start(folder, misbehave=lambda path, number: ""):
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        server.daemon_threads = True
        server.requests, server.counting, server.misbehave = 0, threading.Lock(), misbehave
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}", server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
