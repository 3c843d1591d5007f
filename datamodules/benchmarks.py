"""Test sets by folder: pairs of HR and LR, a plain folder whose images are degraded, or one of the embedded ones."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from datamodules.image_io import list_images, read_image
from datamodules.pairs import find_pairs, looks_paired, paired_folder, read_pair
from datamodules.randomness import generator_for
from datamodules.sources import BUNDLED, describe_folder
from datamodules.synthetic import (
    FLAT_CROPS,
    FLAT_KINDS,
    HELD_OUT_PHOTOGRAPHS,
    LARGE_PHOTOGRAPH,
    bundled_path,
    flat_crop,
    flat_image,
)

BUNDLED_LARGE = "bundled_large"
"""The embedded test set whose images all have 1024 px per side or more, for sizes above the training crop."""
EMBEDDED = (BUNDLED, BUNDLED_LARGE)
FLAT_SIZE, LARGE_FLAT_SIZE = 512, 1024


@dataclass(frozen=True)
class BenchmarkImage:
    """One test image: lr (3,h,w) and hr (3,h*scale,w*scale), float32 in [0,1]; group is "photo" or "flat"."""

    name: str
    group: str
    lr: Tensor
    hr: Tensor


class Benchmark:
    """Test images in a fixed order, loaded one at a time; load(index) -> BenchmarkImage."""

    def __init__(self, names: Sequence[str], load: Callable[[int], BenchmarkImage], paired: bool) -> None:
        self.names = list(names)
        self.load = load
        self.paired = paired

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[BenchmarkImage]:
        return (self.load(index) for index in range(len(self)))


def open_benchmark(
    data: str,
    scale: int,
    degrade: Callable[[Tensor, Sequence[torch.Generator]], Tensor],
    seed: int = 0,
    crop: int | None = None,
) -> Benchmark:
    """The test set at a folder, or an embedded one, held-out photographs and flat images, for "bundled[_large]".

    Where the folder holds pairs (see `pairs.find_pairs`) lr is the file's. Otherwise it is made by degrade from hr, cut
    at the lower right to a multiple of scale, with the generator of (seed, -1, index, 0). crop cuts a centre square of
    at most so many px from hr before, of pairs a multiple of scale and its part of lr. Raises FileNotFoundError or
    ValueError that say what was found.
    """
    if data in EMBEDDED:
        return _degraded(_large_sources() if data == BUNDLED_LARGE else _sources(), scale, degrade, seed, crop)
    root = Path(data)
    if not root.is_dir():
        raise FileNotFoundError(
            f"DATA={data} is no folder; give a folder of images, one with HR/ and LR/, or {' or '.join(EMBEDDED)}"
        )
    if looks_paired(root):
        pairs = find_pairs(root, scale)
        names = [pair.name for pair in pairs]

        def load(index: int) -> BenchmarkImage:
            lr, hr = _centre_of_both(*read_pair(pairs[index], scale), crop, scale)
            return BenchmarkImage(names[index], "photo", lr, hr)

        return Benchmark(names, load, paired=True)
    if (paired := paired_folder(root)) is not None:
        raise ValueError(f"DATA={data}: {paired} holds pairs of HR and LR images; give that folder")
    paths = list_images(root)
    if not paths:
        raise ValueError(
            f"DATA={data} holds no images: {describe_folder(root)}; expected images, or HR/ and LR/ folders"
        )
    named = [_Source(path.relative_to(root).with_suffix("").as_posix(), "photo", _reader(path)) for path in paths]
    return _degraded(named, scale, degrade, seed, crop)


@dataclass(frozen=True)
class _Source:
    name: str
    group: str
    read: Callable[[], Tensor]


def _reader(path: Path) -> Callable[[], Tensor]:
    return lambda: read_image(path).rgb


def _sources() -> list[_Source]:
    photographs = [_photograph(name) for name in HELD_OUT_PHOTOGRAPHS]
    crops = [_Source(name, "flat", partial(flat_crop, name)) for name in FLAT_CROPS]
    return [*photographs, *crops, *_made(FLAT_SIZE)]


def _large_sources() -> list[_Source]:
    return [_photograph(LARGE_PHOTOGRAPH), *_made(LARGE_FLAT_SIZE)]


def _photograph(name: str) -> _Source:
    return _Source(Path(name).stem, "photo", _reader(bundled_path(name)))


def _made(size: int) -> list[_Source]:
    return [_Source(kind, "flat", partial(_flat, size, index, kind)) for index, kind in enumerate(FLAT_KINDS)]


def _flat(size: int, index: int, kind: str) -> Tensor:
    # made under a fixed seed: the test set must not move with the run's
    return flat_image(size, generator_for((0, -1, index, 0), kind), kind)


def _degraded(
    items: Sequence[_Source],
    scale: int,
    degrade: Callable[[Tensor, Sequence[torch.Generator]], Tensor],
    seed: int,
    crop: int | None,
) -> Benchmark:
    def load(index: int) -> BenchmarkImage:
        item = items[index]
        key = (seed, -1, index, 0)
        full = item.read()
        hr = _centre(full, crop, scale)
        if 0 in hr.shape:
            raise ValueError(
                f"DATA= image {item.name} of {full.shape[2]} x {full.shape[1]} px is smaller than the scale {scale}"
            )
        lr = degrade(hr[None], [generator_for(key, "degradation")])[0]
        return BenchmarkImage(item.name, item.group, lr, hr)

    return Benchmark([item.name for item in items], load, paired=False)


def _centre(hr: Tensor, crop: int | None, scale: int) -> Tensor:
    hr = hr[:, _middle(hr.shape[1], crop), _middle(hr.shape[2], crop)]
    height, width = hr.shape[1:]
    return hr[:, : height - height % scale, : width - width % scale].contiguous()


def _centre_of_both(lr: Tensor, hr: Tensor, crop: int | None, scale: int) -> tuple[Tensor, Tensor]:
    side = None if crop is None else max(crop // scale, 1)
    rows, columns = (_middle(full, side) for full in lr.shape[1:])
    above = [slice(part.start * scale, part.stop * scale) for part in (rows, columns)]
    return lr[:, rows, columns].contiguous(), hr[:, above[0], above[1]].contiguous()


def _middle(full: int, side: int | None) -> slice:
    """The middle of `full` px, at most `side` of them."""
    side = min(full, side or full)
    first = (full - side) // 2
    return slice(first, first + side)
