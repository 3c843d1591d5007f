"""What a study is expected to cost, and how it went: the words that `make study` prints."""

import shlex
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from experiments.options import load_options
from experiments.study_options import StudyOptions
from experiments.study_search import overrides_of
from experiments.study_store import State


def expectation(name: str, study: StudyOptions, states: Sequence[State], runs: Path, workers: int, tiny: bool) -> str:
    """How many runs, steps and hours a study takes, and what it leaves where."""
    first = next(iter(study.arms.values()), [])
    steps = load_options(study.base, [*study.overrides, *first], tiny).trainer.steps
    total = len(study.arms) * len(study.seeds) or study.budget.trials
    finished = [state for state in states if state.state in ("done", "pruned")]
    what = f"{len(study.arms)} arms x {len(study.seeds)} seeds" if study.arms else f"a search of {total} trials"
    left = max(total - len(finished), 0)
    lines = [
        f"Study {name} on {study.base}: {what} = {total} runs of {steps} steps, {len(finished)} finished, "
        f"{left} to do, {workers} at a time."
        if study.arms
        else f"Study {name} on {study.base}: {what} of up to {steps} steps, {len(finished)} finished, {left} to do, "
        f"{workers} at a time.",
        _hours(study, finished, left, workers, tiny),
        f"Leaves in {runs}: a folder per run (checkpoint, TensorBoard, evaluations with pictures) beside its output "
        "(.log), the storage of the trials, and study.md, figures/ and report/index.html to look at. Stopped at any "
        "moment, the same command goes on.",
    ]
    return "\n".join(lines)


def _hours(study: StudyOptions, finished: Sequence[State], left: int, workers: int, tiny: bool) -> str:
    measured = [state.minutes for state in finished if state.minutes]
    if measured:
        minutes, source = statistics.median(measured), f"the median of {len(measured)} finished here"
    elif study.budget.minutes_per_run and not tiny:
        minutes, source = study.budget.minutes_per_run, study.budget.minutes_on or "by the study's file"
    else:
        return "How long a run takes is not known before the first is finished."
    hours = minutes * left / workers / 60
    limit = f" No run starts later than {study.budget.hours:g} h from now." if study.budget.hours else ""
    return f"Expected: {minutes:.1f} min per run ({source}), so {hours:.1f} h.{limit}"


def ended(state: State, done: int, total: int) -> str:
    """One line for a trial that has just ended."""
    minutes = "" if state.minutes is None else f" in {state.minutes:.1f} min"
    value = "" if state.value is None else f", objective {state.value:.4g}"
    why = f": {state.reason}" if state.reason else ""
    return f"[{done}/{total}] {state.arm}, seed {state.seed}: {state.state}{minutes}{value}{why}"


def best_of(study: StudyOptions, states: Sequence[State]) -> State | None:
    """A search's best finished trial."""
    finished = [state for state in states if state.state == "done" and state.value is not None]
    sign = -1 if study.search.direction == "higher" else 1
    return min(finished, key=lambda state: sign * (state.value or 0.0), default=None)


def best_trial(study: StudyOptions, state: State, tiny: bool) -> str:
    """A search's best trial and how to train it anew."""
    terms = " + ".join(f"{weight:g} {tag}" for tag, weight in study.search.objective.items())
    return f"Best: {state.arm}, objective {state.value:.6g} = {terms}\n    {command_of(study, state, tiny)}"


def command_of(study: StudyOptions, state: State, tiny: bool = False) -> str:
    """The command that trains a search's trial anew, in a run folder of its own."""
    base = Path(study.base).stem if study.base.endswith(".yaml") else study.base
    values = overrides_of(state.params)
    overrides = [*study.overrides, *values, f"seed={state.seed}", f"name={base}-{state.arm}"]
    return f"make train EXP={study.base} SET={shlex.quote(' '.join(overrides))}{' TINY=1' if tiny else ''}"


def summary(states: Sequence[State]) -> str:
    """How many trials ended in which way."""
    return ", ".join(f"{count} {name}" for name, count in Counter(state.state for state in states).items())
