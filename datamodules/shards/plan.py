"""What is packed: image files as they were found, sorted and cut into shards."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datamodules.shards.manifest import checksum_of
from datamodules.shards.tar_file import member_bytes


@dataclass(frozen=True)
class Source:
    """An image file as it was found when packing was planned: place, name in the dataset, length, times of change.

    fingerprint: blake2b-16 of its bytes in hex where they are known from before, else empty.
    """

    path: Path
    name: str
    length: int
    changed: tuple[int, int]
    fingerprint: str = ""

    @property
    def packed_bytes(self) -> int:
        """What it takes in a shard, nearly: the length of its description is not known yet."""
        return member_bytes(self.length) + member_bytes(1)

    def read(self) -> bytes:
        """The file's bytes; ValueError where it is no longer the file that was planned with."""
        try:
            with self.path.open("rb") as file:
                data = file.read()
                now = os.fstat(file.fileno())
        except FileNotFoundError as error:
            raise ValueError(f"{self.path} has vanished since packing began; put it back or run it anew") from error
        if (len(data), _changed(now)) != (self.length, self.changed):
            raise ValueError(f"{self.path} has changed since packing began; run it again when nothing writes there")
        if self.fingerprint and checksum_of(data) != self.fingerprint:
            raise ValueError(f"{self.path} is not the file that was curated; run `make curate` again, then pack")
        return data


def find_source(path: Path, name: str, fingerprint: str = "") -> Source:
    """A file as it is now; FileNotFoundError where there is none."""
    try:
        now = path.stat()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} is missing, which was to be packed") from error
    return Source(path, name, now.st_size, _changed(now), fingerprint)


def _changed(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_mtime_ns, stat.st_ctime_ns


@dataclass(frozen=True)
class Plan:
    """What goes into which shard. origin: where the images come from, told apart by this text."""

    origin: str
    shard_bytes: int
    shards: tuple[tuple[Source, ...], ...]

    @property
    def samples(self) -> int:
        return sum(map(len, self.shards))

    @property
    def packed_bytes(self) -> int:
        """Length of all shards together, nearly."""
        return sum(source.packed_bytes for shard in self.shards for source in shard)


def make_plan(origin: str, sources: Sequence[Source], shard_bytes: int) -> Plan:
    """Sort by name and cut at shard_bytes; a larger image has a shard of its own."""
    shards: list[list[Source]] = []
    length = 0
    for source in sorted(sources, key=lambda source: source.name):
        expected = source.packed_bytes
        if not shards or length + expected > shard_bytes:
            shards.append([])
            length = 0
        shards[-1].append(source)
        length += expected
    return Plan(origin, shard_bytes, tuple(map(tuple, shards)))
