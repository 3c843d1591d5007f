"""Stage 3 within a curation: who is judged, and what is kept of it."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from datamodules.curation.engine import curate_files
from datamodules.curation.journal import Journal
from datamodules.curation.measure import measure_image
from datamodules.curation.rubric import CRITERIA
from datamodules.curation.scan import scan
from datamodules.curation.settings import Curation, JudgeModel, PreliminaryBounds, QualityBounds


@pytest.fixture
def server():
    """A local endpoint that gives the next of `replies`, and notes how often it was asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            found.asked += 1
            message = {"role": "assistant", "content": found.replies.pop(0)}
            body = json.dumps({"choices": [{"message": message}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.replies, found.asked = [], 0
    thread = threading.Thread(target=found.serve_forever)
    thread.start()
    yield found
    found.shutdown()
    thread.join()
    found.server_close()


def reply(score, verdict="keep"):
    return json.dumps({"scores": dict.fromkeys(CRITERIA, score), "verdict": verdict, "reason": "so it is"})


@pytest.fixture
def curated(tmp_path, server, monkeypatch):
    """Curate three pictures of noise, a copy of the first and a small one; their verdicts, stages and details."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    generator = np.random.default_rng(0)
    for name, side in (("a", 96), ("b", 96), ("c", 96), ("small", 32)):
        pixels = generator.integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    (tmp_path / "copy.png").write_bytes((tmp_path / "a.png").read_bytes())

    def engine(tasks, settings, workers):
        for task in tasks:
            yield task, measure_image(task.file.path, task.file.relative, settings, task.known, task.judging)

    def curate(**judge):
        bounds = PreliminaryBounds(short_side=64, pixels=1, high_band=-1e9, near_duplicate_bits=-1)
        quality = QualityBounds(sharpness=0, noise=1, blockiness=1e9, saturated_share=1)
        address = f"http://127.0.0.1:{server.server_port}/v1"
        model = JudgeModel(endpoint=address, name="any", pause=0, attempts=1, **judge)
        settings = Curation(bounds, quality, judge=model)
        with Journal(tmp_path / "journal.jsonl", settings) as journal:
            rows = curate_files(scan(tmp_path, tmp_path / "out")[0], settings, journal, engine, 1)
        return {row["path"][:-4]: (row["stage"], row["reason"], row["detail"]) for row in rows}

    return curate


def test_what_survives_stages_1_and_2_is_judged_once(server, curated):
    server.replies = [reply(5), reply(2), reply(4, "drop")]
    first = curated()
    assert server.asked == 3
    assert first["a"] == (3, "", "")
    low = ", ".join(f"{name} 2" for name in CRITERIA)
    assert first["b"] == (3, "judge", f"{low}, least 3 (judge.least_score): so it is")
    assert first["c"] == (3, "judge", "so it is")
    assert first["copy"][:2] == (1, "exact_duplicate")
    assert first["small"][:2] == (1, "short_side")
    assert curated() == first
    assert curated(least_score=2)["b"] == (3, "", "")
    assert server.asked == 3


def test_who_could_not_be_judged_stays_and_is_asked_about_again(server, curated):
    server.replies = [reply(5), "no JSON", reply(5)]
    rows = curated()
    assert rows["b"][:2] == (2, "")
    assert rows["b"][2].startswith("not judged, asked 1 time: malformed reply")
    server.replies = [reply(1)]
    assert curated()["b"][:2] == (3, "judge")
    assert server.asked == 4
