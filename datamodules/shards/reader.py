"""Images out of shards, by their number: every read is checked against the index."""

import contextlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from torch import Tensor

from datamodules.image_cache import CACHE_BYTES, ImageCache, large_enough
from datamodules.image_io import ImageReadError, decode
from datamodules.shards.cache import SampleCache
from datamodules.shards.index import Entry, ShardIndex, read_index
from datamodules.shards.manifest import (
    MANIFEST,
    PACK_AGAIN,
    REPAIR,
    Manifest,
    ShardError,
    parse_manifest,
    sample_checksum,
)
from datamodules.shards.storage import ByteRange, Folder, LocalFolder, RemoteFolder, open_folder

PREFETCH_BYTES = 256 * 1024**2
"""Most that is fetched ahead in one go."""


class ShardSource:
    """The samples of a dataset of shards as an `ImageSource`: the same order, names and pixels as its folder's.

    chosen: numbers of the samples that belong to the source. A sample of a remote dataset is fetched when it is needed
    and kept in cache. The most recently decoded images stay in memory as in `ImageSource`. Safe to fork, to pickle.
    """

    def __init__(
        self,
        folder: Folder,
        manifest: Manifest,
        index: ShardIndex,
        chosen: np.ndarray,
        cache: SampleCache | None = None,
        image_bytes: int = CACHE_BYTES,
    ) -> None:
        self.folder, self.manifest, self.index, self.cache = folder, manifest, index, cache
        self.chosen = None if len(chosen) == len(index) else chosen.astype(np.uint32)
        self._images = ImageCache(image_bytes)

    def __len__(self) -> int:
        return len(self.index if self.chosen is None else self.chosen)

    def name(self, index: int) -> str:
        """The image's path relative to the folder that was packed, without suffix."""
        return PurePosixPath(self.index.name(self._number(index))).with_suffix("").as_posix()

    def sizes(self) -> np.ndarray:
        """(N,2) height and width of the upright images."""
        sizes = self.index.sizes()
        return sizes if self.chosen is None else sizes[self.chosen]

    def fingerprint(self) -> str:
        """A hash of names, sizes and checksums: equal where the images are, in whatever shards they lie."""
        return self.index.fingerprint(self.chosen)

    def load(self, index: int) -> Tensor:
        """(3,H,W) RGB pixels, uint8 or uint16 as in the file; ShardError where the bytes are not those packed."""
        return self._images.get(index, self._decode)

    def read(self, index: int) -> bytes:
        """The image file's bytes, as they were packed."""
        number = self._number(index)
        entry = self.index.entry(number)
        if self.cache is not None and (kept := self.cache.get(number)) is not None:
            if _is_whole(kept, entry):
                return kept
            self.cache.drop(number)
        wanted = self._range(entry)
        data = self.folder.read(wanted)
        if self.folder.remote and not _is_whole(data, entry):
            data = self.folder.read(wanted)  # it may have been damaged on the way
        if not _is_whole(data, entry):
            raise ShardError(self._damage(number, entry, data))
        if self.cache is not None:
            self.cache.put(number, data)
        return data

    def prefetch(self, indices: Sequence[int]) -> None:
        """Fetch what the cache lacks of these samples, at the same time; local shards need none.

        No more than half the cache, so that nothing is pushed out before its use; nothing where the last copy could
        not be kept. What fails is left to `load`.
        """
        if self.cache is None or self.cache.failing or not isinstance(self.folder, RemoteFolder):
            return
        room = min(self.cache.most_bytes // 2, PREFETCH_BYTES)
        wanted: dict[int, Entry] = {}
        for index in indices:
            number = self._number(index)
            if index in self._images or number in wanted or self.cache.holds(number):
                continue
            wanted[number] = self.index.entry(number)
            room -= wanted[number].length
            if room < 0:
                del wanted[number]
                break
        if len(wanted) < 2:
            return
        found = self.folder.read_many([self._range(entry) for entry in wanted.values()])
        for (number, entry), data in zip(wanted.items(), found, strict=True):
            if data is not None and _is_whole(data, entry):
                self.cache.put(number, data)
                if self.cache.failing:
                    return

    def _number(self, index: int) -> int:
        return index if self.chosen is None else int(self.chosen[index])

    def _decode(self, index: int) -> Tensor:
        name = f"{self.index.name(self._number(index))} of {self.folder.where('')}"
        try:
            return decode(self.read(index), name).pixels
        except ImageReadError as error:
            raise ImageReadError(f"{error}; leave it out with `make curate` and pack again") from error

    def _range(self, entry: Entry) -> ByteRange:
        return ByteRange(self.manifest.shards[entry.shard].name, entry.offset, entry.offset + entry.length)

    def _damage(self, number: int, entry: Entry, data: bytes) -> str:
        shard = self.folder.where(self.manifest.shards[entry.shard].name)
        if len(data) < entry.length:
            return f"{shard} is truncated: it ends before byte {entry.offset + entry.length}; {REPAIR}"
        return f"{shard} was altered: {self.index.name(number)!r} in it has another checksum than when packed; {REPAIR}"


def _is_whole(data: bytes, entry: Entry) -> bool:
    return len(data) == entry.length and sample_checksum(data) == entry.checksum


def is_shards(location: str) -> bool:
    """Whether a location is an address, or a local folder of shards, finished or not."""
    if "://" in location:
        return True
    folder = Path(location)
    return (folder / MANIFEST).is_file() or (folder.is_dir() and any(folder.glob("shard-*.tar")))


def open_shards(
    location: str,
    cache: str,
    cache_bytes: int,
    min_size: int,
    option: str,
    size_option: str,
    image_bytes: int = CACHE_BYTES,
) -> ShardSource:
    """The dataset of shards at a folder or an address, without the images that have a side below min_size.

    cache, cache_bytes: folder for local copies of remote samples and their total size; local shards are read where they
    lie. Raises ShardError for a dataset that is unfinished, of another version, out of reach, or damaged as far as can
    be seen without reading all of it; ValueError where no image is large enough. Warnings and errors name option and
    size_option. A server has to answer requests for ranges of bytes, see `RemoteFolder`.
    """
    try:
        folder = open_folder(location)
        manifest = parse_manifest(folder.read_manifest(), folder.where(MANIFEST))
        copies = None
        if isinstance(folder, LocalFolder):
            check_lengths(folder, manifest)
            index = open_index(folder, manifest)
        else:
            copies = SampleCache(Path(cache), manifest.index.checksum, cache_bytes)
            copies.open()
            index = open_index(folder, manifest, copies)
    except ShardError as error:
        raise ShardError(f"{option}={location}: {error}") from error
    chosen = large_enough(index.sizes(), index.name, min_size, f"{option}={location}", size_option)
    return ShardSource(folder, manifest, index, chosen, copies, image_bytes)


def check_lengths(folder: LocalFolder, manifest: Manifest) -> None:
    """Raise ShardError where a shard is missing or has another length: found now rather than hours later."""
    for shard in manifest.shards:
        path = folder.folder / shard.name
        if not path.is_file():
            raise ShardError(f"{path} is missing; {REPAIR}")
        if (found := path.stat().st_size) != shard.bytes:
            kind = "truncated" if found < shard.bytes else "too long"
            raise ShardError(f"{path} is {kind}: found {found} bytes, expected {shard.bytes}; {REPAIR}")


def open_index(folder: Folder, manifest: Manifest, cache: SampleCache | None = None) -> ShardIndex:
    """The dataset's index; that of a remote folder is fetched, unless it lies whole in the cache."""
    name = manifest.index.name
    if isinstance(folder, LocalFolder):
        return _counted(read_index(folder.folder / name, manifest.index), manifest)
    if cache is not None:
        with contextlib.suppress(ShardError):
            return _counted(read_index(cache.index_path(name), manifest.index), manifest)
    data = folder.read_whole(name)
    index = _counted(ShardIndex(data, folder.where(name), manifest.index), manifest)
    if cache is not None:
        cache.put_index(name, data)
    return index


def _counted(index: ShardIndex, manifest: Manifest) -> ShardIndex:
    if len(index) != manifest.samples:
        raise ShardError(
            f"{MANIFEST} names {manifest.samples} samples and {index.where} holds {len(index)}; copy both anew, or "
            f"{PACK_AGAIN}"
        )
    return index
