"""The trials of a study in an Optuna storage: queued once, taken once, requeued when a worker is gone."""

import json
import signal
import subprocess
import sys
import time
from functools import partial

import pytest

from experiments.study_options import ParameterOptions, SearchOptions, Trial
from experiments.study_store import JOURNAL, MOST_KILLS, Store

STORAGES = ["", "sqlite:///{}/study.db"]

WORKER = """
import os, sys, time
from pathlib import Path
from experiments.study_options import Trial
from experiments.study_store import Store
folder, url, seconds = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
store = Store(url, "s", folder, lambda arm, seed, params: Trial(arm, seed, folder / arm / f"seed{seed}", ()), "higher")
print("open", flush=True)
while (claim := store.claim()) is not None:
    with open(folder / "taken.txt", "a") as file:
        file.write(f"{claim.trial.arm} {claim.trial.seed} {os.getpid()}\\n")
    time.sleep(seconds)
    store.end(claim, "done", metrics={"objective": 1.0})
"""


def trial(folder, arm, seed, overrides=()):
    return Trial(arm, seed, folder / arm / f"seed{seed}", tuple(overrides))


@pytest.fixture(params=STORAGES, ids=["journal", "sqlite"])
def url(request, tmp_path):
    return request.param.format(tmp_path)


@pytest.fixture
def opened(tmp_path):
    stores = []

    def open_store(url="", search=None, definition=None):
        make = partial(trial, tmp_path)
        stores.append(Store(url, "s", tmp_path, make, "higher", search, definition=definition))
        return stores[-1]

    yield open_store
    for store in stores:
        store.close()


