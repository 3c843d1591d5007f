"""Perceptual distances: LPIPS from local weights, and DISTS' form over an untrained network."""

import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import lpips
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from losses.frozen import parameters_to_buffers, read_weights
from losses.per_image import PerImageLoss
from losses.precision import full_precision

# Where torchvision keeps the ImageNet backbones; named in messages, never fetched.
_BACKBONE_URLS = {
    "squeeze": "https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth",
    "alex": "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    "vgg": "https://download.pytorch.org/models/vgg16-397923af.pth",
}

# c1 and c2 of DISTS: they decide only where a channel is empty in both images.
_STABILISER = 1e-6


def structure_texture_distance(sr_features: Sequence[Tensor], hr_features: Sequence[Tensor]) -> Tensor:
    """DISTS with equal weights: 1 - mean of texture and structure similarity over channels and layers: -> (B,).

    Features: per layer (B, C, H, W). Texture compares the means over the image, structure the covariance with the
    variances (Ding et al. 2020, eq. 3 and 4). The mean of similarities lies in (-1, 1]; 0 is equal features.
    """
    layers = [
        (_texture(sr, hr) + _structure(sr, hr)).mean(dim=1) / 2 for sr, hr in zip(sr_features, hr_features, strict=True)
    ]
    return 1 - torch.stack(layers).mean(dim=0)


def _texture(sr: Tensor, hr: Tensor) -> Tensor:
    sr_mean, hr_mean = sr.mean(dim=(-2, -1)), hr.mean(dim=(-2, -1))
    return (2 * sr_mean * hr_mean + _STABILISER) / (sr_mean.square() + hr_mean.square() + _STABILISER)


def _structure(sr: Tensor, hr: Tensor) -> Tensor:
    sr, hr = (features - features.mean(dim=(-2, -1), keepdim=True) for features in (sr, hr))
    covariance, power = (sr * hr).mean(dim=(-2, -1)), (sr.square() + hr.square()).mean(dim=(-2, -1))
    return (2 * covariance + _STABILISER) / (power + _STABILISER)


def unit_channels(features: Tensor) -> Tensor:
    """Divide each pixel's channel vector by its length, float32; a zero vector has a finite gradient."""
    features = features.float()
    return features * (features.square().sum(dim=1, keepdim=True) + 1e-10).rsqrt()


class Lpips(PerImageLoss):
    """LPIPS v0.1 (Zhang et al. 2018) with backbone and linear weights from local files; frozen.

    backbone: torchvision state dict of the network or of its `features`. linear: the LPIPS linear layers, None for
    those in the `lpips` package. net: "squeeze", "alex" or "vgg". The weights are buffers outside the state dict:
    no optimiser and no checkpoint holds them. Raises FileNotFoundError naming the file, the option and its source.
    """

    def __init__(self, backbone: Path, linear: Path | None = None, net: str = "squeeze") -> None:
        super().__init__()
        if net not in _BACKBONE_URLS:
            raise ValueError(f"found perceptual.net={net!r}; expected one of {', '.join(_BACKBONE_URLS)}")
        backbone_weights = read_weights(
            Path(backbone), "perceptual.backbone", f"torchvision publishes it at {_BACKBONE_URLS[net]}"
        )
        linear = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{net}.pth" if linear is None else Path(linear)
        linear_weights = read_weights(linear, "perceptual.linear", f"it is weights/v0.1/{net}.pth of the package lpips")
        self.network = _build(net)
        _fill_backbone(self.network, backbone_weights, Path(backbone))
        _fill_linear(self.network, linear_weights, linear)
        parameters_to_buffers(self.network)
        self.network.eval()

    def train(self, mode: bool = True) -> "Lpips":
        """Stay in evaluation mode: dropout in the linear layers would make the distance random."""
        return super().train(False)

    def per_image(self, sr: Tensor, hr: Tensor) -> Tensor:
        """Two (B, 3, H, W) in [0, 1] -> (B,)."""
        sr_features, hr_features = self._features(sr), self._features(hr)
        layers = []
        with full_precision(sr):
            for weigh, sr_layer, hr_layer in zip(self.network.lins, sr_features, hr_features, strict=True):
                difference = (unit_channels(sr_layer) - unit_channels(hr_layer)).square()
                layers.append(weigh(difference).mean(dim=(1, 2, 3)))
        return torch.stack(layers).sum(dim=0)

    def _features(self, image: Tensor) -> Sequence[Tensor]:
        return self.network.net(self.network.scaling_layer(2 * image - 1))


