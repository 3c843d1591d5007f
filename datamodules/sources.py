"""Image sources: named files of a folder, or the bundled photographs, decoded on demand."""

import hashlib
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from datamodules.image_io import image_size, list_images, read_image
from datamodules.synthetic import bundled_path

BUNDLED = "bundled"
CACHE_BYTES = 512 * 1024**2


class ImageSource:
    """A fixed, ordered set of image files.

    The most recently decoded images stay in memory, up to cache_bytes per process: small sets are decoded once,
    while large sets cost no more than this.
    """

    def __init__(self, paths: Sequence[Path], names: Sequence[str], cache_bytes: int = CACHE_BYTES) -> None:
        self.paths = list(paths)
        self.names = list(names)
        self.cache_bytes = cache_bytes
        self._cache: OrderedDict[int, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """The image's path relative to its folder, without suffix."""
        return self.names[index]

    def load(self, index: int) -> Tensor:
        """(3,H,W) RGB pixels, uint8 or uint16 as in the file; ImageReadError names a broken file."""
        if index in self._cache:
            self._cache.move_to_end(index)
            return self._cache[index]
        pixels = read_image(self.paths[index]).pixels
        self._cache[index] = pixels
        while len(self._cache) > 1 and sum(image.nbytes for image in self._cache.values()) > self.cache_bytes:
            self._cache.popitem(last=False)
        return pixels

    def fingerprint(self) -> str:
        """A hash of names and file sizes: equal where, as far as these tell, the data are."""
        lines = (f"{name}\t{path.stat().st_size}\n" for name, path in zip(self.names, self.paths, strict=True))
        return hashlib.blake2b("".join(lines).encode(), digest_size=16).hexdigest()


def open_source(location: str, bundled: Sequence[str], min_size: int, option: str, size_option: str) -> ImageSource:
    """The images at a folder, or the bundled photographs of these names where location is "bundled".

    Images with a side below min_size are left out with a warning that names them. Raises FileNotFoundError for a
    missing folder, ValueError for one without (large enough) images; both name option and size_option, the keys to
    change. A file that is no image raises ImageReadError now, one damaged further in when it is decoded.
    """
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
    kept = [i for i, path in enumerate(paths) if min(image_size(path)) >= min_size]
    if not kept:
        raise ValueError(
            f"{option}={location}: all {len(paths)} images have a side below {size_option}={min_size} px; "
            f"lower {size_option} or point {option} at larger images"
        )
    if len(kept) < len(paths):
        left_out = sorted(set(range(len(paths))) - set(kept))
        listed = ", ".join(paths[i].name for i in left_out[:5]) + (", ..." if len(left_out) > 5 else "")
        warnings.warn(
            f"{option}={location}: {len(left_out)} of {len(paths)} images are smaller than {size_option}={min_size} "
            f"and left out: {listed}",
            stacklevel=2,
        )
    return ImageSource([paths[i] for i in kept], [names[i] for i in kept])


def describe_folder(folder: Path) -> str:
    """One phrase on what a folder holds, for error messages."""
    entries = sorted(folder.iterdir())
    shown = ", ".join(entry.name + ("/" if entry.is_dir() else "") for entry in entries[:6])
    return f"found {len(entries)} entries ({shown}{', ...' if len(entries) > 6 else ''})" if entries else "it is empty"
