"""Train every arm of a study with every seed and compare them: `python -m experiments.study l_hf` (make study STUDY=).

A study is a YAML file of `StudyOptions` below experiments/studies/. Each run is a process of its own; runs that are
finished are kept, runs that were interrupted are resumed, so the same command goes on where it was stopped.
"""

import argparse
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from tqdm import tqdm
from yaml import YAMLError

from datamodules.cores import usable_cores
from datamodules.files import locked
from experiments.command_line import EXIT_PARTIAL, quiet, user_errors
from experiments.options import FOLDER, OptionError, load_options, to_yaml
from experiments.protocol import JSON
from experiments.study_report import read_results, report

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
    """Metrics of that row, by their names in results.json."""


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
    def log(self) -> Path:
        """Output of the trial's processes."""
        return self.folder.with_name(f"{self.folder.name}.log")

    def results(self, data: str) -> Path:
        """Where the evaluation on a test set goes; sets of the same name in different places have a place each."""
        place = hashlib.blake2b(str(Path(data).resolve()).encode(), digest_size=4).hexdigest()
        return self.folder / "study" / (data if data == "bundled" else f"{Path(data).name}-{place}")


def read_study(study: str) -> tuple[str, StudyOptions]:
    """A study's name and options; OptionError says what is wrong with STUDY= or with the file."""
    path = next((p for p in (STUDIES / f"{study}.yaml", Path(study)) if p.suffix == ".yaml" and p.is_file()), None)
    if path is None:
        known = ", ".join(sorted(p.stem for p in STUDIES.glob("*.yaml")))
        raise OptionError(f"STUDY={study}: no such study; found {known}, or give a .yaml file")
    try:
        options = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(StudyOptions), OmegaConf.load(path)))
    except (OmegaConfBaseException, YAMLError, TypeError) as error:
        raise OptionError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(options, StudyOptions) or len(options.arms) < 2:
        raise OptionError(f"{path}: expected at least two arms")
    if not options.seeds or len(set(options.seeds)) < len(options.seeds):
        raise OptionError(f"{path}: seeds={options.seeds}: expected at least one seed, each once")
    for key in ("data", "metrics"):
        if not getattr(options, key):
            raise OptionError(f"{path}: {key} is empty; expected at least one entry")
    for arm in options.arms:
        try:
            load_options(options.base, [*options.overrides, *options.arms[arm]])
        except OptionError as error:
            raise OptionError(f"{path}, arm {arm}: {error}") from error
    return path.stem, options


def trials_of(options: StudyOptions, runs: Path) -> list[Trial]:
    """All runs, seed by seed, so that an interrupted study has whole comparisons."""
    return [Trial(arm, seed, runs / arm / f"seed{seed}") for seed in options.seeds for arm in options.arms]


def run_trial(options: StudyOptions, trial: Trial, tiny: bool, threads: int) -> str:
    """Train a trial as far as it is not yet, and evaluate it; its error in one line, or nothing."""
    overrides = [*options.overrides, *options.arms[trial.arm], f"seed={trial.seed}"]
    overrides += [f"runs={trial.folder.parent}", f"name={trial.folder.name}"]
    wanted, found = load_options(options.base, overrides, tiny), trial.folder / "options.yaml"
    if found.exists() and found.read_text() != to_yaml(wanted):
        return f"{trial.folder} holds a run of other options: give another folder with OUT=, or remove it"
    if steps_done(trial.checkpoint) < wanted.trainer.steps:
        if trial.checkpoint.is_file():
            module = ["experiments.train", "--resume", str(trial.checkpoint)]
        else:
            shutil.rmtree(trial.folder, ignore_errors=True)  # a run that was stopped before its first checkpoint
            module = ["experiments.train", options.base, *overrides, *(["--tiny"] if tiny else [])]
        if error := run_logged(module, trial, threads):
            return error
    if steps_done(trial.checkpoint) < wanted.trainer.steps:
        return f"{trial.arm}, seed {trial.seed}: training was stopped before its last step (see {trial.log})"
    for data in options.data:
        out = trial.results(data)
        module = ["experiments.evaluate", str(trial.checkpoint), data, "--out", str(out)]
        if not (out / JSON).is_file() and (error := run_logged(module, trial, threads)):
            return error
    return ""


def steps_done(checkpoint: Path) -> int:
    """Optimiser steps of a checkpoint, 0 where there is none; -1 for one that cannot be read: the training says why."""
    if not checkpoint.is_file():
        return 0
    try:
        return int(torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["global_step"])
    except Exception:  # whatever torch finds wrong with it
        return -1


def run_logged(module: list[str], trial: Trial, threads: int) -> str:
    """Run a module of this project with its arguments, its output in the trial's log; its error in one line."""
    trial.log.parent.mkdir(parents=True, exist_ok=True)
    search = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ, "PYTHONPATH": os.pathsep.join(search)}
    with trial.log.open("a") as file:
        print(f"$ {shlex.join(['python', '-m', *module])}", file=file, flush=True)
        ended = subprocess.run([sys.executable, "-m", *module], env=environment, stdout=file, stderr=file, check=False)
    if not ended.returncode:
        return ""
    last = next((line for line in reversed(trial.log.read_text().splitlines()) if line.strip()), "")
    return f"{trial.arm}, seed {trial.seed}: {module[0]} ended with {ended.returncode}: {last} (see {trial.log})"


def run_study(study: str, runs: Path | None, workers: int, data: list[str], tiny: bool) -> tuple[str, list[str]]:
    """Run what is missing of a study and write <runs>/study.md; its report, and the errors of failed runs."""
    name, options = read_study(study)
    options.data = data or options.data
    folder = runs or Path("runs") / "studies" / f"{name}{'-tiny' if tiny else ''}"
    trials = trials_of(options, folder)
    threads = max(1, usable_cores() // workers)
    print(
        f"{len(options.arms)} arms x {len(options.seeds)} seeds = {len(trials)} runs in {folder}, {workers} at a time"
    )
    with locked(folder, "study"), ThreadPoolExecutor(workers) as pool:
        outcomes = pool.map(lambda trial: run_trial(options, trial, tiny, threads), trials)
        errors = [error for error in tqdm(outcomes, total=len(trials), unit="run") if error]
        found = {data: read_results({(t.arm, t.seed): t.results(data) for t in trials}) for data in options.data}
        text = report(name, options.base, options.arms, options.method, options.metrics, found, errors)
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
