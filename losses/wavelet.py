"""Wavelet term: the detail bands of sr must be those of hr."""

import torch
from torch import Tensor

from losses.filters import haar_bands
from losses.per_image import PerImageLoss
from losses.precision import full_precision


def wavelet_loss(sr: Tensor, hr: Tensor, *, levels: int = 3) -> Tensor:
    """Mean absolute difference of the Haar detail bands: two (B, 3, H, W) in [0, 1] -> scalar.

    UltraFlux (arXiv 2511.18050) trains its F16 decoder on wavelet, perceptual and L2 terms without a discriminator.
    Ours: Haar, every octave and band of equal weight, and no decimation, which is the mean over all shifts of the
    decimated transform, so that no 2^levels px grid is preferred. Bands are in units of the image: 0.01 is a detail
    amplitude that is wrong by 0.01. The flat part is left to the L2 term.
    levels: octaves, each with a vertical, a horizontal and a diagonal band.
    Raises ValueError where the image is smaller than 2^levels px.
    """
    return wavelet_distances(sr, hr, levels=levels).mean()


def wavelet_distances(sr: Tensor, hr: Tensor, *, levels: int = 3) -> Tensor:
    """`wavelet_loss` of each image: two (B, 3, H, W) in [0, 1] -> (B,)."""
    if sr.shape != hr.shape:
        raise ValueError(f"found sr of shape {tuple(sr.shape)} and hr of {tuple(hr.shape)}; expected equal shapes")
    if levels < 1 or min(sr.shape[-2:]) < 2**levels:
        raise ValueError(
            f"found levels={levels} for images of {sr.shape[-2]} x {sr.shape[-1]} px; expected 1 or more levels and "
            "at least 2^levels px per side: raise data.crop"
        )
    with full_precision(sr):
        # the transform is linear: the bands of the difference are the differences of the bands
        details = haar_details(sr.float() - hr.float(), levels)
        return torch.stack([band.abs().mean(dim=(1, 2, 3)) for band in details]).mean(dim=0)


def haar_details(image: Tensor, levels: int) -> list[Tensor]:
    """`haar_bands` of (B, C, H, W), a level's three stacked along the channels: (B, 3C, H-2^l+1, W-2^l+1)."""
    return [torch.cat(bands, dim=1) for bands in haar_bands(image, levels)]


class WaveletLoss(PerImageLoss):
    """`wavelet_loss` as a term of the weighted sum."""

    def __init__(self, levels: int = 3) -> None:
        super().__init__()
        self.levels = levels

    def per_image(self, sr: Tensor, hr: Tensor) -> Tensor:
        """Two (B, 3, H, W) in [0, 1] -> (B,)."""
        return wavelet_distances(sr, hr, levels=self.levels)
