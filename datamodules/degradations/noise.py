"""Noise fields as Real-ESRGAN defines them; every field comes from the generator passed in."""

from functools import cache

import torch
from torch import Generator, Tensor

_LUMA = (0.2989, 0.587, 0.114)
_SLOT_BITS = 9  # 512 counts reach 16 standard deviations beyond the largest mean, 256
_SLOTS = 2**_SLOT_BITS
_CHANCE_BITS = 31 - _SLOT_BITS


def gaussian_noise(image: Tensor, sigma: float, grey: bool, generator: Generator) -> Tensor:
    """Return zero-mean Gaussian noise for an image, not added to it.

    image (..., 3, H, W) in [0,1]; sigma in grey levels of 8 bit; `grey` gives the three channels the same noise.
    The generator lives on the image's device. Returns a field that broadcasts to the image.
    """
    shape = list(image.shape)
    if grey:
        shape[-3] = 1
    field = torch.randn(shape, generator=generator, device=image.device, dtype=image.dtype)
    return field.mul_(sigma / 255)


def poisson_noise(image: Tensor, scale: float, grey: bool, generator: Generator) -> Tensor:
    """Return signal-dependent Poisson noise for one image, not added to it.

    With L = the number of distinct 8-bit values in the image, rounded up to a power of two, the noise is
    scale (Poisson(L x) / L - x). image (..., 3, H, W) in [0,1], one sample; the generator lives on its device.
    Returns a field that broadcasts to the image. Source: Real-ESRGAN's `generate_poisson_noise_pt`.
    """
    if grey:
        luma = torch.tensor(_LUMA).to(image, non_blocking=True)
        image = (image * luma[:, None, None]).sum(-3, keepdim=True)
    levels = (image * 255).round_().clamp_(0, 255)
    draw = counts_by_table if image.device.type == "cpu" else counts_on_device
    counts, peak = draw(levels, generator)
    return counts.div_(peak).sub_(levels.div_(255)).mul_(scale)


def counts_on_device(levels: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Draw Poisson counts with means levels / 255 x peak, and return them with the peak, both float32.

    levels float32, whole numbers in 0..255. The peak is the number of distinct levels, rounded up to a power of two.
    """
    # torch.unique would make the device wait for the host; marking a table of 256 does not.
    seen = torch.zeros(256, device=levels.device)
    distinct = seen.index_fill_(0, levels.flatten().long(), 1.0).sum()
    peak = torch.exp2((distinct > 2 ** torch.arange(8, device=levels.device)).sum())
    return torch.poisson(levels / 255 * peak, generator=generator), peak


def counts_by_table(levels: Tensor, generator: Generator) -> tuple[Tensor, int]:
    """Draw the same on the CPU, where there are but 256 means: each has a table for the alias method.

    Takes a fifth of the time of torch.poisson.
    """
    index = levels.int()
    distinct = int((torch.bincount(index.flatten(), minlength=256) > 0).sum())
    peak = 2 ** (distinct - 1).bit_length()
    bits = torch.empty_like(index).random_(generator=generator)  # 31 of them
    slot = bits & (_SLOTS - 1)
    entry = alias_table(peak).index_select(0, index.mul_(_SLOTS).add_(slot).flatten()).view_as(index)
    keeps = (bits >> _SLOT_BITS) < (entry >> _SLOT_BITS)
    return torch.where(keeps, slot, entry.bitwise_and_(_SLOTS - 1)).float(), peak


@cache
def alias_table(peak: int) -> Tensor:
    """Return the alias tables (256 x 512,) int32 of Poisson distributions with means 0..peak in 256 even steps.

    Slot k of a mean's table answers k with the chance in the upper 22 bits and the count in its lower 9 bits otherwise
    (Walker, 1977; built after Vose, 1991). `peak` is at most 256.
    """
    count = torch.arange(_SLOTS, dtype=torch.float64)
    mean = torch.arange(256, dtype=torch.float64)[:, None] / 255 * peak
    probability = torch.exp(torch.xlogy(count, mean) - mean - torch.lgamma(count + 1))
    rows = [_alias_row(row) for row in (probability / probability.sum(1, keepdim=True)).tolist()]
    return torch.tensor(rows, dtype=torch.int32).flatten()


def _alias_row(probability: list[float]) -> list[int]:
    share = [p * _SLOTS for p in probability]
    small = [k for k, s in enumerate(share) if s < 1]
    large = [k for k, s in enumerate(share) if s >= 1]
    alias = list(range(_SLOTS))
    chance = [1.0] * _SLOTS
    while small and large:
        low, high = small.pop(), large[-1]
        chance[low], alias[low] = share[low], high
        share[high] -= 1 - share[low]
        if share[high] < 1:
            small.append(large.pop())
    # A chance of one needs no 23rd bit: such a slot's other answer is itself.
    most = 2**_CHANCE_BITS - 1
    return [min(round(c * 2**_CHANCE_BITS), most) << _SLOT_BITS | a for c, a in zip(chance, alias, strict=True)]
