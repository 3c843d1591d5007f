"""Run a study: `python -m experiments.study artifact` (make study STUDY=, make sweep STUDY=).

Every arm with every seed, or the trials of a search, are queued in an Optuna storage, from which the workers of this
command, and of the same command on other machines, take them. What is finished is kept and what was interrupted is
resumed, so the same command goes on where it was stopped.
"""

import argparse
import multiprocessing
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from omegaconf import OmegaConf
from optuna.exceptions import StorageInternalError

from datamodules.files import write_whole
from experiments.command_line import EXIT_PARTIAL, quiet, user_errors
from experiments.compare import MARKDOWN, OPTIONS, compare_states
from experiments.options import OptionError
from experiments.study_checks import check_study
from experiments.study_options import StudyOptions, Trial, arm_trials, default_folder, named_tests, read_study
from experiments.study_plan import best_of, best_trial, ended, expectation, summary
from experiments.study_store import State, Store
from experiments.study_trial import is_done
from experiments.study_worker import Work, end_once, work

MOST_DEATHS = 3
"""Workers in a row that may die without a trial ending in between."""


def prepared(given: argparse.Namespace) -> tuple[str, StudyOptions, Path]:
    """A study's name, its options as this command wants them, and its folder; OptionError or ValueError."""
    name, options = read_study(given.study)
    options.overrides += given.overrides
    options.seeds = given.seeds or options.seeds
    if given.data:
        options.tests = named_tests(given.data)
    if given.sweep and not options.search.space:
        raise OptionError(f"STUDY={given.study} has no search.space: run it with make study")
    if given.workers < 1:
        raise ValueError(f"WORKERS={given.workers}: expected 1 or more")
    check_study(f"STUDY={given.study}", options, given.tiny)
    return name, options, given.runs or default_folder(name, given.tiny)


def run_study(job: Work, retry: bool) -> tuple[str, list[State]]:
    """Run what is missing of a study and compare; the comparison as text, and the trials' last states."""
    job.runs.mkdir(parents=True, exist_ok=True)
    store = job.open_store()
    try:
        enqueue(job, store, retry)
        write_whole(job.runs / OPTIONS, OmegaConf.to_yaml(OmegaConf.structured(job.options)).encode())
        print(expectation(job.name, job.options, job.states(store), job.runs, job.workers, job.tiny), flush=True)
        supervise(job, store)
        if enqueue(job, store, False):  # another command has taken them, with tests of its own
            supervise(job, store)
        store.release()
        states = job.states(store)
    finally:
        store.close()
    return result(job, states), states


def enqueue(job: Work, store: Store, retry: bool) -> int:
    """Queue what is to be run, and what lacks a part of what it should leave; how many trials."""

    def done(trial: Trial) -> bool:
        return is_done(job.options, trial)

    if job.options.search.space:
        return store.enqueue_search(done, retry)
    return store.enqueue(arm_trials(job.options, job.runs), done, retry)


def supervise(job: Work, store: Store) -> None:
    """Keep the workers at it until nothing is left to take; they end when this process does."""
    context = multiprocessing.get_context("spawn")

    def start(index: int) -> BaseProcess:
        process = context.Process(target=work, args=(job, index))
        process.start()
        return process

    workers: dict[int, BaseProcess] = {}
    before, deaths = {state.number for state in job.states(store) if state.ended}, 0
    try:
        workers |= {index: start(index) for index in range(job.workers)}
        while workers:
            connection.wait([process.sentinel for process in workers.values()], 2.0)
            for state in just_ended(job, store, before):
                before.add(state.number)
                deaths = 0
                finished = sum(s.ended for s in job.states(store))
                print(ended(state, finished, total(job)), flush=True)
            for index, process in [(i, p) for i, p in workers.items() if not p.is_alive()]:
                del workers[index]
                if process.exitcode:
                    deaths += 1
                    print(f"worker {index} ended with {process.exitcode}; another one takes over", flush=True)
                    if deaths <= MOST_DEATHS:
                        workers[index] = start(index)
    finally:
        end(list(workers.values()))


def just_ended(job: Work, store: Store, before: set[int]) -> list[State]:
    """Trials whose end was not told yet; none while the storage does not answer."""
    try:
        return [state for state in job.states(store) if state.ended and state.number not in before]
    except StorageInternalError:
        return []


def end(workers: list[BaseProcess]) -> None:
    """Let workers end their trials, which they put back, and wait for them."""
    for process in workers:
        process.terminate()
    for process in workers:
        process.join()


@contextmanager
def interruptible() -> Iterator[None]:
    """Say in one sentence what an interruption leaves."""
    try:
        yield
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last checkpoints", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None


def total(job: Work) -> int:
    return len(job.options.arms) * len(job.options.seeds) or job.options.budget.trials


def result(job: Work, states: list[State]) -> str:
    """What a study has come to, as far as it is."""
    text, _ = compare_states(job, states)
    lines = [text, f"Trials: {summary(states)}."]
    if any(s.state in ("running", "waiting") for s in states):
        lines.append("The others are not finished: the same command goes on, `make compare` shows what there is.")
    failed = [state for state in states if state.state == "failed"]
    lines += [f"Failed: {state.arm}, seed {state.seed}: {state.reason}" for state in failed]
    lines += ["RETRY=1 runs the failed ones again."] if failed else []
    if job.options.search.space and (best := best_of(job.options, states)):
        lines.append(best_trial(job.options, best, job.tiny))
    return "\n\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run the arms of a study with every seed, or a search.")
    parser.add_argument("study", help="name below experiments/studies/ or a YAML file (STUDY=)")
    parser.add_argument("overrides", nargs="*", default=[], help="key=value ... for all runs (SET=)")
    parser.add_argument("--data", nargs="*", default=[], help="test sets in place of the study's own (DATA=)")
    parser.add_argument("--seeds", nargs="*", type=int, default=[], help="seeds in place of the study's own (SEEDS=)")
    parser.add_argument("--runs", type=Path, help="folder for the runs; runs/studies/<study> unless given (OUT=)")
    parser.add_argument("--storage", default="", help="Optuna storage; a journal file in OUT unless given (STORAGE=)")
    parser.add_argument("--workers", type=int, default=1, help="runs at the same time on this machine (WORKERS=)")
    parser.add_argument("--retry", action="store_true", help="run failed trials again (RETRY=1)")
    parser.add_argument("--tiny", action="store_true", help="shrink every run to seconds (TINY=1)")
    parser.add_argument("--sweep", action="store_true", help="expect a search (make sweep)")
    return parser.parse_intermixed_args()


def main() -> None:
    given = arguments()
    quiet()
    signal.signal(signal.SIGTERM, end_once)
    with user_errors(), interruptible():
        name, options, runs = prepared(given)
        hours = options.budget.hours
        deadline = time.time() + hours * 3600 if hours else float("inf")
        job = Work(name, options, runs, given.storage, given.tiny, given.workers, deadline)
        text, states = run_study(job, given.retry)
    print(f"{text}\n\n{runs / MARKDOWN}\n{runs / 'report' / 'index.html'}")
    raise SystemExit(EXIT_PARTIAL if any(state.state in ("failed", "waiting") for state in states) else 0)


if __name__ == "__main__":
    main()
