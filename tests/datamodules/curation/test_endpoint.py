"""The judge behind an endpoint: a real HTTP server on this machine that answers well, badly, late or not at all."""

import base64
import io
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.curation.contact_sheet import contact_sheet
from datamodules.curation.rubric import CRITERIA, PROMPT
from datamodules.curation.settings import JudgeModel
from datamodules.curation.vision_judge import check_judge, judge

GOOD = json.dumps({"scores": dict.fromkeys(CRITERIA, 4), "verdict": "keep", "reason": "fine"})
DROP = json.dumps({"scores": dict.fromkeys(CRITERIA, 2), "verdict": "drop", "reason": "noisy"})
WRONG = json.dumps({"scores": dict.fromkeys(CRITERIA, 9), "verdict": "keep", "reason": "fine"})
TIMEOUT = 0.5
PIXELS = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


class Server(ThreadingHTTPServer):
    """Answers the requests with `script` in turn, its last entry for all that follow, and keeps what was asked.

    An entry is the model's text, a status, "slow", "dripping" (a byte now and then), "broken off", "no completion",
    "endless", or "plain only": status 400 to a request with response_format, else GOOD.
    """

    daemon_threads = True

    def __init__(self, *script):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.asked, self.paths, self.headers, self.times = script, [], [], [], []
        self.ended = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, *_):
        pass  # clients that gave up waiting are expected


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        entry = server.script[min(len(server.asked), len(server.script) - 1)]
        server.asked.append(body)
        server.paths.append(self.path)
        server.headers.append(dict(self.headers))
        server.times.append(time.monotonic())
        if entry == "slow":
            server.ended.wait(10 * TIMEOUT)
            entry = GOOD
        if entry in ("dripping", "endless"):
            return self.pour(b" " if entry == "dripping" else b" " * 200_000, TIMEOUT / 3 if entry == "dripping" else 0)
        if entry == "broken off":
            return self.connection.close()
        if entry == "plain only":
            entry = 400 if "response_format" in body else GOOD
        if isinstance(entry, int):
            said = {"error": f"status {entry} for {self.headers.get('Authorization')}"}
            return self.answer(entry, json.dumps(said))
        if entry == "no completion":
            return self.answer(200, "<html>welcome</html>")
        return self.answer(200, json.dumps({"choices": [{"message": {"role": "assistant", "content": entry}}]}))

    def pour(self, piece, pause):
        self.send_response(200)
        self.end_headers()
        while not self.server.ended.wait(pause):
            self.wfile.write(piece)

    def answer(self, status, text):
        self.send_response(status)
        if status == 302:
            self.send_header("Location", f"{self.server.url}/elsewhere")
        if status == 429:
            self.send_header("Retry-After", "1")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


def settings(server, **others):
    return JudgeModel(endpoint=server.url, name="tiny", timeout=TIMEOUT, pause=0.02, **others)


@pytest.mark.parametrize(
    ("script", "requests", "keep", "error"),
    [
        ([GOOD], 1, True, ""),
        ([f"<think>hm</think>```json\n{DROP}\n```"], 1, False, ""),
        (["I like it.", GOOD], 2, True, ""),
        ([WRONG, "no", DROP], 3, False, ""),
        ([WRONG], 3, None, 'malformed reply: score "sharpness" is 9'),
        ([None], 3, None, "malformed reply: the reply holds no JSON object"),
        (["slow"], 3, None, "did not answer within judge.timeout=0.5 s"),
        (["slow", GOOD], 2, True, ""),
        (["dripping", GOOD], 2, True, ""),
        (["dripping"], 3, None, "did not answer within judge.timeout=0.5 s"),
        (["endless", GOOD], 2, True, ""),
        ([500], 3, None, "answered with status 500"),
        ([500, GOOD], 2, True, ""),
        ([503, "slow", DROP], 3, False, ""),
        (["broken off", GOOD], 2, True, ""),
        (["broken off"], 3, None, "could not be reached or broke off"),
        (["no completion", GOOD], 2, True, ""),
        (["no completion"], 3, None, "no reply in the form of OpenAI's chat completions"),
        ([WRONG, 500, GOOD], 3, True, ""),
        ([401, GOOD], 1, None, "answered with status 401"),
        ([404, GOOD], 1, None, "answered with status 404"),
        ([302, GOOD], 1, None, "answered with status 302"),
        ([400, 400, GOOD], 2, None, "answered with status 400"),
    ],
    ids=lambda value: ",".join(str(part)[:12] for part in value) if isinstance(value, list) else None,
)
def test_verdict_errors_and_number_of_requests_follow_what_the_server_does(script, requests, keep, error):
    with Server(*script) as server:
        began = time.monotonic()
        judged = judge(PIXELS, settings(server))
        took = time.monotonic() - began
    assert len(server.asked) == requests
    assert judged.keep is keep
    if error:
        assert error in judged.error
        assert "\n" not in judged.error
        assert judged.scores == {}
    else:
        assert judged.error == ""
        assert judged.scores == dict.fromkeys(CRITERIA, 4 if keep else 2)
    assert took < 5


