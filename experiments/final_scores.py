"""What a study measures after a training, as scalars in the run's folder: they fill its row of the HParams table."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from datamodules.benchmarks import EMBEDDED
from experiments.scalar_tail import ScalarTail
from experiments.study_options import StudyOptions, TestOptions


def table_overrides(options: StudyOptions, labels: Mapping[str, bool | int | float | str]) -> list[str]:
    """Overrides that give a run its row in the study's table: labels such as {"arm": "rfr", "seed": 0}.

    The same columns in every run of the study, since TensorBoard takes them from one. An arm's name stands for its
    options, the values of a search are columns of their own.
    """
    chosen = {"labels": dict(labels), "columns": list(options.search.space), "metrics": final_tags(options)}
    return [f"table.{key}={json.dumps(value)}" for key, value in chosen.items()]


def final_tags(options: StudyOptions) -> list[str]:
    """Tags of all of a study's final scores: by test, group of images and metric, in their order in its file."""
    groups = {name: groups_of(test) for name, test in options.tests.items()}
    return [tag(name, group, metric) for name in groups for group in groups[name] for metric in options.metrics]


def groups_of(test: TestOptions) -> tuple[str, ...]:
    """The groups of images in a test set."""
    return ("photo", "flat") if test.data in EMBEDDED else ("photo",)


def tag(test: str, group: str, metric: str) -> str:
    return f"final/{test}/{group}/{metric}"


def final_scores_of(results: Mapping[str, Any], test: str, options: StudyOptions) -> dict[str, float]:
    """The study's metrics in the results.json of a test, by tag; none for what was not measured or is endless."""
    rows = [row for row in results["rows"] if row["method"] == options.method]
    found = {
        tag(test, row["group"], metric): row["values"].get(metric)  # "inf" where the error is 0
        for row in rows
        for metric in options.metrics
    }
    return {key: float(value) for key, value in found.items() if value is not None and math.isfinite(float(value))}


def write_final_scores(run: Path, scores: Mapping[str, float], step: int) -> None:
    """Write scalars at a step into a run's folder as one more event file; what stands there already is left alone."""
    there = ScalarTail(run, scores).read()
    new = {key: value for key, value in scores.items() if there[key].get(step) != float(np.float32(value))}
    if not new:
        return
    with SummaryWriter(str(run), filename_suffix=".final") as writer:
        for key, value in new.items():
            writer.add_scalar(key, value, step)
