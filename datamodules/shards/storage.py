"""Where shards lie: a local folder, or any address that fsspec reads (http, s3, ...)."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.shards.manifest import MANIFEST, REPAIR, ShardError

WAITS = (0.1, 0.5, 2.0, 8.0, 20.0)
"""Seconds before another attempt where a server fails, at least."""
FIRST_WAITS = WAITS[:3]
"""The same for the first request to an address: a wrong one should be told soon."""
SILENCE = 60.0
"""Seconds without a byte after which an attempt over HTTP is given up."""
_PROBE = 8


class ByteRange(NamedTuple):
    """Bytes start to end (excluded) of a file."""

    name: str
    start: int
    end: int


class LocalFolder:
    """Shards in a folder of this machine."""

    remote = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def where(self, name: str) -> str:
        return str(self.folder / name)

    def read(self, wanted: ByteRange) -> bytes:
        """The bytes, or as many as the file has; ShardError where it cannot be read."""
        try:
            with (self.folder / wanted.name).open("rb") as file:
                file.seek(wanted.start)
                return file.read(wanted.end - wanted.start)
        except FileNotFoundError as error:
            raise ShardError(f"{self.where(wanted.name)} is missing; {REPAIR}") from error
        except OSError as error:
            raise ShardError(f"{self.where(wanted.name)} cannot be read: {error.strerror or error}") from error

    def read_manifest(self) -> bytes:
        path = self.folder / MANIFEST
        if path.is_file():
            return path.read_bytes()
        if any(self.folder.glob("shard-*.tar")):
            raise ShardError(
                f"{self.folder} is unfinished: it holds shards but no {MANIFEST}, so its packing was interrupted; run "
                "`make shards` again with the same IN= and OUT="
            )
        raise ShardError(f"{path} is missing; expected a folder that `make shards` has finished")


class RemoteFolder:
    """Shards at an address; each process opens it for itself, as connections do not survive a fork.

    Ranges of bytes are asked for. A server that ignores them (such as `python -m http.server`) and sends whole files
    is refused at the first request.
    """

    remote = True

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def where(self, name: str) -> str:
        return f"{self.url}/{name}"

    def read(self, wanted: ByteRange, first: bool = False) -> bytes:
        """The bytes, or fewer where the file ends before; ShardError after the last attempt."""
        waits = FIRST_WAITS if first else WAITS
        return self._checked(self._retried(wanted.name, (wanted.start, wanted.end), waits), wanted)

    def read_whole(self, name: str) -> bytes:
        return self._retried(name, (None, None), WAITS)

    def read_manifest(self) -> bytes:
        """dataset.json, after a look at whether the server gives ranges at all."""
        self.read(ByteRange(MANIFEST, 0, _PROBE), first=True)
        return self.read_whole(MANIFEST)

    def read_many(self, wanted: Sequence[ByteRange]) -> list[bytes | None]:
        """All ranges at the same time in one attempt; None where it failed."""
        system, root = _opened(self.url)
        paths = [f"{root}/{one.name}" for one in wanted]
        found = system.cat_ranges(paths, [one.start for one in wanted], [one.end for one in wanted], on_error="return")
        return [
            self._checked(data, one) if isinstance(data, bytes) else None
            for data, one in zip(found, wanted, strict=True)
        ]

    def _checked(self, data: bytes, wanted: ByteRange) -> bytes:
        if len(data) > wanted.end - wanted.start:
            raise ShardError(
                f"{self.where(wanted.name)}: the server ignores requests for a range of bytes and sends whole files; "
                "serve the shards with one that knows ranges (nginx, Apache, an S3 store), or copy them to a folder"
            )
        return data

    def _retried(self, name: str, limits: tuple[int | None, int | None], waits: Sequence[float]) -> bytes:
        left = iter(waits)
        while True:
            try:
                system, root = _opened(self.url)
                return bytes(system.cat_file(f"{root}/{name}", *limits))
            except ShardError:
                raise
            except Exception as error:  # every file system has errors of its own
                wait = next(left, None) if _passing(error) else None
                if wait is None:
                    raise ShardError(f"{self.where(name)} {_what_happened(error, len(waits) + 1)}") from error
            time.sleep(wait * (1 + os.getpid() % 8 / 16))  # not all processes at the same time


Folder = LocalFolder | RemoteFolder


def open_folder(location: str) -> Folder:
    """A folder by its path or address."""
    if "://" not in location:
        return LocalFolder(Path(location))
    if location.startswith(("file://", "local://")):
        return LocalFolder(Path(_opened(location.rstrip("/"))[1]))
    return RemoteFolder(location)


_systems: dict[tuple[int, str], tuple[Any, str]] = {}
"""fsspec's file system and the path in it, by process and address; those of a parent process are never touched."""


def _opened(url: str) -> tuple[Any, str]:
    key = os.getpid(), url
    if key not in _systems:
        from fsspec.core import url_to_fs

        options: dict[str, Any] = {}
        if url.startswith(("http://", "https://")):
            import aiohttp

            timeout = aiohttp.ClientTimeout(total=None, sock_connect=SILENCE, sock_read=SILENCE)
            # a server that compresses its answers gives no ranges of the file
            options = {"client_kwargs": {"timeout": timeout, "headers": {"Accept-Encoding": "identity"}}}
        try:
            system, root = url_to_fs(url, skip_instance_cache=True, **options)
        except (ImportError, ValueError) as error:
            text = " ".join(str(error).split())
            raise ShardError(f"{url} cannot be opened: {text}; expected an address that fsspec knows") from error
        _systems[key] = system, str(root).rstrip("/")
    return _systems[key]


def _status(error: BaseException) -> int | None:
    status = getattr(error, "status", None)
    return status if isinstance(status, int) else None


def _passing(error: BaseException) -> bool:
    """Whether another attempt may succeed: time-outs, lost connections, a server's own failures."""
    if isinstance(error, FileNotFoundError | PermissionError):
        return False
    if (status := _status(error)) is not None:
        return status in (408, 425, 429) or status >= 500
    return isinstance(error, OSError | EOFError) or type(error).__module__.startswith(("aiohttp", "botocore"))


def _what_happened(error: BaseException, attempts: int) -> str:
    if isinstance(error, FileNotFoundError):
        return f"is missing; check the address, or {REPAIR}"
    if _status(error) == 416:
        return f"is truncated: the server has no bytes where the index expects them; {REPAIR}"
    said = " ".join(str(error).split()) or type(error).__name__
    if _passing(error):
        return f"could not be read in {attempts} attempts ({said}); check the server and the connection"
    return f"could not be read ({said}); check the address and the access to it"
