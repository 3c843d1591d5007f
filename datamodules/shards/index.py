"""The byte index beside the shards: fixed-width records, then all names, in one file that is mapped into memory.

No object per sample is made: opening, memory and a look-up do not depend on their number, apart from the checksum over
the file (60 bytes and a name per sample). Little-endian throughout:

    header   64 bytes: magic, bytes of a record, number of records, bytes of all names
    records  RECORD each, in the order of the samples
    names    UTF-8, one after the other
"""

import hashlib
import mmap
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datamodules.shards.manifest import INDEX, PACK_AGAIN, PackedFile, ShardError

MAGIC = b"SR4KIDX1"
HEADER = struct.Struct("<8sQQQ32x")
RECORD = np.dtype(
    [
        ("offset", "<u8"),
        ("length", "<u8"),
        ("checksum", "<u8"),
        ("name_start", "<u8"),
        ("shard", "<u4"),
        ("height", "<u4"),
        ("width", "<u4"),
        ("name_length", "<u4"),
    ]
)
NAME_ERRORS = "surrogateescape"
"""A file's name on Linux may be any bytes."""
_BLOCK = 2**20


class Entry(NamedTuple):
    """Where a sample's image lies, (offset, length) in bytes of its shard, and its upright size in px."""

    offset: int
    length: int
    checksum: int
    name_start: int
    shard: int
    height: int
    width: int
    name_length: int


class ShardIndex:
    """The samples of a dataset by their number; a copy sent to another process maps the file anew.

    Raises ShardError where the file differs from what dataset.json says of it, also in a single bit.
    """

    def __init__(self, path: Path, packed: PackedFile) -> None:
        self.path, self.packed = path, packed
        _check(path, packed)
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        magic, record_bytes, count, name_bytes = HEADER.unpack_from(mapped)
        names_at = HEADER.size + RECORD.itemsize * count
        if (magic, record_bytes, names_at + name_bytes) != (MAGIC, RECORD.itemsize, len(mapped)):
            raise ShardError(f"{path} is no index of this format; {PACK_AGAIN}")
        self.records = np.frombuffer(mapped, RECORD, count, HEADER.size)
        self._names = memoryview(mapped)[names_at:]

    def __len__(self) -> int:
        return len(self.records)

    def __reduce__(self) -> tuple[type["ShardIndex"], tuple[Path, PackedFile]]:
        return ShardIndex, (self.path, self.packed)

    def entry(self, number: int) -> Entry:
        return Entry(*self.records[number].item())

    def name(self, number: int) -> str:
        """The source file's path relative to its folder, with suffix."""
        entry = self.entry(number)
        return self._name_bytes(entry.name_start, entry.name_length).decode(errors=NAME_ERRORS)

    def sizes(self) -> np.ndarray:
        """(N,2) int32 height and width of the upright images."""
        return np.stack([self.records["height"], self.records["width"]], axis=1).astype(np.int32)

    def fingerprint(self, chosen: np.ndarray | None = None) -> str:
        """A hash of names, sizes and content of the samples, all or the chosen ones, in whatever shards they lie."""
        records = self.records if chosen is None else self.records[chosen]
        digest = hashlib.blake2b(digest_size=16)
        for column in ("length", "checksum", "height", "width", "name_length"):
            digest.update(np.ascontiguousarray(records[column]).tobytes())
        if chosen is None:
            digest.update(self._names)
        else:
            starts, lengths = records["name_start"].tolist(), records["name_length"].tolist()
            digest.update(b"".join(map(self._name_bytes, starts, lengths)))
        return digest.hexdigest()

    def _name_bytes(self, start: int, length: int) -> bytes:
        return bytes(self._names[start : start + length])


def index_bytes(rows: Sequence[tuple[int, int, int, int, int, int]], names: Sequence[str]) -> bytes:
    """The file for rows of (shard, offset, length, height, width, checksum) and their names."""
    encoded = [name.encode(errors=NAME_ERRORS) for name in names]
    records = np.zeros(len(rows), RECORD)
    columns = np.array(rows, np.uint64).reshape(-1, 6).T
    for column, values in zip(("shard", "offset", "length", "height", "width", "checksum"), columns, strict=True):
        records[column] = values
    lengths = np.array([len(name) for name in encoded], np.uint64)
    records["name_length"] = lengths
    records["name_start"] = np.cumsum(lengths) - lengths
    header = HEADER.pack(MAGIC, RECORD.itemsize, len(rows), int(lengths.sum()))
    return header + records.tobytes() + b"".join(encoded)


def _check(path: Path, packed: PackedFile) -> None:
    """Read the file once, in blocks: what is only mapped counts as memory once it is touched."""
    if not path.is_file():
        raise ShardError(f"{path} is missing, the index of the shards; copy it anew, or {PACK_AGAIN}")
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    if (found := path.stat().st_size) != packed.bytes:
        kind = "truncated" if found < packed.bytes else "too long"
        raise ShardError(
            f"{path} is {kind}: found {found} bytes, expected the {packed.bytes} that dataset.json names; copy {INDEX} "
            f"anew, or {PACK_AGAIN}"
        )
    if digest.hexdigest() != packed.checksum:
        raise ShardError(
            f"{path} was altered: its checksum is not the one in dataset.json; copy {INDEX} anew, or {PACK_AGAIN}"
        )
