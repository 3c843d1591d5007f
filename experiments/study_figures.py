"""Figures of a study: per test set and metric the arms' seeds, means and intervals, between the fixed rows."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from datamodules.files import write_whole
from experiments.study_report import Report, TestReport
from experiments.study_scores import RATIOS, ArmScore, Group
from experiments.study_tables import heading, seeds_caption, value_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

BLUE, VERMILION, INK, SOFT, LINE = "#0072b2", "#d55e00", "#1c1c1a", "#5c5c57", "#dcdcd6"
"""As in page_style: colours that colour-blind people can tell apart."""
COLOURS = {"better": BLUE, "worse": VERMILION}
WIDTH, DPI = 9.0, 100
ROW, FRAME = 0.6, 2.2
"""Height in inches of an arm, and of all that is around the arms."""
ROOM = 2.5
"""A fixed row is drawn where the axis, to reach it, grows to at most so many times what the arms take."""
LETTER = 0.011
"""Width of a label's letter as a share of the figure's."""
CLOSE = 0.035
"""Share of the axis within which fixed rows have one label."""
BELOW = 0.26
"""How far below its arm an interval is drawn, in rows."""
MARGIN = 0.06
"""Share of the axis that stays free at either end."""


def save_figures(report: Report, folder: Path) -> list[Path]:
    """Write <test>-<metric>.png, 900 px wide, for all that was compared; their paths, by test and metric.

    Other PNGs in the folder are removed: of a test or metric that is compared no more.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for test in report.tests:
        for metric in test.metrics:
            groups = [g for g in test.groups if any(metric in scores for scores in g.arms.values())]
            if groups:
                path = folder / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', f'{test.name}-{metric}')}.png"
                write_whole(path, draw(test, metric, groups))
                paths.append(path)
    for old in set(folder.glob("*.png")) - set(paths):
        old.unlink()
    return paths


