"""Packs image files into shards: equal in every byte, however often it is interrupted.

A shard appears under its name when it is finished, then a file beside it with what is in it; dataset.json comes last.
"""

import fcntl
import json
import os
import shutil
import warnings
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datamodules.files import opened_beside, target_of, write_whole
from datamodules.shards.images import read_images
from datamodules.shards.index import ShardIndex, index_bytes, read_index
from datamodules.shards.manifest import (
    INDEX,
    MANIFEST,
    PACK_AGAIN,
    Manifest,
    PackedFile,
    checksum_of,
    parse_manifest,
    sample_checksum,
)
from datamodules.shards.plan import Plan
from datamodules.shards.tar_file import Row, TarFile

SPARE_BYTES = 10 * 1024**2
STATE = ".packing.json"
"""In a folder that is being packed: what is packed into it."""
CLOCKS_APART_NS = 24 * 3600 * 10**9
"""By which the clocks of the images' file server and of the shards' disk may differ."""


@dataclass(frozen=True)
class PackedShard:
    """A finished shard: its file, and (offset, length, height, width, checksum) of its samples.

    planned: hash of what the plan had in it.
    """

    file: PackedFile
    planned: str
    rows: tuple[Row, ...]


class Packing:
    """The packing of a plan into a folder, to be used in a `with`: it holds the folder until the process ends.

    Finished shards of an interrupted packing are kept. Raises ValueError where another packing is at work, and for a
    folder that holds anything but this plan's dataset, finished or not.
    """

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan, self.folder = plan, folder
        self.firsts = [sum(map(len, plan.shards[:k])) for k in range(len(plan.shards))]
        self.packed: dict[int, PackedShard] = {}
        self.finished: Manifest | None = None

    def __enter__(self) -> "Packing":
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.folder, os.O_RDONLY)
        try:
            self._hold()
        except BaseException:
            os.close(self._lock)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._lock)

    def _hold(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{self.folder}: another packing is at work there; wait for it, or give OUT=") from error
        except OSError:  # a network file system
            warnings.warn(f"{self.folder} cannot be locked: see that nothing else packs into it", stacklevel=3)
        for path in self.folder.iterdir():  # what killed packings have left
            if _is_ours(target_of(path.name) or ""):
                path.unlink()
        self._take_over()

    def _take_over(self) -> None:
        state = {"origin": self.plan.origin, "shard_bytes": self.plan.shard_bytes}
        if (self.folder / MANIFEST).is_file():
            self.finished = self._same_dataset()
        elif (self.folder / STATE).is_file():
            found = _json_of(self.folder / STATE)
            if found != state:
                raise ValueError(
                    f"{self.folder} holds an unfinished packing of {found.get('origin')} with shards of "
                    f"{found.get('shard_bytes')} bytes; expected {self.plan.origin} with {self.plan.shard_bytes}: "
                    "empty the folder, or give another OUT="
                )
            self.packed = {k: shard for k in range(len(self.plan.shards)) if (shard := self._kept(k))}
            self._drop_others()
        elif any(self.folder.iterdir()):
            raise ValueError(f"{self.folder} is not empty and holds no shards; give another folder with OUT=")
        else:
            write_whole(self.folder / STATE, _to_json(state), sync=True)

    @property
    def missing(self) -> list[int]:
        """Numbers of the shards that are still to be packed."""
        if self.finished is None:
            return [k for k in range(len(self.plan.shards)) if k not in self.packed]
        return [
            k for k, file in enumerate(self.finished.shards) if not _has_length(self.folder / file.name, file.bytes)
        ]

    @property
    def missing_bytes(self) -> int:
        return sum(source.packed_bytes for k in self.missing for source in self.plan.shards[k])

    def check_space(self) -> None:
        """Raise ValueError where the disk has less room than is needed."""
        needed = self.missing_bytes + 1000 * self.plan.samples + SPARE_BYTES
        if (free := shutil.disk_usage(self.folder).free) < needed:
            raise ValueError(
                f"{self.folder} has {free / 1e9:.1f} GB free and {needed / 1e9:.1f} GB are needed; make room, or give "
                "a folder on another disk with OUT="
            )

    def run(self, progress: Callable[[int], Any]) -> Manifest:
        """Pack what is missing, with progress(bytes) after each image; ValueError for a source that has changed."""
        if self.finished is None or self.missing:
            self.check_space()
        for k in self.missing:
            self._pack_shard(k, progress)
        if self.finished is None:
            self.finished = self._finish()
        for left_over in [*self.folder.glob(".shard-*.json"), self.folder / STATE]:
            left_over.unlink(missing_ok=True)
        return self.finished

    def _pack_shard(self, k: int, progress: Callable[[int], Any]) -> None:
        name, rows = _shard_name(k), []
        with (
            opened_beside(self.folder / name, sync=True) as file,
            closing(read_images(self.plan.shards[k])) as images,
        ):
            shard = TarFile(file)
            for number, (source, data, header) in enumerate(images, self.firsts[k]):
                rows.append(shard.add(number, data, header, source.name))
                progress(source.packed_bytes)
            packed_file = PackedFile(name, checksum=shard.end(), bytes=shard.length)
            if self.finished is not None and packed_file != self.finished.shards[k]:
                raise ValueError(f"{self.folder / name}: the images have changed since they were packed; {PACK_AGAIN}")
        if self.finished is None:
            self.packed[k] = PackedShard(packed_file, self._planned(k), tuple(rows))
            write_whole(self.folder / f".{name}.json", _to_json(asdict(self.packed[k])), sync=True)

    def _finish(self) -> Manifest:
        shards = [self.packed[k] for k in range(len(self.plan.shards))]
        names = [source.name for shard in self.plan.shards for source in shard]
        data = index_bytes([(k, *row) for k, shard in enumerate(shards) for row in shard.rows], names)
        packed = PackedFile(INDEX, len(data), checksum_of(data))
        fingerprint = ShardIndex(data, str(self.folder / INDEX), packed).fingerprint()
        write_whole(self.folder / INDEX, data, sync=True)
        files = tuple(shard.file for shard in shards)
        manifest = Manifest(len(names), self.plan.shard_bytes, fingerprint, packed, files)
        write_whole(self.folder / MANIFEST, manifest.to_bytes(), sync=True)
        return manifest

    def _planned(self, k: int) -> str:
        """A hash of what decides a shard's bytes, by the files' times of change."""
        found = [(source.name, source.length, source.changed, source.fingerprint) for source in self.plan.shards[k]]
        return checksum_of(json.dumps([self.firsts[k], found]).encode())

    def _kept(self, k: int) -> PackedShard | None:
        """What the file beside a finished shard says, where both belong to this plan."""
        found = _json_of(self.folder / f".{_shard_name(k)}.json")
        try:
            shard = PackedShard(PackedFile(**found["file"]), found["planned"], tuple(map(tuple, found["rows"])))
        except (KeyError, TypeError):
            return None
        whole = _has_length(self.folder / _shard_name(k), shard.file.bytes)
        return shard if whole and shard.planned == self._planned(k) else None

    def _drop_others(self) -> None:
        """Remove shards of an earlier plan, and those that were finished but for the file beside them."""
        kept = {shard.file.name for shard in self.packed.values()}
        for path in [*self.folder.glob("shard-*.tar"), *self.folder.glob(".shard-*.tar.json")]:
            if path.name.removeprefix(".").removesuffix(".json") not in kept:
                path.unlink()

    def _same_dataset(self) -> Manifest:
        """What the folder's dataset.json says; ValueError where the plan is of other images or other shards."""
        path = self.folder / MANIFEST
        manifest = parse_manifest(path.read_bytes(), str(path))
        index = read_index(self.folder / manifest.index.name, manifest.index)
        sources = [source for shard in self.plan.shards for source in shard]
        surely_before = path.stat().st_mtime_ns - CLOCKS_APART_NS
        same = manifest.shard_bytes == self.plan.shard_bytes and len(index) == len(sources)
        for number, source in enumerate(sources if same else []):
            same = same and (index.name(number), index.entry(number).length) == (source.name, source.length)
            if same and max(source.changed) >= surely_before:
                same = sample_checksum(source.read()) == index.entry(number).checksum
        if not same:
            raise ValueError(
                f"{self.folder} holds another dataset ({manifest.samples} images in shards of "
                f"{manifest.shard_bytes / 1e6:g} MB); give another folder with OUT="
            )
        return manifest


def _is_ours(name: str) -> bool:
    """Whether a file of this name, without leading dots, is one that packing writes."""
    return name.startswith("shard-") or name in (INDEX, MANIFEST, STATE.removeprefix("."))


def _shard_name(k: int) -> str:
    return f"shard-{k:06d}.tar"


def _has_length(path: Path, length: int) -> bool:
    return path.is_file() and path.stat().st_size == length


def _to_json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value) + "\n").encode()


def _json_of(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
