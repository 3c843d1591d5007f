"""Reads whole shards and tells everything that is not as it was packed."""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datamodules.shards.index import ShardIndex
from datamodules.shards.manifest import MANIFEST, REPAIR, Manifest, ShardError, parse_manifest, sample_checksum
from datamodules.shards.reader import open_index
from datamodules.shards.storage import ByteRange, Folder, LocalFolder, open_folder

BLOCK = 16 * 1024**2


@dataclass(frozen=True)
class Dataset:
    """An opened dataset to check; index is None where it is damaged itself, as the first of problems tells."""

    folder: Folder
    manifest: Manifest
    index: ShardIndex | None
    problems: tuple[str, ...]


def open_dataset(location: str) -> Dataset:
    """ShardError where there is no readable dataset.json."""
    folder = open_folder(location)
    manifest = parse_manifest(folder.read_manifest(), folder.where(MANIFEST))
    problems = []
    index = None
    try:
        index = open_index(folder, manifest)
    except ShardError as error:
        problems.append(str(error))
    if index is not None and index.fingerprint() != manifest.fingerprint:
        problems.append(f"{folder.where(MANIFEST)} was altered: its fingerprint is not that of the index")
    problems += [f"{path} is no part of the dataset" for path in _strangers(folder, manifest)]
    return Dataset(folder, manifest, index, tuple(problems))


class Piece(NamedTuple):
    """Bytes of a shard that end with an image; after the last image, name is empty and checksum None.

    start: where the image begins in the bytes.
    """

    data: bytes
    name: str = ""
    checksum: int | None = None
    start: int = 0


def check_shards(dataset: Dataset, workers: int, progress: Callable[[int], Any]) -> Iterator[str]:
    """One sentence per problem of the shards, several shards at a time; progress(bytes) is called from all threads.

    Threads, as reading and hashing leave the interpreter free.
    """
    with ThreadPoolExecutor(workers) as pool:
        for problems in pool.map(lambda k: _check_shard(dataset, k, progress), range(len(dataset.manifest.shards))):
            yield from problems


def _check_shard(dataset: Dataset, k: int, progress: Callable[[int], Any]) -> list[str]:
    shard = dataset.manifest.shards[k]
    where = dataset.folder.where(shard.name)
    problems = []
    digest = hashlib.blake2b(digest_size=16)
    length = 0
    try:
        for piece in _pieces(dataset, k):
            digest.update(piece.data)
            length += len(piece.data)
            progress(len(piece.data))
            if piece.checksum is not None and sample_checksum(piece.data[piece.start :]) != piece.checksum:
                problems.append(f"{where}: the image {piece.name!r} was altered or lies elsewhere")
    except ShardError as error:
        return [*problems, str(error).removesuffix(f"; {REPAIR}")]
    if length != shard.bytes:
        kind = "truncated" if length < shard.bytes else "too long"
        return [f"{where} is {kind}: found {length} bytes, expected {shard.bytes}"]
    if digest.hexdigest() != shard.checksum and not problems:
        problems.append(f"{where} was altered outside of its images, in a header or a description")
    return problems


def _pieces(dataset: Dataset, k: int) -> Iterator[Piece]:
    """A shard from the start to the end, as far as it goes."""
    name, position = dataset.manifest.shards[k].name, 0
    if dataset.index is not None:
        for number in np.flatnonzero(dataset.index.records["shard"] == k).tolist():
            entry = dataset.index.entry(number)
            data = dataset.folder.read(ByteRange(name, position, entry.offset + entry.length))
            yield Piece(data, dataset.index.name(number), entry.checksum, entry.offset - position)
            if len(data) < entry.offset + entry.length - position:
                return
            position = entry.offset + entry.length
    end = dataset.manifest.shards[k].bytes
    if isinstance(dataset.folder, LocalFolder):
        end += 1  # a longer file is told
    while position < end:
        data = dataset.folder.read(ByteRange(name, position, min(position + BLOCK, end)))
        yield Piece(data)
        position += len(data)
        if not data:
            return


def _strangers(folder: Folder, manifest: Manifest) -> list[Path]:
    """Shards in a local folder that dataset.json does not name."""
    if not isinstance(folder, LocalFolder):
        return []
    known = {shard.name for shard in manifest.shards}
    return sorted(path for path in folder.folder.glob("shard-*.tar") if path.name not in known)
