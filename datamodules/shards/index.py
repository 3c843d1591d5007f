"""The byte index beside the shards: fixed-width records, then all names, in one file that is read into memory.

No object per sample is made: memory is that of the file (48 bytes and a name per sample), which forked processes share,
opening is reading it and its checksum, and a look-up does not depend on their number. Little-endian throughout:

    header   64 bytes: magic, bytes of a record, number of records, bytes of all names
    records  RECORD each, in the order of the samples
    names    UTF-8, one after the other
"""

import hashlib
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datamodules.shards.manifest import INDEX, PACK_AGAIN, PackedFile, ShardError, checksum_of

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
    """The samples of a dataset by their number, out of the bytes of its index file.

    The file is read once: what happens to it later changes nothing, and a copy sent to another process takes the bytes
    along. where: the file's place, for messages. Raises ShardError where the bytes differ from what dataset.json says
    of them, also in a single bit.
    """

    def __init__(self, data: bytes, where: str, packed: PackedFile) -> None:
        _check(data, where, packed)
        self.where, self._data, self._packed = where, data, packed
        magic, record_bytes, count, name_bytes = HEADER.unpack_from(data)
        names_at = HEADER.size + RECORD.itemsize * count
        if (magic, record_bytes, names_at + name_bytes) != (MAGIC, RECORD.itemsize, len(data)):
            raise ShardError(f"{where} is no index of this format; {PACK_AGAIN}")
        self.records = np.frombuffer(data, RECORD, count, HEADER.size)
        self._names = memoryview(data)[names_at:]

    def __len__(self) -> int:
        return len(self.records)

    def __reduce__(self) -> tuple[type["ShardIndex"], tuple[bytes, str, PackedFile]]:
        return ShardIndex, (self._data, self.where, self._packed)

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


def read_index(path: Path, packed: PackedFile) -> ShardIndex:
    """The index in a file; ShardError where there is none."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ShardError(f"{path} is missing, the index of the shards; copy it anew, or {PACK_AGAIN}") from error
    return ShardIndex(data, str(path), packed)


def _check(data: bytes, where: str, packed: PackedFile) -> None:
    if (found := len(data)) != packed.bytes:
        kind = "truncated" if found < packed.bytes else "too long"
        raise ShardError(
            f"{where} is {kind}: found {found} bytes, expected the {packed.bytes} that dataset.json names; copy "
            f"{INDEX} anew, or {PACK_AGAIN}"
        )
    if checksum_of(data) != packed.checksum:
        raise ShardError(
            f"{where} was altered: its checksum is not the one in dataset.json; copy {INDEX} anew, or {PACK_AGAIN}"
        )
