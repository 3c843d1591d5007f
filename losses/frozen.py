"""Networks that only measure: their weights come from a local file and are neither trained nor saved."""

from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn


def read_weights(path: Path, option: str, source: str) -> dict[str, Tensor]:
    """Tensors of a local .safetensors file or a pickled state dict; nothing in the file is executed.

    option and source: the key that names the file and where one gets it, for the FileNotFoundError or ValueError.
    """
    if not path.is_file():
        raise FileNotFoundError(f"found no file {path}; set {option} to a local copy ({source})")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, SafetensorError) as error:
        raise ValueError(f"{option}={path}: not a readable file of weights ({type(error).__name__})") from error
    if not isinstance(weights, dict):
        raise ValueError(f"{option}={path}: found a {type(weights).__name__}; expected tensors by name ({source})")
    return weights


def parameters_to_buffers(module: nn.Module) -> None:
    """Turn all parameters and buffers into buffers outside the state dict: no optimiser and no checkpoint sees them."""
    for child in module.modules():
        for name, parameter in list(child.named_parameters(recurse=False)):
            delattr(child, name)
            child.register_buffer(name, parameter.detach(), persistent=False)
        for name, buffer in list(child.named_buffers(recurse=False)):
            child.register_buffer(name, buffer, persistent=False)
