"""Measures many images at once in processes of this machine; one that dies costs its image and not the run."""

import contextlib
import os
import signal
import sys
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path

import torch
from tqdm import tqdm

from datamodules.cores import usable_cores
from datamodules.curation.journal import Journal
from datamodules.curation.measure import crashed_row, lacks, measure_in_time, unnameable_row, warm_up
from datamodules.curation.rows import Row
from datamodules.curation.scan import RawFile
from datamodules.curation.settings import Curation, JudgeModel
from datamodules.curation.verdicts import KEEP, decide, has_judge, is_judged, preliminary_failure, quality_failure

Measure = Callable[[Path, str, Curation, Row, bool], Row]
"""`measure_in_time`, or what a test puts in its place."""

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Task:
    """An image to measure, what is known of it, and whether the judge is to be asked."""

    file: RawFile
    known: Row
    judging: bool = False


Measured = Generator[tuple[Task, Row], None, None]
Engine = Callable[[Sequence[Task], Curation, int], Measured]
"""Measures tasks under options with so many workers; hands back each with its row as soon as it is there."""


def curate_files(
    files: Sequence[RawFile], settings: Curation, journal: Journal, engine: Engine, workers: int
) -> list[Row]:
    """Decided rows of all files, sorted by path; what the journal lacks is measured, and written to it at once.

    The judge is asked in a second pass, and only of what stages 1 and 2, duplicates among them, keep.
    """
    rows = {file.relative: unnameable_row(file.relative) for file in files if not file.is_nameable}
    files = [file for file in files if file.relative not in rows]
    rows |= {file.relative: row for file in files if (row := journal.row(file)) is not None}
    tasks = [Task(file, rows.get(file.relative, {})) for file in files]
    tasks = [task for task in tasks if not task.known or lacks(task.known, settings)]
    rows |= _measured(tasks, len(files), settings, journal, engine(tasks, settings, workers))
    if has_judge(settings.judge):
        kept = {row["path"] for row in decide(rows.values(), replace(settings, judge=JudgeModel())) if _is_kept(row)}
        asked = [Task(file, rows[file.relative], judging=True) for file in files if file.relative in kept]
        tasks = [task for task in asked if not is_judged(task.known)]
        workers = 1 if settings.judge.folder else workers  # one copy of a large model, with all cores
        rows |= _measured(tasks, len(asked), settings, journal, engine(tasks, settings, workers))
    return decide(rows.values(), settings)


def _is_kept(row: Row) -> bool:
    return bool(row["verdict"] == KEEP)


def _measured(
    tasks: Sequence[Task], total: int, settings: Curation, journal: Journal, results: Measured
) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    counts = {"kept": 0, "dropped": 0}
    judging = bool(tasks) and tasks[0].judging
    with (
        contextlib.closing(results),
        tqdm(
            total=total,
            initial=total - len(tasks),
            unit="image",
            desc="judging" if judging else "measuring",
            disable=not tasks,
        ) as bar,
    ):
        for task, row in results:
            journal.append(task.file, row)
            # what comes from another process brings its own copy of every name
            rows[task.file.relative] = {sys.intern(name): value for name, value in row.items()}
            failed = preliminary_failure(row, settings.preliminary) or quality_failure(row, settings.quality)
            counts["dropped" if failed else "kept"] += 1
            bar.set_postfix(counts, refresh=False)
            bar.update()
    return rows


def run_local(tasks: Sequence[Task], settings: Curation, workers: int, measure: Measure = measure_in_time) -> Measured:
    """Measure in `workers` processes. An image over which one dies (a decoder's crash, a kill for memory, LONGEST
    seconds) is tried again at the end, alone; where it dies again, its row says so; one that kills its judge stays as
    it was measured.

    Raises ValueError where a model cannot be loaded, or where a process dies before it measures anything.
    """
    again = []
    for task, row in _run(tasks, settings, workers, measure):
        if row is None:
            again.append(task)
        else:
            yield task, row
    for task, row in _run(again, settings, 1, measure):
        yield task, row or crashed_row(task.file.relative, task.known, task.judging)


def _run(
    tasks: Sequence[Task], settings: Curation, workers: int, measure: Measure
) -> Iterator[tuple[Task, Row | None]]:
    """Each task with its row, or with None where its process died."""
    waiting = deque(tasks)
    team: list[_Worker] = []
    try:
        team += [_Worker(settings, measure, tasks[0].judging) for _ in range(min(workers, len(tasks)))]
        while team:
            answered = wait([worker.connection for worker in team])
            for worker in [worker for worker in team if worker.connection in answered]:
                task, row = worker.result()
                died = task is not None and row is None
                if died or not waiting:
                    team.remove(worker)
                    worker.end()
                if died and waiting:
                    team.append(_Worker(settings, measure, tasks[0].judging))
                elif waiting:
                    worker.give(waiting.popleft())
                if task is not None:
                    yield task, row
    finally:
        for worker in team:
            worker.end()


class _Worker:
    """A process that measures one task at a time."""

    def __init__(self, settings: Curation, measure: Measure, judging: bool) -> None:
        # forked from a process that has imported everything and run nothing: a start costs milliseconds, not seconds
        context = get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self.connection, theirs = context.Pipe()
        threads = usable_cores() if judging and settings.judge.folder else 1
        self._process = context.Process(target=_work, args=(theirs, settings, measure, threads), daemon=True)
        with _inherited():
            self._process.start()
        theirs.close()
        self._task: Task | None = None

    def give(self, task: Task) -> None:
        self._task = task
        with contextlib.suppress(OSError):  # it has died: `result` tells
            self.connection.send(task)

    def result(self) -> tuple[Task | None, Row | None]:
        """The task with its row, without one where the process died; no task where it is ready for its first."""
        try:
            message = self.connection.recv()
        except (EOFError, OSError):
            message = None
            if self._task is None:
                raise ValueError(
                    "a process that measures ended while it was starting; where memory is short, lower WORKERS="
                ) from None
        if isinstance(message, Exception):
            raise message
        return self._task, message

    def end(self) -> None:
        self.connection.close()
        self._process.terminate()
        self._process.join()


def _work(connection: Connection, settings: Curation, measure: Measure, threads: int) -> None:
    """What a process does until its other end of the connection is closed, by whatever end of that process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")  # they would tear the progress bar, and not say of which image they speak
    with contextlib.suppress(EOFError, OSError):
        try:
            warm_up(settings.models)
            connection.send(None)
            while True:
                task: Task = connection.recv()
                file = task.file
                connection.send(measure(file.path, file.relative, settings, task.known, task.judging))
        except (ValueError, FileNotFoundError) as error:
            connection.send(ValueError(str(error)))


@contextlib.contextmanager
def _inherited() -> Iterator[None]:
    """What processes started inside take over: one thread each, and no Ctrl-C, which is this process' to see."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    resource_tracker.ensure_running()  # its own start, if it came later, would let Ctrl-C through again
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
