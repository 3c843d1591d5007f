"""Pairs of low- and high-resolution files, found by the names that test sets usually have."""

import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.image_io import SUFFIXES, list_images, read_image
from datamodules.sources import BUNDLED, describe_folder

_HR_FOLDERS = (re.compile(r"((^|_)hr|^gt)$", re.I), re.compile(r"^gtmod\d+$", re.I), re.compile(r"^original$", re.I))
"""HR, DIV2K_valid_HR, GT; GTmod12; original: the first that a folder has."""
_LR_FOLDER = re.compile(r"(^|_)lr", re.I)
"""LR, LRx4, LRbicx4, DIV2K_valid_LR_bicubic."""
_HR_FILE = re.compile(r"[_-]hr$", re.I)
"""RealSR's Canon_001_HR.png beside Canon_001_LR4.png, and img_001_SRF_4_HR.png beside img_001_SRF_4_LR.png."""
_MULTIPLE = 12
"""Sides of which the LR files beside `original` were made: those of the largest multiple."""


@dataclass(frozen=True)
class Pair:
    """Files of one image; hr may be larger than scale times lr by less than `spare` px, at the right and the bottom."""

    name: str
    lr: Path
    hr: Path
    spare: int


def has_pairs(location: str | Path) -> bool:
    """Whether the place, "bundled" or a folder, is a folder that holds both sides of pairs by its names."""
    root = Path(location)
    if location == BUNDLED or not root.is_dir():
        return False
    return bool(_hr_folders(root) and _named(root, _LR_FOLDER)) or _has_paired_files(root)


def paired_folder(root: Path) -> Path | None:
    """The first folder at or below `root` that holds both sides of pairs: its LR files are no training images."""
    below = sorted(Path(folder) for folder, _, _ in os.walk(root))
    return next((folder for folder in below if has_pairs(folder)), None)


def looks_paired(root: Path) -> bool:
    """Whether a folder holds at least one side of pairs by its names; `find_pairs` says what is missing then."""
    return bool(_named(root, _HR_FOLDERS[0]) or _named(root, _LR_FOLDER)) or _has_paired_files(root)


def find_pairs(folder: str | Path, scale: int, option: str = "DATA") -> list[Pair]:
    """Pairs of files by name, with or without "x{scale}" at its end, from an HR and an LR folder inside `folder`.

    The HR folder is named HR, ..._HR or GT (or GTmod12, or original), the LR one LR... or ..._LR...; that may have a
    subfolder X{scale} (LR_bicubic/X4) or carry x{scale} in its name, which is preferred to a plain LR. Or all files lie
    in `folder` itself and end in _HR and in _LR or _LR{scale}. Raises ValueError, naming `option`, where a folder is
    missing or not unique, or where a file has no partner.
    """
    root = Path(folder)
    hr_folders, lr_folders = _hr_folders(root), _lr_folders(root, scale)
    if not hr_folders and not lr_folders and _has_paired_files(root):
        where = f"{option}={folder}: files _HR and _LR{scale}"
        return _matched(_files(root, _HR_FILE), _files(root, _lr_file(str(scale))), where, scale)
    if len(hr_folders) != 1 or len(lr_folders) != 1:
        found = ", ".join(str(f.relative_to(root)) for f in [*hr_folders, *lr_folders]) or "neither"
        raise ValueError(
            f"{option}={folder}: expected one HR folder and one LR folder for scale {scale} (LR, LR_bicubic/X{scale}), "
            f"found {found}; {describe_folder(root)}; give a folder that holds one pair, links to its two will do"
        )
    where = f"{option}={folder}: {hr_folders[0].name}/ and {lr_folders[0].relative_to(root)}/"
    spare = _MULTIPLE if _HR_FOLDERS[-1].search(hr_folders[0].name) else scale
    hr, lr = _by_name(hr_folders[0], scale, where), _by_name(lr_folders[0], scale, where)
    return _matched(hr, lr, where, spare)


