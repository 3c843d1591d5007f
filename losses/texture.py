"""A texture term that needs no weights: local band energies of sr must be those of hr (ours)."""

import torch
from torch import Tensor

from losses.color import luma
from losses.filters import box_mean, haar_bands
from losses.per_image import PerImageLoss
from losses.precision import full_precision


def texture_loss(sr: Tensor, hr: Tensor, *, levels: int = 3, window: int = 11, epsilon: float = 0.01) -> Tensor:
    """Mean difference of log local RMS energies in the bands of an undecimated Haar transform of the luma (ours).

    sr, hr: (B, 3, H, W) in [0, 1]. Returns a scalar >= 0 in nepers: 0.7 is texture of half the amplitude everywhere.
    Energies do not ask texture to lie at the same place, so averaging over what it could have been, which blurs,
    is no way to lower it; where texture should be it needs a pixel loss beside it.
    levels: octaves, each with a horizontal, a vertical and a diagonal band. window: side in pixels of the energy's
    neighbourhood. epsilon: RMS below which a band counts as empty; it also keeps the gradient finite on flat images.
    Raises ValueError where the image is too small for the coarsest band and the window.
    """
    return texture_distances(sr, hr, levels=levels, window=window, epsilon=epsilon).mean()


def texture_distances(sr: Tensor, hr: Tensor, *, levels: int = 3, window: int = 11, epsilon: float = 0.01) -> Tensor:
    """`texture_loss` of each image: two (B, 3, H, W) in [0, 1] -> (B,). Options as there."""
    if sr.shape != hr.shape:
        raise ValueError(f"found sr of shape {tuple(sr.shape)} and hr of {tuple(hr.shape)}; expected equal shapes")
    if levels < 1 or window < 1 or epsilon <= 0:
        raise ValueError(
            f"found losses.texture.levels={levels}, window={window}, epsilon={epsilon}; expected >= 1, >= 1 and > 0"
        )
    needed = 2**levels - 1 + window
    if min(sr.shape[-2:]) < needed:
        raise ValueError(
            f"found images of {sr.shape[-2]} x {sr.shape[-1]} px; the texture loss needs {needed} per side: "
            "lower losses.texture.levels or losses.texture.window, or raise data.crop"
        )
    with full_precision(sr):
        distances = [
            (_log_rms(sr_band, window, epsilon) - _log_rms(hr_band, window, epsilon)).abs().mean(dim=(1, 2, 3))
            for sr_band, hr_band in zip(_bands(luma(sr), levels), _bands(luma(hr), levels), strict=True)
        ]
        return torch.stack(distances).mean(dim=0)


def _bands(image: Tensor, levels: int) -> list[Tensor]:
    """(B, H, W) -> per level (B, 3, h, w)."""
    return [torch.stack(bands, dim=1) for bands in haar_bands(image, levels)]


def _log_rms(band: Tensor, window: int, epsilon: float) -> Tensor:
    """Stride 1, so that every pixel counts alike: a coarser stride would write its own grid into the gradient."""
    return 0.5 * torch.log(box_mean(band.square(), window) + epsilon**2)


class TextureLoss(PerImageLoss):
    """`texture_loss` as a term of the weighted sum."""

    def __init__(self, levels: int = 3, window: int = 11, epsilon: float = 0.01) -> None:
        super().__init__()
        self.levels = levels
        self.window = window
        self.epsilon = epsilon

    def per_image(self, sr: Tensor, hr: Tensor) -> Tensor:
        """Two (B, 3, H, W) in [0, 1] -> (B,)."""
        return texture_distances(sr, hr, levels=self.levels, window=self.window, epsilon=self.epsilon)
