"""Compare the arms of a study: `python -m experiments.compare artifact` (make compare STUDY=).

Reads the evaluations that `make study` has left, and writes study.md, figures/ and report/ in the study's folder. It
trains and measures nothing.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from datamodules.files import waited_for, write_whole
from experiments.command_line import EXIT_INPUT, EXIT_PARTIAL, quiet, user_errors
from experiments.search_table import search_table
from experiments.study_figures import save_figures
from experiments.study_options import StudyOptions, Trial, arm_trials, default_folder, named_tests, read_study
from experiments.study_page import write_page
from experiments.study_report import Report, report
from experiments.study_store import JOURNAL, State
from experiments.study_worker import Work

OPTIONS, MARKDOWN, FIGURES, LOCK = "study.yaml", "study.md", "figures", ".compare.lock"


def compared(
    name: str,
    options: StudyOptions,
    trials: Sequence[Trial],
    failures: Mapping[str, str],
    folder: Path,
    preface: str = "",
) -> tuple[str, Report]:
    """Write a study's report, figures and page into its folder; the report as Markdown and as data.

    trials, failures: as `report` takes them. preface: Markdown in front of the tables, such as a search's trials.
    """
    found = report(name, options, trials, failures, folder)
    text = f"{preface}\n{found.markdown}" if preface else found.markdown
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / MARKDOWN, text.encode())
    figures = save_figures(found, folder / FIGURES)
    write_page(name, options, trials, found, figures, folder)
    return text, found


def exit_code(found: Report) -> int:
    """0 where all test sets were compared, EXIT_PARTIAL for a part of them, EXIT_INPUT for none."""
    done = [test.compared for test in found.tests]
    return 0 if all(done) else EXIT_PARTIAL if any(done) else EXIT_INPUT


def states_of(work: Work) -> list[State]:
    """What the storage knows of a study's trials; nothing where there is no storage."""
    if not work.storage and not (work.runs / JOURNAL).is_file():
        return []
    store = work.open_store()
    try:
        return store.states()
    finally:
        store.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the arms of a study; nothing is trained or measured.")
    parser.add_argument("study", help="name below experiments/studies/ or a YAML file (STUDY=)")
    parser.add_argument("data", nargs="*", default=[], help="test sets in place of the study's own (DATA=)")
    parser.add_argument("--runs", type=Path, help="folder of the runs; runs/studies/<study> unless given (OUT=)")
    parser.add_argument("--storage", default="", help="Optuna storage; a journal file in OUT unless given (STORAGE=)")
    parser.add_argument("--tiny", action="store_true", help="the study of TINY=1")
    given = parser.parse_args()
    quiet()
    with user_errors():
        name, options = read_study(given.study)
        folder = given.runs or default_folder(name, given.tiny)
        if not folder.is_dir():
            raise ValueError(f"OUT={folder}: no such folder: run make study STUDY={given.study} first")
        if (folder / OPTIONS).is_file():
            _, options = read_study(str(folder / OPTIONS))
        if given.data:
            options.tests = named_tests(given.data)
        work = Work(name, options, folder, given.storage, given.tiny, 1, math.inf)
        text, found = compare_states(work, states_of(work))
    print(f"{text}\n{folder / MARKDOWN}\n{folder / 'report' / 'index.html'}")
    raise SystemExit(exit_code(found))


def compare_states(work: Work, states: Sequence[State]) -> tuple[str, Report]:
    """Compare what there is of a study whose trials are in these states, one process of all machines at a time."""
    failures = {f"{state.arm}, seed {state.seed}": state.reason for state in states if state.state == "failed"}
    if work.options.arms:
        trials, preface = arm_trials(work.options, work.runs), ""
    else:
        done = [state for state in states if state.state == "done"]  # the table in front says of the others why not
        trials = [work.trial(state.arm, state.seed, state.params) for state in done]
        preface = search_table(work.options, states, work.tiny)
    with waited_for(work.runs / LOCK):
        return compared(work.name, work.options, trials, failures, work.runs, preface)


if __name__ == "__main__":
    main()
