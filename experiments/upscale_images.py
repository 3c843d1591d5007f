"""Upscaling of image files, and of folders of frames: reading, network and writing overlap."""

import os
import re
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from datamodules.cores import usable_cores
from datamodules.image_io import LONGEST_SIDE, WRITABLE, LoadedImage, image_size, read_image, write_image
from experiments.command_line import EXIT_INPUT, EXIT_PARTIAL
from experiments.inference import GIB, peak_memory
from experiments.overlap import Background, Budget, Prefetched
from experiments.upscaler import Upscaler
from lightning_modules.super_resolution import resize_up

FRAMES = 100
"""From so many files on a folder is one of frames, of which only the errors and the sum are told."""

AHEAD = 2
"""Images decoded in advance; one reader is enough, as encoding takes several times longer than decoding."""

MOST_WRITERS = 16
"""Threads that encode, at most."""

_LEFT_OVER = re.compile(r"\.(.+)\.(\d+)\.part(\.\w+)?")
"""Name of an unfinished output: its target, the process that wrote it, and a video's suffix."""


@dataclass(frozen=True)
class Job:
    """One input file and the file it becomes."""

    source: Path
    target: Path


@dataclass
class Picture:
    """A job under way: its decoded image, what size and depth it gets, bytes taken and expected, seconds of work."""

    job: Job
    loaded: LoadedImage
    size: tuple[int, int]
    depth: int
    taken: int
    expected: int
    seconds: float

    def restore(self, upscaler: Upscaler) -> tuple[Tensor, Tensor | None]:
        """sr (3,H,W) and alpha (1,H,W) or None on the CPU; alpha is bicubic."""
        start = time.perf_counter()
        sr = upscaler.sr(self.loaded.rgb, self.loaded.bit_depth).cpu()
        alpha = None if self.loaded.alpha is None else resize_up(self.loaded.alpha[None], self.size)[0]
        self.seconds += time.perf_counter() - start
        return sr, alpha

    def write(self, sr: Tensor, alpha: Tensor | None) -> None:
        start = time.perf_counter()
        # level 1 takes a quarter of level 6's time for a tenth more bytes, and it is what a folder of frames waits for
        write_image(self.job.target, sr, alpha, self.depth, self.loaded.icc, self.loaded.exif, compression=1)
        self.seconds += time.perf_counter() - start

    def report(self) -> str:
        height, width = self.loaded.pixels.shape[1:]
        return f"{self.job.target}  {width} x {height} -> {self.size[1]} x {self.size[0]}  {self.seconds:.1f} s"