def read_pair(pair: Pair, scale: int) -> tuple[Tensor, Tensor]:
    """lr (3,h,w) and hr (3,h*scale,w*scale), float32 in [0,1]; ValueError where the files differ by another scale."""
    lr, hr = read_image(pair.lr).rgb, read_image(pair.hr).rgb
    height, width = (side * scale for side in lr.shape[1:])
    if not (height <= hr.shape[1] < height + pair.spare and width <= hr.shape[2] < width + pair.spare):
        sizes = f"LR {lr.shape[2]} x {lr.shape[1]} and HR {hr.shape[2]} x {hr.shape[1]}"
        raise ValueError(
            f"pair {pair.name}: {sizes} do not differ by the scale {scale} of the model ({pair.lr}, {pair.hr}); "
            "give a folder of that scale"
        )
    return lr, hr[:, :height, :width].contiguous()


class ValidationPairs(Dataset[dict[str, Any]]):
    """Whole images of paired files, for batches of one as their sizes differ.

    An item holds `hr` (3,H,W) and `lr` (3,H/scale,W/scale), float32 in [0,1], `key`, int64 (seed, -1, i, 0), and
    `name`.
    """

    def __init__(self, folder: str, scale: int, seed: int, option: str) -> None:
        self.pairs = find_pairs(folder, scale, option)
        self.scale = scale
        self.seed = seed

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        lr, hr = read_pair(self.pairs[index], self.scale)
        key = torch.tensor((self.seed, -1, index, 0))
        return {"hr": hr, "lr": lr, "key": key, "name": self.pairs[index].name}


def _matched(hr: Mapping[str, Path], lr: Mapping[str, Path], where: str, spare: int) -> list[Pair]:
    alone = sorted(set(hr) ^ set(lr))
    if alone or not hr:
        listed = ", ".join(alone[:5]) + (", ..." if len(alone) > 5 else "") or "none, both are empty"
        raise ValueError(
            f"{where} hold {len(hr)} and {len(lr)} images that do not pair by name; without partner: {listed}"
        )
    return [Pair(name, lr[name], hr[name], spare) for name in sorted(hr)]


def _by_name(folder: Path, scale: int, where: str) -> dict[str, Path]:
    """The images below a folder by their paths in it, without suffix and scale."""
    paths = list_images(folder)
    names = [path.relative_to(folder).with_name(_stem(path, scale)).as_posix() for path in paths]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{where}: several images in {folder.name}/ are named {twice[0]}; expected one of each name")
    return dict(zip(names, paths, strict=True))


def _stem(path: Path, scale: int) -> str:
    return re.sub(rf"[_-]?x{scale}$", "", path.stem, flags=re.I) or path.stem


def _named(root: Path, pattern: re.Pattern[str]) -> list[Path]:
    return sorted(entry for entry in root.iterdir() if entry.is_dir() and pattern.search(entry.name))


def _hr_folders(root: Path) -> list[Path]:
    return next((found for pattern in _HR_FOLDERS if (found := _named(root, pattern))), [])


def _lr_folders(root: Path, scale: int) -> list[Path]:
    named = re.compile(rf"x{scale}$", re.I)
    any_scale = re.compile(r"x\d+$", re.I)
    tops = _named(root, _LR_FOLDER)
    below = [entry for top in tops for entry in sorted(top.iterdir()) if entry.is_dir()]
    exact = [folder for folder in [*below, *tops] if named.search(folder.name)]
    plain = [
        top for top in tops if not any_scale.search(top.name) and not any(any_scale.fullmatch(f.name) for f in below)
    ]
    return exact or plain


def _has_paired_files(root: Path) -> bool:
    return bool(_files(root, _HR_FILE) and _files(root, _lr_file(r"\d+")))


def _lr_file(scale: str) -> re.Pattern[str]:
    return re.compile(rf"[_-]lr(x?{scale})?$", re.I)


def _files(root: Path, pattern: re.Pattern[str]) -> dict[str, Path]:
    """Images in the folder itself whose names end so, by what comes before."""
    images = sorted(path for path in root.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    named = [(pattern.sub("", path.stem), path) for path in images if pattern.search(path.stem)]
    twice = [name for name, count in Counter(name for name, _ in named).items() if count > 1]
    if twice:
        raise ValueError(f"{root}: several images are named {twice[0]}; expected one of each name")
    return dict(named)
