"""RT4KSR's high-frequency loss: what a small Gaussian blur takes away must be the same in both images."""

import torch
from torch import Tensor
from torch.nn import functional as F

from losses.per_image import PerImageLoss
from losses.precision import full_precision

_RADIUS = 2


def high_frequencies(image: Tensor) -> Tensor:
    """image - image * b, with b RT4KSR's 5 x 5 Gaussian of sigma 1, border mirrored: (B,C,H,W) -> same, float32.

    Raises ValueError for sides below 3 pixels, which cannot be mirrored.
    """
    if min(image.shape[-2:]) <= _RADIUS:
        raise ValueError(f"found {image.shape[-2]} x {image.shape[-1]} px; the 5 x 5 blur needs 3 or more per side")
    image = image.float()
    offsets = torch.arange(-_RADIUS, _RADIUS + 1, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-offsets.square() / 2)
    kernel = (kernel / kernel.sum()).expand(image.shape[1], 1, -1)
    with full_precision(image):
        blurred = F.pad(image, (_RADIUS,) * 4, mode="reflect")
        blurred = F.conv2d(blurred, kernel.unsqueeze(-1), groups=image.shape[1])
        blurred = F.conv2d(blurred, kernel.unsqueeze(-2), groups=image.shape[1])
    return image - blurred


def high_frequency_loss(sr: Tensor, hr: Tensor) -> Tensor:
    """L_HF = mean |(sr - sr * b) - (hr - hr * b)| over pixels and channels: scalar (RT4KSR, eq. 1).

    sr, hr: (B,3,H,W) in [0,1]. The paper adds it to L1 with weight 1. Raises ValueError for unequal shapes.
    """
    return high_frequency_distances(sr, hr).mean()


def high_frequency_distances(sr: Tensor, hr: Tensor) -> Tensor:
    """`high_frequency_loss` of each image: two (B,3,H,W) in [0,1] -> (B,)."""
    if sr.shape != hr.shape:
        raise ValueError(f"found sr of shape {tuple(sr.shape)} and hr of {tuple(hr.shape)}; expected equal shapes")
    # the blur is linear: one of the difference does for both
    return high_frequencies(sr.float() - hr.float()).abs().mean(dim=(1, 2, 3))


class HighFrequencyLoss(PerImageLoss):
    """`high_frequency_loss` as a term of the weighted sum."""

    def per_image(self, sr: Tensor, hr: Tensor) -> Tensor:
        """Two (B,3,H,W) in [0,1] -> (B,)."""
        return high_frequency_distances(sr, hr)
