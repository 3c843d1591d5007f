"""Which files below a folder of raw photographs are measured, and which others lie there."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from datamodules.image_io import SUFFIXES


@dataclass(frozen=True)
class RawFile:
    """A file that is named like an image; size and mtime_ns are -1 where it cannot be looked at (a dangling link)."""

    path: Path
    relative: str
    size: int
    mtime_ns: int

    @property
    def is_nameable(self) -> bool:
        """Whether its name can stand in the table and in a list of paths."""
        try:
            return not {"\n", "\r"} & set(self.relative.encode("utf-8").decode())
        except UnicodeEncodeError:  # bytes that are no UTF-8
            return False


def scan(raw: Path, out: Path) -> tuple[list[RawFile], Counter[str]]:
    """Files below `raw` named like an image, sorted by posix path, and how many there are of every other suffix.

    Links are followed, each folder once; hidden files and folders are left out, and so is `out`.
    """
    found, others = [], Counter[str]()
    for path in _visible_files(raw, os.path.realpath(out)):
        suffix = path.suffix.lower()
        if suffix in SUFFIXES:
            found.append(_looked_at(path, path.relative_to(raw).as_posix()))
        else:
            others[suffix or "without suffix"] += 1
    return sorted(found, key=lambda file: file.relative), others


def _visible_files(raw: Path, out: str) -> Iterator[Path]:
    seen = {out}
    for folder, folders, files in os.walk(raw, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # the output, or a link to a folder that was walked before
            folders.clear()
            continue
        seen.add(real)
        # sorted: which of two links to one folder is walked must not depend on the disk's order
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder, name) for name in files if not name.startswith("."))


def _looked_at(path: Path, relative: str) -> RawFile:
    try:
        stat = path.stat()
    except OSError:
        return RawFile(path, relative, -1, -1)
    return RawFile(path, relative, stat.st_size, stat.st_mtime_ns)