def _build(net: str) -> lpips.LPIPS:
    """An empty LPIPS network; its random start is overwritten and must not move the global generator."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return lpips.LPIPS(pretrained=False, net=net, pnet_rand=True, verbose=False)


def _fill_backbone(network: lpips.LPIPS, weights: dict[str, Tensor], path: Path) -> None:
    # lpips calls layer 3 of torchvision's `features` "slice2.3"
    weights = {name.removeprefix("features."): value for name, value in weights.items()}
    renamed = {name: weights.get(name.split(".", 1)[1]) for name in network.net.state_dict()}
    missing = [name for name, value in renamed.items() if value is None]
    if missing:
        raise ValueError(
            f"found no tensor {missing[0].split('.', 1)[1]} in {path}; perceptual.backbone must be a state dict of "
            f"the network that perceptual.net names ({network.pnet_type})"
        )
    network.net.load_state_dict(renamed)


def _fill_linear(network: lpips.LPIPS, weights: dict[str, Tensor], path: Path) -> None:
    expected = {name for name in network.state_dict() if name.startswith("lin") and not name.startswith("lins")}
    if set(weights) != expected:
        raise ValueError(
            f"found tensors {sorted(weights)[:2]}... in {path}; perceptual.linear must hold {sorted(expected)[:2]}..."
        )
    network.load_state_dict(weights, strict=False)


class RandomFeatureDistance(PerImageLoss):
    """DISTS form over the image and an untrained VGG-like network: a distance that needs no weights (ours).

    Per entry of `channels` one stage: two 3 x 3 convolutions with ReLU, He-normal from `generator`, compared after the
    second, then 2 x 2 mean pooling. The same generator seed gives the same network. Nothing of it is trained or saved.
    LPIPS' form over the same features rated every sharper student as worse than bicubic, see docs/log.md.
    """

    def __init__(self, generator: torch.Generator, channels: Sequence[int] = (16, 32, 64)) -> None:
        super().__init__()
        if not channels or min(channels) < 1:
            raise ValueError(f"found channels={tuple(channels)}; expected one positive number per stage")
        self.stages = len(channels)
        widths = [3, *channels]
        for stage, (fan_in, fan_out) in enumerate(pairwise(widths)):
            self.register_buffer(f"first{stage}", _he_normal(fan_in, fan_out, generator), persistent=False)
            self.register_buffer(f"second{stage}", _he_normal(fan_out, fan_out, generator), persistent=False)

    def per_image(self, sr: Tensor, hr: Tensor) -> Tensor:
        """Two (B, 3, H, W) in [0, 1] -> (B,)."""
        sr_features, hr_features = self._features(sr), self._features(hr)
        with full_precision(sr):
            return structure_texture_distance([sr.float(), *sr_features], [hr.float(), *hr_features])

    def _features(self, image: Tensor) -> list[Tensor]:
        features, layers = 2 * image - 1, []
        for stage in range(self.stages):
            features = F.relu(F.conv2d(features, self.get_buffer(f"first{stage}"), padding=1))
            features = F.relu(F.conv2d(features, self.get_buffer(f"second{stage}"), padding=1))
            layers.append(features)
            features = F.avg_pool2d(features, 2, ceil_mode=True)
        return layers


def _he_normal(fan_in: int, fan_out: int, generator: torch.Generator) -> Tensor:
    return torch.randn(fan_out, fan_in, 3, 3, generator=generator) * (2 / (9 * fan_in)) ** 0.5


class PerceptualDistance(Metric):
    """Mean over images of `distance.per_image(sr, hr)`, in float32 also where validation runs under autocast."""

    higher_is_better = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, distance: PerImageLoss) -> None:
        super().__init__()
        self.distance = distance
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, sr: Tensor, hr: Tensor) -> None:
        """Add pairs of (B, 3, H, W) in [0, 1]."""
        with full_precision(sr), torch.no_grad():
            values = self.distance.per_image(sr.float(), hr.float())
        self.total += values.sum()
        self.count += len(values)

    def compute(self) -> Tensor:
        """Mean over all images of all processes."""
        return self.total / self.count
