"""Released RT4KSR checkpoints as experiments of this project: their options, and their tensors by our names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from torch import Tensor

from experiments.options import to_yaml, typed_options
from lightning_modules.networks.rt4ksr import RT4KSR
from lightning_modules.networks.rt4ksr_released import read_released, without_hf_branch


def converted(
    checkpoint: Mapping[str, Any], path: str | Path, variable: str, hf_branch: bool
) -> tuple[str, dict[str, Tensor]]:
    """Options as YAML and the system's tensors, with or without the HF branch, which the released code never runs.

    Errors as `read_released`; `variable` is the make variable they name.
    """
    network = read_released(checkpoint, path, variable)
    network = network if hf_branch else without_hf_branch(network)
    weights = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    return to_yaml(typed_options(OmegaConf.create(_options(network, Path(path).stem)), str(path))), weights


def _options(network: RT4KSR, name: str) -> dict[str, Any]:
    """What an experiment's YAML would say; the training recipe is the paper's, see experiments/rt4ksr."""
    crop = 128 * network.scale
    return {
        "system": "real_time_cnn",
        "name": name,
        "data": {"scale": network.scale, "degradation": "bicubic", "crop": crop, "val_crop": crop},
        "network": {"blocks": network.blocks, "channels": network.channels, "hf_branch": network.hf_branch is not None},
        "losses": {"l1": {"weight": 1.0}},
    }