def test_the_server_is_sent_the_rubric_and_the_contact_sheet_losslessly():
    with Server(GOOD) as server:
        judge(PIXELS, settings(server))
    (body,) = server.asked
    assert server.paths == ["/v1/chat/completions"]
    assert (body["model"], body["temperature"], body["seed"]) == ("tiny", 0, 0)
    assert body["response_format"]["json_schema"]["strict"] is True
    (message,) = body["messages"]
    picture, text = message["content"]
    assert text == {"type": "text", "text": PROMPT}
    kind, _, data = picture["image_url"]["url"].partition(",")
    assert kind == "data:image/png;base64"
    sent = Image.open(io.BytesIO(base64.b64decode(data)))
    assert np.array_equal(np.asarray(sent), np.asarray(contact_sheet(PIXELS)))


def test_the_model_is_told_what_was_wrong_with_its_reply():
    with Server(WRONG, GOOD) as server:
        judge(PIXELS, settings(server))
    first, second = (body["messages"] for body in server.asked)
    assert second[0] == first[0]
    assert [message["role"] for message in second] == ["user", "assistant", "user"]
    assert second[1]["content"][0]["text"] == WRONG
    assert 'score "sharpness" is 9' in second[2]["content"][0]["text"]


def test_a_server_that_takes_only_the_plain_form_is_asked_so_from_then_on():
    with Server("plain only") as server:
        assert [judge(PIXELS, settings(server, attempts=1)).keep for _ in range(2)] == [True, True]
    assert ["response_format" in body for body in server.asked] == [True, False, False]
    assert all("seed" not in body and "temperature" not in body for body in server.asked[1:])


def test_pauses_double_and_the_servers_own_wish_is_granted():
    with Server(500) as server:
        judge(PIXELS, JudgeModel(endpoint=server.url, name="a", timeout=TIMEOUT, pause=0.1))
    first, second = np.diff(server.times)
    assert first >= 0.1
    assert second >= 0.2
    with Server(429, GOOD) as server:
        assert judge(PIXELS, settings(server)).keep
    assert np.diff(server.times)[0] >= 1


def test_no_server_at_all_is_an_error_of_the_image():
    with Server(GOOD) as server:
        pass
    judged = judge(PIXELS, settings(server))
    assert judged.keep is None
    assert "asked 3 times" in judged.error
    assert "refused" in judged.error


def test_the_key_goes_to_the_server_and_nowhere_else(monkeypatch, tmp_path, capfd, caplog):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login someone password elses\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.setenv("JUDGE_KEY", "sk-very-secret\n")
    caplog.set_level(0)
    with Server(GOOD) as server:
        check_judge(settings(server, key_variable="JUDGE_KEY"))
        judge(PIXELS, settings(server, key_variable="JUDGE_KEY"))
        judge(PIXELS, settings(server))
    assert server.headers[0]["Authorization"] == "Bearer sk-very-secret"
    assert "Authorization" not in server.headers[1]
    with Server(401) as server:
        judged = judge(PIXELS, settings(server, key_variable="JUDGE_KEY"))
    assert "status 401 for Bearer ***" in judged.error
    assert "secret" not in judged.error + caplog.text + "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (JudgeModel(endpoint="localhost:8000/v1", name="a"), "judge.endpoint=localhost:8000/v1"),
        (JudgeModel(endpoint="ftp://host/v1", name="a"), "judge.endpoint=ftp://host/v1"),
        (JudgeModel(endpoint="http:///v1", name="a"), "judge.endpoint=http:///v1"),
        (JudgeModel(endpoint="http://host/v1"), "judge.name is empty"),
        (JudgeModel(endpoint="http://host/v1", folder="a", name="a"), "judge.folder and judge.endpoint are both set"),
        (JudgeModel(endpoint="http://host/v1", name="a", key_variable="NOT_THERE"), "judge.key_variable=NOT_THERE"),
        (JudgeModel(endpoint="http://host/v1", name="a", key_variable="EMPTY"), "judge.key_variable=EMPTY"),
        (JudgeModel(endpoint="http://host/v1", name="a", key_variable="ODD"), "judge.key_variable=ODD"),
        (JudgeModel(endpoint="http://me:hidden@host/v1", name="a"), "judge.endpoint holds a user"),
        (JudgeModel(attempts=0), "judge.attempts=0"),
        (JudgeModel(timeout=0), "judge.timeout=0"),
        (JudgeModel(timeout=float("nan")), "judge.timeout=nan"),
        (JudgeModel(pause=-1), "judge.pause=-1"),
        (JudgeModel(reply_tokens=0), "judge.reply_tokens=0"),
        (JudgeModel(least_score=6), "judge.least_score=6"),
    ],
)
def test_impossible_settings_end_early(monkeypatch, model, named):
    monkeypatch.delenv("NOT_THERE", raising=False)
    monkeypatch.setenv("EMPTY", "  ")
    monkeypatch.setenv("ODD", "hidden\u00e9 key")
    with pytest.raises(ValueError, match=r"^[^\n]+$") as refused:
        check_judge(model)
    assert named in str(refused.value)
    assert "hidden" not in str(refused.value)


def test_off_is_the_default_and_nothing_is_asked_then():
    check_judge(JudgeModel())
    with pytest.raises(ValueError, match="there is no judge"):
        judge(PIXELS, JudgeModel())
