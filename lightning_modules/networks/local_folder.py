"""Loading diffusers models from local folders, all tensors or none."""

import textwrap
from pathlib import Path
from typing import TypeVar

import torch
from diffusers.models.modeling_utils import ModelMixin
from safetensors import SafetensorError

Model = TypeVar("Model", bound=ModelMixin)


def load_whole(kind: type[Model], folder: str | Path, option: str, dtype: torch.dtype = torch.float32) -> Model:
    """A model of `kind` from a folder with config.json and safetensors; diffusers alone only warns of missing tensors.

    dtype: of its weights, whatever the file has. FileNotFoundError or ValueError name `option`, the folder and what is
    wrong with it.
    """
    if not Path(folder, "config.json").is_file():
        raise FileNotFoundError(
            f"{option}={folder}: no config.json there; expected a local folder of a {kind.__name__}"
        )
    try:
        model, info = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True, torch_dtype=dtype)
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{option}={folder}: no weights of a {kind.__name__} can be read there: {reason_of(error)}"
        ) from error
    wrong = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
    if wrong:
        raise ValueError(
            f"{option}={folder}: these are no weights of a {kind.__name__}: {len(wrong)} tensors are missing "
            f"or different, {wrong[0]} among them"
        )
    return model


def reason_of(error: Exception) -> str:
    """The first two lines of an error as one, cut at 300 characters: torch names tensors in the second."""
    return textwrap.shorten(" ".join(str(error).strip().splitlines()[:2]), 300, placeholder=" ...")
