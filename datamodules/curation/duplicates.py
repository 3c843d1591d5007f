"""Images that are the same picture: re-encoded, resized, brightened or cropped a little."""

from collections.abc import Iterator, Sequence
from itertools import product

import imagehash
import numpy as np
from PIL import Image
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
_QUERIES = 20_000
"""Views that are looked up at once: bounds the memory."""


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
    parents = list(range(len(first)))
    for whole, other in _near_pairs(views, most_bits):
        for a, b in zip(whole.tolist(), other.tolist(), strict=True):
            a, b = _root(parents, a), _root(parents, b)
            parents[max(a, b)] = min(a, b)
    number: dict[int, int] = {}
    return [number.setdefault(_root(parents, index), len(number)) for index in distinct]


def _words(text: str) -> np.ndarray:
    """(views, 4) uint64, the first of each row the lowest frequencies."""
    if len(text) != HASH_LENGTH:
        raise ValueError(f"perceptual hash: found {len(text)} digits, expected {HASH_LENGTH}; compute the table anew")
    return np.frombuffer(bytes.fromhex(text), ">u8").reshape(len(VIEWS), -1).astype(np.uint64)


def _root(parents: list[int], index: int) -> int:
    while parents[index] != index:
        parents[index] = index = parents[parents[index]]
    return index


def _near_pairs(views: np.ndarray, most_bits: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of image numbers whose whole and some view are near, in blocks; a pair may come more than once."""
    wholes = np.ascontiguousarray(views[:, 0])
    flat = views.reshape(-1, views.shape[-1])
    probes = np.array([0] + [1 << bit for bit in range(16)], np.uint16)
    for quarter in range(4):
        keys = _quarter(wholes[:, 0], quarter)
        order = np.argsort(keys, kind="stable")
        starts = np.searchsorted(keys[order], np.arange(2**16 + 1))
        for first in range(0, len(flat), _QUERIES):
            queries = flat[first : first + _QUERIES]
            for probe in probes:
                query, whole = _candidates(_quarter(queries[:, 0], quarter) ^ probe, starts, order)
                near = np.bitwise_count(queries[query, 0] ^ wholes[whole, 0]) <= min(most_bits, _COARSE_BITS)
                query, whole = query[near], whole[near]
                bits = np.bitwise_count(queries[query] ^ wholes[whole]).sum(1, dtype=np.int64)
                other = (first + query) // views.shape[1]
                near = (bits <= most_bits) & (other != whole)
                yield whole[near], other[near]


def _quarter(words: np.ndarray, quarter: int) -> np.ndarray:
    return (words >> np.uint64(16 * quarter)).astype(np.uint16)


def _candidates(keys: np.ndarray, starts: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All (query, whole) of equal key."""
    counts = starts[keys.astype(np.int64) + 1] - starts[keys]
    query = np.repeat(np.arange(len(keys)), counts)
    within = np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)
    return query, order[starts[keys][query] + within]
