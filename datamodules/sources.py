"""Image sources: a folder of images, shards, or the bundled photographs, decoded on demand."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor

from datamodules.image_cache import CACHE_BYTES, ImageCache, large_enough
from datamodules.image_io import image_size, list_images, read_image
from datamodules.shards.reader import is_shards, open_shards
from datamodules.synthetic import bundled_path

BUNDLED = "bundled"


class ImageSource(Protocol):
    """A fixed, ordered set of images."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """The image's path relative to its folder, without suffix."""

    def sizes(self) -> np.ndarray:
        """(N,2) height and width of the upright images."""

    def fingerprint(self) -> str:
        """A hash by which a changed set is recognised."""

    def load(self, index: int) -> Tensor:
        """(3,H,W) RGB pixels, uint8 or uint16 as in the file; a ValueError names what cannot be read."""

    def prefetch(self, indices: Sequence[int]) -> None:
        """Make ready, where that saves time, what is loaded next."""


class ImageFiles:
    """Image files as a source.

    The most recently decoded images stay in memory, up to image_bytes per process: small sets are decoded once,
    while large sets cost no more than this.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        names: Sequence[str],
        sizes: Sequence[tuple[int, int]],
        image_bytes: int = CACHE_BYTES,
    ) -> None:
        self.paths = list(paths)
        self.names = list(names)
        self._sizes = np.asarray(sizes, np.int32).reshape(-1, 2)
        self._images = ImageCache(image_bytes)
        self._fingerprint = ""

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        return self.names[index]

    def sizes(self) -> np.ndarray:
        return self._sizes

    def load(self, index: int) -> Tensor:
        return self._images.get(index, lambda index: read_image(self.paths[index]).pixels)

    def prefetch(self, indices: Sequence[int]) -> None:
        """Files on a disk need none."""

    def fingerprint(self) -> str:
        """A hash of each file's name, length, first and last 4 KiB as they were when it was first asked for.

        A change in the middle of a file of the same length goes unseen; shards compare all bytes.
        """
        if not self._fingerprint:
            digest = hashlib.blake2b(digest_size=16)
            for name, path in zip(self.names, self.paths, strict=True):
                digest.update(f"{name}\t{path.stat().st_size}\n".encode() + _ends(path))
            self._fingerprint = digest.hexdigest()
        return self._fingerprint


def _ends(path: Path, length: int = 4096) -> bytes:
    """The first and last bytes of a file."""
    with path.open("rb") as file:
        first = file.read(length)
        file.seek(max(0, path.stat().st_size - length))
        return first + file.read(length)


@dataclass(frozen=True)
class Caches:
    """What a source may keep: decoded images in each process, and copies of remote shards' images in a folder."""

    image_bytes: int = CACHE_BYTES
    folder: str = "runs/cache"
    folder_bytes: int = 50 * 10**9


def open_source(
    location: str,
    bundled: Sequence[str],
    min_size: int,
    option: str,
    size_option: str,
    caches: Caches = Caches(),
) -> ImageSource:
    """The images of a folder or of shards, or the bundled photographs of these names where location is "bundled".

    Images with a side below min_size are left out with a warning that names them. Raises FileNotFoundError for a
    missing folder, ValueError for one without (large enough) images, ShardError for shards that are not whole; all
    name option and size_option, the keys to change. A file that is no image raises ImageReadError now, one damaged
    further in when it is decoded.
    """
    if is_shards(location):
        return open_shards(
            location, caches.folder, caches.folder_bytes, min_size, option, size_option, caches.image_bytes
        )
    if location == BUNDLED:
        paths = [bundled_path(name) for name in bundled]
        names = [path.stem for path in paths]
    else:
        root = Path(location)
        if not root.is_dir():
            raise FileNotFoundError(f"{option}={location} is no folder; set it to a folder of images or to {BUNDLED!r}")
        paths = list_images(root)
        names = [path.relative_to(root).with_suffix("").as_posix() for path in paths]
        if not paths:
            raise ValueError(f"{option}={location} holds no PNG, JPEG, WebP or BMP image: {describe_folder(root)}")
    sizes = [image_size(path) for path in paths]
    kept = large_enough(np.array(sizes), lambda i: paths[i].name, min_size, f"{option}={location}", size_option)
    return ImageFiles([paths[i] for i in kept], [names[i] for i in kept], [sizes[i] for i in kept], caches.image_bytes)


def describe_folder(folder: Path) -> str:
    """One phrase on what a folder holds, for error messages."""
    entries = sorted(folder.iterdir())
    shown = ", ".join(entry.name + ("/" if entry.is_dir() else "") for entry in entries[:6])
    return f"found {len(entries)} entries ({shown}{', ...' if len(entries) > 6 else ''})" if entries else "it is empty"
