"""Spectra and autocorrelation maps of the held-out panel images, where a grid shows that the eye still misses.

After fig. 10 of OP4KSR (arXiv 2605.13457), which shows 2-D FFT spectra; the fixed ranges and the maps are ours.
"""

import torch
from torch import Tensor

from callbacks.image_panel import PanelCallback, image_row
from losses.color import luma
from losses.periodicity import autocorrelation

# Fixed, so that arms and steps compare by eye. In dB below the zero frequency of a white image: a 32 px cosine of rms
# 4/255 lies at -39, the 8-bit rounding noise of a 256 px crop at about -104.
SPECTRUM_DB = (-100.0, -20.0)
# Correlation at full colour: a random 32 px tile of rms 8/255 on a photograph (astronaut, 256 px) gives 0.15 to 0.19
# at its lags, the photograph alone stays within 0.11 beyond 32 px.
CORRELATION_RANGE = 0.25
MAX_LAG = 96  # px, three token pitches; a multiple of 3, see `autocorrelation_picture`
ENLARGE = 2

# ColorBrewer RdBu, five of eleven: dark blue, blue, near white, red, dark red.
_DIVERGING = ((5, 48, 97), (67, 147, 195), (247, 247, 247), (214, 96, 77), (103, 0, 31))


def diverging(value: Tensor) -> Tensor:
    """Colours from blue (-1) through near white (0) to red (1): (B, H, W) -> (B, 3, H, W) in [0, 1]; clips beyond.

    >>> (diverging(torch.zeros(1, 1, 1)) * 255).round().flatten().tolist()
    [247.0, 247.0, 247.0]
    """
    anchors = torch.tensor(_DIVERGING, dtype=torch.float32, device=value.device) / 255
    position = (value.float().nan_to_num(0.0).clamp(-1, 1) + 1) / 2 * (len(anchors) - 1)
    lower = position.floor().clamp(max=len(anchors) - 2).long()
    fraction = (position - lower).unsqueeze(-1)
    return torch.lerp(anchors[lower], anchors[lower + 1], fraction).movedim(-1, -3)


def log_spectrum(image: Tensor) -> Tensor:
    """Log-magnitude spectrum of the luma, grey, zero frequency at [H // 2, W // 2].

    image: (B, 3, H, W) in [0, 1]. Returns (B, 3, H, W) in [0, 1]: 20 log10(|FFT(Hann luma)| / sum of the window), 0 at
    -100 dB and 1 at -20 dB and above. A pattern of p px shows at every multiple of H/p rows and W/p columns.
    """
    gray = luma(image.nan_to_num(0.0))
    height, width = gray.shape[-2:]
    window = torch.outer(torch.hann_window(height), torch.hann_window(width)).to(gray.device)
    amplitude = torch.fft.fft2(gray * window).abs() / window.sum()
    decibel = 20 * torch.log10(torch.fft.fftshift(amplitude, dim=(-2, -1)).clamp(min=1e-12))
    low, high = SPECTRUM_DB
    return ((decibel - low) / (high - low)).clamp(0, 1).unsqueeze(1).repeat(1, 3, 1, 1)


def autocorrelation_picture(image: Tensor) -> Tensor:
    """Map of the normalised autocorrelation at lags of -L..L px, lag 0 at the centre, red positive and blue negative.

    image: (B, 3, H, W) in [0, 1]. The signal is L_AP's (high-passed and soft-clipped luma), over the whole image.
    L = 96, or for sides below 192 px about half the side. Returns (B, 3, S, S) in [0, 1], S = 2 (2 L + 1), each lag as
    2 x 2 px; full colour at +-0.25. A grid of p px shows as red dots p lags apart. Raises ValueError below 14 px.
    """
    side = min(image.shape[-2:])
    # `autocorrelation` reaches lags * period + period / 2 = 3/2 period.
    period = 2 * min(MAX_LAG // 3, max(side // 6, 1))
    correlation = autocorrelation(image.nan_to_num(0.0), period=period, lags=1, quadrants=1)[:, 0]
    picture = diverging(correlation / CORRELATION_RANGE)
    return picture.repeat_interleave(ENLARGE, dim=-2).repeat_interleave(ENLARGE, dim=-1)


class Spectrum(PanelCallback):
    """Logs `spectrum/<name>` and `autocorrelation/<name>` of the panel's images, side by side in the panel's order."""

    def pictures(self, images: dict[str, Tensor]) -> dict[str, Tensor]:
        stack = torch.stack([image.clamp(0, 1) for image in images.values()])
        return {
            "spectrum": image_row(list(log_spectrum(stack))),
            "autocorrelation": image_row(list(autocorrelation_picture(stack))),
        }
