"""Epoch order from the seed, equal batches on every rank, exact resume."""

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils.data import Sampler

from datamodules.randomness import generator_for


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
    order = shuffled((seed, epoch), images * crops_per_image // crops_per_decode)
    slot = int(order[group]) * crops_per_decode + member
    return seed, epoch, slot // crops_per_image, slot % crops_per_image


@lru_cache(maxsize=2)
def shuffled(key: tuple[int, ...], length: int, purpose: str = "order") -> Tensor:
    """0..length-1 (int32) in the order that key and purpose give; the latest are kept, as every sample asks."""
    return torch.randperm(length, generator=generator_for(key, purpose)).int()
