"""The page that shows what curation kept and dropped, made from its table and the images alone."""

from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml
from tqdm import tqdm

from datamodules.cores import usable_cores
from datamodules.curation.settings import PreliminaryBounds, QualityBounds
from datamodules.curation.table import read_table
from datamodules.curation.verdicts import KEEP, PIXELS, QUALITY, SIZE
from datamodules.image_io import TooManyPixelsError
from experiments.curation_words import REASONS, STAGES
from experiments.describe import sentences
from experiments.histogram import Histogram
from experiments.page import Bar, Card, Page, Picture
from experiments.thumbnails import any_size, thumbnail, thumbnail_and_part

SHOWN = 24
"""Most images on one contact sheet."""
LISTED = 100
"""Most lines of one list."""
SPREAD = "Spread evenly over the paths."
THUMBNAIL = 320
PART = (216, 320)
"""Height and width of a part at full size, px."""
MOST_READERS = 4
KINDS = {1: "dropped-dark", 2: "dropped", 3: "dropped-light"}
DESCRIBING = {"bytes", "width", "height", "bit_depth", "stage"}
"""Columns of numbers that are no scores."""
LISTED_ONLY = ("unreadable", "too_many_pixels", "out_of_memory", "crashed", "name")
"""Reasons whose files are listed and never opened: there is no picture, or it would bring down the report as well."""
CHECKS = {check.reason: check for check in (*SIZE, *PIXELS, *QUALITY)}
FULL_SIZE = {"upscaled": "detailed", "blurred": "detailed", "blocky": "middling", "noisy": "flat"}
"""Reasons that a thumbnail hides, with the part of the image that shows them best."""


def write_report(table_path: Path, raw: Path, folder: Path, bounds: Mapping[str, float] | None = None) -> Path:
    """Write folder/index.html and folder/pictures/ for a table of curation, and give index.html's path.

    raw: the folder that the table's paths are relative to; an image that cannot be read any more gets a placeholder.
    bounds: by score, drawn into the histograms; without them those of options.yaml beside the table, if it is there.
    Equal tables and images give equal bytes. ValueError where there is no table.
    """
    bounds = read_bounds(table_path.with_name("options.yaml")) if bounds is None else bounds
    report = _Report(Page(folder, f"Curation of {raw.resolve().name}"), read_table(table_path), raw)
    with any_size():
        report.verdict()
        report.kept_images()
        for reason in report.reasons():
            report.dropped_images(reason)
    report.scores(bounds)
    return report.page.write()


def read_bounds(options: Path) -> dict[str, float]:
    """The bounds by score in the options that curation wrote beside its table; none where there is no such file."""
    if not options.is_file():
        return {}
    found = yaml.safe_load(options.read_text(encoding="utf-8")) or {}
    flat = {key: value for part in ("preliminary", "quality") for key, value in (found.get(part) or {}).items()}
    flat |= {f"pyiqa_{name}": value for name, value in (flat.pop("pyiqa", None) or {}).items()}
    return {key: float(value) for key, value in flat.items() if isinstance(value, int | float)}


