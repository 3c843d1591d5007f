"""The result of a study as Markdown: arms against the first one, by test set and group of images."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.paired import Comparison, compare
from experiments.protocol import JSON

Results = Mapping[tuple[str, int], Mapping[str, Any]]
"""By arm and seed, what an evaluation wrote to results.json."""

SAME = ("protocol", "precision", "data_fingerprint")
"""What evaluations must have in common to be compared."""


@dataclass(frozen=True)
class Group:
    """Images of one kind in a test set, with each arm's comparison by metric, over the seeds that every arm has."""

    name: str
    images: int
    arms: Mapping[str, Mapping[str, Comparison]]


def read_results(folders: Mapping[tuple[str, int], Path]) -> Results:
    """The evaluations that are there."""
    return {
        key: json.loads((folder / JSON).read_text()) for key, folder in folders.items() if (folder / JSON).is_file()
    }


def report(
    study: str,
    base: str,
    arms: Mapping[str, Sequence[str]],
    method: str,
    metrics: Sequence[str],
    found: Mapping[str, Results],
    errors: Sequence[str],
) -> str:
    """Everything there is to say about a study; `found` has the results of each test set."""
    first, *others = arms
    how = "paired by seed and image, mean over the images, then mean and 95 % t interval over the seeds"
    lines = [f"Study `{study}`, base {base}, row `{method}`."]
    lines += [f"First row: means of {first} over images and seeds. {', '.join(others)}: difference to {first}, {how}."]
    lines += [f"Arm {arm}: {' '.join(overrides) or 'the base'}." for arm, overrides in arms.items()]
    for data, results in found.items():
        lines.append(f"Test set {data}:")
        try:
            groups = compared(results, list(arms), method, metrics)
        except ValueError as error:
            lines.append(f"Not compared: {error}.")
            continue
        facts = next(iter(results.values()), {})
        lines += [table(group, metrics) for group in groups] or ["No seed is finished in every arm."]
        lines += [f"{facts['machine']}, {facts['date']}, {facts['precision']}. {facts['protocol']}"] if groups else []
    lines += [f"Failed: {error}" for error in errors]
    return "\n\n".join(lines) + "\n"


def compared(results: Results, arms: Sequence[str], method: str, metrics: Sequence[str]) -> list[Group]:
    """The arms of each group of images; nothing where no seed is finished in every arm.

    ValueError where evaluations differ in protocol or data, and for a method or metric that they do not have.
    """
    seeds = [seed for seed in sorted({seed for _, seed in results}) if all((arm, seed) in results for arm in arms)]
    whole = {(arm, seed): results[arm, seed] for arm in arms for seed in seeds}
    for key in SAME:
        values = {facts[key] for facts in whole.values()}
        if len(values) > 1:
            raise ValueError(f"evaluations differ in {key}: {', '.join(sorted(values)[:2])}; remove the older ones")
    groups = dict.fromkeys(row["group"] for facts in whole.values() for row in facts["images"])
    return [_group(name, whole, arms, seeds, method, metrics) for name in groups]


def _group(
    name: str, results: Results, arms: Sequence[str], seeds: Sequence[int], method: str, metrics: Sequence[str]
) -> Group:
    def values(arm: str, metric: str) -> dict[int, dict[str, float]]:
        return {seed: _values(results[arm, seed]["images"], name, method, metric) for seed in seeds}

    found = {metric: {arm: values(arm, metric) for arm in arms} for metric in metrics}
    table = {arm: {m: compare(found[m][arm], found[m][arms[0]]) for m in metrics} for arm in arms}
    return Group(name, len(found[metrics[0]][arms[0]][seeds[0]]), table)


def _values(rows: Sequence[Mapping[str, Any]], group: str, method: str, metric: str) -> dict[str, float]:
    """A metric of each image of a group on which it was measured."""
    chosen = [row for row in rows if row["method"] == method and row["group"] == group]
    if not chosen:
        known = ", ".join(dict.fromkeys(row["method"] for row in rows))
        raise ValueError(f"method: {method} is none of the evaluation's rows {known}")
    if metric not in chosen[0]["values"]:
        raise ValueError(f"metrics: {metric} is none of {', '.join(chosen[0]['values'])}")
    values = {row["image"]: float(row["values"][metric]) for row in chosen if row["values"][metric] is not None}
    endless = [image for image, value in values.items() if not math.isfinite(value)]
    if endless:
        raise ValueError(f"{metric} of {endless[0]} is not finite")
    return values


def table(group: Group, metrics: Sequence[str]) -> str:
    """Markdown: a row per arm; the baseline's means, and of the others the paired difference with its interval."""
    seeds = next(iter(next(iter(group.arms.values())).values())).seeds
    lines = [f"| {group.name} ({group.images}), {seeds} seeds | " + " | ".join(metrics) + " |"]
    lines.append("|---|" + "---:|" * len(metrics))
    for number, (arm, values) in enumerate(group.arms.items()):
        cells = [_difference(values[m]) if number else f"{values[m].mean:.4f}" for m in metrics]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _difference(comparison: Comparison) -> str:
    mark = "" if comparison.decided else " (within the noise)"
    return f"{comparison.difference:+.4f} ± {comparison.half_width:.4f}{mark}"
