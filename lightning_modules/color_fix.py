"""Colours of the upsampled lr image for a restored one: AdaIN or wavelet, as one-step diffusion methods use them."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

_EPSILON = 1e-5
_LEVELS = 5


def color_fix(sr: Tensor, reference: Tensor, method: str) -> Tensor:
    """Give sr the colours of the reference: two (B,3,H,W) in [0,1] -> (B,3,H,W), unclamped, float32.

    reference: the lr image upsampled to the size of sr. method: "none"; "adain", mean and deviation of each channel
    over the whole image (Huang and Belongie 2017); "wavelet", all frequencies below those of five à trous levels, about
    64 px (StableSR, Wang et al. 2023). Any size. Raises ValueError for another method and for unequal shapes.
    """
    if method not in COLOR_FIXES:
        raise ValueError(f"found color_fix={method!r}; expected one of {', '.join(COLOR_FIXES)}")
    if sr.shape != reference.shape:
        raise ValueError(
            f"found sr of shape {tuple(sr.shape)} and a reference of {tuple(reference.shape)}; expected equal shapes"
        )
    return COLOR_FIXES[method](sr.float(), reference.float())


def _none(sr: Tensor, reference: Tensor) -> Tensor:
    return sr


def _adain(sr: Tensor, reference: Tensor) -> Tensor:
    sr_deviation, sr_mean = torch.std_mean(sr, dim=(-2, -1), correction=0, keepdim=True)
    deviation, mean = torch.std_mean(reference, dim=(-2, -1), correction=0, keepdim=True)
    return (sr - sr_mean) * ((deviation + _EPSILON) / (sr_deviation + _EPSILON)) + mean


def _wavelet(sr: Tensor, reference: Tensor) -> Tensor:
    # high(sr) + low(reference), with high = 1 - low and low linear: one decomposition, of the difference
    low = reference - sr
    for level in range(_LEVELS):
        low = _smooth(_smooth(low, 2**level, -1), 2**level, -2)
    return sr + low


def _smooth(image: Tensor, step: int, dim: int) -> Tensor:
    """Weights 1/4, 1/2, 1/4 at -step, 0, step along one axis, border pixels repeated."""
    length = image.shape[dim]
    padded = F.pad(image, (step, step, 0, 0) if dim == -1 else (0, 0, step, step), mode="replicate")
    near, centre, far = (padded.narrow(dim, start, length) for start in (0, step, 2 * step))
    return (near + far) / 4 + centre / 2


COLOR_FIXES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"none": _none, "adain": _adain, "wavelet": _wavelet}
