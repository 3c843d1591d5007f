"""Distance to the reference, pixel by pixel: L1, L2, and PSNR and SSIM on the Y channel and on RGB."""

from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from losses.color import check_rgb, color_error, rgb_to_y
from losses.precision import full_precision

_SSIM_WINDOW = 11


def l1(sr: Tensor, hr: Tensor) -> Tensor:
    """Mean absolute difference of two equal shapes, in float32: scalar."""
    _check_pair(sr, hr)
    return F.l1_loss(sr.float(), hr.float())


def l2(sr: Tensor, hr: Tensor) -> Tensor:
    """Mean squared difference of two equal shapes, in float32: scalar."""
    _check_pair(sr, hr)
    return F.mse_loss(sr.float(), hr.float())


def psnr(sr: Tensor, hr: Tensor, *, crop_border: int = 0, round_to_8bit: bool = False) -> Tensor:
    """PSNR of the BT.601 Y channel of each image in dB, peak 1: two (B, 3, H, W) in [0, 1] -> (B,).

    crop_border: pixels left out at each side. round_to_8bit: clamp and round both images to 8-bit RGB first, as
    images written to PNG are. Equal images have an infinite PSNR. Convention of BasicSR's `calculate_psnr`.
    """
    sr, hr = _as_measured(sr, hr, crop_border, round_to_8bit)
    return _psnr(rgb_to_y(sr), rgb_to_y(hr))


def psnr_rgb(sr: Tensor, hr: Tensor, *, crop_border: int = 0, round_to_8bit: bool = False) -> Tensor:
    """PSNR of each RGB image, of the error over all three channels; otherwise as `psnr`."""
    return _psnr(*_as_measured(sr, hr, crop_border, round_to_8bit))


def ssim(sr: Tensor, hr: Tensor, *, crop_border: int = 0, round_to_8bit: bool = False) -> Tensor:
    """SSIM of the BT.601 Y channel of each image: two (B, 3, H, W) in [0, 1] -> (B,) in [-1, 1].

    11 x 11 Gaussian window, sigma 1.5, valid region only (Wang et al. 2004; BasicSR's `calculate_ssim`). Options as
    in `psnr`. Raises ValueError for images smaller than the window after the border crop.
    """
    sr, hr = _as_measured(sr, hr, crop_border, round_to_8bit)
    return _ssim(rgb_to_y(sr), rgb_to_y(hr))


def ssim_rgb(sr: Tensor, hr: Tensor, *, crop_border: int = 0, round_to_8bit: bool = False) -> Tensor:
    """Mean of the SSIM of the three channels of each RGB image (BasicSR); otherwise as `ssim`."""
    return _ssim(*_as_measured(sr, hr, crop_border, round_to_8bit))


def _psnr(sr: Tensor, hr: Tensor) -> Tensor:
    return peak_signal_noise_ratio(sr, hr, data_range=1.0, reduction="none", dim=(1, 2, 3))


def _ssim(sr: Tensor, hr: Tensor) -> Tensor:
    """Mean over the channels; one after the other, as torchmetrics holds ten images of a channel at once."""
    if min(sr.shape[-2:]) < _SSIM_WINDOW:
        raise ValueError(
            f"found {sr.shape[-2]} x {sr.shape[-1]} px after the border crop; SSIM needs {_SSIM_WINDOW} per side"
        )
    pairs = zip(sr.split(1, dim=1), hr.split(1, dim=1), strict=True)
    return torch.stack([_channel_ssim(*pair) for pair in pairs]).mean(dim=0)


def _channel_ssim(sr: Tensor, hr: Tensor) -> Tensor:
    with full_precision(sr):
        _, ssim_map = structural_similarity_index_measure(
            sr, hr, gaussian_kernel=True, sigma=1.5, data_range=1.0, reduction="none", return_full_image=True
        )
    # torchmetrics mirrors the border and averages over it as well; the papers' figures leave it out.
    edge = _SSIM_WINDOW // 2
    return ssim_map[..., edge:-edge, edge:-edge].mean(dim=(1, 2, 3))


