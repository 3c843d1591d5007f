"""Tables of a study's result: fixed rows and arms by metric, and the arms' differences to the base arm."""

import math
from collections.abc import Mapping, Sequence

from experiments.paired import Comparison
from experiments.study_scores import PERIODICITY, RATIOS, ArmScore, Group

FEW_SEEDS = 5
"""Fewer seeds than this are called indicative."""
HEADINGS = {
    "psnr_rgb": ("PSNR", 3),
    "ssim_rgb": ("SSIM", 4),
    "psnr_y": ("PSNR-Y", 3),
    "ssim_y": ("SSIM-Y", 4),
    "perceptual": ("perceptual", 4),
    PERIODICITY: ("periodicity", 4),
    **{name: (name.replace("_", " 1/"), 2) for name in RATIOS},
    "color_error": ("colour", 2),
}
"""Headings and digits of the evaluation's metrics."""
ARROWS = {"higher": "↑", "lower": "↓"}
MOST_DIGITS = 6

Table = tuple[list[str], list[list[str]]]
"""Header and rows, as texts."""


def heading(metric: str) -> str:
    """A metric's name above a column; its own name where the evaluation has no other."""
    return HEADINGS.get(metric, (metric, 4))[0]


def value_table(group: Group, metrics: Mapping[str, str]) -> Table:
    """A row per fixed row and arm, a column per metric with an arrow for its better direction."""
    header = [f"{group.name} ({group.images})", *[f"{heading(m)} {ARROWS[to]}" for m, to in metrics.items()]]
    rows = [[name, *[value_text(values.get(m), m) for m in metrics]] for name, values in group.fixed.items()]
    for arm, scores in group.arms.items():
        seeds = max((len(score.values) for score in scores.values()), default=0)
        means = {metric: score.mean for metric, score in scores.items()}
        rows.append([f"{arm} ({counted(seeds)})", *[value_text(means.get(m), m) for m in metrics]])
    return header, rows


def difference_table(group: Group, metrics: Mapping[str, str], base: str) -> Table | None:
    """A row per arm that has seeds in common with the base arm; None where there is no such arm."""
    header = [f"difference to {base}", *[f"{heading(m)} {ARROWS[to]}" for m, to in metrics.items()]]
    rows = []
    for arm, scores in group.arms.items():
        pairs = [score.to_base.seeds for score in scores.values() if score.to_base]
        if pairs:
            rows.append([f"{arm} ({counted(max(pairs))})", *[_difference(scores.get(m), m) for m in metrics]])
    return (header, rows) if rows else None


def seeds_caption(group: Group) -> str:
    """How much the number of seeds lets the differences say."""
    pairs = {score.to_base.seeds for scores in group.arms.values() for score in scores.values() if score.to_base}
    if not pairs:
        return "no seed is finished in both the base arm and another one"
    fewest, most = min(pairs), max(pairs)
    if most == 1:
        return "one seed: no interval"
    number = counted(most) if fewest == most else f"{fewest} to {counted(most)}"
    return f"indicative ({number})" if fewest < FEW_SEEDS else number


def counted(seeds: int) -> str:
    return f"{seeds} seed{'' if seeds == 1 else 's'}"


def markdown_of(table: Table) -> str:
    """A table in Markdown, its columns aligned."""
    header, *rows = [[cell.replace("|", "\\|") for cell in row] for row in [table[0], *table[1]]]
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    rule = "|" + "|".join([":" + "-" * (widths[0] + 1), *["-" * (width + 1) + ":" for width in widths[1:]]]) + "|"
    lines = [_line(row, widths) for row in [header, *rows]]
    return "\n".join([lines[0], rule, *lines[1:]])


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    rest = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
    return "| " + " | ".join([row[0].ljust(widths[0]), *rest]) + " |"


def value_text(value: float | None, metric: str) -> str:
    """A value in the metric's digits, "-" for none."""
    if value is None:
        return "-"
    return f"{value:.{HEADINGS.get(metric, (metric, 4))[1]}f}" if math.isfinite(value) else str(value)


def _difference(score: ArmScore | None, metric: str) -> str:
    if score is None or score.to_base is None:
        return "-"
    return " ".join(filter(None, [interval(score.to_base, metric), score.verdict]))


def interval(comparison: Comparison, metric: str) -> str:
    """A difference with its interval, in as many digits as two of the interval's; of one seed the difference alone.

    >>> interval(Comparison(30.0, 0.25, 0.031, 5), "psnr_y"), interval(Comparison(2.0, -0.693, 0.4, 5, True), "comb_32")
    ('+0.250 ± 0.031', 'x 0.500 (0.335 to 0.746)')
    """
    width = comparison.half_width
    if comparison.ratio:
        low, factor, high = comparison.applied_to(1.0)
        return f"x {factor:#.3g}" + (f" ({low:#.3g} to {high:#.3g})" if math.isfinite(width) else "")
    digits = HEADINGS.get(metric, (metric, 4))[1]
    if math.isfinite(width) and width > 0:
        digits = min(max(digits, 1 - math.floor(math.log10(width))), MOST_DIGITS)
    return f"{comparison.difference:+.{digits}f}" + (f" ± {width:.{digits}f}" if math.isfinite(width) else "")