class _Report:
    """The page's sections, over the table as columns of numpy."""

    def __init__(self, page: Page, table: pa.Table, raw: Path) -> None:
        self.page = page
        self.table = _with_shapes(table)
        self.raw = raw
        self.kept = np.array(table["verdict"].to_pylist(), dtype=object) == KEEP
        self.stage = table["stage"].fill_null(0).to_numpy()
        self._row_of = {path: row for row, path in enumerate(table["path"].to_pylist())}
        self.reason = np.array(table["reason"].fill_null("").to_pylist(), dtype=object)

    def reasons(self, stage: int | None = None) -> dict[str, int]:
        """Counts of the reasons that occur, by stage, then the most frequent first."""
        dropped = ~self.kept if stage is None else ~self.kept & (self.stage == stage)
        found = Counter(zip(self.stage[dropped].tolist(), self.reason[dropped].tolist(), strict=True))
        ordered = sorted(found.items(), key=lambda item: (item[0][0], -item[1], item[0][1]))
        counts = dict.fromkeys((reason for (_, reason), _ in ordered), 0)
        for (_, reason), count in ordered:
            counts[reason] += count
        return counts

    def verdict(self) -> None:
        """Kept and dropped at a glance, a bar per reason, links."""
        files, kept = len(self.kept), int(self.kept.sum())
        size = _bytes(int(self._numbers("bytes")[self.kept].sum()))
        dropped = f"{files - kept:,}"
        self.page.facts({"files": f"{files:,}", "kept": f"{kept:,}", "dropped": dropped, "size of the kept": size})
        stages = {stage: self.reasons(stage) for stage in STAGES}
        lost = [Bar(f"dropped in stage {s}", sum(found.values()), KINDS[s]) for s, found in stages.items() if found]
        first = next(iter(self.reasons()), None)
        dropped_part = {"Dropped images": _anchor(first)} if first is not None else {}
        self.page.links({"Kept images": "kept", **dropped_part, "Scores": "scores"})
        self.page.shares([Bar("kept", kept, "kept"), *lost])
        largest = max((count for found in stages.values() for count in found.values()), default=1)
        for stage, found in stages.items():
            if found:
                self.page.heading(f"Stage {stage}, {STAGES[stage]}: {sum(found.values()):,} dropped", level=3)
                bars = [Bar(_title(reason), count, KINDS[stage], _anchor(reason)) for reason, count in found.items()]
                self.page.bars(bars, largest)
        self._not_judged()

    def _not_judged(self) -> None:
        if "judge_error" not in self.table.column_names:
            return
        errors = np.array(self.table["judge_error"].fill_null("").to_pylist(), dtype=object)
        rows = np.flatnonzero(self.kept & (errors != ""))
        if len(rows):
            self.page.heading(f"Not judged: {len(rows):,}", level=3)
            self.page.paragraph(f"Kept by the verdict of stage 2. {_how_many(rows, LISTED)}")
            shown = self._records(spread(rows, LISTED))
            self.page.table(["file", "message"], [(row["path"], row["judge_error"]) for row in shown])

    def kept_images(self) -> None:
        """The contact sheet of kept images."""
        rows = np.flatnonzero(self.kept)
        self.page.heading(f"Kept: {len(rows):,}", "kept")
        self.page.paragraph(_how_many(rows, SHOWN, SPREAD))
        self._sheet(rows, partial(_card, self.page, self.raw, ""))

    def dropped_images(self, reason: str) -> None:
        """The contact sheet of a reason, or a list where there is nothing to be seen."""
        rows = np.flatnonzero(~self.kept & (self.reason == reason))
        self.page.heading(f"{_title(reason)}: {len(rows):,} dropped", _anchor(reason))
        meaning = REASONS[reason][1] if reason in REASONS else ""
        if reason in LISTED_ONLY:
            self.page.paragraph(f"{meaning} {_how_many(rows, LISTED)}")
            shown = self._records(spread(rows, LISTED))
            lines = [(row["path"], _bytes(row["bytes"] or 0), row["detail"] or "") for row in shown]
            self.page.table(["file", "size", "message"], lines)
            return
        rows, order = self._closest_first(rows, reason)
        self.page.paragraph(f"{meaning} {_how_many(rows, SHOWN, order)}".strip())
        self._sheet(rows, self._pair if reason == "near_duplicate" else partial(_card, self.page, self.raw, reason))

    def scores(self, bounds: Mapping[str, float]) -> None:
        """Histograms of the size and of every score that some image has."""
        self.page.heading("Scores", "scores")
        self.page.paragraph(
            "Kept images above the axis, dropped ones below it, whatever the reason. "
            "The outermost bars also hold the rare values beyond them."
        )
        told = sentences(PreliminaryBounds) | sentences(QualityBounds)
        histograms = []
        for name in _score_names(self.table):
            values = self._numbers(name)
            if np.isfinite(values).any():
                sides = values[self.kept], values[~self.kept]
                histograms.append(Histogram(name, *sides, bounds.get(name), told.get(name, "")))
        self.page.histograms(histograms)

    def _closest_first(self, rows: np.ndarray, reason: str) -> tuple[np.ndarray, str]:
        """Rows by their distance from the bound, as far as the reason has a score; else as they come."""
        check = CHECKS.get(reason)
        if check is None:
            return rows, SPREAD
        values = self._numbers(check.score)[rows]
        return rows[np.argsort(-values if check.least else values, kind="stable")], "The closest to the bound first."

    def _numbers(self, column: str) -> np.ndarray:
        """A column as float64, NaN where it is null."""
        return pc.cast(self.table[column], pa.float64()).fill_null(float("nan")).to_numpy()

    def _records(self, rows: np.ndarray) -> list[dict[str, Any]]:
        return self.table.take(rows).to_pylist()

    def _sheet(self, rows: np.ndarray, card: Callable[[dict[str, Any]], Card]) -> None:
        """Cards of a few of the rows, their images read by several threads; the order stays."""
        chosen = self._records(spread(rows, SHOWN))
        with ThreadPoolExecutor(min(usable_cores(), MOST_READERS)) as pool:
            self.page.cards(list(tqdm(pool.map(card, chosen), "report", len(chosen), leave=False, disable=None)))

    def _pair(self, row: dict[str, Any]) -> Card:
        """A near duplicate beside the file that its detail names."""
        card = _card(self.page, self.raw, "", row)
        other = self._named_in(row["detail"] or "")
        if other is None:
            return card
        (found,) = self._records(np.array([other]))
        fate = "kept" if self.kept[other] else f"dropped too, {_title(found['reason'] or '').lower()}"
        mine = replace(card.pictures[0], label="dropped")
        theirs = replace(_card(self.page, self.raw, "", found).pictures[0], label=f"{fate}: {found['path']}")
        return replace(card, pictures=(mine, theirs))

    def _named_in(self, detail: str) -> int | None:
        """The row of the longest path that stands in a phrase between spaces."""
        words = detail.split(" ")
        for length in range(len(words), 0, -1):
            for first in range(len(words) - length + 1):
                row = self._row_of.get(" ".join(words[first : first + length]).strip("\"'():;,"))
                if row is not None:
                    return row
        return None


