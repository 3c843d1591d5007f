"""Seeded crops: training crops by their number in the run, fixed validation crops."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.image_io import to_unit
from datamodules.randomness import generator_for
from datamodules.sampling import sample_key
from datamodules.sources import ImageSource
from datamodules.synthetic import procedural_image

PREFERENCES = ("uniform", "detailed", "flat")


class CropDataset(Dataset[dict[str, Tensor]]):
    """Seeded training crops, flipped and turned, addressed by their number in the run (any number from 0).

    An item holds `hr`, (3,crop,crop) float32 in [0,1], and `key`, int64 (seed, epoch, index, crop). A share of the
    samples, chosen by their keys, is a procedural image in place of the photograph. crops_per_decode samples in a row
    come from one image, which the source keeps for so long. preference, candidates: see `random_crop`. `len` is that
    of one epoch.
    """

    def __init__(
        self,
        source: ImageSource,
        crop: int,
        seed: int,
        crops_per_image: int = 1,
        procedural_share: float = 0.0,
        crops_per_decode: int = 1,
        preference: str = "uniform",
        candidates: int = 4,
    ) -> None:
        if crops_per_image % crops_per_decode:
            raise ValueError(
                f"data.crops_per_decode={crops_per_decode}: expected a divisor of data.crops_per_image="
                f"{crops_per_image}"
            )
        self.source = source
        self.crop = crop
        self.seed = seed
        self.crops_per_image = crops_per_image
        self.procedural_share = procedural_share
        self.crops_per_decode = crops_per_decode
        self.candidates = 1 if preference == "uniform" else candidates
        self.preference = preference

    def __len__(self) -> int:
        return len(self.source) * self.crops_per_image

    def key(self, number: int) -> tuple[int, int, int, int]:
        """(seed, epoch, image index, crop index) of a sample."""
        return sample_key(number, len(self.source), self.crops_per_image, self.seed, self.crops_per_decode)

    def __getitems__(self, numbers: Sequence[int]) -> list[dict[str, Tensor]]:
        keys = [self.key(number) for number in numbers]
        self.source.prefetch([key[2] for key in keys if not self._is_procedural(generator_for(key, "crop"))])
        return [self[number] for number in numbers]

    def _is_procedural(self, generator: torch.Generator) -> bool:
        """A crop's first draw."""
        return float(torch.rand(1, generator=generator)) < self.procedural_share

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        key = self.key(number)
        generator = generator_for(key, "crop")
        if self._is_procedural(generator):
            hr = procedural_image(self.crop, generator)
        else:
            hr = random_crop(self.source.load(key[2]), self.crop, generator, self.preference, self.candidates)
        return {"hr": random_symmetry(hr, generator), "key": torch.tensor(key)}


class ValidationCrops(Dataset[dict[str, Any]]):
    """Fixed crops of held-out images: number i is of image i modulo their number, placed by (seed, i).

    An item holds `hr`, (3,crop,crop) float32 in [0,1], `key`, int64 (seed, -1, i, 0), and `name`.
    """

    def __init__(self, source: ImageSource, crop: int, seed: int, count: int) -> None:
        self.source = source
        self.crop = crop
        self.seed = seed
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        key = (self.seed, -1, index, 0)
        turn, image = divmod(index, len(self.source))
        hr = random_crop(self.source.load(image), self.crop, generator_for(key, "crop"))
        name = self.source.name(image) + (f"-{turn + 1}" if turn else "")
        return {"hr": hr, "key": torch.tensor(key), "name": name}


def random_crop(
    pixels: Tensor, crop: int, generator: torch.Generator, preference: str = "uniform", candidates: int = 1
) -> Tensor:
    """A (3,crop,crop) float32 crop in [0,1] of (3,H,W) pixels.

    Its place is uniform; of several such candidates the one of most or, by preference "flat", of least `detail` (ours).
    """
    crops = [_uniform_crop(pixels, crop, generator) for _ in range(candidates)]
    if candidates > 1:
        amounts = [detail(candidate) for candidate in crops]
        crops = [crops[amounts.index(max(amounts) if preference == "detailed" else min(amounts))]]
    return to_unit(crops[0]).contiguous()


def _uniform_crop(pixels: Tensor, crop: int, generator: torch.Generator) -> Tensor:
    height, width = pixels.shape[-2:]
    top = int(torch.randint(height - crop + 1, (1,), generator=generator))
    left = int(torch.randint(width - crop + 1, (1,), generator=generator))
    return pixels[:, top : top + crop, left : left + crop]


def detail(pixels: Tensor) -> float:
    """Mean absolute difference of neighbours in the green channel of (3,H,W) pixels, in units of [0,1] (ours)."""
    green = to_unit(pixels[1])
    return float(green.diff(dim=0).abs().mean() + green.diff(dim=1).abs().mean()) / 2


def random_symmetry(image: Tensor, generator: torch.Generator) -> Tensor:
    """One of the eight symmetries of the square, drawn uniformly, of (3,S,S)."""
    turns, flip = divmod(int(torch.randint(8, (1,), generator=generator)), 2)
    return torch.rot90(image.flip(-1) if flip else image, turns, (-2, -1)).contiguous()
