"""L_AP, the autocorrelation-based periodicity loss against the token grid.

OP4KSR (arXiv 2605.13457) names such a loss on Q = 4 quadrants; its formula is not public. The one here is ours.
"""

from itertools import pairwise

import torch
from scipy.fft import next_fast_len
from torch import Tensor
from torchmetrics import Metric

from losses.color import luma
from losses.comb_ratio import CombRatio, comb_ratio
from losses.filters import power, soft_clip, subtract_box_mean
from losses.per_image import PerImageLoss
from losses.precision import full_precision

__all__ = [
    "CombRatio",
    "Periodicity",
    "PeriodicityLoss",
    "autocorrelation",
    "comb_ratio",
    "periodicity_loss",
    "periodicity_scores",
    "smallest_side",
]


def periodicity_loss(
    sr: Tensor, *, period: int = 32, lags: int = 2, quadrants: int = 2, highpass: int = 17, clip: float = 1.5
) -> Tensor:
    """L_AP (ours): how much more an image resembles itself one token pitch away than at any other shift.

    sr: (B, 3, H, W) in [0, 1], any float dtype; computed in float32. Returns a scalar >= 0, the mean over images and
    quadrants: 512 px crops of photographs have a median of 0.001 to 0.002, regular facades up to 0.06, the same crops
    with a 32 px tile of rms 4/255 mostly above 0.1. Zero is not proof of a clean image: prominences of both signs
    average out over the lags; `comb_ratio` sees what is left.
    period: token pitch p in pixels, even. lags: K, multiples of the pitch looked at. quadrants: parts **per axis**, so
    2 is the paper's Q = 4. highpass: odd side of the box filter that is subtracted. clip: soft clip in mean |y|.
    Raises ValueError where a quadrant is not larger than K p + p/2 (162 px per side of the image at the defaults).
    """
    return periodicity_scores(sr, period=period, lags=lags, quadrants=quadrants, highpass=highpass, clip=clip).mean()


def periodicity_scores(
    image: Tensor, *, period: int = 32, lags: int = 2, quadrants: int = 2, highpass: int = 17, clip: float = 1.5
) -> Tensor:
    """L_AP of each image: (B, 3, H, W) in [0, 1] -> (B,) float32 >= 0. Options as in `periodicity_loss`."""
    correlation = autocorrelation(image, period=period, lags=lags, quadrants=quadrants, highpass=highpass, clip=clip)
    return _prominence(correlation, period, lags).mean(dim=-1).relu().mean(dim=-1)


def autocorrelation(
    image: Tensor, *, period: int = 32, lags: int = 2, quadrants: int = 2, highpass: int = 17, clip: float = 1.5
) -> Tensor:
    """Normalised autocorrelation R of each quadrant's high-passed, soft-clipped luma.

    image: (B, 3, H, W) in [0, 1]. Returns (B, quadrants^2, 2L + 1, 2L + 1) float32 with L = K p + p/2: index
    [..., L + dy, L + dx] is the lag (dy, dx) in pixels, 1 at the centre. Options and errors as in `periodicity_loss`.
    """
    reach = _check(image, period, lags, quadrants, highpass, clip)
    with full_precision(image):
        parts = _split(luma(image), quadrants)
        return torch.stack([_correlate(_clipped_highpass(part, highpass, clip), reach) for part in parts], dim=1)


