"""One run of a study: a training, as far as it is not done yet, then its evaluations, each in processes of its own."""

import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from omegaconf import OmegaConf

from experiments.final_scores import final_scores_of, table_overrides, write_final_scores
from experiments.options import FOLDER, load_options, to_yaml
from experiments.protocol import JSON
from experiments.scalar_tail import ScalarTail
from experiments.schema import Experiment, TrainerOptions
from experiments.study_options import StudyOptions, TestOptions, Trial

ROOT = FOLDER.parent
STANDARD_ERRORS = ("Error", "Exception", "Interrupt")
OBJECTIVE = "objective"


class Stopped(Exception):
    """A trial that does not go on now: how its attempt ends in the storage (killed, lost or pruned), and why."""

    def __init__(self, how: str, reason: str) -> None:
        super().__init__(reason)
        self.how = how


class Failed(Exception):
    """A trial that cannot be finished, and why."""


class Watch(Protocol):
    """Who waits for a process on the trial's behalf."""

    def wait(self, process: "subprocess.Popen[bytes]") -> int:
        """Its exit code; raises Stopped where the trial is to end before it."""


def run_trial(
    study: StudyOptions, trial: Trial, tiny: bool, environment: Mapping[str, str], watch: Watch
) -> dict[str, float]:
    """Train and evaluate as far as it is not done; the final scores by tag, and the study's objective.

    Raises Failed, or Stopped.
    """
    overrides = run_overrides(study, trial)
    options = load_options(study.base, overrides, tiny)
    if not is_measured(study, trial):
        train(study, trial, overrides, options, tiny, environment, watch)
    scores: dict[str, float] = {}
    for test_name, test in study.tests.items():
        results = evaluate(trial, test_name, test, environment, watch)
        scores |= final_scores_of(results, test_name, study)
    write_final_scores(trial.folder, scores, options.trainer.steps)
    return {**scores, **objective(study, trial, scores, options.trainer)}


def is_measured(study: StudyOptions, trial: Trial) -> bool:
    """Whether every evaluation of a trial is there; its checkpoint is not needed any more then."""
    return bool(study.tests) and all((trial.results(*test) / JSON).is_file() for test in study.tests.items())


def is_done(study: StudyOptions, trial: Trial) -> bool:
    """Whether everything that a finished trial leaves is there."""
    return is_measured(study, trial) if study.tests else trained(trial).is_file()


def trained(trial: Trial) -> Path:
    """A file that says that the training has ended by itself, after its last validation and all that it writes."""
    return trial.folder / "study" / "trained"


def run_overrides(study: StudyOptions, trial: Trial) -> list[str]:
    """Everything that a trial's training is given on top of the study's base."""
    labels: dict[str, bool | int | float | str] = {"arm": trial.arm, "seed": trial.seed}
    return [
        *trial.overrides,
        f"seed={trial.seed}",
        f"runs={trial.folder.parent}",
        f"name={trial.folder.name}",
        *table_overrides(study, labels),
    ]


def train(
    study: StudyOptions,
    trial: Trial,
    overrides: Sequence[str],
    options: Experiment,
    tiny: bool,
    environment: Mapping[str, str],
    watch: Watch,
) -> None:
    """Train from the start, or from the last checkpoint."""
    found = trial.folder / "options.yaml"
    if not trial.checkpoint.is_file():
        shutil.rmtree(trial.folder, ignore_errors=True)  # a run that was stopped before its first checkpoint
        arguments = [study.base, *overrides, *(["--tiny"] if tiny else [])]
    elif found.exists() and without_table(found.read_text()) != without_table(to_yaml(options)):
        raise Failed(f"{trial.folder} holds a run of other options: give another folder with OUT=, or remove it")
    elif trained(trial).is_file() and steps_done(trial.checkpoint) >= options.trainer.steps:
        return
    else:
        arguments = ["--resume", str(trial.checkpoint)]
    run_logged([*launcher(options.trainer.devices), "experiments.train", *arguments], trial, environment, watch)
    if steps_done(trial.checkpoint) < options.trainer.steps:
        raise Failed(f"training ended before its last step (see {trial.log})")
    trained(trial).parent.mkdir(exist_ok=True)
    trained(trial).touch()


def without_table(options_yaml: str) -> object:
    """A run's options apart from its row in TensorBoard, which names the study's tests: those may change later."""
    options = OmegaConf.to_container(OmegaConf.create(options_yaml))
    return {key: value for key, value in options.items() if key != "table"} if isinstance(options, dict) else options


