"""The evaluations of a study's runs, checked against one another and reduced to scores of its arms."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from experiments.build import COMB_PITCHES
from experiments.paired import Comparison, Scores, by_seed, compare, mean_over_seeds
from experiments.protocol import JSON
from experiments.schema import SYSTEMS, Experiment
from experiments.study_options import TestOptions, Trial

HR = "hr"
FIXED = ("bicubic", "codec(lr)", "codec(hr)", HR)
"""Rows of an evaluation that no arm changes."""
RATIOS = tuple(f"comb_{pitch}" for pitch in COMB_PITCHES)
"""Metrics of which evaluations take the median over images, and which are compared by their ratio."""
PERIODICITY = "periodicity"
TELLING_OF_HR = (PERIODICITY, *RATIOS)
"""Metrics that say something of hr itself, as they do not compare with it."""
ALIKE = {"data_fingerprint": "test images", "protocol": "protocols", "precision": "precisions"}
"""What evaluations must have in common to be compared, by its key in results.json."""
SAME_FIXED = 2e-3
"""Relative difference up to which a fixed row is the same in two evaluations: machines differ in the last bits."""


@dataclass(frozen=True)
class Run:
    """A trial with an evaluation: the evaluation's folder and results.json, and the training's data."""

    trial: Trial
    folder: Path
    results: Mapping[str, Any]
    training_data: str


@dataclass(frozen=True)
class ArmScore:
    """A metric of an arm on a group of images.

    values: by seed, the mean over the images (comb ratios: median). mean: over the seeds. to_base: against the base arm
    over the seeds that both have; None for the base arm and where there are none. verdict: "better" or "worse" where
    the interval leaves out zero, "own loss" where that is no merit, else "".
    """

    values: Mapping[int, float]
    mean: float
    to_base: Comparison | None = None
    verdict: str = ""


@dataclass(frozen=True)
class Group:
    """Images of one kind in a test set, with values by fixed row and metric, and scores by arm and metric.

    Arms without a run are left out; so are metrics for which all images are too small.
    """

    name: str
    images: int
    fixed: Mapping[str, Mapping[str, float]]
    arms: Mapping[str, Mapping[str, ArmScore]]


def own_losses(experiment: Experiment) -> set[str]:
    """Metrics that are themselves losses of an experiment: their values say how well it was minimised, nothing more."""
    losses = experiment.losses
    own = {PERIODICITY} if losses.periodicity.weight > 0 else set()
    # `perceptual` is LPIPS where weights are given, as losses.lpips always is
    return own | ({"perceptual"} if losses.lpips.weight > 0 and experiment.perceptual.backbone else set())


def trained_options(trial: Trial) -> Experiment | None:
    """The options that a trial's training was started with; None where it was not. Its files need not be here.

    ValueError where they are none of this version's.
    """
    path = trial.folder / "options.yaml"
    if not path.is_file():
        return None
    try:
        raw = OmegaConf.load(path)
        found = OmegaConf.to_object(
            OmegaConf.merge(OmegaConf.structured(SYSTEMS[str(OmegaConf.select(raw, "system"))]), raw)
        )
    except (OmegaConfBaseException, YAMLError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no options of this version: {' '.join(str(error).split())}") from error
    return found if isinstance(found, Experiment) else None


def progress(checkpoint: Path) -> tuple[int, int] | None:
    """Optimiser steps that a checkpoint has done and is to do; None for one that cannot be read."""
    found = _read_checkpoint(checkpoint)
    try:
        return int(found["global_step"]), int(
            OmegaConf.select(OmegaConf.create(found["options_yaml"]), "trainer.steps")
        )
    except (KeyError, TypeError):
        return None


def training_data(checkpoint: Path) -> str:
    """Fingerprint of the images that a checkpoint was trained on, "" where it does not say."""
    try:
        return str(_read_checkpoint(checkpoint)["SR4KDataModule"]["data.train"] or "")
    except (KeyError, TypeError):
        return ""


def _read_checkpoint(path: Path) -> Mapping[str, Any]:
    """A checkpoint without its tensors' data; empty where there is none that can be read."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # no file, or whatever torch finds wrong with it
        return {}
    return found if isinstance(found, dict) else {}


