"""One request to an OpenAI-compatible server that the user named, and what its failures mean."""

import json
import os
import re
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import requests

from datamodules.curation.rubric import REPLY_SCHEMA
from datamodules.curation.settings import JudgeModel

TEMPORARY = {408, 425, 429, 500, 502, 503, 504}
LONGEST_PAUSE = 60.0

Message = dict[str, Any]

_plain_only: set[str] = set()  # addresses of this process that refused the fields which not every server knows


class NoReplyError(RuntimeError):
    """The model gave no reply; the message is one sentence. temporary: asking again after `pause` seconds may do."""

    def __init__(self, message: str, temporary: bool = False, pause: float = 0.0) -> None:
        super().__init__(message)
        self.temporary = temporary
        self.pause = pause


def complete(messages: list[Message], model: JudgeModel) -> str:
    """The reply's text to a dialogue in OpenAI's form, by one POST to {endpoint}/chat/completions.

    Temperature 0, a fixed seed and the reply's JSON schema are sent; a server that refuses them (400 or 422) is asked
    without from then on. Timeouts, connection errors and the statuses of TEMPORARY raise a temporary NoReplyError,
    whatever else is wrong a lasting one. The key is read from the environment and never part of a message.
    """
    address, key = f"{model.endpoint.rstrip('/')}/chat/completions", read_key(model)
    body: dict[str, Any] = {"model": model.name, "messages": messages}
    if address not in _plain_only:
        schema = {"name": "judgement", "strict": True, "schema": REPLY_SCHEMA}
        form = {"type": "json_schema", "json_schema": schema}
        response = _post(address, body | {"temperature": 0, "seed": 0, "response_format": form}, key, model.timeout)
        if response.status not in (400, 422):
            return _text_of(response, address, key)
    response = _post(address, body, key, model.timeout)
    if response.status == 200:
        _plain_only.add(address)
    return _text_of(response, address, key)


def check_endpoint(model: JudgeModel) -> None:
    """ValueError for an address, a name or a key that cannot be used; nothing is sent."""
    parts = urlsplit(model.endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(
            f"judge.endpoint={model.endpoint} is no address of a server; expected one such as http://localhost:8000/v1"
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(
            "judge.endpoint holds a user, a password, a query or a fragment; expected only scheme, host and path, "
            "and the key in the environment variable that judge.key_variable names"
        )
    if not model.name:
        raise ValueError("judge.endpoint is set but judge.name is empty; expected the name of the server's model")
    read_key(model)


def read_key(model: JudgeModel) -> str:
    """The key from the environment, empty where no variable is named; ValueError where it is missing or unusable."""
    if not model.key_variable:
        return ""
    key = os.environ.get(model.key_variable, "").strip()
    if not key:
        raise ValueError(
            f"judge.key_variable={model.key_variable}: no such variable in the environment, or an empty one; "
            "export it with the endpoint's key, or leave judge.key_variable empty"
        )
    if not re.fullmatch(r"[!-~]+", key):  # requests' own error would show it
        raise ValueError(f"judge.key_variable={model.key_variable}: the key holds blanks or non-ASCII characters")
    return key


@dataclass(frozen=True)
class _Response:
    status: int
    text: str
    pause: float


class _Bearer(requests.auth.AuthBase):
    """Sends our key or none; without it requests would send what ~/.netrc holds for the host."""

    def __init__(self, key: str) -> None:
        self.key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self.key:
            request.headers["Authorization"] = f"Bearer {self.key}"
        return request


def _post(address: str, body: dict[str, Any], key: str, timeout: float) -> _Response:
    late = f"{address} did not answer within judge.timeout={timeout:g} s"
    deadline = time.monotonic() + timeout
    try:
        # a redirection would send the photograph to an address that the user did not name
        with requests.post(
            address, json=body, auth=_Bearer(key), timeout=timeout, allow_redirects=False, stream=True
        ) as response:
            content = bytearray()
            for byte in response.iter_content(1):  # requests' timeout starts anew with every byte
                content += byte
                if time.monotonic() > deadline:
                    raise NoReplyError(late, temporary=True)
            pause = _seconds(response.headers.get("Retry-After", ""))
            return _Response(response.status_code, content.decode(errors="replace"), pause)
    except requests.Timeout as error:
        raise NoReplyError(late, temporary=True) from error
    except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
        raise NoReplyError(f"{address} could not be reached or broke off: {_cause(error)}", temporary=True) from error
    except requests.RequestException as error:
        raise NoReplyError(f"{address} cannot be asked: {_cause(error)}") from error


def _text_of(response: _Response, address: str, key: str) -> str:
    if response.status != 200:
        said = response.text.replace(key, "***") if key else response.text  # some servers quote it
        said = " ".join(said[:2000].split())[:200] or "nothing more"
        message = f"{address} answered with status {response.status}: {said}"
        raise NoReplyError(message, response.status in TEMPORARY, response.pause)
    try:
        text = json.loads(response.text)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise NoReplyError(f"{address} gave no reply in the form of OpenAI's chat completions", True) from error
    return text if isinstance(text, str) else ""


def _seconds(retry_after: str) -> float:
    return min(float(retry_after), LONGEST_PAUSE) if re.fullmatch(r"\d{1,9}", retry_after) else 0.0


def _cause(error: BaseException) -> str:
    while error.__context__ is not None:  # the innermost is the system's own, such as "Connection refused"
        error = error.__context__
    return " ".join(str(error).split())[:200]
