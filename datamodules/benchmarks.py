"""Test sets by folder: HR/ beside LR*/ are pairs, a plain folder is degraded, "bundled" is the embedded one."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from datamodules.image_io import list_images, read_image
from datamodules.randomness import generator_for
from datamodules.sources import BUNDLED, describe_folder
from datamodules.synthetic import FLAT_CROPS, FLAT_KINDS, HELD_OUT_PHOTOGRAPHS, bundled_path, flat_crop, flat_image

FLAT_SIZE = 512


@dataclass(frozen=True)
class Pair:
    """Files of one test image."""

    name: str
    lr: Path
    hr: Path


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
    """The test set at a folder, or the embedded one (held-out photographs and flat images) for "bundled".

    With HR and LR folders inside, the pairs are used as they are. Otherwise lr is made by degrade from hr, cut at the
    lower right to a multiple of scale, with the generator of (seed, -1, index, 0); crop cuts a centre square of at
    most so many px from hr before. Raises FileNotFoundError or ValueError that say what was found.
    """
    if data == BUNDLED:
        photographs = [_Source(Path(name).stem, "photo", _reader(bundled_path(name))) for name in HELD_OUT_PHOTOGRAPHS]
        crops = [_Source(name, "flat", partial(flat_crop, name)) for name in FLAT_CROPS]
        made = [_Source(kind, "flat", partial(_flat, index, kind)) for index, kind in enumerate(FLAT_KINDS)]
        return _degraded([*photographs, *crops, *made], scale, degrade, seed, crop)
    root = Path(data)
    if not root.is_dir():
        raise FileNotFoundError(
            f"DATA={data} is no folder; give a folder of images, one with HR/ and LR/, or {BUNDLED!r}"
        )
    if _folders(root, "hr") or _folders(root, "lr"):
        pairs = find_pairs(root, scale)
        return Benchmark([pair.name for pair in pairs], lambda index: _load_pair(pairs[index], scale), paired=True)
    paths = list_images(root)
    if not paths:
        raise ValueError(
            f"DATA={data} holds no images: {describe_folder(root)}; expected images, or HR/ and LR/ folders"
        )
    named = [_Source(path.relative_to(root).with_suffix("").as_posix(), "photo", _reader(path)) for path in paths]
    return _degraded(named, scale, degrade, seed, crop)


def find_pairs(folder: str | Path, scale: int) -> list[Pair]:
    """Pairs of files from a folder named ...HR and one named LR...; by name, with or without "x{scale}" at its end.

    The LR folder may have a subfolder X{scale} (LR_bicubic/X4) or carry x{scale} in its name; that one is preferred to
    a plain LR. Raises ValueError where a folder is missing or not unique, or where a file has no partner.
    """
    root = Path(folder)
    hr_folders, lr_folders = _folders(root, "hr"), _lr_folders(root, scale)
    if len(hr_folders) != 1 or len(lr_folders) != 1:
        found = ", ".join(str(f.relative_to(root)) for f in [*hr_folders, *lr_folders]) or "neither"
        raise ValueError(
            f"DATA={folder}: expected one HR folder and one LR folder for scale {scale} (LR, LR_bicubic/X{scale}), "
            f"found {found}; {describe_folder(root)}"
        )
    hr = {_stem(path, scale): path for path in list_images(hr_folders[0])}
    lr = {_stem(path, scale): path for path in list_images(lr_folders[0])}
    alone = sorted(set(hr) ^ set(lr))
    if alone or not hr:
        listed = ", ".join(alone[:5]) + (", ..." if len(alone) > 5 else "") or "none, both are empty"
        raise ValueError(
            f"DATA={folder}: {len(hr)} images in {hr_folders[0].name}/ and {len(lr)} in {lr_folders[0].name}/ do not "
            f"pair by name; without partner: {listed}"
        )
    return [Pair(name, lr[name], hr[name]) for name in sorted(hr)]


def _folders(root: Path, kind: str) -> list[Path]:
    """Subfolders such as HR, DIV2K_valid_HR, GT ("hr"), or LR, LRx4, DIV2K_valid_LR_bicubic ("lr")."""
    pattern = re.compile(r"((^|_)hr|^gt)$" if kind == "hr" else r"(^|_)lr", re.IGNORECASE)
    return sorted(entry for entry in root.iterdir() if entry.is_dir() and pattern.search(entry.name))


def _lr_folders(root: Path, scale: int) -> list[Path]:
    named = re.compile(rf"x{scale}$", re.IGNORECASE)
    any_scale = re.compile(r"x\d+$", re.IGNORECASE)
    tops = _folders(root, "lr")
    below = [entry for top in tops for entry in sorted(top.iterdir()) if entry.is_dir()]
    exact = [folder for folder in [*below, *tops] if named.search(folder.name)]
    plain = [
        top for top in tops if not any_scale.search(top.name) and not any(any_scale.fullmatch(f.name) for f in below)
    ]
    return exact or plain


def _stem(path: Path, scale: int) -> str:
    return re.sub(rf"[_-]?x{scale}$", "", path.stem, flags=re.IGNORECASE) or path.stem


def _load_pair(pair: Pair, scale: int) -> BenchmarkImage:
    lr, hr = read_image(pair.lr).rgb, read_image(pair.hr).rgb
    height, width = (side * scale for side in lr.shape[1:])
    if not (height <= hr.shape[1] < height + scale and width <= hr.shape[2] < width + scale):
        sizes = f"LR {lr.shape[2]} x {lr.shape[1]} and HR {hr.shape[2]} x {hr.shape[1]}"
        raise ValueError(f"DATA= pair {pair.name}: {sizes} do not differ by the scale {scale} ({pair.lr}, {pair.hr})")
    return BenchmarkImage(pair.name, "photo", lr, hr[:, :height, :width].contiguous())


@dataclass(frozen=True)
class _Source:
    name: str
    group: str
    read: Callable[[], Tensor]


def _reader(path: Path) -> Callable[[], Tensor]:
    return lambda: read_image(path).rgb


def _flat(index: int, kind: str) -> Tensor:
    # made under a fixed seed: the test set must not move with the run's
    return flat_image(FLAT_SIZE, generator_for((0, -1, index, 0), kind), kind)


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
    height, width = hr.shape[1:]
    if crop is not None:
        new_height, new_width = min(height, crop), min(width, crop)
        top, left = (height - new_height) // 2, (width - new_width) // 2
        hr = hr[:, top : top + new_height, left : left + new_width]
        height, width = new_height, new_width
    return hr[:, : height - height % scale, : width - width % scale].contiguous()
