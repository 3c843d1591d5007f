"""dataset.json: what a folder of shards consists of. It is written last, so a folder without it is unfinished."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from typing import Any

FORMAT = "sr4k-shards"
VERSION = 1
MANIFEST = "dataset.json"
INDEX = "index.bin"
REPAIR = "`make shards-check` lists all damage; delete the damaged file and run `make shards` again, or copy it anew"
PACK_AGAIN = "pack the images again with `make shards` into an empty folder"


_NAME = re.compile(r"\w[\w.-]*")
_CHECKSUM = re.compile(r"[0-9a-f]{32}")


class ShardError(ValueError):
    """Shards that are missing, damaged, unfinished or not to be had; one sentence with the file and what to do."""


@dataclass(frozen=True)
class PackedFile:
    """A file of the dataset: its name in the folder, its length and the blake2b-16 of its bytes, in hex."""

    name: str
    bytes: int
    checksum: str


@dataclass(frozen=True)
class Manifest:
    """The dataset's files, and what it was packed as.

    shard_bytes: length at which a shard ends. fingerprint: see `ShardIndex.fingerprint`, equal for equal images.
    """

    samples: int
    shard_bytes: int
    fingerprint: str
    index: PackedFile
    shards: tuple[PackedFile, ...]

    def to_bytes(self) -> bytes:
        """The JSON file, equal for equal content."""
        return (json.dumps({"format": FORMAT, "version": VERSION} | asdict(self), indent=1) + "\n").encode()


def parse_manifest(data: bytes, where: str) -> Manifest:
    """The content of a dataset.json at `where`; ShardError for another version, and for what is none."""
    try:
        found = json.loads(data)
    except ValueError:
        found = None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ShardError(f"{where} is damaged or describes no shards of this project; copy it anew, or {PACK_AGAIN}")
    if found.get("version") != VERSION:
        raise ShardError(
            f"{where} is of format version {found.get('version')}, expected {VERSION}: use the program that wrote it, "
            f"or {PACK_AGAIN}"
        )
    try:
        shards = tuple(_packed_file(entry) for entry in found["shards"])
        numbers = int(found["samples"]), int(found["shard_bytes"])
        return Manifest(*numbers, str(found["fingerprint"]), _packed_file(found["index"]), shards)
    except (KeyError, TypeError, ValueError) as error:
        raise ShardError(f"{where} is damaged; copy it anew, or {PACK_AGAIN}") from error


def _packed_file(entry: Any) -> PackedFile:
    packed = PackedFile(entry["name"], int(entry["bytes"]), entry["checksum"])
    # names and checksums become paths, and an address may be anybody's
    if not (_NAME.fullmatch(packed.name) and _CHECKSUM.fullmatch(packed.checksum)):
        raise ValueError(f"no file of a dataset: {entry}")
    return packed


def checksum_of(data: bytes) -> str:
    """blake2b-16 in hex, of a whole file."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def sample_checksum(data: bytes) -> int:
    """blake2b-8 as a number, of an image's bytes."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