def start(tmp_path, url, seconds=0.0):
    command = [sys.executable, "-c", WORKER, str(tmp_path), url, str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def taken(tmp_path):
    return [tuple(line.split()[:2]) for line in (tmp_path / "taken.txt").read_text().splitlines()]


def states(store):
    return {(state.arm, state.seed): state.state for state in store.states()}


def test_trials_are_queued_once(opened, url, tmp_path):
    trials = [trial(tmp_path, arm, seed) for seed in (0, 1) for arm in ("a", "b")]
    first = opened(url)
    assert first.enqueue(trials, lambda _: True, retry=False) == 4
    second = opened(url)
    assert second.enqueue(trials, lambda _: True, retry=False) == 0
    more = [*trials, trial(tmp_path, "c", 0)]
    assert second.enqueue(more, lambda _: True, retry=False) == 1, "an arm more"
    assert states(first) == {
        ("a", 0): "waiting",
        ("b", 0): "waiting",
        ("a", 1): "waiting",
        ("b", 1): "waiting",
        ("c", 0): "waiting",
    }


def test_a_run_with_other_overrides_is_refused_until_it_is_removed(opened, tmp_path):
    store = opened()
    run = trial(tmp_path, "a", 0, ["x=1"])
    store.enqueue([run], lambda _: True, retry=False)
    store.end(store.claim(), "failed", "no such x")
    run.folder.mkdir(parents=True)
    other = [trial(tmp_path, "a", 0, ["x=2"])]
    with pytest.raises(
        ValueError, match=r"holds the run a, seed 0 with the overrides x=1; expected x=2: remove .*seed0"
    ):
        store.enqueue(other, lambda _: True, retry=True)
    run.folder.rmdir()
    assert store.enqueue(other, lambda _: True, retry=True) == 1
    assert store.study.trials[-1].user_attrs["overrides"] == ["x=2"]


def test_a_study_that_has_changed_is_refused(opened):
    first = {"base": "a", "TINY": 0, "overrides": ["trainer.steps=300"]}
    opened(definition=first)
    opened(definition=dict(first))
    for key, value in (("base", "b"), ("TINY", 1), ("overrides", ["trainer.steps=600"])):
        with pytest.raises(ValueError, match=f"holds a study with {key} .*; expected .*: give another OUT="):
            opened(definition={**first, key: value})


def test_only_the_trials_of_this_command_are_taken(opened, tmp_path):
    store = opened()
    trials = [trial(tmp_path, arm, seed) for seed in (0, 1) for arm in ("a", "b")]
    store.enqueue(trials, lambda _: True, retry=False)
    claims = [store.claim(wanted={("b", 0), ("a", 1)}) for _ in range(3)]
    assert [(c.trial.arm, c.trial.seed) for c in claims if c] == [("b", 0), ("a", 1)]


@pytest.mark.parametrize("url", [STORAGES[0], pytest.param(STORAGES[1], marks=pytest.mark.slow)])
def test_two_processes_take_each_trial_once(opened, url, tmp_path):
    url = url.format(tmp_path)
    store = opened(url)
    trials = [trial(tmp_path, "a", seed) for seed in range(30)]
    store.enqueue(trials, lambda _: True, retry=False)
    for worker in [start(tmp_path, url, 0.01) for _ in range(2)]:
        worker.communicate(timeout=100)
        assert worker.returncode == 0
    assert sorted(taken(tmp_path)) == sorted(("a", str(seed)) for seed in range(30))
    assert set(states(store).values()) == {"done"}


def test_the_trial_of_a_killed_worker_is_taken_again_by_another(opened, tmp_path):
    store = opened()
    store.enqueue([trial(tmp_path, "a", 0)], lambda _: True, retry=False)
    worker = start(tmp_path, "", 100)
    _wait_for(lambda: (tmp_path / "taken.txt").exists())
    assert store.claim() is None, "it is running"
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    claim = store.claim()
    assert (claim.trial.arm, claim.trial.seed) == ("a", 0)
    store.end(claim, "done")
    attempts = [t.user_attrs.get("ended") for t in store.study.trials]
    assert attempts == ["lost", "done"]
    assert states(store) == {("a", 0): "done"}


def test_a_lease_on_another_machine_is_gone_when_its_counter_stands_still(opened, tmp_path, monkeypatch):
    here, there = opened(), opened()
    here.enqueue([trial(tmp_path, "a", 0)], lambda _: True, retry=False)
    monkeypatch.setattr("experiments.study_store._machine", lambda: "there")
    claim = there.claim()
    monkeypatch.setattr("experiments.study_store._machine", lambda: "here")
    monkeypatch.setattr("experiments.study_store.EXPIRE_S", 0.2)
    assert here.claim() is None
    time.sleep(0.3)
    monkeypatch.setattr("experiments.study_store._machine", lambda: "there")
    assert there.renew(claim)
    monkeypatch.setattr("experiments.study_store._machine", lambda: "here")
    assert here.claim() is None, "it was renewed"
    time.sleep(0.3)
    again = here.claim()
    assert (again.trial.arm, again.trial.seed) == ("a", 0)
    assert not there.renew(claim), "its worker learns that it was taken over"
    there.end(claim, "done", metrics={"objective": 3.0})
    assert states(here) == {("a", 0): "running"}, "what it says at the end does not count any more"


def test_how_a_trial_ends(opened, tmp_path):
    store = opened()
    names = ["done", "failed", "killed"]
    store.enqueue([trial(tmp_path, name, 0) for name in names], lambda _: True, retry=False)
    for name in names:
        claim = store.claim()
        assert claim.trial.arm == name
        store.end(claim, name, f"because of {name}", {"objective": 2.0, "final/x": 2.0})
    assert states(store) == {("done", 0): "done", ("failed", 0): "failed", ("killed", 0): "waiting"}
    for _ in range(MOST_KILLS - 1):
        store.end(store.claim(), "killed", "SIGKILL")
    assert states(store)["killed", 0] == "failed"
    assert [s.reason for s in store.states()][2] == f"SIGKILL, {MOST_KILLS} times"
    assert store.claim() is None
    done = store.states()[0]
    assert (done.value, done.metrics["final/x"]) == (2.0, 2.0)


def test_failed_trials_are_run_again_on_request_and_done_ones_where_something_is_missing(opened, tmp_path):
    store = opened()
    trials = [trial(tmp_path, "a", 0), trial(tmp_path, "b", 0)]
    store.enqueue(trials, lambda _: True, retry=False)
    store.end(store.claim(), "failed", "no")
    store.end(store.claim(), "done")
    assert store.enqueue(trials, lambda _: True, retry=False) == 0
    assert store.enqueue(trials, lambda _: True, retry=True) == 1
    assert states(store) == {("a", 0): "waiting", ("b", 0): "done"}
    assert store.enqueue(trials, lambda t: t.arm != "b", retry=False) == 1
    assert states(store) == {("a", 0): "waiting", ("b", 0): "waiting"}


SPACE = SearchOptions(
    space={
        "x": ParameterOptions(1e-5, 1e-2, log=True),
        "n": ParameterOptions(1, 4, integer=True),
        "c": ParameterOptions(choices=["p", "q"]),
    },
    objective={"val/x": 1.0},
)


def test_a_search_draws_so_many_trials_and_draws_a_lost_one_not_anew(opened, tmp_path):
    store = opened(search=SPACE)
    claims = [store.claim(3, 7) for _ in range(3)]
    assert store.claim(3, 7) is None
    assert [claim.trial.arm for claim in claims] == ["trial000", "trial001", "trial002"]
    drawn = [claim.optuna.params for claim in claims]
    assert len({json.dumps(params) for params in drawn}) == 3
    assert all(1e-5 <= p["x"] <= 1e-2 and p["n"] in (1, 2, 3, 4) and p["c"] in ("p", "q") for p in drawn)
    store.end(claims[1], "lost", "its worker is gone")
    again = store.claim(3, 7)
    assert (again.trial.arm, again.optuna.params) == ("trial001", drawn[1])


def test_two_workers_with_one_seed_draw_different_values(opened):
    first, second = opened(search=SPACE), opened(search=SPACE)
    values = [store.claim(8, 0).optuna.params["x"] for store in (first, second) * 4]
    assert len(set(values)) == 8


def test_halving_prunes_at_the_first_validation(tmp_path):
    search = SearchOptions(space=SPACE.space, objective={"val/x": 1.0}, pruner="halving")
    store = Store("", "s", tmp_path, partial(trial, tmp_path), "higher", search, validate_every=100)
    pruned = []
    for value in (5.0, 4.0, 1.0, 6.0):
        claim = store.claim(4, 0)
        claim.optuna.report(value, 100)
        pruned.append(claim.optuna.should_prune())
    store.close()
    assert pruned == [False, True, True, False], "the better half of what has come so far goes on"


def test_kills_are_counted_anew_after_a_retry(opened, tmp_path):
    store = opened()
    trials = [trial(tmp_path, "a", 0)]
    store.enqueue(trials, lambda _: True, retry=False)
    for _ in range(MOST_KILLS):
        store.end(store.claim(), "killed", "SIGKILL")
    store.enqueue(trials, lambda _: True, retry=True)
    store.end(store.claim(), "killed", "SIGKILL")
    assert states(store) == {("a", 0): "waiting"}


def test_the_trials_of_a_search_that_lack_something_are_run_again(opened):
    store = opened(search=SPACE)
    for how in ("done", "failed", "pruned"):
        store.end(store.claim(3, 0), how)
    assert store.enqueue_search(lambda _: True, retry=False) == 0
    assert store.enqueue_search(lambda _: False, retry=False) == 1
    assert store.enqueue_search(lambda _: True, retry=True) == 1
    assert sorted(state.state for state in store.states()) == ["pruned", "waiting", "waiting"]


def test_a_journal_keeps_its_study_when_its_folder_is_renamed(tmp_path):
    first = Store("", "old", tmp_path / "old", partial(trial, tmp_path), "higher")
    first.enqueue([trial(tmp_path, "a", 0)], lambda _: True, retry=False)
    first.close()
    (tmp_path / "old").rename(tmp_path / "new")
    second = Store("", "new", tmp_path / "new", partial(trial, tmp_path), "higher")
    assert states(second) == {("a", 0): "waiting"}
    second.close()


def test_a_search_is_repeatable(opened, tmp_path):
    def values(folder):
        folder.mkdir()
        store = Store("", "s", folder, partial(trial, folder), "higher", SPACE)
        found = []
        for number in range(8):
            claim = store.claim(8, 3)
            found.append(claim.optuna.params["x"])
            store.end(claim, "done", metrics={"objective": float(number % 3)})
        store.close()
        return found

    assert values(tmp_path / "a") == values(tmp_path / "b")


def test_a_record_that_was_cut_off_is_removed(opened, tmp_path):
    store = opened()
    store.enqueue([trial(tmp_path, "a", 0)], lambda _: True, retry=False)
    with (tmp_path / JOURNAL).open("ab") as file:
        file.write(b'{"op_code": 5, "worker')
    store.enqueue([trial(tmp_path, "b", 0)], lambda _: True, retry=False)
    assert set(states(store)) == set(states(opened())) == {("a", 0), ("b", 0)}


def test_a_wrong_storage_is_refused_in_one_sentence(opened):
    for url in ("nonsense", "postgresql://nobody@localhost:1/x"):
        with pytest.raises(ValueError, match=f"STORAGE={url}: .* expected an Optuna storage such as sqlite"):
            opened(url)


@pytest.mark.slow
def test_fifty_kills_lose_and_repeat_nothing(opened, tmp_path):
    store = opened()
    trials = [trial(tmp_path, "a", seed) for seed in range(150)]
    store.enqueue(trials, lambda _: True, retry=False)
    workers = [start(tmp_path, "", 0.05) for _ in range(2)]
    for number in range(50):
        workers[number % 2].stdout.readline()
        time.sleep(0.05 * (number % 7))
        workers[number % 2].kill()
        workers[number % 2].wait()
        workers[number % 2] = start(tmp_path, "", 0.05)
    for worker in workers:
        worker.communicate(timeout=200)
    done = [t.user_attrs for t in store.study.trials if t.user_attrs.get("ended") == "done"]
    assert sorted(attrs["seed"] for attrs in done) == list(range(150))


def _wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
