"""Train every arm of a study with every seed and compare them: `python -m experiments.study l_hf` (make study STUDY=).

A study is a YAML file of `StudyOptions` below experiments/studies/. Each run is a process of its own; runs that are
finished are kept, runs that were interrupted are resumed, so the same command goes on where it was stopped.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from tqdm import tqdm
from yaml import YAMLError

from experiments.command_line import EXIT_PARTIAL, quiet, user_errors
from experiments.inference import machine_name
from experiments.options import FOLDER, OptionError, load_options
from experiments.paired import Comparison, Scores, compare

STUDIES = FOLDER / "studies"
ROOT = FOLDER.parent


@dataclass
class StudyOptions:
    """The keys of a study's file."""

    base: str = MISSING
    """Experiment that all arms start from, as EXP= takes it."""
    overrides: list[str] = field(default_factory=list)
    """Overrides for all arms."""
    arms: dict[str, list[str]] = MISSING
    """Overrides of each arm by its name; the first arm is the baseline that the others are compared with."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    """Seeds, the same in every arm, so that arms are compared seed by seed."""
    data: list[str] = field(default_factory=lambda: ["bundled"])
    """Test sets as DATA= of `make evaluate` takes them."""
    method: str = MISSING
    """Row of the evaluation's table that the arms are compared by."""
    metrics: list[str] = field(default_factory=lambda: ["psnr_y", "ssim_y", "perceptual"])
    """Metrics of that row."""


@dataclass(frozen=True)
class Trial:
    """One run of a study."""

    arm: str
    seed: int
    folder: Path

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoints" / "last.ckpt"

    @property
    def finished(self) -> Path:
        """The mark of a training that reached its end."""
        return self.folder / "finished"

    def results(self, data: str) -> Path:
        """Where the evaluation on a test set goes."""
        return self.folder / "evaluate" / (Path(data).name or data)


def read_study(study: str) -> tuple[str, StudyOptions]:
    """A study's name and options; OptionError says what is wrong with STUDY= or with the file."""
    path = next((p for p in (STUDIES / f"{study}.yaml", Path(study)) if p.suffix == ".yaml" and p.is_file()), None)
    if path is None:
        known = ", ".join(sorted(p.stem for p in STUDIES.glob("*.yaml")))
        raise OptionError(f"STUDY={study}: no such study; found {known}, or give a .yaml file")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(StudyOptions), OmegaConf.load(path))
        options = OmegaConf.to_object(merged)
    except (OmegaConfBaseException, YAMLError) as error:
        raise OptionError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(options, StudyOptions) or len(options.arms) < 2 or not options.seeds:
        raise OptionError(f"{path}: expected at least two arms and one seed")
    for arm, overrides in options.arms.items():  # a wrong override ends the study before its first run
        load_options(options.base, [*options.overrides, *overrides, f"name={arm}"])
    return path.stem, options


def trials_of(options: StudyOptions, runs: Path) -> list[Trial]:
    """All runs, seed by seed, so that an interrupted study has whole comparisons."""
    return [Trial(arm, seed, runs / arm / f"seed{seed}") for seed in options.seeds for arm in options.arms]


def run_trial(options: StudyOptions, trial: Trial, tiny: bool) -> str:
    """Train a trial as far as it is not yet, and evaluate it; its error in one line, or nothing."""
    if not trial.finished.exists():
        if error := run_logged(_training(options, trial, tiny), trial):
            return error
        trial.finished.touch()
    for data in options.data:
        out = trial.results(data)
        command = ["experiments.evaluate", str(trial.checkpoint), data, "--out", str(out)]
        if not (out / "results.json").is_file() and (error := run_logged(command, trial)):
            return error
    return ""


def _training(options: StudyOptions, trial: Trial, tiny: bool) -> list[str]:
    if trial.checkpoint.is_file():
        return ["experiments.train", "--resume", str(trial.checkpoint)]
    shutil.rmtree(trial.folder, ignore_errors=True)  # a run that was stopped before its first checkpoint
    name = [f"runs={trial.folder.parent}", f"name={trial.folder.name}", f"seed={trial.seed}"]
    overrides = [*options.overrides, *options.arms[trial.arm], *name]
    return ["experiments.train", options.base, *overrides, *(["--tiny"] if tiny else [])]


