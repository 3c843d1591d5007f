"""Whole images for patch-free training: aspect-ratio buckets, and batches of one bucket each (ours)."""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from datamodules.image_io import to_unit
from datamodules.randomness import generator_for
from datamodules.sampling import shuffled
from datamodules.sources import ImageSource

ASPECTS = (1.0, 5 / 4, 4 / 3, 3 / 2, 16 / 9, 2.0)
RUNG = 2**-0.25
"""Each side of the ladder as a factor of the one above."""


def bucket_ladder(side: int, smallest: int, unit: int) -> list[tuple[int, int]]:
    """Sizes (height, width) of whole images, all multiples of unit, of the most pixels first.

    Every ratio of ASPECTS, upright and lying, at an area of side^2 and, by RUNG, at smaller ones down to smallest^2, as
    long as the shorter side is at least `smallest` (in whole units): any image of such sides covers one of them.

    >>> bucket_ladder(64, 64, 32)
    [(64, 64)]
    """
    sizes: set[tuple[int, int]] = set()
    least = smallest // unit * unit
    rungs = int(4 * math.log2(max(side / smallest, 1)))
    for area_side in (*(side * RUNG**rung for rung in range(rungs + 1)), smallest):
        for aspect in ASPECTS:
            # a little above, so that a size which is whole does not fall to the unit below by rounding
            short, long = (int(area_side * aspect**power / unit + 1e-6) * unit for power in (-0.5, 0.5))
            if short >= max(least, unit):
                sizes |= {(short, long), (long, short)}
    return sorted(sizes, key=lambda size: (-size[0] * size[1], size))


