"""Images that are the same picture: re-encoded, resized, brightened or cropped a little."""

from collections.abc import Iterator, Sequence
from itertools import product

import imagehash
import numpy as np
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

HASH_SIDE = 16
"""One view's hash is HASH_SIDE x HASH_SIDE signs of its lowest frequencies, 256 bits."""
_STEP = 0.04
VIEWS = tuple(cut for cut in product(range(3), repeat=4) if sum(cut) <= 2)
"""What each view leaves out at the left, top, right and bottom, in units of _STEP; the first is the whole image."""
HASH_LENGTH = len(VIEWS) * HASH_SIDE**2 // 4
"""Hex digits of `perceptual_hash`: all views one after the other."""
_SMALL = 256
_COARSE = HASH_SIDE // 2
_COARSE_BITS = 16
"""More differing bits than this among the 64 of the lowest frequencies were never seen in cropped copies."""
_QUERIES, _PAIRS = 50_000, 1_000_000
"""Views that are looked up at once, and pairs that are compared at once: both bound the memory."""


def perceptual_hash(pixels: Tensor) -> str:
    """Hashes of the whole image and of 14 windows of 92-100 % of each side, as HASH_LENGTH hex digits.

    pixels is (3,H,W) uint8 or uint16. Each view is imagehash's `phash`, its bits sorted so that the lowest frequencies
    come first. The windows (ours) are there so that a cropped copy equals one of them.
    """
    small = _small_grey(pixels)
    codes = np.stack([_code(small, cut) for cut in VIEWS])
    return np.packbits(codes, axis=1).tobytes().hex()