def smallest_side(period: int = 32, lags: int = 2, quadrants: int = 2, highpass: int = 17) -> int:
    """Side in pixels of the smallest image that L_AP takes: each quadrant is larger than K p + p/2.

    >>> smallest_side()
    162
    """
    return quadrants * (max(lags * period + period // 2, highpass // 2) + 1)


def _check(image: Tensor, period: int, lags: int, quadrants: int, highpass: int, clip: float) -> int:
    if period < 2 or period % 2:
        raise ValueError(f"found losses.periodicity.period={period}; expected an even number of pixels >= 2")
    if highpass < 3 or highpass % 2 == 0:
        raise ValueError(f"found losses.periodicity.highpass={highpass}; expected an odd number of pixels >= 3")
    if lags < 1 or quadrants < 1 or clip <= 0:
        raise ValueError(
            f"found losses.periodicity.lags={lags}, quadrants={quadrants}, clip={clip}; "
            "expected lags >= 1, quadrants >= 1 (per axis) and clip > 0"
        )
    height, width = image.shape[-2:]
    needed = smallest_side(period, lags, quadrants, highpass)
    if min(height, width) < needed:
        raise ValueError(
            f"found an image of {height} x {width} px; the periodicity loss at period {period} needs at least "
            f"{needed} px per side: lower losses.periodicity.period or raise data.crop"
        )
    return lags * period + period // 2


def _split(image: Tensor, parts: int) -> list[Tensor]:
    """Cut (B, H, W) into parts x parts tiles; the middle row and column of odd sizes go to the second."""
    height, width = image.shape[-2:]
    rows = [height * i // parts for i in range(parts + 1)]
    columns = [width * i // parts for i in range(parts + 1)]
    return [image[:, top:bottom, left:right] for top, bottom in pairwise(rows) for left, right in pairwise(columns)]


def _clipped_highpass(image: Tensor, side: int, clip: float) -> Tensor:
    signal = subtract_box_mean(image, side)
    return soft_clip(signal - signal.mean(dim=(-2, -1), keepdim=True), clip)


def _correlate(signal: Tensor, reach: int) -> Tensor:
    """(B, h, w) -> (B, 2 reach + 1, 2 reach + 1): mean product at each lag over the mean square (Wiener-Khinchin)."""
    height, width = signal.shape[-2:]
    # Zeros of at least `reach` keep the circular products apart; more only rounds up to a fast length.
    size = (next_fast_len(height + reach, real=True), next_fast_len(width + reach, real=True))
    circular = torch.fft.irfft2(power(torch.fft.rfft2(signal, s=size)), s=size)
    offset = torch.arange(-reach, reach + 1, device=signal.device)
    products = circular[:, offset % size[0]][:, :, offset % size[1]]
    overlap = (height - offset.abs())[:, None] * (width - offset.abs())[None, :]
    mean_product = products / overlap
    return mean_product / (mean_product[:, reach, reach].detach() + 1e-6)[:, None, None]


def _prominence(correlation: Tensor, period: int, lags: int) -> Tensor:
    """R at the lags (k p, l p) of one half plane less its mean over one period around each: (..., lags of the half).

    The whole period as baseline sees every harmonic of the pitch; the half-period neighbours alone would be blind to
    the even ones, and a student trained on them turns a 32 px grid into an 8 px grid.
    """
    centre = correlation.shape[-1] // 2
    half = period // 2
    # rows 1..K and columns -K..K, one p x p block around each lag; blocks tile the map without a gap
    blocks = correlation[..., centre + half : centre + half + lags * period, : (2 * lags + 1) * period]
    baseline = blocks.unflatten(-2, (lags, period)).unflatten(-1, (2 * lags + 1, period)).mean(dim=(-3, -1))
    column = correlation[..., centre + half : -1, centre].unflatten(-1, (lags, period)).mean(dim=-1)
    row = correlation[..., centre, centre + half : -1].unflatten(-1, (lags, period)).mean(dim=-1)
    baseline = torch.cat([baseline[..., :lags], column[..., None], baseline[..., lags + 1 :]], dim=-1)
    peaks = correlation[..., centre + period :: period, half::period]
    row_peaks = correlation[..., centre, centre + period :: period]
    return torch.cat([row_peaks - row.detach(), (peaks - baseline.detach()).flatten(-2)], dim=-1)


class PeriodicityLoss(PerImageLoss):
    """`periodicity_loss` as a term of the weighted sum; hr is ignored."""

    def __init__(
        self, period: int = 32, lags: int = 2, quadrants: int = 2, highpass: int = 17, clip: float = 1.5
    ) -> None:
        super().__init__()
        self.period = period
        self.lags = lags
        self.quadrants = quadrants
        self.highpass = highpass
        self.clip = clip

    def per_image(self, sr: Tensor, hr: Tensor | None = None) -> Tensor:
        """sr: (B, 3, H, W) in [0, 1] -> (B,)."""
        return periodicity_scores(
            sr,
            period=self.period,
            lags=self.lags,
            quadrants=self.quadrants,
            highpass=self.highpass,
            clip=self.clip,
        )


class Periodicity(Metric):
    """Mean over images of `periodicity_scores`; lower is better, photographs have a median near 0.002."""

    higher_is_better = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(
        self, period: int = 32, lags: int = 2, quadrants: int = 2, highpass: int = 17, clip: float = 1.5
    ) -> None:
        super().__init__()
        self.score = PeriodicityLoss(period, lags, quadrants, highpass, clip)
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, sr: Tensor, hr: Tensor | None = None) -> None:
        """Add images (B, 3, H, W) in [0, 1]; hr is ignored."""
        scores = self.score.per_image(sr)
        self.total += scores.sum()
        self.count += len(scores)

    def compute(self) -> Tensor:
        """Mean over all images of all processes."""
        return self.total / self.count
