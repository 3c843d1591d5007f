"""LoRA (Hu et al. 2021) on a Flux transformer and on a codec's encoder, by peft: add, save, load, fold in.

Each adapted layer computes W x + (alpha / rank) B A x with W frozen; A starts Gaussian (standard deviation 1 / rank)
and B at zero, so that a new adapter changes nothing.
"""

import copy
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import FluxTransformer2DModel
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)

TRANSFORMER_PATTERNS = (
    "x_embedder",
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
    "ff.net.0.proj",
    "ff.net.2",
    "ff_context.net.0.proj",
    "ff_context.net.2",
)
"""OMGSR-F's target list: of the single blocks q, k and v, of the double blocks every linear layer but the norms'."""

TRANSFORMER_FILE = LORA_WEIGHT_NAME_SAFE
"""The name under which diffusers looks for a LoRA in a folder."""
ENCODER_FILE = "encoder_lora.safetensors"

_ADAPTER = "default"
_PREFIX = "transformer"  # of every tensor in diffusers' LoRA files: which part of the pipeline it belongs to
_LAYERS = (nn.Linear, nn.Conv2d)


def lora_targets(module: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Names of the linear and convolution layers of `module` that a pattern names, in the module's order.

    A pattern is a layer's full name or the end of it from a dot on: "attn.to_q" is "blocks.0.attn.to_q" and not
    "blocks.0.cross_attn.to_q". ValueError lists the patterns that name no layer.
    """
    layers = [name for name, layer in module.named_modules() if isinstance(layer, _LAYERS)]
    named = {pattern: [name for name in layers if f".{name}".endswith(f".{pattern}")] for pattern in patterns}
    missing = [pattern for pattern, names in named.items() if not names]
    if missing:
        raise ValueError(
            f"LoRA targets {', '.join(missing)} name no linear or convolution layer of this {type(module).__name__} "
            f"with {len(layers)} such layers; expected a Flux with double and single blocks (transformer.path)"
        )
    wanted = {name for names in named.values() for name in names}
    return [name for name in layers if name in wanted]


def encoder_targets(encoder: nn.Module) -> list[str]:
    """Names of every convolution and, where there are any, the attention's projections: OMGSR's list by type."""
    names = [name for name, layer in encoder.named_modules() if isinstance(layer, _LAYERS)]
    if not names:
        raise ValueError(f"found no convolution in the encoder {type(encoder).__name__} (codec.path)")
    return names


def add_transformer_lora(transformer: FluxTransformer2DModel, rank: int, alpha: float) -> None:
    """Freeze a transformer and add a trainable LoRA to the layers of TRANSFORMER_PATTERNS (OMGSR: rank = alpha = 64).

    New weights come from the global generator. ValueError names transformer.lora.rank or transformer.lora.alpha.
    """
    config = _config(lora_targets(transformer, TRANSFORMER_PATTERNS), rank, alpha, "transformer.lora")
    transformer.requires_grad_(False)
    transformer.add_adapter(config, adapter_name=_ADAPTER)
    _train_in_full_precision(transformer)


def add_encoder_lora(encoder: nn.Module, rank: int, alpha: float) -> None:
    """Freeze a codec's encoder and add a trainable LoRA to its convolutions and attention projections.

    Takes the `encoder` of SmallF16Codec, AutoencoderKL and AutoencoderTiny. As `add_transformer_lora`, codec.lora.
    """
    config = _config(encoder_targets(encoder), rank, alpha, "codec.lora")
    encoder.requires_grad_(False)
    inject_adapter_in_model(config, encoder, adapter_name=_ADAPTER)
    _train_in_full_precision(encoder)


def _config(targets: list[str], rank: int, alpha: float, option: str) -> LoraConfig:
    if rank < 1:
        raise ValueError(f"{option}.rank={rank}: expected at least 1")
    if not 0 < alpha < float("inf"):
        raise ValueError(f"{option}.alpha={alpha}: expected a finite value above 0")
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # only ever divided by the rank
        target_modules=targets,
        init_lora_weights="gaussian",
    )


def _train_in_full_precision(module: nn.Module) -> None:
    """fp32 for what is trained: peft takes the base's type, and AdamW's steps vanish in a bf16 weight.

    A bf16 base runs under autocast alone, which gives the adapters bf16 weights: peft need not copy their input to fp32
    for it to be copied back.
    """
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    layers: list[Any] = [layer for layer in module.modules() if isinstance(layer, BaseTunerLayer)]
    for layer in layers:
        if layer.get_base_layer().weight.dtype == torch.bfloat16:
            layer.cast_input_dtype_enabled = False


def has_lora(module: nn.Module) -> bool:
    """Whether any layer of `module` carries a LoRA that is not folded in."""
    return any(isinstance(layer, BaseTunerLayer) for layer in module.modules())


@contextmanager
def without_adapters(module: nn.Module) -> Iterator[None]:
    """Run `module` as its frozen base for the length of a `with`, for targets such as LRR's; gradients stay asked for.

    peft's own `enable_adapters` would clear requires_grad meanwhile, of weights that may stand in an open graph.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, BaseTunerLayer)]
    before = [layer.disable_adapters for layer in layers]
    try:
        for layer in layers:
            layer._disable_adapters = True
        yield
    finally:
        for layer, disabled in zip(layers, before, strict=True):
            layer._disable_adapters = disabled


def save_lora(transformer: FluxTransformer2DModel, folder: str | Path) -> Path:
    """Write a transformer's LoRA, alpha included, to `folder`/pytorch_lora_weights.safetensors; returns the path.

    In diffusers' own layout: a plain FluxTransformer2DModel of the same base takes it by `load_lora_adapter(folder,
    use_safetensors=True)`, a FluxPipeline by `load_lora_weights(folder)`. ValueError where there is no LoRA.
    """
    return _save(transformer, Path(folder) / TRANSFORMER_FILE, f"{_PREFIX}.")


def save_encoder_lora(encoder: nn.Module, folder: str | Path) -> Path:
    """Write an encoder's LoRA to `folder`/encoder_lora.safetensors, beside the transformer's; returns the path (ours).

    The same layout without a prefix. `load_encoder_lora` reads it.
    """
    return _save(encoder, Path(folder) / ENCODER_FILE, "")


def load_encoder_lora(encoder: nn.Module, folder: str | Path) -> None:
    """Add the LoRA that `save_encoder_lora` wrote to an encoder without one; trainable, as `add_encoder_lora` makes it.

    FileNotFoundError or ValueError name the file and what does not fit.
    """
    path = Path(folder) / ENCODER_FILE
    tensors, metadata = _read(path)
    add_encoder_lora(encoder, int(metadata["r"]), float(metadata["lora_alpha"]))
    expected = _tensors(encoder)
    wrong = sorted(set(expected) ^ set(tensors)) or [k for k, v in expected.items() if v.shape != tensors[k].shape]
    if wrong:
        raise ValueError(
            f"{path} is of another encoder: {len(wrong)} tensors are missing, unknown or of another shape, {wrong[0]} "
            "among them; point codec.path to the codec that it was trained on"
        )
    set_peft_model_state_dict(encoder, tensors, adapter_name=_ADAPTER)


def _tensors(module: nn.Module) -> Mapping[str, Tensor]:
    return get_peft_model_state_dict(module, adapter_name=_ADAPTER)


def _save(module: nn.Module, path: Path, prefix: str) -> Path:
    if not has_lora(module):
        raise ValueError(f"{path}: this {type(module).__name__} has no LoRA to save; train one with lora.rank above 0")
    tensors = {prefix + name: value.detach().cpu().contiguous() for name, value in _tensors(module).items()}
    configs: Any = module.peft_config
    config = configs[_ADAPTER].to_dict().items()
    values = {prefix + key: sorted(value) if isinstance(value, set) else value for key, value in config}
    metadata = {"format": "pt", LORA_ADAPTER_METADATA_KEY: json.dumps(values, indent=2, sort_keys=True)}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    save_file(tensors, partial, metadata)
    os.replace(partial, path)
    return path


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, int | float]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected the LoRA of an encoder as training saves it")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
            metadata = json.loads((file.metadata() or {}).get(LORA_ADAPTER_METADATA_KEY, "{}"))
    except SafetensorError as error:
        raise ValueError(f"{path}: not a readable safetensors file: {error}") from error
    if not {"r", "lora_alpha"} <= set(metadata):
        raise ValueError(
            f"{path}: no rank and alpha in its header; expected the LoRA of an encoder as training saves it"
        )
    return tensors, metadata


def merge_lora(module: Module) -> Module:
    """A copy of `module` with its LoRA folded into plain layers, for inference; the source stays as it is.

    The copy has the base's layers and names, and the base's precision: what a bf16 weight cannot hold of the sum is
    rounded off. A module without LoRA is copied.
    """
    merged = copy.deepcopy(module)
    fold_lora(merged)
    return merged


def fold_lora(module: nn.Module) -> None:
    """`merge_lora` without the copy: the adapters are gone for good, and so is the memory that they took."""
    for name, layer in list(module.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            parent, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(parent), leaf, layer.get_base_layer())
    for part in module.modules():
        if "peft_config" in vars(part):
            del part.peft_config
            # diffusers' own mark that an adapter is there
            vars(part).pop("_hf_peft_config_loaded", None)
    module.requires_grad_(False)
