"""What sources of images share: the decoded images kept in memory, and the choice of the large enough ones."""

import warnings
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
from torch import Tensor

CACHE_BYTES = 512 * 1024**2


class ImageCache:
    """The images that a process used last, up to most_bytes; the latest one stays however large it is.

    A copy sent to another process is empty.
    """

    def __init__(self, most_bytes: int = CACHE_BYTES) -> None:
        self.most_bytes = most_bytes
        self._images: OrderedDict[int, Tensor] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._images)

    def __contains__(self, index: int) -> bool:
        return index in self._images

    def get(self, index: int, load: Callable[[int], Tensor]) -> Tensor:
        """The image of this index, by load(index) where it is not kept."""
        if index in self._images:
            self._images.move_to_end(index)
            return self._images[index]
        image = load(index)
        self._images[index] = image
        self._bytes += image.nbytes
        while len(self._images) > 1 and self._bytes > self.most_bytes:
            self._bytes -= self._images.popitem(last=False)[1].nbytes
        return image

    def __reduce__(self) -> tuple[type["ImageCache"], tuple[int]]:
        return ImageCache, (self.most_bytes,)


def large_enough(
    sizes: np.ndarray, file_name: Callable[[int], str], min_size: int, place: str, size_option: str
) -> np.ndarray:
    """Indices of the images of sizes (N,2) without a side below min_size; the others are named in a warning.

    place is the option with its value, `data.train=photos`. Raises ValueError where none is left.
    """
    large = sizes.min(axis=1) >= min_size
    if not large.any():
        raise ValueError(
            f"{place}: all {len(sizes)} images have a side below {size_option}={min_size} px; "
            f"lower {size_option} or point {place.partition('=')[0]} at larger images"
        )
    small = np.flatnonzero(~large)
    if len(small):
        listed = ", ".join(file_name(int(i)) for i in small[:5]) + (", ..." if len(small) > 5 else "")
        warnings.warn(
            f"{place}: {len(small)} of {len(sizes)} images are smaller than {size_option}={min_size} "
            f"and left out: {listed}",
            stacklevel=3,
        )
    return np.flatnonzero(large)