def assign_buckets(sizes: np.ndarray, ladder: Sequence[tuple[int, int]]) -> np.ndarray:
    """Index into the ladder for each image of sizes (N,2) height, width; -1 where none fits without enlarging.

    The image is shrunk to cover its bucket and cropped to it. Chosen is the bucket of the most pixels times the fourth
    power of the share of the image that cropping leaves: the shape comes before the size.
    """
    if not len(ladder):
        return np.full(len(sizes), -1)
    distinct, which = np.unique(np.asarray(sizes), axis=0, return_inverse=True)  # cameras know few sizes
    parts = [
        _best_bucket(part, np.asarray(ladder, np.float32))
        for part in np.array_split(distinct, len(distinct) // 4096 + 1)
    ]
    return np.concatenate(parts)[which.reshape(-1)]


def _best_bucket(sizes: np.ndarray, buckets: np.ndarray) -> np.ndarray:
    height, width = sizes[:, :1].astype(np.float32), sizes[:, 1:].astype(np.float32)
    area = buckets[:, 0] * buckets[:, 1]
    factor = np.maximum(buckets[:, 0] / height, buckets[:, 1] / width)
    kept = area / (factor**2 * height * width)
    score = np.where(factor <= 1, area * kept**4, -1.0)
    return np.where(score.max(axis=1) >= 0, score.argmax(axis=1), -1)


class BucketOrder:
    """Where each sample of the run comes from if every global batch is of one bucket alone.

    counts: images of each bucket. A bucket's samples are its images in shuffled passes, one after another. Epoch e of
    the run brings as many batches of a bucket as fill up by the end of e + 1 passes over it; less than one global batch
    waits for the next epoch. The batches of an epoch are shuffled. So every image is seen once per epoch up to that
    remainder, and all follows from the sample's number alone. A bucket of fewer images than the batch repeats them.
    """

    def __init__(self, counts: Sequence[int], global_batch: int, seed: int) -> None:
        self.counts = [int(count) for count in counts]
        self.global_batch = global_batch
        self.seed = seed

    def place(self, number: int) -> tuple[int, int, int]:
        """(pass over the bucket, bucket, index in the bucket) of sample `number`."""
        batch, within = divmod(number, self.global_batch)
        epoch = self._epoch_of(batch)
        new = [self._batches(epoch + 1, count) - self._batches(epoch, count) for count in self.counts]
        slot = int(shuffled((self.seed, epoch), sum(new), "buckets")[batch - self._batches_before(epoch)])
        bucket = 0
        while slot >= new[bucket]:
            slot -= new[bucket]
            bucket += 1
        position = (self._batches(epoch, self.counts[bucket]) + slot) * self.global_batch + within
        passes, place = divmod(position, self.counts[bucket])
        return passes, bucket, int(_pass_order(self.seed, bucket, passes, self.counts[bucket])[place])

    def _batches(self, epochs: int, count: int) -> int:
        return epochs * count // self.global_batch

    def _batches_before(self, epoch: int) -> int:
        return sum(self._batches(epoch, count) for count in self.counts)

    def _epoch_of(self, batch: int) -> int:
        epoch = batch * self.global_batch // sum(self.counts)
        while self._batches_before(epoch + 1) <= batch:
            epoch += 1
        return epoch


@lru_cache(maxsize=256)  # more than buckets of any ladder
def _pass_order(seed: int, bucket: int, passes: int, count: int) -> Tensor:
    return torch.randperm(count, generator=generator_for((seed, bucket, passes), "bucket order")).int()


class WholeImages(Dataset[dict[str, Tensor]]):
    """Whole training images by their number in the run, each batch of one size (see `BucketOrder`).

    An item holds `hr`, (3,H,W) float32 in [0,1], and `key`, int64 (seed, pass, index, 0). The image is shrunk
    (antialiased bicubic) until it just covers its bucket, cropped to it at a seeded place, and mirrored or not. side:
    of the square whose area is the largest size; smallest: shorter side below which there are no buckets; unit: every
    side is a multiple of it. Raises ValueError for a side below the smallest, and for an image below all buckets.
    """

    def __init__(
        self, source: ImageSource, side: int, smallest: int, unit: int, seed: int, global_batch: int, option: str
    ) -> None:
        self.source = source
        self.seed = seed
        if not unit <= smallest <= side:
            raise ValueError(
                f"{option}={side}: expected at least data.crop={smallest}, the least shorter side, and that to be at "
                f"least the unit of {unit} px"
            )
        ladder = bucket_ladder(side, smallest, unit)
        assigned = assign_buckets(source.sizes(), ladder)
        if (small := np.flatnonzero(assigned < 0)).size:
            raise ValueError(
                f"{option}={side}: {small.size} of {len(source)} images have a side below data.crop={smallest}, "
                f"{source.name(int(small[0]))} among them; lower data.crop or leave them out"
            )
        used = np.unique(assigned).tolist()
        self.buckets = [ladder[bucket] for bucket in used]
        self.members = [np.flatnonzero(assigned == bucket).astype(np.int32) for bucket in used]
        self.order = BucketOrder([len(members) for members in self.members], global_batch, seed)

    def __len__(self) -> int:
        return sum(len(members) for members in self.members)

    def place(self, number: int) -> tuple[tuple[int, int, int, int], tuple[int, int]]:
        """Key and size (height, width) of sample `number`."""
        passes, bucket, member = self.order.place(number)
        return (self.seed, passes, int(self.members[bucket][member]), 0), self.buckets[bucket]

    def __getitems__(self, numbers: Sequence[int]) -> list[dict[str, Tensor]]:
        self.source.prefetch([self.place(number)[0][2] for number in numbers])
        return [self[number] for number in numbers]

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        key, size = self.place(number)
        generator = generator_for(key, "crop")
        hr = fit_to(self.source.load(key[2]), size, generator)
        if int(torch.randint(2, (1,), generator=generator)):
            hr = hr.flip(-1)
        return {"hr": hr.contiguous(), "key": torch.tensor(key)}


def fit_to(pixels: Tensor, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """(3,H,W) pixels shrunk to cover `size` and cropped to it at a place the generator draws: float32 in [0,1]."""
    height, width = pixels.shape[-2:]
    factor = max(size[0] / height, size[1] / width)
    covered = (max(size[0], round(height * factor)), max(size[1], round(width * factor)))
    image = to_unit(pixels)
    if covered != (height, width):
        image = F.interpolate(image[None], size=covered, mode="bicubic", antialias=True)[0].clamp_(0, 1)
    top = int(torch.randint(covered[0] - size[0] + 1, (1,), generator=generator))
    left = int(torch.randint(covered[1] - size[1] + 1, (1,), generator=generator))
    return image[:, top : top + size[0], left : left + size[1]]
