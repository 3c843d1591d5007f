"""Stage 3: a vision-language model, in a local folder or behind an endpoint, judges a photograph's contact sheet."""

import base64
import functools
import io
import time
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from datamodules.curation.contact_sheet import contact_sheet
from datamodules.curation.endpoint import Message, NoReplyError, check_endpoint, complete
from datamodules.curation.local_model import checked_folder, load_part, load_whole
from datamodules.curation.rubric import PROMPT, Judgement, MalformedReplyError, parse_reply
from datamodules.curation.settings import JudgeModel


def judge(pixels: Tensor, model: JudgeModel) -> Judgement:
    """What the model says of a photograph, pixels (3,H,W) uint8 or uint16.

    Temporary failures of an endpoint are repeated after a doubling pause, malformed replies are asked for again with
    the error told to the model; in all the model is asked `attempts` times. What then is no judgement has keep None and
    the error. Raises ValueError and FileNotFoundError as `check_judge`, and where a folder's model cannot be loaded.
    """
    sheet = contact_sheet(pixels)
    if model.endpoint:
        return _ask(functools.partial(complete, model=model), [_with_data_url(sheet)], model)
    if model.folder:
        reply = functools.partial(_reply_of_folder, folder=model.folder, tokens=model.reply_tokens)
        return _ask(reply, [_message("user", {"type": "image", "image": sheet}, _text(PROMPT))], model)
    raise ValueError("there is no judge: both judge.folder and judge.endpoint are empty")


def check_judge(model: JudgeModel) -> None:
    """ValueError or FileNotFoundError, before any image is read, for settings that cannot work; off is fine."""
    if model.folder and model.endpoint:
        raise ValueError("judge.folder and judge.endpoint are both set; expected one of them, or neither for no judge")
    if model.attempts < 1:
        raise ValueError(f"judge.attempts={model.attempts}, expected 1 or more")
    if model.reply_tokens < 1:
        raise ValueError(f"judge.reply_tokens={model.reply_tokens}, expected 1 or more")
    if not model.timeout > 0:
        raise ValueError(f"judge.timeout={model.timeout:g}, expected more than 0 seconds")
    if not model.pause >= 0:
        raise ValueError(f"judge.pause={model.pause:g}, expected 0 or more seconds")
    if not 1 <= model.least_score <= 5:
        raise ValueError(f"judge.least_score={model.least_score}, expected 1 to 5")
    if model.folder:
        checked_folder(model.folder, "judge.folder")
    if model.endpoint:
        check_endpoint(model)


def _ask(reply_to: Callable[[list[Message]], str], messages: list[Message], model: JudgeModel) -> Judgement:
    error, pause = "", model.pause
    for attempt in range(1, model.attempts + 1):
        try:
            reply = reply_to(messages)
            return parse_reply(reply)
        except MalformedReplyError as wrong:
            error = f"malformed reply: {wrong}"
            again = f"That reply cannot be used: {wrong}. Reply again with the JSON object alone."
            messages = [messages[0], _message("assistant", _text(reply[:4000])), _message("user", _text(again))]
        except NoReplyError as failure:
            error = str(failure)
            if not failure.temporary:
                break
            if attempt < model.attempts:
                time.sleep(max(pause, failure.pause))
                pause *= 2
    asked = f"asked {attempt} time{'s' if attempt > 1 else ''}"
    return Judgement(error=f"not judged, {asked}: {error}")


def _message(role: str, *parts: dict[str, Any]) -> Message:
    return {"role": role, "content": list(parts)}


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _with_data_url(sheet: Image.Image) -> Message:
    file = io.BytesIO()
    sheet.save(file, "PNG", compress_level=1)  # JPEG would add the very traces that are to be judged
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return _message("user", {"type": "image_url", "image_url": {"url": url, "detail": "high"}}, _text(PROMPT))


@functools.lru_cache(maxsize=1)
def load_judge(folder: str) -> tuple[Any, Any]:
    """The folder's model, on CUDA where there is one, and its processor; ValueError where they cannot be loaded."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = load_whole(AutoModelForImageTextToText, folder, "judge.folder", dtype="auto")
    processor = load_part(AutoProcessor, folder, "judge.folder")
    if not getattr(processor, "chat_template", None):
        raise ValueError(f"judge.folder={folder}: its processor has no chat template; expected a chat model")
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), processor


def _reply_of_folder(messages: list[Message], folder: str, tokens: int) -> str:
    """The local model's reply, decoded greedily."""
    model, processor = load_judge(folder)
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    ).to(model.device, model.dtype)
    try:
        with torch.inference_mode():
            output = model.generate(**inputs, do_sample=False, max_new_tokens=tokens)
    except torch.OutOfMemoryError as error:
        raise NoReplyError("the GPU's memory did not suffice for the model of judge.folder") from error
    (reply,) = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return reply