def _check_pair(sr: Tensor, hr: Tensor) -> None:
    if sr.shape != hr.shape:
        raise ValueError(f"found sr of shape {tuple(sr.shape)} and hr of {tuple(hr.shape)}; expected equal shapes")


def _as_measured(sr: Tensor, hr: Tensor, crop_border: int, round_to_8bit: bool) -> tuple[Tensor, Tensor]:
    """Both images without their border in float32, clamped and rounded to 8 bits where asked for."""
    _check_pair(sr, hr)
    check_rgb(sr)
    height, width = sr.shape[-2:]
    if crop_border < 0 or 2 * crop_border >= min(height, width):
        raise ValueError(f"found crop_border={crop_border} for {height} x {width} px; nothing is left")
    inside = (..., slice(crop_border, height - crop_border), slice(crop_border, width - crop_border))
    sr, hr = sr[inside].float(), hr[inside].float()
    return (_rounded(sr), _rounded(hr)) if round_to_8bit else (sr, hr)


def _rounded(image: Tensor) -> Tensor:
    return (image.clamp(0, 1) * 255).round() / 255


class L1(nn.Module):
    """`l1` as a term of the weighted sum."""

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        """Two (B, 3, H, W) -> scalar."""
        return l1(sr, hr)


class L2(nn.Module):
    """`l2` as a term of the weighted sum."""

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        """Two (B, 3, H, W) -> scalar."""
        return l2(sr, hr)


class _MeanOverImages(Metric):
    """Mean of one value per image, equal weight for each image of each process."""

    higher_is_better = True
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, crop_border: int = 0, round_to_8bit: bool = False) -> None:
        super().__init__()
        self.crop_border = crop_border
        self.round_to_8bit = round_to_8bit
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    @abstractmethod
    def values(self, sr: Tensor, hr: Tensor) -> Tensor:
        """One value per image: two (B, 3, H, W) in [0, 1] -> (B,)."""

    def update(self, sr: Tensor, hr: Tensor) -> None:
        """Add pairs of (B, 3, H, W) in [0, 1]."""
        values = self.values(sr, hr)
        self.total += values.sum()
        self.count += len(values)

    def compute(self) -> Tensor:
        """Mean over all images of all processes."""
        return self.total / self.count


class PsnrY(_MeanOverImages):
    """Mean over images of `psnr` in dB, the papers' convention (not the PSNR of the mean error)."""

    def values(self, sr: Tensor, hr: Tensor) -> Tensor:
        """PSNR-Y of each image: (B,)."""
        return psnr(sr, hr, crop_border=self.crop_border, round_to_8bit=self.round_to_8bit)


class PsnrRgb(_MeanOverImages):
    """Mean over images of `psnr_rgb` in dB."""

    def values(self, sr: Tensor, hr: Tensor) -> Tensor:
        """PSNR of each RGB image: (B,)."""
        return psnr_rgb(sr, hr, crop_border=self.crop_border, round_to_8bit=self.round_to_8bit)


class SsimY(_MeanOverImages):
    """Mean over images of `ssim`."""

    def values(self, sr: Tensor, hr: Tensor) -> Tensor:
        """SSIM-Y of each image: (B,)."""
        return ssim(sr, hr, crop_border=self.crop_border, round_to_8bit=self.round_to_8bit)


class SsimRgb(_MeanOverImages):
    """Mean over images of `ssim_rgb`."""

    def values(self, sr: Tensor, hr: Tensor) -> Tensor:
        """SSIM of each RGB image: (B,)."""
        return ssim_rgb(sr, hr, crop_border=self.crop_border, round_to_8bit=self.round_to_8bit)


class ColorError(_MeanOverImages):
    """Mean over images of `color_error`, in 8-bit grey levels."""

    higher_is_better = False

    def values(self, sr: Tensor, hr: Tensor) -> Tensor:
        """Colour error of each image: (B,)."""
        return color_error(sr, hr)