def run_logged(module: list[str], trial: Trial) -> str:
    """Run a module of this project with its arguments, its output in the trial's log; its error in one line."""
    log = trial.folder.with_name(f"{trial.folder.name}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    # several runs at a time on the CPU lose by sharing it with more threads each
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": str(ROOT)}
    with log.open("a") as file:
        print(f"$ {shlex.join(['python', '-m', *module])}", file=file, flush=True)
        ended = subprocess.run([sys.executable, "-m", *module], env=environment, stdout=file, stderr=file, check=False)
    if not ended.returncode:
        return ""
    last = next((line for line in reversed(log.read_text().splitlines()) if line.strip()), "")
    return f"{trial.arm}, seed {trial.seed}: {module[0]} ended with {ended.returncode}: {last} (see {log})"


def comparisons(options: StudyOptions, trials: list[Trial], data: str) -> dict[str, dict[str, Comparison]]:
    """By arm and metric, over the seeds that every arm has finished."""
    read = {(t.arm, t.seed): _values(t.results(data), options) for t in trials if _is_there(t, data)}
    seeds = [seed for seed in options.seeds if all((arm, seed) in read for arm in options.arms)]
    baseline = next(iter(options.arms))

    def scores(arm: str, metric: str) -> Scores:
        return {seed: read[arm, seed][metric] for seed in seeds}

    return {
        arm: {metric: compare(scores(arm, metric), scores(baseline, metric)) for metric in options.metrics}
        for arm in options.arms
        if seeds
    }


def _is_there(trial: Trial, data: str) -> bool:
    return (trial.results(data) / "results.json").is_file()


def _values(folder: Path, options: StudyOptions) -> dict[str, dict[str, float]]:
    """By metric, the value of each image on which it was measured."""
    rows = json.loads((folder / "results.json").read_text())["images"]
    chosen = [row for row in rows if row["method"] == options.method]
    return {
        metric: {row["image"]: row["values"][metric] for row in chosen if row["values"].get(metric) is not None}
        for metric in options.metrics
    }


def table(options: StudyOptions, compared: dict[str, dict[str, Comparison]]) -> str:
    """Markdown: a row per arm; the baseline's means, and of the others the paired difference with its interval."""
    if not compared:
        return "No seed is finished in every arm."
    seeds = next(iter(next(iter(compared.values())).values())).seeds
    lines = [f"| {seeds} seeds | " + " | ".join(options.metrics) + " |", "|---|" + "---:|" * len(options.metrics)]
    for number, (arm, metrics) in enumerate(compared.items()):
        cells = [f"{c.mean:.4f}" if not number else _difference(c) for c in metrics.values()]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _difference(comparison: Comparison) -> str:
    mark = "" if comparison.decided else " (within the noise)"
    return f"{comparison.difference:+.4f} ± {comparison.half_width:.4f}{mark}"


def report(name: str, options: StudyOptions, trials: list[Trial], errors: list[str]) -> str:
    """The study's result as Markdown."""
    first, *others = options.arms
    how = "paired by seed and image, mean over the images, then mean and 95 % t interval over the seeds"
    parts = [
        f"Study `{name}`, base {options.base}, {date.today().isoformat()}, {machine_name(torch.device('cpu'))}.",
        f"First row: means of {first} over seeds and images. {', '.join(others)}: difference to {first}, {how}. "
        "Protocol: results.md of a run.",
    ]
    parts += [f"Arm {arm}: {' '.join(overrides) or 'the base'}." for arm, overrides in options.arms.items()]
    parts += [f"Test set {data}:\n\n{table(options, comparisons(options, trials, data))}" for data in options.data]
    parts += [f"Failed: {error}" for error in errors]
    return "\n\n".join(parts) + "\n"


def run_study(study: str, runs: Path | None, workers: int, data: list[str], tiny: bool) -> tuple[str, list[str]]:
    """Run what is missing of a study and write <runs>/study.md; its report, and the errors of failed runs."""
    name, options = read_study(study)
    options.data = data or options.data
    folder = runs or Path("runs") / "studies" / name
    trials = trials_of(options, folder)
    print(
        f"{len(options.arms)} arms x {len(options.seeds)} seeds = {len(trials)} runs in {folder}, {workers} at a time"
    )
    with ThreadPoolExecutor(workers) as pool:
        outcomes: Any = pool.map(lambda trial: run_trial(options, trial, tiny), trials)
        errors = [error for error in tqdm(outcomes, total=len(trials), unit="run") if error]
    text = report(name, options, trials, errors)
    partial = folder / ".study.md.part"
    partial.write_text(text)
    os.replace(partial, folder / "study.md")
    return text, errors


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the arms of a study and compare them.")
    parser.add_argument("study", help="name below experiments/studies/ or a YAML file (STUDY=)")
    parser.add_argument("data", nargs="*", default=[], help="test sets in place of the study's own (DATA=)")
    parser.add_argument("--runs", type=Path, help="folder for the runs; runs/studies/<study> unless given (OUT=)")
    parser.add_argument("--workers", type=int, default=1, help="runs at the same time (WORKERS=)")
    parser.add_argument("--tiny", action="store_true", help="shrink every run to seconds (TINY=1)")
    given = parser.parse_args()
    quiet()
    with user_errors():
        if given.workers < 1:
            raise ValueError(f"WORKERS={given.workers}: expected 1 or more")
        text, errors = run_study(given.study, given.runs, given.workers, given.data, given.tiny)
    print(text)
    raise SystemExit(EXIT_PARTIAL if errors else 0)


if __name__ == "__main__":
    main()
