"""The trials of a search as Markdown: the best first, with its command."""

from collections.abc import Sequence

from experiments.study_options import StudyOptions
from experiments.study_plan import best_of, command_of
from experiments.study_store import State
from experiments.study_tables import markdown_of

ORDER = ("done", "pruned", "running", "waiting", "lost", "killed", "failed")
"""States from the most to the least that is known of a trial."""


def search_table(study: StudyOptions, states: Sequence[State], tiny: bool = False) -> str:
    """A row per trial: finished ones by their objective, the best first, then the others by their state.

    Above it stands the best trial's command; tiny: that of TINY=1.
    """
    search = study.search
    terms = " + ".join(f"{weight:g} {tag}" for tag, weight in search.objective.items())
    header = ["trial", *search.space, "objective", "state", "reason"]
    rows = [
        [
            state.arm,
            *[_text(state.params.get(name)) for name in search.space],
            "-" if state.value is None else f"{state.value:.6g}",
            state.state,
            state.reason or "-",
        ]
        for state in sorted(states, key=lambda state: _rank(state, search.direction))
    ]
    best = best_of(study, states)
    first = f"Best trial: {best.arm}.\n\n    {command_of(study, best, tiny)}" if best else "No trial is finished yet."
    what = f"Objective: {terms}, {search.direction} is better."
    return "\n\n".join([first, what, *([markdown_of((header, rows))] if rows else [])]) + "\n"


def _rank(state: State, direction: str) -> tuple[int, float, int]:
    place = ORDER.index(state.state) if state.state in ORDER else len(ORDER)
    value = 0.0 if state.value is None else state.value
    return place, -value if direction == "higher" else value, state.number


def _text(value: object) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
