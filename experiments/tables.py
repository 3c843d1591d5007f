"""Scores of images to rows of a table by group and method, and to Markdown."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.measure import SHUFFLED, STUDENT, ImageScores, Score


@dataclass(frozen=True)
class Row:
    """Values of one method over a group of `images` images; None where none of them is large enough."""

    group: str
    method: str
    images: int
    values: dict[str, float | None]


def summarise(scores: Sequence[ImageScores], metrics: Sequence[Score]) -> list[Row]:
    """Rows by group and method in the order of their first appearance."""
    rows = []
    for group, method in dict.fromkeys((s.group, s.method) for s in scores):
        chosen = [s for s in scores if (s.group, s.method) == (group, method)]
        values = {m.name: _average([s.values[m.name] for s in chosen], m.median) for m in metrics}
        rows.append(Row(group, method, len(chosen), values))
    return sorted(rows, key=lambda row: [r.group for r in rows].index(row.group))


def _average(values: Sequence[float | None], median: bool) -> float | None:
    measured = [value for value in values if value is not None]
    if not measured:
        return None
    return statistics.median(measured) if median else statistics.fmean(measured)


def shuffle_cost(rows: Sequence[Row], student: str = STUDENT, shuffled: str = SHUFFLED) -> dict[str, dict[str, float]]:
    """By group, what shuffled image ids cost: dB of PSNR-Y lost and perceptual distance gained; 0 ignores position."""
    by_name = {(row.group, row.method): row.values for row in rows}
    costs: dict[str, dict[str, float]] = {}
    for group in dict.fromkeys(row.group for row in rows):
        plain, mixed = by_name.get((group, student), {}), by_name.get((group, shuffled), {})
        for metric, sign in (("psnr_y", 1), ("perceptual", -1)):
            before, after = plain.get(metric), mixed.get(metric)
            if before is not None and after is not None:
                costs.setdefault(group, {})[metric] = sign * (before - after) + 0.0  # no "-0"
    return costs


def markdown_table(rows: Sequence[Row], metrics: Sequence[Score]) -> str:
    """One table per group, the columns aligned."""
    parts = []
    for group in dict.fromkeys(row.group for row in rows):
        chosen = [row for row in rows if row.group == group]
        cells = [[f"{group} ({chosen[0].images})", *[m.heading for m in metrics]]]
        cells += [[row.method, *[_cell(row.values[m.name], m.digits) for m in metrics]] for row in chosen]
        widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
        lines = ["| " + " | ".join(_aligned(line, widths)) + " |" for line in cells]
        rule = "|" + "|".join([":" + "-" * (widths[0] + 1), *["-" * (width + 1) + ":" for width in widths[1:]]]) + "|"
        parts.append("\n".join([lines[0], rule, *lines[1:]]))
    return "\n\n".join(parts)


def _aligned(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [line[0].ljust(widths[0]), *[cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]]


def _cell(value: float | None, digits: int) -> str:
    if value is None:
        return "-"
    return f"{value:.{digits}f}" if math.isfinite(value) else "inf"
