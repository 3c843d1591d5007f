"""The table of a search's trials."""

from experiments.search_table import search_table
from experiments.study_options import ParameterOptions, SearchOptions, StudyOptions
from experiments.study_store import State

SEARCH = SearchOptions(
    space={"optimizer.learning_rate": ParameterOptions(1e-5, 1e-2, log=True), "data.scale": ParameterOptions()},
    objective={"val/perceptual": 1.0, "val/comb_32": 0.01},
)


def trial(number, state, value=None, reason="", rate=1e-3):
    params = {"optimizer.learning_rate": rate, "data.scale": 4}
    return State(f"trial{number:03d}", 7, number, state, reason, value, params, {}, 1.0)


STATES = [
    trial(0, "done", 0.5),
    trial(1, "failed", reason="out of memory | killed"),
    trial(2, "pruned", reason="objective 0.9 at step 10"),
    trial(3, "done", 0.25, rate=1e-05),
    trial(4, "running"),
]


def study(direction="lower"):
    return StudyOptions(
        base="a/b", overrides=["data.crop=64"], search=SearchOptions(**{**vars(SEARCH), "direction": direction})
    )


def first_cells(text):
    return [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| trial0")]


def test_finished_trials_are_sorted_by_the_objective_and_the_others_follow():
    text = search_table(study(), STATES)
    assert first_cells(text) == ["trial003", "trial000", "trial002", "trial004", "trial001"]
    assert first_cells(search_table(study("higher"), STATES))[:2] == ["trial000", "trial003"]
    assert "Objective: 1 val/perceptual + 0.01 val/comb_32, lower is better." in text
    assert "objective 0.9 at step 10" in text
    assert r"out of memory \| killed" in text, "a bar would end the cell"


def test_the_best_trial_and_its_command_stand_first():
    text = search_table(study(), STATES)
    assert text.startswith("Best trial: trial003.\n\n    make train EXP=a/b SET=")
    command = text.splitlines()[2]
    for part in ("data.crop=64", "optimizer.learning_rate=1.0e-05", "data.scale=4", "seed=7"):
        assert part in command
    assert "TINY=1" in search_table(study(), STATES, tiny=True).splitlines()[2]


def test_a_search_that_has_just_begun():
    assert search_table(study(), []).startswith("No trial is finished yet.")
    assert first_cells(search_table(study(), [trial(0, "waiting")])) == ["trial000"]
