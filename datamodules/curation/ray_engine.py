"""Measures many images over Ray Data, on this machine or on a cluster: the same function, the same rows."""

import importlib
import json
import logging
import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from datamodules.curation.engine import Measure, Measured, Task
from datamodules.curation.measure import crashed_row, measure_in_time, warm_up
from datamodules.curation.rows import Row
from datamodules.curation.settings import Curation

IMAGES_PER_BLOCK = 16
"""Rows come back block by block; so many images of each process are measured again after a kill."""

Item = dict[str, Any]


def run_ray(tasks: Sequence[Task], settings: Curation, workers: int, measure: Measure = measure_in_time) -> Measured:
    """As `run_local`, over Ray Data: the cluster that RAY_ADDRESS names, else `workers` processes of this machine.

    All machines must see the images and models under the same paths. Images whose block failed, as a process died over
    one of them, are tried again one by one. Raises ValueError where the extra `ray` is not installed, and where a
    model cannot be loaded.
    """
    if not tasks:
        return
    ray = _started(workers)
    settings = _absolute(settings)
    try:
        _warm_up(ray, settings)
        left = dict(enumerate(tasks))
        for item in _dataset(ray, tasks, settings, measure, workers).iter_rows():
            yield left.pop(item["number"]), _row(item)
        # a process that dies again, alone now, leaves its image as a row
        alone = ray.remote(max_retries=0)(_measured)
        for number, task in left.items():
            try:
                row = _row(ray.get(alone.remote(_item(number, task), settings, measure)))
            except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
                row = crashed_row(task.file.relative, task.known, task.judging)
            yield task, row
    finally:
        ray.shutdown()


def _started(workers: int) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report to its makers
    try:
        ray: Any = importlib.import_module("ray")
        importlib.import_module("ray.data")
    except ImportError as error:
        raise ValueError('ENGINE=ray needs Ray: .venv/bin/pip install -e ".[ray]"') from error
    here = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": workers, "include_dashboard": False}
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    ray.init(log_to_driver=False, logging_level=logging.ERROR, **here)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1
    return ray


def _warm_up(ray: Any, settings: Curation) -> None:
    try:
        ray.get(ray.remote(warm_up).remote(settings.models))
    except ray.exceptions.RayTaskError as error:  # its own message is the traceback of another process
        if isinstance(error.cause, ValueError | FileNotFoundError):
            raise ValueError(str(error.cause)) from None
        raise
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
        raise ValueError(
            "a process that measures ended while it was starting; where memory is short, lower WORKERS="
        ) from None


def _dataset(ray: Any, tasks: Sequence[Task], settings: Curation, measure: Measure, workers: int) -> Any:
    blocks = min(len(tasks), max(4 * workers, len(tasks) // IMAGES_PER_BLOCK))
    items = [_item(number, task) for number, task in enumerate(tasks)]
    dataset = ray.data.from_items(items, override_num_blocks=blocks)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of max_retries, which goes with Ray 2.64
        # no second try in place: Ray would repeat it for ever, and what fails is tried again alone
        return dataset.map(_measured, fn_args=(settings, measure), max_retries=0, **_share(ray, tasks[0], settings))


def _share(ray: Any, task: Task, settings: Curation) -> dict[str, int]:
    """What one process takes of the machine: a large model has a GPU for itself, or without any, there is one copy."""
    if not (task.judging and settings.judge.folder):
        return {"num_cpus": 1}
    return {"num_gpus": 1} if ray.cluster_resources().get("GPU") else {"concurrency": 1}


def _item(number: int, task: Task) -> Item:
    """A task in types that every block of Ray Data holds alike; JSON keeps floats exactly."""
    file = task.file
    return {
        "number": number,
        "path": str(file.path.absolute()),
        "relative": file.relative,
        "known": json.dumps(task.known),
        "judging": task.judging,
    }


def _absolute(settings: Curation) -> Curation:
    """The same models by paths that do not depend on the folder in which a process of Ray was started."""

    def absolute(path: str) -> str:
        return str(Path(path).absolute()) if path and Path(path).exists() else path

    models, judging = settings.models, settings.judge
    places = {name: absolute(getattr(models, name)) for name in ("niqe", "clip", "aesthetic")}
    pyiqa = {name: absolute(path) for name, path in models.pyiqa.items()}
    models = replace(models, **places, pyiqa=pyiqa)
    return replace(settings, models=models, judge=replace(judging, folder=absolute(judging.folder)))


def _measured(item: Item, settings: Curation, measure: Measure) -> Item:
    torch.set_num_threads(1)  # as in the local pool: sums of floats depend on the number of threads
    known = json.loads(item["known"])
    found = {"number": item["number"], "row": "", "error": ""}
    try:
        row = measure(Path(item["path"]), item["relative"], settings, known, item["judging"])
        return {**found, "row": json.dumps(row)}
    except (ValueError, FileNotFoundError) as error:  # raised here, it would be taken for the end of a process
        return {**found, "error": str(error)}


def _row(item: Item) -> Row:
    """The row that a process found; ValueError where it could not load a model."""
    if item["error"]:
        raise ValueError(item["error"])
    row: Row = json.loads(item["row"])
    return row
