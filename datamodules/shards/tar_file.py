"""A tar file in WebDataset layout, equal in every byte for equal images.

A sample is two members, <number>.<jpg, png, ...> with the image file's own bytes and <number>.json with its name, width
and height (upright, px), bytes and checksum (blake2b-8, hex).
"""

import hashlib
import json
import tarfile
from typing import BinaryIO

from datamodules.image_io import ImageHeader
from datamodules.shards.manifest import sample_checksum

SUFFIXES = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp"}
"""Of the members, by the format that an image's header tells."""
Row = tuple[int, int, int, int, int]
"""(offset, length, height, width, checksum) of an image in its shard."""
_BLOCK = tarfile.BLOCKSIZE


class TarFile:
    """A shard that is being written, from the start to the end, and the checksum of what was written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest, self.length = file, hashlib.blake2b(digest_size=16), 0

    def add(self, number: int, data: bytes, header: ImageHeader, name: str) -> Row:
        """Append an image file and its description."""
        checksum = sample_checksum(data)
        facts = {
            "name": name,
            "width": header.width,
            "height": header.height,
            "bytes": len(data),
            "checksum": f"{checksum:016x}",
        }
        offset = self._member(f"{number:08d}.{SUFFIXES.get(header.format, header.format.lower())}", data)
        self._member(f"{number:08d}.json", (json.dumps(facts) + "\n").encode())
        return offset, len(data), header.height, header.width, checksum

    def end(self) -> str:
        """Write the end, and return the file's checksum."""
        self._write(bytes(2 * _BLOCK))
        return self._digest.hexdigest()

    def _member(self, name: str, data: bytes) -> int:
        """Append a member without owner and time; where its bytes begin."""
        member = tarfile.TarInfo(name)
        member.size = len(data)
        self._write(member.tobuf(tarfile.GNU_FORMAT))
        offset = self.length
        self._write(data)
        self._write(bytes(-len(data) % _BLOCK))
        return offset

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.length += len(data)


def member_bytes(length: int) -> int:
    """What a member of so many bytes takes."""
    return _BLOCK + -(-length // _BLOCK) * _BLOCK
