"""Features of a frozen timm backbone, for perceptual distances and for the discriminator."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from losses.frozen import parameters_to_buffers, read_weights


class FrozenBackbone(nn.Module):
    """Feature maps of chosen stages of a timm backbone, convolutional or ViT, for images of any size; frozen.

    name: timm's model name; a tag such as ".lvd1689m" chooses the normalisation of the input. stages: indices of the
    maps, ascending: of a ConvNeXt the four stages, of a ViT the blocks. weights: local file in timm's own layout,
    .safetensors or a pickled state dict; None draws the weights from `generator` (ours: no file at hand). option: the
    options' section `option`.model, .weights, .stages, which the FileNotFoundError and ValueErrors name. channels:
    widths of the maps. All tensors are buffers outside the state dict: no optimiser and no checkpoint holds them.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        stages: Sequence[int],
        weights: Path | None,
        generator: torch.Generator | None,
        option: str,
    ) -> None:
        super().__init__()
        if (weights is None) == (generator is None):
            raise ValueError(f"{option}: expected weights or a generator to draw them from, and not both")
        self.network: Any = _build(name, generator, option)  # timm's networks have no type in common
        self.stages = _checked_stages(self.network, stages, option)
        self.channels = [_feature_info(self.network)[stage]["num_chs"] for stage in self.stages]
        if weights is not None:
            _fill(self.network, name, Path(weights), option)
        self.network.prune_intermediate_layers(self.stages)
        parameters_to_buffers(self.network)
        self.network.eval()
        # a ViT takes whole patches only, convolutions any size
        self.unit = self.network.patch_embed.patch_size if getattr(self.network, "dynamic_img_size", False) else (1, 1)
        for key in ("mean", "std"):
            values = torch.tensor(self.network.pretrained_cfg[key]).view(3, 1, 1)
            self.register_buffer(key, values, persistent=False)

    def train(self, mode: bool = True) -> "FrozenBackbone":
        """Stay in evaluation mode: batch statistics, dropout and dropped paths would make the features random."""
        return super().train(False)

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B,3,H,W) in [0,1] -> per stage (B,C,h,w); the gradient flows to the image.

        For a ViT the image is padded at the bottom and the right, by replication, to whole patches.
        """
        height, width = image.shape[-2:]
        bottom, right = -height % self.unit[0], -width % self.unit[1]
        if bottom or right:
            image = F.pad(image, (0, right, 0, bottom), mode="replicate")
        normalised = (image - self.mean) / self.std
        return self.network.forward_intermediates(
            normalised, indices=self.stages, output_fmt="NCHW", intermediates_only=True
        )


def _build(name: str, generator: torch.Generator | None, option: str) -> Any:
    """An untrained network without classifier; its random start must not move the global generator."""
    if not timm.is_model(name):
        raise ValueError(f"found {option}.model={name!r}; expected the name of a model that timm builds")
    with torch.random.fork_rng(devices=[]):
        if generator is not None:
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        network = _create(name)
    if not hasattr(network, "prune_intermediate_layers"):
        raise ValueError(f"{option}.model={name}: timm gives no feature maps of it; choose a ConvNeXt, ResNet or ViT")
    if network.pretrained_cfg.get("fixed_input_size") and not getattr(network, "dynamic_img_size", False):
        raise ValueError(f"{option}.model={name} takes images of one size only; choose a ConvNeXt, ResNet or plain ViT")
    return network


def _create(name: str) -> Any:
    try:
        return timm.create_model(name, pretrained=False, num_classes=0, dynamic_img_size=True)
    except TypeError:  # convolutional networks have no such argument and need none
        return timm.create_model(name, pretrained=False, num_classes=0)


def _feature_info(network: Any) -> list[dict[str, Any]]:
    info = network.feature_info
    return info if isinstance(info, list) else info.info


def _checked_stages(network: Any, stages: Sequence[int], option: str) -> list[int]:
    count = len(_feature_info(network))
    if not stages or sorted(set(stages)) != list(stages) or stages[0] < 0 or stages[-1] >= count:
        raise ValueError(
            f"found {option}.stages={list(stages)}; expected ascending indices from 0 to {count - 1} for {option}.model"
        )
    return list(stages)


def _fill(network: Any, name: str, path: Path, option: str) -> None:
    config = network.pretrained_cfg
    source = f"timm's file of {name}, published as huggingface.co/{config.get('hf_hub_id') or 'timm'}"
    weights = read_weights(path, f"{option}.weights", source)
    heads = config["classifier"] if isinstance(config["classifier"], tuple | list) else (config["classifier"],)
    prefixes = tuple(f"{head}." for head in heads if head)
    weights = {key: value for key, value in weights.items() if not key.startswith(prefixes)}
    expected = network.state_dict()
    wrong = sorted(
        key for key in weights.keys() | expected.keys() if _shape(weights.get(key)) != _shape(expected.get(key))
    )
    if wrong:
        raise ValueError(
            f"{option}.weights={path} does not fit {option}.model={name}: {len(wrong)} tensors are missing, different "
            f"or too many, {wrong[0]} among them; expected {source}"
        )
    network.load_state_dict(weights)


def _shape(value: Tensor | None) -> torch.Size | None:
    return value.shape if isinstance(value, Tensor) else None