def read_run(trial: Trial, name: str, test: TestOptions) -> Run | None:
    """A trial's evaluation on a test set; None where it has not been made. ValueError for a damaged one."""
    folder = trial.results(name, test)
    if not (folder / JSON).is_file():
        return None
    try:
        results = json.loads((folder / JSON).read_text())
        if missing := {*ALIKE, "machine", "date", "versions", "rows", "images"} - results.keys():
            raise ValueError(f"no {sorted(missing)[0]}")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{folder / JSON} holds no results ({error}): remove it and run make study again") from error
    return Run(trial, folder, results, training_data(trial.checkpoint))


def check_alike(runs: Sequence[Run], own_data: Iterable[str] = ()) -> None:
    """ValueError names two runs whose evaluations or training images differ, and what to do about it.

    own_data: arms whose training images are other ones on purpose; their seeds must still agree.
    """
    for key, what in ALIKE.items():
        if pair := _two_that_differ(runs, [str(run.results[key]) for run in runs]):
            (usual, one), (odd, other) = pair
            options = "trainer.precision" if key == "precision" else "data.scale, data.degradation and perceptual"
            raise ValueError(
                f"{usual.trial.title} and {odd.trial.title} were measured with different {what}"
                f"{_apart(one, other)}: remove {odd.folder} and run make study again, or where {odd.trial.arm} changes "
                f"{options} for its training, set them back in the test's overrides"
            )
    own = set(own_data)
    for arm in [None, *sorted(own)]:
        known = [r for r in runs if r.training_data and (r.trial.arm if r.trial.arm in own else None) == arm]
        if pair := _two_that_differ(known, [run.training_data for run in known]):
            (usual, one), (odd, other) = pair
            raise ValueError(
                f"{usual.trial.title} and {odd.trial.title} were trained on different images{_apart(one, other)}: "
                f"restore those of {usual.trial.title} and remove {odd.trial.folder}, or give the arm a data.train "
                "of its own"
            )


def _two_that_differ(runs: Sequence[Run], values: Sequence[str]) -> tuple[tuple[Run, str], tuple[Run, str]] | None:
    """A run with the most frequent value and one with another, each with its value."""
    if len(set(values)) < 2:
        return None
    most = Counter(values).most_common(1)[0][0]
    odd = next(index for index, value in enumerate(values) if value != most)
    return (runs[values.index(most)], most), (runs[odd], values[odd])


def _apart(one: str, other: str) -> str:
    """Two texts in brackets, or the first sentences in which they differ."""
    pairs = zip(one.split(". "), other.split(". "), strict=False)
    left, right = next(((a, b) for a, b in pairs if a != b), (one, other))
    return f' ("{left.rstrip(".")}" and "{right.rstrip(".")}")'


def unusable(run: Run, method: str, metrics: Iterable[str]) -> str:
    """Why a run's values cannot be compared: one that is not finite; "" where they can.

    ValueError for a method or metric that the evaluation does not have.
    """
    for row in _rows(run, method):
        for metric in metrics:
            if metric not in row["values"]:
                raise ValueError(f"metrics: {metric} is none of {', '.join(row['values'])}")
            value = row["values"][metric]
            if value is not None and not math.isfinite(float(value)):
                return f"{metric} of {row['image']} is {value}"
    return ""


def _rows(run: Run, method: str) -> list[Mapping[str, Any]]:
    images = run.results["images"]
    chosen = [row for row in images if row["method"] == method]
    if not chosen:
        known = ", ".join(dict.fromkeys(row["method"] for row in images))
        raise ValueError(f"method: {method} is none of the evaluation's rows {known}")
    return chosen


