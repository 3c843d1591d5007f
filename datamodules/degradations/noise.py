"""Noise fields as Real-ESRGAN defines them; every field comes from the generator passed in."""

import torch
from torch import Tensor

_LUMA = (0.2989, 0.587, 0.114)


def gaussian_noise(image: Tensor, sigma: float, grey: bool, generator: torch.Generator) -> Tensor:
    """Return zero-mean Gaussian noise for an image, not added to it.

    image (..., 3, H, W) in [0,1]; sigma in grey levels of 8 bit; `grey` gives the three channels the same noise.
    The generator lives on the image's device. Returns a field that broadcasts to the image.
    """
    shape = list(image.shape)
    if grey:
        shape[-3] = 1
    field = torch.randn(shape, generator=generator, device=image.device, dtype=image.dtype)
    return field * (sigma / 255)


def poisson_noise(image: Tensor, scale: float, grey: bool, generator: torch.Generator) -> Tensor:
    """Return signal-dependent Poisson noise for one image, not added to it.

    With L = the number of distinct 8-bit values in the image, rounded up to a power of two, the noise is
    scale (Poisson(L x) / L - x). image (..., 3, H, W) in [0,1], one sample; the generator lives on its device.
    Returns a field that broadcasts to the image. Source: Real-ESRGAN's `generate_poisson_noise_pt`.
    """
    if grey:
        luma = torch.tensor(_LUMA).to(image, non_blocking=True)
        image = (image * luma[:, None, None]).sum(-3, keepdim=True)
    levels = (image * 255).round().clamp(0, 255)
    peak = _peak(levels)
    image = levels / 255
    return scale * (torch.poisson(image * peak, generator=generator) / peak - image)


def _peak(levels: Tensor) -> Tensor:
    # torch.unique would make the device wait for the host; marking a table of 256 does not.
    seen = torch.zeros(256, device=levels.device)
    count = seen.index_fill_(0, levels.flatten().long(), 1.0).sum()
    powers = 2 ** torch.arange(8, device=levels.device)
    return torch.exp2((count > powers).sum())