def draw(test: TestReport, metric: str, groups: Sequence[Group]) -> bytes:
    """A PNG with a panel per group of images, in which the arms stand in the study's order from the top."""
    from matplotlib.figure import Figure

    arms = list(dict.fromkeys(arm for group in groups for arm in group.arms))
    figure = Figure(figsize=(WIDTH, FRAME + ROW * len(arms)), dpi=DPI, layout="constrained")
    seeds = " / ".join(dict.fromkeys(seeds_caption(group) for group in groups)) if test.base else ""
    title = f"{heading(metric)}, {test.metrics[metric]} is better. Test set {test.name}{f', {seeds}' if seeds else ''}"
    figure.suptitle(title, fontsize=12.5, x=0.012, horizontalalignment="left")
    panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    for axes, group in zip(panels, groups, strict=True):
        _panel(axes, group, metric, arms, test.base, len(groups))
    figure.legend(handles=_legend(test.base), loc="outside lower left", ncols=2, frameon=False, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _panel(axes: "Axes", group: Group, metric: str, arms: Sequence[str], base: str | None, panels: int) -> None:
    scores = {arm: group.arms[arm][metric] for arm in arms if metric in group.arms.get(arm, {})}
    level = scores[base].mean if base in scores else None
    log = metric in RATIOS
    fixed = {name: row[metric] for name, row in group.fixed.items() if math.isfinite(row.get(metric, math.inf))}
    (low, high), drawn = axis_range(_reach(scores, level), fixed, log)
    axes.set_xscale("log" if log else "linear")
    axes.set(xlim=(low, high), ylim=(len(arms) - 0.4, -0.5))
    _ticks(axes, low, high, log)
    axes.set_yticks(range(len(arms)), arms)
    axes.tick_params(axis="y", length=0, labelsize=11)
    axes.tick_params(axis="x", labelsize=9.5, color=SOFT)
    axes.spines[["top", "right", "left"]].set_visible(False)
    label = f"{group.name} ({group.images} image{'s' if group.images > 1 else ''})"
    axes.set_xlabel(f"{label}, logarithmic" if log else label, fontsize=10.5)
    for row in range(len(arms)):
        axes.axhline(row, color=LINE, linewidth=0.8, zorder=0)
    if level is not None and len(scores) > 1:
        axes.axvline(level, color=BLUE, linewidth=1, alpha=0.45, zorder=1)
    lines = _fixed_rows(axes, {name: fixed[name] for name in drawn}, LETTER * panels)
    _beyond(axes, {name: value for name, value in fixed.items() if name not in drawn}, metric, lines)
    for arm, score in scores.items():
        _arm(axes, arms.index(arm), score, level)


def _reach(scores: Mapping[str, ArmScore], level: float | None) -> tuple[float, float]:
    """Least and largest value of the arms' seeds and intervals; wide intervals as far as the seeds spread beyond."""
    values = [value for score in scores.values() for value in [*score.values.values(), score.mean]]
    low, high = min(values), max(values)
    ends = [
        end
        for score in scores.values()
        if score.to_base and level is not None and math.isfinite(score.to_base.half_width)
        for end in score.to_base.applied_to(level)
    ]
    ratio = any(score.to_base and score.to_base.ratio for score in scores.values())
    least, most = (low * low / high, high * high / low) if ratio else (2 * low - high, 2 * high - low)
    return min([low, *[max(end, least) for end in ends]]), max([high, *[min(end, most) for end in ends]])


def axis_range(
    reach: tuple[float, float], fixed: Mapping[str, float], log: bool = False
) -> tuple[tuple[float, float], list[str]]:
    """The axis for values that reach so far, and which of the fixed rows are on it: those that do not squeeze the rest.

    >>> axis_range((24.0, 26.0), {"bicubic": 27.0, "codec(hr)": 46.0})
    ((23.82, 27.18), ['bicubic'])
    """
    least, most = (math.log(value) if log else value for value in reach)
    room = max(most - least, 0.02 if log else 0.005 * max(abs(least), abs(most)), 1e-12)
    places = {name: math.log(value) if log else value for name, value in fixed.items() if math.isfinite(value)}
    drawn = []
    low, high = least, most
    for name, place in sorted(places.items(), key=lambda item: max(least - item[1], item[1] - most)):
        if max(high, place) - min(low, place) <= ROOM * room:
            low, high = min(low, place), max(high, place)
            drawn.append(name)
    free = MARGIN * max(high - low, room)
    ends = (low - free, high + free)
    return ((math.exp(ends[0]), math.exp(ends[1])) if log else ends), [name for name in fixed if name in drawn]


def _ticks(axes: "Axes", low: float, high: float, log: bool) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

    if not log:
        axes.xaxis.set_major_locator(MaxNLocator(5))
        return
    few = MaxNLocator(4).tick_values(low, high)
    wide = high > 5 * low
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if wide else FixedLocator([t for t in few if t > 0]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _fixed_rows(axes: "Axes", fixed: Mapping[str, float], share: float) -> int:
    """Vertical lines with labels above, one for lines close together; on how many lines of text.

    share: of a letter in the panel's width.
    """
    low, high = axes.get_xlim()
    log = axes.get_xscale() == "log"
    labels: list[tuple[float, str]] = []
    for name, value in sorted(fixed.items(), key=lambda item: item[1]):
        axes.axvline(value, color=SOFT, linewidth=1.1, linestyle=(0, (4, 3)), zorder=1)
        place = math.log(value / low) / math.log(high / low) if log else (value - low) / (high - low)
        if labels and place - labels[-1][0] < CLOSE:
            labels[-1] = (labels[-1][0], f"{labels[-1][1]}, {name}")
        else:
            labels.append((place, name))
    ends: list[float] = []  # of the last label on each line of text
    for place, text in labels:
        half = len(text) * share / 2
        middle = min(max(place, half), 1 - half)
        level = next((number for number, end in enumerate(ends) if end < middle - half), len(ends))
        ends[level : level + 1] = [middle + half + share]
        _above(axes, middle, level, text, "center")
    return len(ends)


def _beyond(axes: "Axes", fixed: Mapping[str, float], metric: str, level: int) -> None:
    """What lies beyond the axis' ends, in words above these."""
    low, _ = axes.get_xlim()
    left = [f"← {name} {value_text(value, metric)}" for name, value in fixed.items() if value < low]
    right = [f"{name} {value_text(value, metric)} →" for name, value in fixed.items() if value > low]
    for number, text in enumerate(left):
        _above(axes, 0.0, level + number, text, "left")
    for number, text in enumerate(right):
        _above(axes, 1.0, level + number, text, "right")


def _above(axes: "Axes", where: float, level: int, text: str, side: Literal["left", "center", "right"]) -> None:
    axes.annotate(
        text,
        (where, 1.0),
        (0, 3 + 12 * level),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=9,
        color=SOFT,
        horizontalalignment=side,
        verticalalignment="bottom",
    )


def _arm(axes: "Axes", row: int, score: ArmScore, level: float | None) -> None:
    """Seeds as rings, the mean as a diamond, the interval of the paired difference below them."""
    rings = list(score.values.values())
    axes.plot(rings, [row] * len(rings), "o", markerfacecolor="none", markeredgecolor=BLUE, markersize=6.5, zorder=5)
    axes.plot([score.mean], [row], "D", color=INK, markersize=5.5, zorder=4)
    if score.to_base is None or level is None or not math.isfinite(score.to_base.half_width):
        return
    low, middle, high = score.to_base.applied_to(level)
    colour, y = COLOURS.get(score.verdict, SOFT), row + BELOW
    axes.plot([low, high], [y, y], "|-", color=colour, linewidth=2, markersize=7, zorder=3)
    axes.plot([middle], [y], "|", color=colour, markersize=7, markeredgewidth=2, zorder=3)
    if score.verdict:
        left, right = axes.get_xlim()
        axes.annotate(
            score.verdict,
            (min(max(middle, left), right), y),
            xytext=(0, -5),
            textcoords="offset points",
            fontsize=8.5,
            color=colour,
            horizontalalignment="center",
            verticalalignment="top",
        )


def _legend(base: str | None) -> list["Line2D"]:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], linestyle="", marker="o", markerfacecolor="none", markeredgecolor=BLUE, label="a seed"),
        Line2D([], [], linestyle="", marker="D", color=INK, markersize=5.5, label="mean over the seeds"),
    ]
    if base is None:
        return handles
    interval = f"95 % interval of the paired difference, put on the mean of {base}"
    level = Line2D([], [], color=BLUE, linewidth=1, alpha=0.45, label=f"mean of {base}")
    return [*handles, level, Line2D([], [], color=SOFT, linewidth=2, marker="|", label=interval)]
