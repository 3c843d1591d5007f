"""Comb ratio: spectral power on the token grid's frequencies, a check that no loss here optimises (ours)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from losses.color import luma
from losses.filters import power, soft_clip, subtract_box_mean
from losses.precision import full_precision

_PITCH = 32
_MULTIPLE = 2 * _PITCH
_HIGHPASS = 17
_CLIP = 1.5
# Power per pixel far below a 1/255 pattern: keeps an image without any texture at a ratio of 1 instead of 0 / 0.
_FLOOR = 1e-9


def comb_ratio(image: Tensor, pitches: Sequence[int] = (32, 16, 8)) -> Tensor:
    """Spectral power at the multiples of 1/pitch cycles per pixel over the power between the multiples of 1/32 (ours).

    image: (B, 3, H, W) in [0, 1]; sides are centre-cropped to a multiple of 64. Returns (B, len(pitches)) float32:
    below or about 1 for photographs, tens for a visible grid. Luma, minus its 17 px box mean, soft clip, Hann window,
    P = |fft2|^2; on-comb (k/q, l/q), off-comb ((k + 1/2)/32, (l + 1/2)/32). Of the on-comb power the rows and columns
    of the zero frequency and the FFT bins beside it, over which the Hann window spreads it, are left out.
    Raises ValueError for sides below 64 px and for pitches that do not divide 32.
    """
    height, width = image.shape[-2:]
    if min(height, width) < _MULTIPLE:
        raise ValueError(f"found an image of {height} x {width} px; the comb ratio needs at least {_MULTIPLE} per side")
    for pitch in pitches:
        if pitch < 2 or _PITCH % pitch:
            raise ValueError(f"found a comb pitch of {pitch} px; expected a divisor of {_PITCH}, 2 or more")
    with full_precision(image):
        spectrum = _spectrum(_centre_crop(luma(image)))
    off = _mean_at(spectrum, *(_off_comb(side) for side in spectrum.shape[-2:]))
    on = [_mean_at(spectrum, *(_on_comb(side, pitch) for side in spectrum.shape[-2:])) for pitch in pitches]
    return (torch.stack(on, dim=-1) + _FLOOR) / (off[:, None] + _FLOOR)


def _centre_crop(image: Tensor) -> Tensor:
    height, width = (side // _MULTIPLE * _MULTIPLE for side in image.shape[-2:])
    top, left = (image.shape[-2] - height) // 2, (image.shape[-1] - width) // 2
    return image[:, top : top + height, left : left + width]


def _spectrum(image: Tensor) -> Tensor:
    """(B, H, W) -> (B, H, W) power spectrum per pixel, zero frequency first."""
    signal = soft_clip(subtract_box_mean(image, _HIGHPASS), _CLIP)
    rows, columns = (torch.hann_window(side, device=image.device) for side in signal.shape[-2:])
    window = rows[:, None] * columns[None, :]
    return power(torch.fft.fft2(signal * window)) / window.square().sum()


def _off_comb(side: int) -> list[int]:
    """FFT bins of (k + 1/2) / 32 cycles per pixel."""
    return [(2 * k + 1) * side // _MULTIPLE for k in range(_PITCH)]


def _on_comb(side: int, pitch: int) -> list[int]:
    """FFT bins of k / pitch cycles per pixel without k = 0; no other k lies within the two bins of its Hann lobe."""
    return [k * side // pitch for k in range(1, pitch)]


def _mean_at(spectrum: Tensor, rows: list[int], columns: list[int]) -> Tensor:
    return spectrum[:, rows][:, :, columns].mean(dim=(-2, -1))


class CombRatio(Metric):
    """Median over images of `comb_ratio` at one pitch; lower is better."""

    higher_is_better = False
    full_state_update = False
    ratios: list[Tensor]

    def __init__(self, pitch: int = 32) -> None:
        super().__init__()
        self.pitch = pitch
        self.add_state("ratios", [], dist_reduce_fx="cat")

    def update(self, sr: Tensor, hr: Tensor | None = None) -> None:
        """Add images (B, 3, H, W) in [0, 1]; hr is ignored."""
        self.ratios.append(comb_ratio(sr, (self.pitch,)).squeeze(-1))

    def compute(self) -> Tensor:
        """Median over all images of all processes; the mean of the middle two where their number is even."""
        return dim_zero_cat(self.ratios).quantile(0.5)
