"""Choose the photographs of a folder that are worth training on: `python -m experiments.curate RAW OUT` (make curate).

Every image is measured once and kept or dropped with a reason; the same command over the same OUT goes on where it was
stopped, and applies other bounds without measuring again.
"""

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from datamodules.cores import usable_cores
from datamodules.curation.clip_scores import skipped_models
from datamodules.curation.engine import Engine, curate_files, run_local
from datamodules.curation.journal import JOURNAL, Journal
from datamodules.curation.ray_engine import run_ray
from datamodules.curation.rows import Row
from datamodules.curation.scan import RawFile, scan
from datamodules.curation.settings import Curation
from datamodules.curation.table import TABLE, write_table
from datamodules.curation.verdicts import KEEP, OPTIONS, has_judge
from datamodules.files import locked, target_of, written_beside
from datamodules.image_io import FORMATS
from experiments.command_line import quiet, user_errors

ENGINES: dict[str, Engine] = {"local": run_local, "ray": run_ray}
INTERRUPTED = 130


def curate(raw: Path, out: Path, options: Curation, engine: str = "local") -> list[Row]:
    """Measure and judge the images below `raw`; write curation.parquet, kept.txt, options.yaml and report/ into `out`.

    The decided rows, sorted by path. FileNotFoundError and ValueError name RAW= or OUT=.
    """
    _check_folders(raw, out)
    with locked(out, "curation"):
        _remove_unfinished(out)
        files, others = scan(raw, out)
        _introduce(raw, files, others, options)
        start = time.perf_counter()
        workers = options.workers or usable_cores()
        with Journal(out / JOURNAL, options) as journal:
            rows = curate_files(files, options, journal, ENGINES[engine], workers)
        seconds = time.perf_counter() - start
        report = write_result(rows, raw, out, options)
    print(summary(rows))
    speed = f"{journal.measured / seconds:.2f} images/s with {workers} workers ({engine})"
    print(f"{journal.measured} measured, {len(rows) - journal.measured} known before, in {seconds:.1f} s: {speed}")
    print(f"table   {out / TABLE}\nkept    {out / 'kept.txt'}\nreport  {report}")
    return rows


def write_result(rows: Sequence[Row], raw: Path, out: Path, options: Curation) -> Path:
    """Write all of the output but the journal, each file whole or not at all; the report's path."""
    from experiments.curation_options import options_yaml
    from experiments.curation_report import write_report

    with written_beside(out / "options.yaml") as part:
        part.write_text(options_yaml(options, raw), encoding="utf-8")
    write_table(rows, out / TABLE)
    with written_beside(out / "kept.txt") as part:
        part.write_text("".join(f"{row['path']}\n" for row in rows if row["verdict"] == KEEP), encoding="utf-8")
    return write_report(out / TABLE, raw, out / "report")


def summary(rows: Sequence[Row]) -> str:
    """How many are kept and dropped, and for which reasons; if none is kept, what to change."""
    reasons = Counter(row["reason"] for row in rows if row["verdict"] != KEEP)
    lines = [f"{len(rows) - reasons.total():8d} kept", f"{reasons.total():8d} dropped"]
    lines += [
        f"{count:8d}   {reason}" for reason, count in sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    ]
    unsure = sum(row["verdict"] == KEEP and bool(row["detail"]) for row in rows)
    if unsure:
        lines.append(f"{unsure} of the kept could not be judged: see detail in the table; the same command asks again")
    if rows and reasons.total() == len(rows):
        ((reason, count),) = reasons.most_common(1)
        option = f"; its option is {OPTIONS[reason]}" if reason in OPTIONS else ""
        lines.append(f"No image is kept: the commonest reason is {reason}, {count} of {len(rows)} images{option}.")
    return "\n".join(lines)


def _remove_unfinished(out: Path) -> None:
    """Remove what a killed process had not finished."""
    for file in out.glob(".*"):
        if target_of(file.name) in (TABLE, JOURNAL, "options.yaml", "kept.txt"):
            file.unlink()


def _check_folders(raw: Path, out: Path) -> None:
    if not raw.is_dir():
        found = "a file" if raw.exists() else "nothing"
        raise FileNotFoundError(f"RAW={raw}: expected a folder of photographs, found {found}")
    if out.exists() and not out.is_dir():
        raise ValueError(f"OUT={out} is a file; give a folder")
    if raw.resolve() == out.resolve():
        raise ValueError(f"OUT={out} is the folder RAW= itself; give another one, it may lie inside of it")


def _introduce(raw: Path, files: Sequence[RawFile], others: Counter[str], options: Curation) -> None:
    """Say what will be done, what is not read, and which scores are skipped."""
    left_out = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common())
    if not files:
        raise ValueError(f"RAW={raw} holds no {FORMATS} image: found {left_out or 'no files'}")
    stages = (
        "stages 1 to 3"
        if has_judge(options.judge)
        else "stages 1 and 2 (no judge is set: judge.folder, judge.endpoint)"
    )
    print(f"{len(files)} images below {raw}, {stages}")
    if left_out:
        print(f"not read, as only {FORMATS} are: {left_out}")
    for line in skipped_models(options.models):
        print(line)


def main() -> None:
    given = _arguments()
    quiet()
    try:
        with user_errors():
            # not at the top, as every process that measures imports this module, and options import networks
            from experiments.curation_options import load_curation

            workers = [] if given.workers is None else [f"workers={given.workers}"]
            options = load_curation(given.config, [*given.overrides, *workers])
            curate(given.raw, given.out, options, given.engine)
    except KeyboardInterrupt:
        print("\nstopped; what was measured is kept: the same command goes on from here")
        raise SystemExit(INTERRUPTED) from None


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Choose the photographs of a folder that are worth training on.")
    parser.add_argument("raw", type=Path, help="folder of photographs (RAW=)")
    parser.add_argument("out", type=Path, help="folder for table, list and report (OUT=)")
    parser.add_argument("overrides", nargs="*", default=[], help="key=value ... (SET=)")
    parser.add_argument(
        "--config", default="photos4k", help="name below experiments/curation/ or a YAML file (CONFIG=)"
    )
    parser.add_argument("--engine", default="local", choices=sorted(ENGINES), help="local processes, or Ray (ENGINE=)")
    parser.add_argument("--workers", type=int, help="processes; one per core unless given (WORKERS=)")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    main()