def evaluate(
    trial: Trial, name: str, test: TestOptions, environment: Mapping[str, str], watch: Watch
) -> Mapping[str, object]:
    """What an evaluation has found, after making it where it is missing."""
    out = trial.results(name, test)
    if not (out / JSON).is_file():
        crop = ["--crop", str(test.crop)] if test.crop else []
        arguments = [str(trial.checkpoint), test.data, *test.overrides, *crop, "--pictures", "--out", str(out)]
        run_logged([sys.executable, "-m", "experiments.evaluate", *arguments], trial, environment, watch)
    found = json.loads((out / JSON).read_text())
    if not isinstance(found, dict):
        raise Failed(f"{out / JSON} holds no results of an evaluation: remove it")
    return found


def objective(
    study: StudyOptions, trial: Trial, scores: Mapping[str, float], trainer: TrainerOptions
) -> dict[str, float]:
    """A search's objective at the training's last validation; of arms, the first final score."""
    weights = study.search.objective
    if not weights:
        return {OBJECTIVE: next(iter(scores.values()))} if scores else {}
    every = min(trainer.validate_every, trainer.steps)
    last = trainer.steps // every * every - 1
    value = ScalarTail(trial.folder, weights).weighted(weights).get(last)
    if value is None:
        raise Failed(f"search.objective: {' and '.join(weights)} were not all logged at step {last}")
    if not math.isfinite(value):
        raise Failed(f"search.objective is {value} at the end")
    return {OBJECTIVE: value}


def launcher(devices: int) -> list[str]:
    """The command in front of a module: torchrun with a rendezvous of its own where there is more than one device."""
    if devices == 1:
        return [sys.executable, "-m"]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={devices}", "-m"]


def run_logged(command: Sequence[str], trial: Trial, environment: Mapping[str, str], watch: Watch) -> None:
    """Run a command behind a guard, its output in the trial's log; Failed or Stopped says how it has ended."""
    trial.log.parent.mkdir(parents=True, exist_ok=True)
    kills = out_of_memory_kills()
    with trial.log.open("a") as file:
        print(f"$ {shlex.join(['python', *command[1:]])}", file=file, flush=True)
        start = file.tell()
        guarded = [sys.executable, "-m", "experiments.guard", *command]
        process = subprocess.Popen(
            guarded, env=environment, stdin=subprocess.PIPE, stdout=file, stderr=file, start_new_session=True
        )
        try:
            code = watch.wait(process)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if not code:
        return
    with trial.log.open(errors="replace") as file:
        file.seek(start)
        said = file.read().splitlines()
    module = next(part for part in command if part.startswith("experiments."))
    number = -code if code < 0 else code - 128 if code > 128 else killed_rank(said)
    if number:
        memory = ", as the machine was out of memory" if out_of_memory_kills() > kills else ""
        if number == signal.SIGTERM:
            time.sleep(2)  # a cluster that ends a job signals all of its processes: then this one ends here
        raise Stopped("killed", f"{module} was ended by {signal.Signals(number).name}{memory}")
    raise Failed(f"{module} ended with {code}: {reason(said)} (see {trial.log})")


def reason(said: Sequence[str]) -> str:
    """Why a command failed, from its output: its own sentence, else the last exception, else the last line."""
    lines = [re.sub(r"^\[rank\d+\]: ", "", line.strip()) for line in said if line.strip()]
    own = [line for line in lines if line.startswith("error: ")]
    raised = [line for line in lines if line.partition(":")[0].endswith(STANDARD_ERRORS) and "ChildFailed" not in line]
    return (own or raised or lines or ["it said nothing"])[-1]


def killed_rank(said: Sequence[str]) -> int:
    """The signal that torchrun says has ended one of its processes, or 0."""
    return next((number for line in said for number in (9, 15) if f"Signal {number} (SIG" in line), 0)


def out_of_memory_kills() -> int:
    """How many processes this machine has killed for want of memory since it was started; 0 where it does not tell."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def steps_done(checkpoint: Path) -> int:
    """Optimiser steps of a checkpoint, 0 where there is none; -1 for one that cannot be read: the training says why."""
    if not checkpoint.is_file():
        return 0
    try:
        return int(torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["global_step"])
    except Exception:  # whatever torch finds wrong with it
        return -1
