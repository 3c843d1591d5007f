"""Files that appear whole or not at all, written beside their place and renamed; folders held by one process."""

import fcntl
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_PART = re.compile(r"\.(.+?)(\.\d+)?\.part(\.\w+)?")


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """A hidden path beside `path` to write to, renamed to it at the end, removed where the block fails.

    Its name, .<name>.<process>.part.<random>, is of this call alone, also where hosts share the folder. A process that
    is killed leaves it behind, see `target_of`.
    """
    part = path.with_name(f".{path.name.lstrip('.')}.{os.getpid()}.part.{secrets.token_hex(4)}")
    try:
        yield part
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextmanager
def opened_beside(path: Path, sync: bool = False) -> Iterator[BinaryIO]:
    """As `written_beside`, opened for writing; with sync it is renamed only after its bytes are on the disk."""
    with written_beside(path) as part, part.open("xb") as file:
        yield file
        if sync:
            file.flush()
            os.fsync(file.fileno())


def write_whole(path: Path, data: bytes, sync: bool = False) -> None:
    """Write a file as `opened_beside` does."""
    with opened_beside(path, sync) as file:
        file.write(data)


def target_of(name: str) -> str | None:
    """Which file, without leading dots, an unfinished one of this name was to become; None for all other names."""
    found = _PART.fullmatch(name)
    return found[1] if found else None


@contextmanager
def locked(folder: Path, work: str) -> Iterator[None]:
    """Hold an output folder until the process ends in whatever way; ValueError where another `work` has it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(
                f"OUT={folder}: another {work} is at work there; wait for it, or give another OUT="
            ) from error
        yield


@contextmanager
def waited_for(path: Path) -> Iterator[None]:
    """Hold a lock file, after waiting for the process that has it; it is free when that one ends in whatever way."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
