"""CLIP's scores of stage 2: a prompt pair's quality and an aesthetic head; and which scores are skipped."""

import functools
import math
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from datamodules.curation.contact_sheet import to_8_bits
from datamodules.curation.local_model import checked_folder, first_line, load_part, load_whole
from datamodules.curation.pyiqa_scores import check_pyiqa
from datamodules.curation.settings import ScoreModels

Layer = tuple[Tensor, Tensor]


def clip_scores(pixels: Tensor, models: ScoreModels) -> dict[str, float]:
    """`clip_quality` (0-1) and `aesthetic` of an image (3,H,W) uint8 or uint16, each only where its files are named.

    The short side is scaled to CLIP's input size and the squares that cover the long side are judged; a score is the
    mean over them (ours; CLIP's own preparation would judge the middle square alone). Full-size sharpness is not seen.
    Raises ValueError for files that cannot be loaded.

    Source: Wang, Chan, Loy, "Exploring CLIP for Assessing the Look and Feel of Images", AAAI 2023, eq. 2 and 3, with
    CLIP's own position embedding; the head: LAION's aesthetic predictors, v1 and v2 ("sac+logos+ava1-l14-linearMSE").
    """
    if not models.clip:
        return {}
    embedding = image_embedding(pixels, models.clip)
    pair = prompt_pair(models.clip, models.good_prompt, models.bad_prompt)
    scores = {"clip_quality": float((embedding @ pair.T).softmax(-1)[:, 0].mean())}
    if models.aesthetic:
        scores["aesthetic"] = float(_through(embedding, aesthetic_head(models.aesthetic, models.clip)).mean())
    return scores


def skipped_models(models: ScoreModels) -> list[str]:
    """One line for each score of stage 2 that is skipped, with the YAML's key that turns it on.

    Raises FileNotFoundError for a path that is set but not there and ValueError for a pyiqa metric that cannot be used.
    """
    if models.niqe and not Path(models.niqe).is_file():
        raise FileNotFoundError(f"models.niqe={models.niqe}: no such file; expected NIQE's pristine parameters, .npz")
    if models.clip:
        checked_folder(models.clip, "models.clip")
    if models.aesthetic and not Path(models.aesthetic).is_file():
        raise FileNotFoundError(f"models.aesthetic={models.aesthetic}: no such file; expected a .safetensors file")
    lines = []
    if not models.niqe:
        lines.append("niqe is skipped: set models.niqe to NIQE's pristine parameters, a .npz file")
    if not models.clip:
        lines.append("clip_quality is skipped: set models.clip to the local folder of a CLIPModel")
    if not models.clip or not models.aesthetic:
        unset = {"models.clip": models.clip, "models.aesthetic": models.aesthetic}
        lines.append(f"aesthetic is skipped: set {' and '.join(key for key, path in unset.items() if not path)}")
    return lines + check_pyiqa(models.pyiqa)


def image_embedding(pixels: Tensor, folder: str) -> Tensor:
    """(N,D) L2-normalised embeddings of the N squares that cover the long side of an image (3,H,W) uint8 or uint16."""
    model, processor, _ = _clip(folder)
    size = model.config.vision_config.image_size
    scaled = processor(to_8_bits(pixels), size={"shortest_edge": size}, do_center_crop=False, return_tensors="pt")[
        "pixel_values"
    ][0]
    with torch.inference_mode():
        return _normalised(model.get_image_features(pixel_values=_squares(scaled, size)).pooler_output)


@functools.lru_cache(maxsize=4)
def prompt_pair(folder: str, good: str, bad: str) -> Tensor:
    """(2,D) L2-normalised embeddings of the two prompts, times CLIP's logit scale."""
    model, _, tokenizer = _clip(folder)
    tokens = tokenizer([good, bad], padding=True, return_tensors="pt")
    most = model.config.text_config.max_position_embeddings
    if tokens["input_ids"].shape[1] > most:
        raise ValueError(f"models.good_prompt or models.bad_prompt is too long, expected at most {most - 2} tokens")
    with torch.inference_mode():
        return _normalised(model.get_text_features(**tokens).pooler_output) * model.logit_scale.exp()


@functools.lru_cache(maxsize=4)
def aesthetic_head(path: str, folder: str) -> tuple[Layer, ...]:
    """The head's linear layers in order; dropout does nothing in use, and LAION's heads have no activation.

    Tensors named <number or words>.weight and .bias, or weight and bias alone. ValueError for anything else, and where
    the first layer is not as wide as the embedding of the CLIP in `folder`.
    """
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"models.aesthetic={path}: no tensors can be read: {first_line(error)}; expected a .safetensors file"
        ) from error
    names = sorted({name.rpartition(".")[0] for name in tensors}, key=_by_number)
    layers = tuple(_layer(tensors, name, path) for name in names)
    if not layers or len(tensors) != 2 * len(layers):
        raise ValueError(f"models.aesthetic={path}: expected pairs of weight and bias, found {sorted(tensors)[:6]}")
    _check_widths(layers, _clip(folder)[0].config.projection_dim, path)
    return layers


@functools.lru_cache(maxsize=1)
def _clip(folder: str) -> tuple[Any, Any, Any]:
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    model = load_whole(CLIPModel, folder, "models.clip")
    has_own = Path(folder, "preprocessor_config.json").is_file()  # else CLIP's mean, deviation and bicubic filter
    processor = load_part(CLIPImageProcessor, folder, "models.clip") if has_own else CLIPImageProcessor()
    return model, processor, load_part(CLIPTokenizer, folder, "models.clip")


def _squares(image: Tensor, size: int) -> Tensor:
    """(3,H,W) with a short side of `size` px to (N,3,size,size), evenly spread, overlapping where they must."""
    _, height, width = image.shape
    count = math.ceil(max(height, width) / size)
    starts = [round(i * (max(height, width) - size) / max(count - 1, 1)) for i in range(count)]
    if height > width:
        return torch.stack([image[:, at : at + size] for at in starts])
    return torch.stack([image[:, :, at : at + size] for at in starts])


def _normalised(embedding: Tensor) -> Tensor:
    return embedding / embedding.norm(dim=-1, keepdim=True)


def _through(embedding: Tensor, layers: tuple[Layer, ...]) -> Tensor:
    for weight, bias in layers:
        embedding = torch.nn.functional.linear(embedding, weight, bias)
    return embedding


def _by_number(name: str) -> tuple[list[int], str]:
    return [int(digits) for digits in re.findall(r"\d+", name)], name


def _layer(tensors: dict[str, Tensor], name: str, path: str) -> Layer:
    prefix = f"{name}." if name else ""
    weight, bias = tensors.get(f"{prefix}weight"), tensors.get(f"{prefix}bias")
    if weight is None or bias is None or weight.dim() != 2 or bias.shape != weight.shape[:1]:
        raise ValueError(
            f"models.aesthetic={path}: {name or 'the file'} is no linear layer; expected a weight (out,in) and a bias"
        )
    return weight.float(), bias.float()


def _check_widths(layers: tuple[Layer, ...], width: int, path: str) -> None:
    for weight, _ in layers:
        if weight.shape[1] != width:
            raise ValueError(
                f"models.aesthetic={path}: a layer takes {weight.shape[1]} values where {width} come in; the first "
                "must be as wide as the embedding (projection_dim) of models.clip"
            )
        width = weight.shape[0]
    if width != 1:
        raise ValueError(f"models.aesthetic={path}: the last layer gives {width} values, expected 1")
