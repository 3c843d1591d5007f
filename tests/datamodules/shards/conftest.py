"""Images, packed shards, and a real HTTP server that can be told to misbehave."""

import os
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from datamodules.image_io import list_images
from datamodules.shards.plan import find_source, make_plan
from datamodules.shards.writer import Packing


def noise(height, width, seed):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def make_images(folder):
    """Twelve images of several formats, names and sizes."""
    (folder / "a.b").mkdir(parents=True)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(noise(60, 80, 0)).save(folder / "turned.jpg", exif=turned)
    Image.fromarray(noise(64, 48, 1)).save(folder / "a.b" / "two.dots.jpeg")
    Image.fromarray(noise(50, 70, 2)).save(folder / "a.b" / "with space é.png")
    Image.fromarray(noise(50, 51, 3)).save(folder / "z.webp", lossless=True)
    Image.fromarray(noise(40, 41, 4)).save(folder / "plain.bmp")
    Image.fromarray(noise(45, 46, 5)).save(folder / "a jpeg by content.png", "JPEG")
    for i in range(6):
        Image.fromarray(noise(48 + i, 64, 6 + i)).save(folder / f"{i}.png")
    return folder


def plan_of(folder, shard_bytes=25_000):
    paths = list_images(folder)
    sources = [find_source(path, path.relative_to(folder).as_posix()) for path in paths]
    return make_plan(str(folder), sources, shard_bytes)


def pack_folder(images, out, shard_bytes=25_000, progress=lambda count: None):
    with Packing(plan_of(images, shard_bytes), out) as packing:
        return packing.run(progress)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def images(tmp_path):
    return make_images(tmp_path / "images")


@pytest.fixture
def shards(images, tmp_path):
    pack_folder(images, tmp_path / "shards")
    return tmp_path / "shards"


@pytest.fixture
def packer():
    """The functions above, for tests that pack themselves."""
    return {"plan_of": plan_of, "pack": pack_folder, "contents": contents, "noise": noise}


class Handler(SimpleHTTPRequestHandler):
    """Serves ranges of files; `server.misbehave(path, number of the request)` may name what goes wrong."""

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
            return self.connection.close()
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
        return self.wfile.write(body[: len(body) // 2] if fault == "cut" else body)

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
def serve():
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
