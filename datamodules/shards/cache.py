"""Local copies of remote samples, of a bounded size, shared by all processes of a machine."""

import contextlib
import fcntl
import itertools
import os
import re
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from datamodules.files import target_of, write_whole
from datamodules.shards.manifest import ShardError

SAMPLES = "samples"
UNFINISHED_SECONDS = 600.0
"""After which a copy that is still being written was left behind by a killed process."""
KEPT_SHARE = 0.9
"""What is left of the bound when the oldest copies are removed, so that this happens seldom."""
_DATASET = re.compile(r"[0-9a-f]{32}")
_COUNTER = ".bytes"


class SampleCache:
    """Files of samples below a folder, <dataset>/samples/<part>/<number>; what was used longest ago goes first.

    The bound holds over all datasets and processes that use the folder, apart from the few files that are being
    written; the index files beside the samples do not count. A sample larger than the bound is not kept at all. Only
    files named like this are ever removed. Copies are not trusted: whoever reads one checks it. failing: whether the
    last copy could not be written.
    """

    def __init__(self, folder: Path, dataset: str, most_bytes: int) -> None:
        self.folder, self.dataset, self.most_bytes = folder, dataset, most_bytes
        self.failing = False

    def open(self) -> None:
        """Make the folder, and remove what is too much and what killed processes left; ShardError where it cannot."""
        try:
            (self.folder / self.dataset).mkdir(parents=True, exist_ok=True)
            with self._counter() as counter:
                _write(counter, self._shrink(self.most_bytes))
        except OSError as error:
            raise ShardError(
                f"cannot write to {self.folder} ({error.strerror}); set data.cache to another folder"
            ) from error

    def path(self, number: int) -> Path:
        return self.folder / self.dataset / SAMPLES / f"{number // 1000:04d}" / f"{number:07d}"

    def get(self, number: int) -> bytes | None:
        """The copy's bytes, None where there is none."""
        path = self.path(number)
        try:
            data = path.read_bytes()
            os.utime(path)
        except OSError:  # not there, or removed by another process in between
            return None
        return data

    def holds(self, number: int) -> bool:
        return self.path(number).exists()

    def drop(self, number: int) -> None:
        self.path(number).unlink(missing_ok=True)

    def put(self, number: int, data: bytes) -> None:
        """Keep a copy; where the disk does not let us, warn and go on without, and say so by `failing`."""
        path = self.path(number)
        if len(data) > self.most_bytes or path.exists():
            return
        with self._warned():
            self._make_room(len(data))
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, data)

    def index_path(self, name: str) -> Path:
        """Where the copy of the dataset's index of this name lies, or would."""
        return self.folder / self.dataset / name

    def put_index(self, name: str, data: bytes) -> None:
        """Keep a copy of the index, as `put` does of samples."""
        with self._warned():
            write_whole(self.index_path(name), data)

    @contextlib.contextmanager
    def _warned(self) -> Iterator[None]:
        try:
            yield
            self.failing = False
        except OSError as error:
            self.failing = True
            reason = f"no local copies are kept in {self.folder} ({error.strerror})"
            warnings.warn(f"{reason}; make room, or set data.cache to another folder", stacklevel=4)

    def _make_room(self, length: int) -> None:
        """Count the bytes in before they are written; beyond the bound, the oldest files make place."""
        with self._counter() as counter:
            used = _read(counter)
            if used is None or used + length > self.most_bytes:
                used = self._shrink(min(self.most_bytes - length, int(KEPT_SHARE * self.most_bytes)))
            _write(counter, used + length)

    def _shrink(self, most_bytes: int) -> int:
        """Remove the oldest files until most_bytes are left, and what was never finished; the bytes left."""
        files = sorted(self._files(), key=lambda file: file[1])
        left = sum(length for _, _, length in files)
        long_ago = time.time() - UNFINISHED_SECONDS
        for path, used_at, length in files:
            too_much = left > most_bytes and not _unfinished(path)
            left_behind = used_at < long_ago and _unfinished(path)
            if too_much or left_behind:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
                left -= length
        return left

    def _files(self) -> Iterator[tuple[str, float, int]]:
        """Path, time of the last use and bytes of every copy of every dataset, and of unfinished files."""
        datasets = [Path(entry.path) for entry in _entries(self.folder) if _DATASET.fullmatch(entry.name)]
        files = [entry for dataset in datasets for entry in _entries(dataset) if _unfinished(entry.path)]
        parts = [Path(part.path) for dataset in datasets for part in _entries(dataset / SAMPLES)]
        for entry in itertools.chain(files, *map(_entries, parts)):
            with contextlib.suppress(FileNotFoundError):
                stat = entry.stat()
                yield entry.path, stat.st_mtime, stat.st_size

    @contextlib.contextmanager
    def _counter(self) -> Iterator[int]:
        """The file with the number of bytes in use, locked against all other processes and threads."""
        file = os.open(self.folder / _COUNTER, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
        finally:
            os.close(file)


def _unfinished(path: str) -> bool:
    return target_of(os.path.basename(path)) is not None


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _read(counter: int) -> int | None:
    data = os.pread(counter, 8, 0)
    return int.from_bytes(data, "little") if len(data) == 8 else None


def _write(counter: int, used: int) -> None:
    os.pwrite(counter, used.to_bytes(8, "little"), 0)