class Batch:
    """Files on their way through one upscaler: what several threads do with them, and what has become of each."""

    def __init__(self, upscaler: Upscaler, jobs: list[Job], skip_existing: bool) -> None:
        self.upscaler, self.total = upscaler, len(jobs)
        self.jobs = [job for job in jobs if not (skip_existing and job.target.exists())]
        self.skipped, self.done, self.failed = len(jobs) - len(self.jobs), 0, 0
        self.budget = Budget(upscaler.memory_limit - upscaler.base)
        self._lock = threading.Lock()

    def run(self) -> int:
        """Upscale all files, tell what becomes of them, and return the exit code."""
        start = time.perf_counter()
        threads = max(1, min(len(self.jobs), usable_cores(), MOST_WRITERS))
        # left in this order: the reader is woken, ends, and the writers finish what they have
        with (
            tqdm(total=self.total, initial=self.skipped, unit=" frames", disable=self.total == 1) as self._bar,
            Background(threads, 2 * threads) as writers,
            Prefetched(self._load_all(), AHEAD) as pictures,
            self.budget,
        ):
            for picture in pictures:
                self._restore(picture, writers)
        speed = f", {self.done / (time.perf_counter() - start):.2f} frames/s" if self.done > 1 else ""
        print(f"{self.done} upscaled, {self.skipped} skipped, {self.failed} failed{speed}")
        if not self.failed:
            return 0
        return EXIT_PARTIAL if self.done or self.skipped else EXIT_INPUT

    def _load_all(self) -> Iterator[Picture]:
        """The jobs' decoded images, each begun when its memory is free."""
        for job in self.jobs:
            picture = None
            with self._catching(job):
                picture = self._load(job)
            if picture is not None:
                yield picture

    def _load(self, job: Job) -> Picture:
        if job.source.resolve() == job.target.resolve():
            raise ValueError(f"{job.source}: the output would replace the input; give another folder with OUT=")
        upscaler = self.upscaler
        size = upscaler.size_of(image_size(job.source, upscaler.max_pixels))
        taken = upscaler.expected(size)
        upscaler.check_memory(job.source, size, taken)  # before a decoded image itself fills the memory
        self.budget.take(taken)
        with self._given_back_on_error(taken):
            start = time.perf_counter()
            loaded = read_image(job.source, upscaler.max_pixels)
            depth = check_format(job.target, size, loaded)
            needed = upscaler.expected(size, depth, loaded.alpha_pixels is not None)
            expected = upscaler.check_memory(job.source, size, needed)
            if self.total == 1:
                tqdm.write(f"{job.source}: expecting {expected / GIB:.2f} GiB at the peak")
            return Picture(job, loaded, size, depth, taken, expected, time.perf_counter() - start)

    def _restore(self, picture: Picture, writers: Background) -> None:
        with self._catching(picture.job), self._given_back_on_error(picture.taken):
            sr, alpha = picture.restore(self.upscaler)
            writers.submit(partial(self._write, picture, sr, alpha))

    def _write(self, picture: Picture, sr: Tensor, alpha: Tensor | None) -> None:
        try:
            with self._catching(picture.job):
                picture.write(sr, alpha)
                self._finished(picture)
        finally:
            self.budget.give_back(picture.taken)

    def _finished(self, picture: Picture) -> None:
        with self._lock:
            self.done += 1
            self._bar.update()
        if self.total == 1:
            memory = f"{peak_memory(self.upscaler.device) / GIB:.2f} GiB peak (expected {picture.expected / GIB:.2f})"
            tqdm.write(f"{picture.report()}  {memory}")
        elif self.total < FRAMES:
            tqdm.write(picture.report())

    @contextmanager
    def _catching(self, job: Job) -> Iterator[None]:
        """Whatever goes wrong with a file is told and counted: the others are to be done."""
        try:
            yield
        except Exception as error:
            if os.environ.get("SR_TRACEBACK"):
                raise
            with self._lock:
                self.failed += 1
                self._bar.update()
            tell_error(job.source, error)

    @contextmanager
    def _given_back_on_error(self, taken: int) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.budget.give_back(taken)
            raise


def run_jobs(upscaler: Upscaler, jobs: list[Job], skip_existing: bool) -> int:
    """Upscale all files, report them, and return the exit code; a file that fails ends nothing but itself.

    As many images are under way as the memory limit has room for, each at its own peak: where two do not fit, one
    follows the other.
    """
    remove_left_overs(job.target for job in jobs)
    return Batch(upscaler, jobs, skip_existing).run()


def check_format(target: Path, size: tuple[int, int], loaded: LoadedImage) -> int:
    """Bit depth of the output; ValueError, before the work is done, for what the target's format cannot hold."""
    kind = WRITABLE[target.suffix.lower()]
    if loaded.alpha_pixels is not None and kind == "JPEG":
        raise ValueError(f"cannot write {target}: JPEG holds no alpha; use --format png or webp")
    if max(size) > LONGEST_SIDE[kind]:
        raise ValueError(f"cannot write {target}: {size[1]} x {size[0]} px exceed {kind}'s limit; use --format png")
    if loaded.bit_depth == 16 and kind != "PNG":
        tqdm.write(f"warning: {target} gets 8 of the input's 16 bits; use --format png to keep them", file=sys.stderr)
        return 8
    return loaded.bit_depth


def remove_left_overs(targets: Iterable[Path]) -> None:
    """Delete what killed runs have left beside the targets; what a living process writes stays."""
    names: dict[Path, set[str]] = {}
    for target in targets:
        names.setdefault(target.parent, set()).add(target.name)
    for folder, wanted in names.items():
        for path in folder.glob(".*.part*"):
            match = _LEFT_OVER.fullmatch(path.name)
            if match and match[1] in wanted and not _alive(int(match[2])):
                path.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    """Whether another process of that number runs on this machine."""
    try:
        os.kill(process, 0)
    except PermissionError:  # it is another user's
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return process != os.getpid()


def tell_error(source: Path, error: Exception) -> None:
    """Print one line that names the file."""
    text = " ".join(str(error).split()) or type(error).__name__
    tqdm.write(f"error: {text if str(source) in text else f'{source}: {text}'}", file=sys.stderr)