def _small_grey(pixels: Tensor) -> Image.Image:
    bytes_ = pixels if pixels.element_size() == 1 else pixels.float().div(257).round().byte()
    image = Image.fromarray(np.ascontiguousarray(bytes_.permute(1, 2, 0).numpy()))
    across, down = (max(1, side // (2 * _SMALL)) for side in image.size)
    return image.reduce((across, down)).convert("L").resize((_SMALL, _SMALL), Image.Resampling.LANCZOS)


def _code(small: Image.Image, cut: tuple[int, ...]) -> np.ndarray:
    """256 bits: the 8 x 8 lowest frequencies, rows in the order 0, 4, 1, 5, ..., then the others."""
    left, top, right, bottom = (_SMALL * _STEP * steps for steps in cut)
    side = 4 * HASH_SIDE  # the size on which phash works, so that it has nothing left to resize
    view = small.resize((side, side), Image.Resampling.LANCZOS, box=(left, top, _SMALL - right, _SMALL - bottom))
    bits = imagehash.phash(view, HASH_SIDE).hash
    coarse = bits[:_COARSE, :_COARSE].reshape(2, -1, _COARSE).swapaxes(0, 1)
    return np.concatenate([coarse.ravel(), bits[:_COARSE, _COARSE:].ravel(), bits[_COARSE:].ravel()])


def near_groups(hashes: Sequence[str], most_bits: int) -> list[int]:
    """Group number of each hash, counted from 0 by first appearance: single linkage over all near pairs.

    A pair is near where the whole of one differs from any view of the other by at most most_bits of 256 bits; -1: no
    two are, equal ones neither. Up to 7 bits every such pair is found; of those that differ by more, the ones of which
    a quarter of the 64 lowest frequencies differs by at most one bit (ours; after Norouzi, Punjani, Fleet, "Fast search
    in Hamming space with multi-index hashing", CVPR 2012). ValueError for a text that is no `perceptual_hash`.
    """
    if most_bits < 0:
        return list(range(len(hashes)))
    first: dict[str, int] = {}
    distinct = [first.setdefault(text, len(first)) for text in hashes]
    views = np.stack([_words(text) for text in first]) if first else np.empty((0, len(VIEWS), 4), np.uint64)
    flat, wholes = views.reshape(-1, 4), np.ascontiguousarray(views[:, 0])
    labels = np.arange(len(first))
    for view, whole in _candidates(flat[:, 0], wholes[:, 0]):
        apart = labels[view // len(VIEWS)] != labels[whole]
        view, whole = view[apart], whole[apart]
        near = np.bitwise_count(flat[view, 0] ^ wholes[whole, 0]) <= _COARSE_BITS
        view, whole = view[near], whole[near]
        near = np.bitwise_count(flat[view] ^ wholes[whole]).sum(1, dtype=np.int64) <= most_bits
        _merge(labels, view[near] // len(VIEWS), whole[near])
    number: dict[int, int] = {}
    return [number.setdefault(int(labels[index]), len(number)) for index in distinct]


def first_alike(hashes: Sequence[str], most_bits: int) -> list[int]:
    """For hashes from the best down, the place of the first kept one that each is near; its own place where it is kept.

    A hash is kept where it is near no kept one before it (ours), so that of a pan or a time-lapse, whose neighbours
    alone are near, more than one stays. A pair is near as in `near_groups`, which finds the hashes to ask of here.
    """
    views = np.stack([_words(text) for text in hashes])
    like = np.full(len(hashes), -1)
    left = np.arange(len(hashes))
    while len(left):
        first, others = left[0], views[left]
        near = _is_near(others, views[first, 0], most_bits) | _is_near(views[first], others[:, :1], most_bits)
        near[0] = True
        like[left[near]] = first
        left = left[~near]
    return like.tolist()


def _is_near(views: np.ndarray, whole: np.ndarray, most_bits: int) -> np.ndarray:
    """Whether any of (...,views,4) is near the whole (4,), or one of several (n,1,4)."""
    bits = np.bitwise_count(views ^ whole)
    near = (bits[..., 0] <= _COARSE_BITS) & (bits.sum(-1, dtype=np.int64) <= most_bits)
    return np.any(near, axis=-1)


def _words(text: str) -> np.ndarray:
    """(views, 4) uint64, the first of each row the lowest frequencies."""
    if len(text) != HASH_LENGTH:
        raise ValueError(f"perceptual hash: found {len(text)} digits, expected {HASH_LENGTH}; compute the table anew")
    return np.frombuffer(bytes.fromhex(text), ">u8").reshape(len(VIEWS), -1).astype(np.uint64)


def _candidates(views: np.ndarray, wholes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Places in both of words of 64 bits that differ by at most one bit in one quarter, in blocks; some repeatedly."""
    for quarter in range(4):
        keys, sought = ((words >> np.uint64(16 * quarter)).astype(np.uint16) for words in (wholes, views))
        order = np.argsort(keys, kind="stable")
        starts = np.searchsorted(keys[order], np.arange(2**16 + 1))
        for flip in (0, *(1 << bit for bit in range(16))):
            for first in range(0, len(sought), _QUERIES):
                yield from _equal(sought[first : first + _QUERIES] ^ np.uint16(flip), first, starts, order)


def _equal(
    keys: np.ndarray, first: int, starts: np.ndarray, order: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All (place from `first` on, whole) of equal key, at most _PAIRS at once, more for a single place."""
    begin = starts[keys]
    counts = starts[keys.astype(np.int64) + 1] - begin
    before = np.cumsum(counts) - counts
    for places in np.split(np.arange(len(keys)), np.flatnonzero(np.diff(before // _PAIRS)) + 1):
        many = counts[places]
        place = np.repeat(places, many)
        within = np.arange(len(place)) - np.repeat(before[places] - before[places[:1]], many)
        yield place + first, order[begin[place] + within]


def _merge(labels: np.ndarray, ones: np.ndarray, others: np.ndarray) -> None:
    """Give all labels that the pairs connect the least of them, in place."""
    if not len(ones):
        return
    names, pairs = np.unique(np.stack([labels[ones], labels[others]]), return_inverse=True)
    pairs = pairs.reshape(2, -1)
    graph = coo_array((np.ones(pairs.shape[1], bool), (pairs[0], pairs[1])), shape=(len(names), len(names)))
    _, groups = connected_components(graph, directed=False)
    renamed = np.arange(len(labels))
    renamed[names] = names[np.unique(groups, return_index=True)[1]][groups]
    labels[:] = renamed[labels]