def scores_of(
    runs: Sequence[Run],
    arms: Sequence[str],
    base: str | None,
    method: str,
    metrics: Mapping[str, str],
    own: Mapping[str, set[str]],
) -> list[Group]:
    """The arms' scores on each group of images, the arms in the order given.

    base: the arm that the others are compared with, if any. metrics: by name, whether higher or lower is better. own:
    the metrics that are an arm's own losses.
    """
    names = dict.fromkeys(row["group"] for run in runs for row in _rows(run, method))
    return [_group(name, runs, arms, base, method, metrics, own) for name in names]


def _group(
    name: str,
    runs: Sequence[Run],
    arms: Sequence[str],
    base: str | None,
    method: str,
    metrics: Mapping[str, str],
    own: Mapping[str, set[str]],
) -> Group:
    there = [arm for arm in arms if any(run.trial.arm == arm for run in runs)]
    found = {m: {arm: _values(runs, arm, name, method, m) for arm in there} for m in metrics}
    table: dict[str, dict[str, ArmScore]] = {arm: {} for arm in there}
    for metric, direction in metrics.items():
        baseline = found[metric].get(base, {}) if base else {}
        for arm, scores in found[metric].items():
            judged = metric not in own.get(arm, set()) | own.get(base or "", set())
            if scores:
                against = {} if arm == base else baseline
                table[arm][metric] = _arm_score(scores, against, metric in RATIOS, direction, judged)
    first = next((run for run in runs if run.trial.arm == base), runs[0])
    images = len([row for row in _rows(first, method) if row["group"] == name])
    return Group(name, images, _fixed(first, name, method, metrics), table)


def _values(runs: Sequence[Run], arm: str, group: str, method: str, metric: str) -> Scores:
    """An arm's values by seed and image, without the images that are too small for the metric."""
    rows = {run.trial.seed: _rows(run, method) for run in runs if run.trial.arm == arm}
    values = {
        seed: {
            row["image"]: float(row["values"][metric])
            for row in of_seed
            if row["group"] == group and row["values"][metric] is not None
        }
        for seed, of_seed in rows.items()
    }
    return {seed: images for seed, images in values.items() if images}


def _arm_score(scores: Scores, baseline: Scores, ratio: bool, direction: str, judged: bool) -> ArmScore:
    values = by_seed(scores, ratio)
    mean = mean_over_seeds(values, ratio)
    seeds = sorted(scores.keys() & baseline.keys())
    if not seeds:
        return ArmScore(values, mean)
    comparison = compare({s: scores[s] for s in seeds}, {s: baseline[s] for s in seeds}, ratio)
    return ArmScore(values, mean, comparison, _verdict(comparison, direction, judged))


def _verdict(comparison: Comparison, direction: str, judged: bool) -> str:
    if not judged:
        return "own loss"
    if not comparison.decided:
        return ""
    return "better" if (comparison.difference > 0) == (direction == "higher") else "worse"


def _fixed(run: Run, group: str, method: str, metrics: Iterable[str]) -> dict[str, dict[str, float]]:
    """The fixed rows that an evaluation has, and that say something."""
    fixed: dict[str, dict[str, float]] = {}
    for row in run.results["rows"]:
        if row["group"] == group and row["method"] in FIXED and row["method"] != method:
            telling = [m for m in metrics if row["method"] != HR or m in TELLING_OF_HR]
            values = {m: float(row["values"][m]) for m in telling if row["values"].get(m) is not None}
            if values:
                fixed[row["method"]] = values
    return {name: fixed[name] for name in FIXED if name in fixed}


def changing_rows(runs: Sequence[Run], method: str, metrics: Sequence[str]) -> list[str]:
    """Fixed rows that are not the same in all runs: of a codec where the arms have different ones."""
    names = dict.fromkeys(row["group"] for run in runs for row in run.results["rows"])
    changing = []
    for group in names:
        fixed = [_fixed(run, group, method, metrics) for run in runs]
        for name in fixed[0]:
            same = all(
                math.isclose(value, other.get(name, {}).get(metric, math.nan), rel_tol=SAME_FIXED, abs_tol=1e-6)
                for other in fixed[1:]
                for metric, value in fixed[0][name].items()
                if math.isfinite(value)
            )
            changing += [] if same else [name]
    return list(dict.fromkeys(changing))
