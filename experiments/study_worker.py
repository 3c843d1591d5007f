"""One worker of a study: takes trials and runs them until none is left."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import Any

import torch
from optuna.exceptions import StorageInternalError

from datamodules.cores import usable_cores
from experiments.command_line import quiet
from experiments.options import FOLDER, load_options
from experiments.processes import MARK, end_marked
from experiments.scalar_tail import ScalarTail
from experiments.study_options import SearchOptions, StudyOptions, Trial, arm_trial
from experiments.study_search import overrides_of
from experiments.study_store import EXPIRE_S, RENEW_S, Claim, State, Store
from experiments.study_trial import Failed, Stopped, run_trial

POLL_S = 0.5


@dataclass(frozen=True)
class Work:
    """What every worker of a command is told."""

    name: str
    options: StudyOptions
    runs: Path
    storage: str
    tiny: bool
    workers: int
    deadline: float
    """The clock's seconds after which no trial is begun."""

    def open_store(self) -> Store:
        """The study's trials, opened for this process."""
        search = self.options.search if self.options.search.space else None
        direction = search.direction if search else next(iter(self.options.metrics.values()))
        every = load_options(self.options.base, self.options.overrides, self.tiny).trainer.validate_every
        name = self.runs.resolve().name
        return Store(self.storage, name, self.runs, self.trial, direction, search, every, self.definition())

    def definition(self) -> dict[str, Any]:
        """What must be the same in all commands on a study's folder; of arms, each has its overrides beside it."""
        fixed: dict[str, Any] = {"base": self.options.base, "TINY": int(self.tiny)}
        if self.options.search.space:
            fixed |= {"overrides": list(self.options.overrides), "search": asdict(self.options.search)}
        return fixed

    def wanted(self) -> set[tuple[str, int]] | None:
        """The arms and seeds of this command; None for a search, which takes all."""
        if self.options.search.space:
            return None
        return {(arm, seed) for arm in self.options.arms for seed in self.options.seeds}

    def states(self, store: Store) -> list[State]:
        """The states of this command's trials."""
        wanted = self.wanted()
        return [s for s in store.states() if wanted is None or (s.arm, s.seed) in wanted]

    def trial(self, arm: str, seed: int, params: Mapping[str, Any]) -> Trial:
        """An arm's trial, or a search's with the values that it has drawn."""
        if not self.options.search.space:
            return arm_trial(self.options, self.runs, arm, seed)
        return Trial(arm, seed, self.runs / arm / f"seed{seed}", (*self.options.overrides, *overrides_of(params)))


def work(work: Work, index: int) -> None:
    """Run trials until none is left, in a process of its own; `index` tells which GPUs are this one's."""
    quiet()
    signal.signal(signal.SIGTERM, end_once)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command is interrupted, too, and ends its workers
    store = work.open_store()
    trials = work.options.budget.trials if work.options.search.space else 0
    idle_until = 0.0
    try:
        while time.time() < work.deadline and not command_ended(0):
            claim = store.claim(trials, work.options.seeds[0], work.wanted())
            if claim is not None:
                run_claim(work, store, claim, index)
                idle_until = 0.0
                continue
            # Whether a machine that has trials is still there shows only after its leases would have run out.
            idle_until = idle_until or time.monotonic() + EXPIRE_S + RENEW_S
            if not store.others_at_work() or time.monotonic() > idle_until or command_ended(RENEW_S):
                return
    finally:
        store.close()


def end_once(*_: object) -> None:
    """Handle SIGTERM once: SLURM sends it to all processes, and the command to its workers, too."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(128 + signal.SIGTERM)


def command_ended(seconds: float) -> bool:
    """Whether the command that this worker belongs to ends within so many seconds."""
    command = parent_process()
    if command is None:
        time.sleep(seconds)
        return False
    return bool(connection.wait([command.sentinel], seconds))


def run_claim(work: Work, store: Store, claim: Claim, index: int) -> None:
    """Run a trial and record how it has ended; nothing of it is left running."""
    trial = claim.trial
    how, why, scores = "lost", "interrupted", {}
    try:
        end_marked(trial.folder)  # what an earlier attempt has left on this machine
        environment = environment_of(work, trial, index)
        watch = StorageWatch(store, claim, work.options.search, trial.folder)
        scores = run_trial(work.options, trial, work.tiny, environment, watch)
        how, why = "done", ""
    except Stopped as stop:
        how, why = stop.how, str(stop)
    except Failed as error:
        how, why = "failed", str(error)
    except Exception as error:  # a study goes on, whatever is wrong with a trial
        how, why = "failed", f"{type(error).__name__}: {error}"
    finally:
        end_marked(trial.folder)
        store.end(claim, how, why, scores)


class StorageWatch:
    """Waits for a trial's process: renews the lease, ends with the command, and asks a search's pruner."""

    def __init__(self, store: Store, claim: Claim, search: SearchOptions, folder: Path) -> None:
        self.store = store
        self.claim = claim
        self.search = search
        self.tail = ScalarTail(folder, search.objective)
        self.reported: set[int] = set()
        self.renewed = time.monotonic()

    def wait(self, process: "subprocess.Popen[bytes]") -> int:
        while (code := process.poll()) is None:
            if command_ended(POLL_S):
                raise Stopped("lost", "the command was ended")
            self.renew()
            self.report()
        return code

    def renew(self) -> None:
        if time.monotonic() - self.renewed > RENEW_S:
            self.renewed = time.monotonic()
            try:
                ours = self.store.renew(self.claim)
            except StorageInternalError:
                return  # a database that is busy or away for a moment; the lease outlives several renewals
            if not ours:
                raise Stopped("lost", "another worker has taken it over")

    def report(self) -> None:
        """Tell the pruner of each validation; Stopped where it gives the trial up."""
        for last, value in self.tail.weighted(self.search.objective).items():
            step = last + 1  # Lightning counts from 0; halving's rungs are whole numbers of validations
            if step in self.reported:
                continue
            try:
                self.claim.optuna.report(value, step)
                prune = self.claim.optuna.should_prune()
            except StorageInternalError:
                return
            self.reported.add(step)
            if prune:
                raise Stopped("pruned", f"objective {value:.4g} at step {step}")


def environment_of(work: Work, trial: Trial, index: int) -> dict[str, str]:
    """The environment of a trial's processes: its mark, its share of the cores and of the GPUs."""
    devices = load_options(work.options.base, trial.overrides, work.tiny).trainer.devices
    threads = max(1, usable_cores() // (work.workers * devices))
    search = [str(FOLDER.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    gpus = share_of_gpus(torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES"), work.workers, index)
    return {
        "OMP_NUM_THREADS": str(threads),
        **os.environ,
        **({"CUDA_VISIBLE_DEVICES": gpus} if gpus else {}),
        "PYTHONPATH": os.pathsep.join(search),
        MARK: str(trial.folder.resolve()),
    }


def share_of_gpus(count: int, visible: str | None, workers: int, index: int) -> str:
    """Which GPUs a worker's trials see, as CUDA_VISIBLE_DEVICES takes them; "" where there is none.

    Workers beyond the number of GPUs share them.

    >>> share_of_gpus(4, None, 2, 1), share_of_gpus(2, "5,7", 2, 0), share_of_gpus(1, None, 2, 1)
    ('2,3', '5', '0')
    """
    names = visible.split(",") if visible else [str(number) for number in range(count)]
    names = names[:count]
    each = len(names) // workers
    return ",".join(names[index * each : (index + 1) * each] if each else names[index % count :][:1] if count else [])
