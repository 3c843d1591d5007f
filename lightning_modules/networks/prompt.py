"""The fixed prompt's embeddings in a safetensors file, so that no text encoder runs in training or inference."""

import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

PROMPT_KEY = "prompt_embeds"
POOLED_KEY = "pooled_prompt_embeds"


def read_prompt(path: str | Path) -> tuple[Tensor, Tensor]:
    """prompt (T,D) and pooled prompt (P,), float32, of a file with the keys prompt_embeds and pooled_prompt_embeds.

    The keys and shapes of FluxPipeline.encode_prompt; a batch axis of 1 in front is taken off. FileNotFoundError or
    ValueError name transformer.prompt, the file and what is wrong with it.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"transformer.prompt={path}: no such file; expected the embeddings that make prompt FLUX= OUT= writes"
        )
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"transformer.prompt={path}: not a readable safetensors file: {error}") from error
    return _tensor(tensors, PROMPT_KEY, 2, path), _tensor(tensors, POOLED_KEY, 1, path)


def _tensor(tensors: dict[str, Tensor], key: str, axes: int, path: str | Path) -> Tensor:
    if key not in tensors:
        found = ", ".join(sorted(tensors)) or "nothing"
        raise ValueError(f"transformer.prompt={path}: it holds {found}, but no {key}")
    value = tensors[key]
    if value.ndim == axes + 1 and len(value) == 1:
        value = value[0]
    if value.ndim != axes or not value.numel() or not value.is_floating_point():
        raise ValueError(
            f"transformer.prompt={path}: {key} is {value.dtype} of shape {tuple(tensors[key].shape)}; expected "
            f"floating point of shape {'(tokens, channels)' if axes == 2 else '(channels,)'}, for one prompt"
        )
    if not torch.isfinite(value).all():
        raise ValueError(f"transformer.prompt={path}: {key} holds values that are not finite")
    return value.float()


def write_prompt(path: str | Path, prompt: Tensor, pooled: Tensor) -> None:
    """Write embeddings (T,D) and (P,) as `read_prompt` takes them, in one step: beside the target, then renamed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    save_file({PROMPT_KEY: prompt.detach().contiguous(), POOLED_KEY: pooled.detach().contiguous()}, partial)
    os.replace(partial, path)
