"""The released RT4KSR checkpoints (github.com/eduardzamfir/RT4KSR), converted tensor by tensor."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_modules.networks.rt4ksr import RT4KSR, SCALES, UNSHUFFLE

_RENAMED = (
    (r"^module\.", ""),
    (r"^head\.0\.", "head."),
    (r"^hfb\.0\.", "hf_branch."),
    (r"^body\.(\d+)\.conv1\.", r"body.\1.rrb."),
    (r"^tail\.0\.", "tail_norm."),
    (r"^tail\.1\.", "tail."),
    (r"^upsample\.0\.", "upsample."),
    (r"\.expand_conv\.", ".expand."),
    (r"\.fea_conv\.", ".conv."),
    (r"\.reduce_conv\.", ".reduce."),
)
"""Released names to ours, applied one after the other."""

_KEYS = ("state_dict", "params_ema", "params", "model")
"""Under which public checkpoints keep their tensors."""

_LISTED = 4


def is_released(checkpoint: Mapping[str, Any]) -> bool:
    """Whether a loaded file is a public checkpoint by its outer form: named tensors, by themselves or under a key."""
    weights = _tensors(checkpoint)
    return bool(weights) and all(isinstance(weight, Tensor) for weight in weights.values())


def read_released(checkpoint: Mapping[str, Any], path: str | Path, variable: str = "CKPT") -> RT4KSR:
    """The trained network of a released checkpoint, its scale, blocks and channels read from the tensors' shapes.

    The released code never runs its HF branch, which training has left as it was drawn, with gamma = 0. The tensors are
    kept all the same, so that nothing of the file is lost and the network with the branch gives the released output.
    ValueError lists the tensors that are missing, unknown or of another shape.
    """
    weights = {_renamed(name): tensor for name, tensor in _tensors(checkpoint).items()}
    network = RT4KSR(*_sizes(weights, path, variable))
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if expected != found:
        raise ValueError(f"{variable}={path}: not a released RT4KSR checkpoint: {_difference(found, expected)}")
    network.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return network


def _tensors(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state dict: under one of the usual keys, or the file itself."""
    return next((checkpoint[key] for key in _KEYS if isinstance(checkpoint.get(key), Mapping)), checkpoint)


def without_hf_branch(network: RT4KSR) -> RT4KSR:
    """The same network without its HF branch; ValueError where that would change its output, gamma not being 0."""
    if network.gamma is None or float(network.gamma.detach()) != 0:
        raise ValueError(f"the HF branch is in use (gamma={network.gamma}); expected a released network with gamma 0")
    plain = RT4KSR(network.scale, network.channels, network.blocks, hf_branch=False)
    plain.load_state_dict({name: tensor for name, tensor in network.state_dict().items() if name in plain.state_dict()})
    return plain


def _renamed(name: str) -> str:
    for pattern, ours in _RENAMED:
        name = re.sub(pattern, ours, name)
    return name


def _sizes(weights: Mapping[str, Tensor], path: str | Path, variable: str) -> tuple[int, int, int]:
    """Scale, channels and blocks from the shapes."""
    head, last = weights.get("head.weight"), weights.get("upsample.weight")
    blocks = {int(match[1]) for name in weights if (match := re.match(r"body\.(\d+)\.", name))}
    if head is None or last is None or head.ndim != 4 or last.ndim != 4 or blocks != set(range(len(blocks))):
        raise ValueError(
            f"{variable}={path}: not a released RT4KSR checkpoint: {_difference(weights, RT4KSR().state_dict())}"
        )
    scale = round((len(last) / 3) ** 0.5 / UNSHUFFLE)
    if scale not in SCALES or len(last) != 3 * (UNSHUFFLE * scale) ** 2:
        allowed = ", ".join(str(3 * (UNSHUFFLE * s) ** 2) for s in SCALES)
        raise ValueError(f"{variable}={path}: upsample.0.weight has {len(last)} outputs, expected one of {allowed}")
    return scale, len(head), len(blocks)


def _difference(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """What is missing, what is unknown, and what has another shape, a few names of each."""
    shapes = sorted(name for name in set(found) & set(expected) if found[name] != expected[name] and _is_shape(found))
    parts = [("missing", sorted(set(expected) - set(found))), ("unknown", sorted(set(found) - set(expected)))]
    texts = [f"{len(names)} tensors {kind} ({_some(names)})" for kind, names in parts if names]
    texts += [f"{name} has shape {found[name]}, expected {expected[name]}" for name in shapes[:_LISTED]]
    return "; ".join(texts)


def _is_shape(found: Mapping[str, Any]) -> bool:
    return all(isinstance(value, tuple) for value in found.values())


def _some(names: list[str]) -> str:
    return ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")