def spread(rows: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the rows at even distances, the first and the last among them.

    >>> spread(np.arange(100), 3).tolist()
    [0, 50, 99]
    """
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int))]


def _card(page: Page, raw: Path, reason: str, row: dict[str, Any]) -> Card:
    """An image with its size and what the table says of it, and a part at full size where the reason asks for it."""
    size = f"{row['width']} x {row['height']}, {_bytes(row['bytes'] or 0)}"
    return Card(_pictures(page, raw, reason, row["path"]), row["path"], (size, row["detail"] or ""))


def _pictures(page: Page, raw: Path, reason: str, path: str) -> list[Picture]:
    try:
        if reason not in FULL_SIZE:
            return [page.picture(thumbnail(raw / path, THUMBNAIL), path)]
        small, part = thumbnail_and_part(raw / path, THUMBNAIL, PART, FULL_SIZE[reason])
    except TooManyPixelsError:
        return [Picture("", 0, 0, "The image is too large to be shown.")]
    except Exception:  # gone, changed, or damaged in one of the dozen ways that Pillow's decoders tell
        return [Picture("", 0, 0, "The file cannot be read any more.")]
    return [page.picture(small, path), page.picture(part, f"part of {path}", 92, "part at full size", full_size=True)]


def _with_shapes(table: pa.Table) -> pa.Table:
    """The table with the bounded figures of size as columns: short_side, pixels, aspect (longer to shorter side)."""
    width, height = (pc.cast(table[side], pa.float64()) for side in ("width", "height"))
    short = pc.min_element_wise(width, height, skip_nulls=False)
    pixels = pc.multiply(width, height)
    aspect = pc.divide(pc.max_element_wise(width, height, skip_nulls=False), short)
    columns = {"short_side": short, "pixels": pixels, "aspect": aspect}
    for name, column in columns.items():
        table = table if name in table.column_names else table.append_column(name, column)
    return table


def _score_names(table: pa.Table) -> list[str]:
    shapes = ["short_side", "pixels", "aspect"]
    numbers = [f.name for f in table.schema if pa.types.is_floating(f.type) or pa.types.is_integer(f.type)]
    return shapes + [name for name in numbers if name not in DESCRIBING and name not in shapes]


def _title(reason: str) -> str:
    return REASONS[reason][0] if reason in REASONS else (reason.replace("_", " ") or "no reason given").capitalize()


def _anchor(reason: str) -> str:
    return f"dropped-{reason}"


def _how_many(rows: np.ndarray, most: int, order: str = "") -> str:
    if not len(rows):
        return "None."
    shown = f"{min(len(rows), most):,} of {len(rows):,} shown."
    return shown if len(rows) < 2 or (order == SPREAD and len(rows) <= most) else f"{shown} {order}".strip()


def _bytes(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"
