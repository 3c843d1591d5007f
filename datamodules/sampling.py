"""Epoch order from the seed, equal batches on every rank, and datasets of seeded crops."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from datamodules.image_io import to_unit
from datamodules.randomness import generator_for
from datamodules.sources import ImageSource
from datamodules.synthetic import procedural_image


class ResumableBatchSampler(Sampler[list[int]]):
    """This rank's share of global batches start_batch, start_batch + 1, ..., length - 1.

    Samples are numbered 0, 1, 2, ... over the whole run; global batch b holds the numbers from b * global_batch on,
    and every rank a contiguous part of it, so the data depend neither on the number of ranks nor on where a run was
    interrupted. `len` is the length of the whole run, start_batch included: Lightning counts the batches done before
    a resume itself, and one without a length is prefetched by one.
    """

    def __init__(
        self, length: int, global_batch: int, rank: int = 0, world_size: int = 1, start_batch: int = 0
    ) -> None:
        if global_batch < 1 or global_batch % world_size:
            raise ValueError(
                f"data.batch_size={global_batch} is the batch over all ranks and must be a positive multiple of the "
                f"{world_size} ranks of this run; change data.batch_size or the number of devices"
            )
        self.length = length
        self.share = global_batch // world_size
        self.global_batch = global_batch
        self.rank = rank
        self.start_batch = start_batch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[list[int]]:
        for batch in range(self.start_batch, self.length):
            first = batch * self.global_batch + self.rank * self.share
            yield list(range(first, first + self.share))


def even_batches(count: int, batch_size: int, rank: int, world_size: int) -> list[list[int]]:
    """This rank's batches of 0..count-1: as many batches on every rank, every sample once over all ranks.

    Unequal numbers of batches hang collectives, and padding with repeated samples biases the metrics; therefore
    the sizes of the batches differ (by at most one) instead. Batches exceed batch_size only where count is too
    small for another batch on every rank. Raises ValueError where there are fewer samples than ranks.
    """
    if count < world_size:
        raise ValueError(
            f"data.val_count={count} is less than the {world_size} ranks of this run; raise data.val_count"
        )
    per_rank = min(-(-count // (batch_size * world_size)), count // world_size)
    chunks = per_rank * world_size
    edges = [count * chunk // chunks for chunk in range(chunks + 1)]
    mine = range(rank * per_rank, (rank + 1) * per_rank)
    return [list(range(edges[chunk], edges[chunk + 1])) for chunk in mine]


def single_batches(count: int, rank: int, world_size: int) -> list[list[int]]:
    """This rank's batches of one of 0..count-1: every sample once over all ranks.

    Where the ranks do not divide count some have a batch more, as images of unequal size share no batch; validation
    steps may therefore hold no collective. Raises ValueError where there are fewer samples than ranks.
    """
    if count < world_size:
        raise ValueError(
            f"data.val holds {count} pairs, less than the {world_size} ranks of this run; give a folder of more pairs "
            "or lower trainer.devices"
        )
    return [[index] for index in range(count * rank // world_size, count * (rank + 1) // world_size)]


def sample_key(
    number: int, images: int, crops_per_image: int, seed: int, crops_per_decode: int = 1
) -> tuple[int, int, int, int]:
    """(seed, epoch, image index, crop index) of a sample's number in the run.

    An epoch's order is shuffled in groups of crops_per_decode crops of one image; that divides crops_per_image.
    """
    epoch, place = divmod(number, images * crops_per_image)
    group, member = divmod(place, crops_per_decode)
    order = _epoch_order(seed, epoch, images * crops_per_image // crops_per_decode)
    slot = int(order[group]) * crops_per_decode + member
    return seed, epoch, slot // crops_per_image, slot % crops_per_image


@lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, length: int) -> Tensor:
    return torch.randperm(length, generator=generator_for((seed, epoch), "order"))


class CropDataset(Dataset[dict[str, Tensor]]):
    """Seeded training crops, flipped and turned, addressed by their number in the run (any number from 0).

    An item holds `hr`, (3,crop,crop) float32 in [0,1], and `key`, int64 (seed, epoch, index, crop). A share of the
    samples, chosen by their keys, is a procedural image in place of the photograph. crops_per_decode samples in a row
    come from one image, which the source keeps for so long. `len` is that of one epoch.
    """

    def __init__(
        self,
        source: ImageSource,
        crop: int,
        seed: int,
        crops_per_image: int = 1,
        procedural_share: float = 0.0,
        crops_per_decode: int = 1,
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

    def __len__(self) -> int:
        return len(self.source) * self.crops_per_image

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        key = sample_key(number, len(self.source), self.crops_per_image, self.seed, self.crops_per_decode)
        generator = generator_for(key, "crop")
        if float(torch.rand(1, generator=generator)) < self.procedural_share:
            hr = procedural_image(self.crop, generator)
        else:
            hr = random_crop(self.source.load(key[2]), self.crop, generator)
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


def random_crop(pixels: Tensor, crop: int, generator: torch.Generator) -> Tensor:
    """A (3,crop,crop) float32 crop in [0,1] of (3,H,W) pixels, its place uniform."""
    height, width = pixels.shape[-2:]
    top = int(torch.randint(height - crop + 1, (1,), generator=generator))
    left = int(torch.randint(width - crop + 1, (1,), generator=generator))
    return to_unit(pixels[:, top : top + crop, left : left + crop]).contiguous()


def random_symmetry(image: Tensor, generator: torch.Generator) -> Tensor:
    """One of the eight symmetries of the square, drawn uniformly, of (3,S,S)."""
    turns, flip = divmod(int(torch.randint(8, (1,), generator=generator)), 2)
    return torch.rot90(image.flip(-1) if flip else image, turns, (-2, -1)).contiguous()
