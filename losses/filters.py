"""The high-pass and the soft clip shared by the periodicity loss and the comb ratio."""

import torch
from torch import Tensor
from torch.nn import functional as F


def subtract_box_mean(image: Tensor, side: int) -> Tensor:
    """Image (B, H, W) less its mean over side x side pixels, side odd; mirrored border, edge pixel not repeated."""
    padded = F.pad(image, (side // 2,) * 4, mode="reflect").unsqueeze(1)
    box = F.avg_pool2d(F.avg_pool2d(padded, (side, 1), stride=1), (1, side), stride=1)
    return image - box.squeeze(1)


def soft_clip(signal: Tensor, clip: float) -> Tensor:
    """s tanh(signal / s) with s = clip mean|signal| + 1e-6 of each (H, W) plane; s carries no gradient.

    It bounds strong edges, which would otherwise outweigh a faint grid.
    """
    bound = clip * signal.detach().abs().mean(dim=(-2, -1), keepdim=True) + 1e-6
    return bound * torch.tanh(signal / bound)


def power(spectrum: Tensor) -> Tensor:
    """Squared magnitude of a complex tensor, without the square root of `abs`."""
    return spectrum.real.square() + spectrum.imag.square()
