"""From scores and bounds to verdicts: pure, so that other bounds are applied without measuring again."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from datamodules.curation.duplicates import first_alike, near_groups
from datamodules.curation.pyiqa_scores import higher_is_better
from datamodules.curation.rows import JUDGE, PRELIMINARY_SCORES, PYIQA, QUALITY_SCORES, Row
from datamodules.curation.settings import Curation, JudgeModel, PreliminaryBounds, QualityBounds

KEEP, DROP = "keep", "drop"


@dataclass(frozen=True)
class Failure:
    """Why an image is dropped: a short code, and a phrase with the value, the bound and the option to change."""

    reason: str
    detail: str


@dataclass(frozen=True)
class Bound:
    """A check of one score against the option of its name, which is the least or the largest value that is kept."""

    reason: str
    score: str
    least: bool
    label: str = ""

    def failure(self, value: float | None, bound: float, group: str) -> Failure | None:
        """None where the value keeps to the bound, and where there is no value."""
        if value is None or (value >= bound if self.least else value <= bound):
            return None
        word = "least" if self.least else "most"
        found = f"{self.label or self.score} {_number(value)}"
        return Failure(self.reason, f"{found}, {word} {_number(bound)} ({group}.{self.score})")


SIZE = (
    Bound("too_many_pixels", "max_pixels", least=False, label="pixels"),
    Bound("short_side", "short_side", least=True, label="short side"),
    Bound("pixels", "pixels", least=True),
    Bound("aspect", "aspect", least=False),
)
PIXELS = (
    Bound("grey", "chroma", least=True),
    Bound("bit_depth", "bit_depth", least=True),
    Bound("upscaled", "high_band", least=True),
    Bound("flat", "flat_share", least=False),
)
QUALITY = (
    Bound("blurred", "sharpness", least=True),
    Bound("noisy", "noise", least=False),
    Bound("blocky", "blockiness", least=False),
    Bound("dark", "dark_share", least=False),
    Bound("bright", "bright_share", least=False),
    Bound("saturated", "saturated_share", least=False),
    Bound("niqe", "niqe", least=False),
    Bound("clip_quality", "clip_quality", least=True),
    Bound("aesthetic", "aesthetic", least=True),
)
OPTIONS = {
    **{bound.reason: f"preliminary.{bound.score}" for bound in (*SIZE, *PIXELS)},
    "near_duplicate": "preliminary.near_duplicate_bits",
    **{bound.reason: f"quality.{bound.score}" for bound in QUALITY},
    "judge": "judge.least_score",
}
"""The option behind each reason that has one, as SET= takes it."""


def preliminary_failure(row: Row, bounds: PreliminaryBounds) -> Failure | None:
    """The first check of stage 1 that a measured image fails; duplicates are not looked for."""
    if row.get("failure") and not _has_too_many_pixels(row, bounds):
        return Failure(row["failure"], row["failure_detail"])
    short, long = sorted((row["width"], row["height"]))
    values = {**row, "max_pixels": short * long, "short_side": short, "pixels": short * long, "aspect": long / short}
    failed = next(_failures(SIZE, values, bounds, "preliminary"), None)
    if failed is None and row["mode"] in ("P", "PA"):
        return Failure("palette", f"256 colours at most (mode {row['mode']})")
    return failed or next(_failures(PIXELS, values, bounds, "preliminary"), None)


def quality_failure(row: Row, bounds: QualityBounds) -> Failure | None:
    """The first check of stage 2 that a measured image fails; scores that were not computed decide nothing."""
    named = (
        Bound(f"{PYIQA}{name}", f"pyiqa.{name}", higher_is_better(name)).failure(
            row.get(f"{PYIQA}{name}"), bound, "quality"
        )
        for name, bound in sorted(bounds.pyiqa.items())
    )
    return next(_failures(QUALITY, row, bounds, "quality"), None) or next((item for item in named if item), None)


def decide(rows: Iterable[Row], settings: Curation) -> list[Row]:
    """The rows, sorted by path, with stage, verdict, reason and detail, from their scores and the bounds alone.

    Of images that pass every check of their own and are the same file, the first by path is kept. The others are kept
    from the best down (most pixels, then most bytes, then the first by path), where none that is kept looks the same
    (hashes at most `near_duplicate_bits` apart). Scores of stages that an image does not reach are left out, so the
    table is the same whatever was measured before.
    """
    decided = [_decided_alone(row, settings) for row in sorted(rows, key=lambda row: row["path"])]
    _drop_copies(decided)
    _drop_near_duplicates(decided, settings.preliminary.near_duplicate_bits)
    for row in decided:
        if row["verdict"] == KEEP and has_judge(settings.judge):
            _apply_judgement(row, settings.judge)
        else:
            _forget(row, [name for name in row if name.startswith(JUDGE)])
    return decided


def has_judge(model: JudgeModel) -> bool:
    """Whether stage 3 is on."""
    return bool(model.folder or model.endpoint)


def is_judged(row: Row) -> bool:
    """Whether a row holds a judgement; an attempt that failed is none."""
    return row.get("judge_keep") is not None


def _decided_alone(row: Row, settings: Curation) -> Row:
    """A copy of the row with what its own scores say in stages 1 and 2."""
    decided = {name: value for name, value in row.items() if not name.startswith("failure")}
    failed = preliminary_failure(row, settings.preliminary)
    if failed:
        later = {
            *QUALITY_SCORES,
            *(("bit_depth", "hash", *PRELIMINARY_SCORES) if failed.reason == "too_many_pixels" else ()),
        }
        _forget(decided, [name for name in row if name in later or name.startswith(PYIQA)])
        return _dropped(decided, 1, failed)
    failed = quality_failure(row, settings.quality)
    if failed:
        return _dropped(decided, 2, failed)
    return decided | {"stage": 2, "verdict": KEEP, "reason": "", "detail": ""}


def _drop_copies(rows: list[Row]) -> None:
    first: dict[str, str] = {}
    for row in _kept(rows):
        same = first.setdefault(row["fingerprint"], row["path"])
        if same != row["path"]:
            _dropped(row, 1, Failure("exact_duplicate", f"the same file as {same}"))


def _drop_near_duplicates(rows: list[Row], most_bits: int) -> None:
    if most_bits < 0:
        return
    kept = _kept(rows)
    groups: dict[int, list[Row]] = defaultdict(list)
    for row, group in zip(kept, near_groups([row["hash"] for row in kept], most_bits), strict=True):
        groups[group].append(row)
    for alike in groups.values():
        alike.sort(key=lambda row: (-row["width"] * row["height"], -row["bytes"], row["path"]))
        for row, place in zip(alike, first_alike([row["hash"] for row in alike], most_bits), strict=True):
            best = alike[place]
            if row is not best:
                size = f"{best['width']} x {best['height']} px"
                detail = f"like {best['path']} of {size} (preliminary.near_duplicate_bits)"
                _dropped(row, 1, Failure("near_duplicate", detail))


def _has_too_many_pixels(row: Row, bounds: PreliminaryBounds) -> bool:
    """Whether a file would not be decoded under these bounds, so that whatever its decoding said counts no more."""
    return "width" in row and bool(row["width"] * row["height"] > bounds.max_pixels)


def _apply_judgement(row: Row, model: JudgeModel) -> None:
    if not is_judged(row):
        row["detail"] = row.get("judge_error") or "not judged"
        return
    row["stage"] = 3
    scores = {name: value for name, value in row.items() if name.startswith(JUDGE) and type(value) is int}
    low = [f"{name.removeprefix(JUDGE)} {value}" for name, value in scores.items() if value < model.least_score]
    if low:
        said = f"{', '.join(low)}, least {model.least_score} (judge.least_score): {row['judge_reason']}"
        _dropped(row, 3, Failure("judge", said))
    elif not row["judge_keep"]:
        _dropped(row, 3, Failure("judge", row["judge_reason"]))


def _failures(checks: Iterable[Bound], values: Row, bounds: object, group: str) -> Iterator[Failure]:
    for check in checks:
        failure = check.failure(values.get(check.score), getattr(bounds, check.score), group)
        if failure:
            yield failure


def _kept(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["verdict"] == KEEP]


def _dropped(row: Row, stage: int, failure: Failure) -> Row:
    row |= {"stage": stage, "verdict": DROP, "reason": failure.reason, "detail": failure.detail}
    return row


def _forget(row: Row, names: Iterable[str]) -> None:
    for name in names:
        del row[name]


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"
