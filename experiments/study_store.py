"""The state of a study's trials in an Optuna storage: queued once, claimed by one worker each, requeued when it dies.

Optuna's journal has no heartbeat, so a claim leaves a lease: on one machine the worker holds a locked file for as long
as it lives, other machines see whether its counter still moves. Decisions are taken under the lock of the study's
folder, which all machines share.
"""

import fcntl
import itertools
import os
import secrets
import socket
import time
import uuid
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock
from optuna.trial import FrozenTrial, TrialState

from datamodules.files import waited_for
from experiments.study_options import SearchOptions, Trial
from experiments.study_search import draw, pruner_of, sampler_of

JOURNAL = "journal.log"
RENEW_S = 20.0
"""Seconds after which a worker renews its lease."""
EXPIRE_S = 120.0
"""Seconds after which a lease on another machine that was not renewed counts as gone."""
LONGEST_RECORD = 1 << 20
"""Bytes of the journal's end in which a cut-off record is looked for."""
MOST_KILLS = 3
"""Times that a trial is begun whose processes are killed while its worker lives, as for want of memory."""

QUEUED = ("arm", "seed", "overrides")
"""What a queued attempt says of its trial."""
AGAIN = ("lost", "killed")
"""How an attempt ended that is followed by another one; "failed", "pruned" and "done" are final."""


@dataclass(frozen=True)
class Claim:
    """An attempt at a trial that this worker has taken."""

    trial: Trial
    optuna: optuna.trial.Trial

    @property
    def number(self) -> int:
        return self.optuna.number


@dataclass(frozen=True)
class State:
    """What the storage knows of a trial: its last attempt."""

    arm: str
    seed: int
    number: int
    state: str
    """waiting, running, done, pruned, failed, lost or killed."""
    reason: str
    value: float | None
    params: Mapping[str, Any]
    metrics: Mapping[str, float]
    minutes: float | None
    """Of all its attempts."""

    @property
    def ended(self) -> bool:
        return self.state not in ("waiting", "running")


def open_storage(url: str, folder: Path) -> BaseStorage:
    """Optuna's storage at an address, or for "" the journal file in the study's folder; ValueError for a wrong one."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if url:
        try:
            wait = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
            return RDBStorage(url, engine_kwargs={"pool_pre_ping": True, **wait})
        except Exception as error:  # whatever SQLAlchemy or the driver finds wrong with it
            raise ValueError(
                f"STORAGE={url}: {' '.join(str(error).split())[:200]}; expected an Optuna storage such as "
                "sqlite:///study.db or postgresql://host/name, or none for a journal file in the study's folder"
            ) from error
    path = folder.resolve() / JOURNAL
    return JournalStorage(JournalFileBackend(str(path), JournalLock(path)))


class JournalLock(BaseJournalFileLock):
    """Holds the journal while a process appends to it, and is free the moment that process dies.

    Optuna's own locks keep everybody waiting for 30 s then. A line that a full disk or a kill has cut off is removed
    first: the next record would be glued to it, and nobody could read the journal again. No reader has counted it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None

    def acquire(self) -> bool:
        self._file = self.path.with_name(f".{self.path.name}.lock").open("w")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        with self.path.open("rb+") as journal:
            end = journal.seek(0, os.SEEK_END)
            journal.seek(max(end - LONGEST_RECORD, 0))
            tail = journal.read()
            if tail and not tail.endswith(b"\n"):
                journal.truncate(end - len(tail) + tail.rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class Store:
    """The trials of a study in a storage.

    url: see `open_storage`. name: the study's in the storage. folder: the runs'. make(arm, seed, params) gives the
    Trial. validate_every: steps between the validations, at which a search prunes. A worker is known by a file below
    the folder that it keeps locked as long as its Store is open. definition: what must not change between commands, by
    its key; ValueError where it has.
    """

    def __init__(
        self,
        url: str,
        name: str,
        folder: Path,
        make: Callable[[str, int, Mapping[str, Any]], Trial],
        direction: str,
        search: SearchOptions | None = None,
        validate_every: int = 1,
        definition: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self.make = make
        self.search = search
        self._seen: dict[int, tuple[int, float]] = {}
        self._renewed = 0
        self._worker = f"{secrets.token_hex(8)}.lock"
        (folder / ".workers").mkdir(parents=True, exist_ok=True)
        self._held = (folder / ".workers" / self._worker).open("w")
        fcntl.flock(self._held, fcntl.LOCK_EX)
        with self._lock():  # processes that make the same tables or the same study at once fail
            self.storage = open_storage(url, folder)
            there = [] if url else optuna.get_all_study_names(self.storage)
            self.study = optuna.create_study(
                storage=self.storage,
                study_name=there[0] if there else name,  # a journal has one, whatever its folder is called by now
                direction="maximize" if direction == "higher" else "minimize",
                pruner=pruner_of(search, validate_every),
                load_if_exists=True,
            )
            self._same_definition(dict(definition or {}))

    def close(self) -> None:
        """Give the worker's place up; its leases are gone with it."""
        (self.folder / ".workers" / self._worker).unlink(missing_ok=True)
        self._held.close()

    def enqueue(self, trials: Sequence[Trial], done: Callable[[Trial], bool], retry: bool) -> int:
        """Queue each trial of the arms that is not queued, running or done; how many.

        done: whether all that a finished trial should leave is there. retry: queue those that have failed, too.
        ValueError where a trial of that name was queued with other overrides.
        """
        count = 0
        with self._lock():
            self._requeue()
            last = {(state.arm, state.seed): state for state in self.states()}
            for trial in trials:
                state = last.get((trial.arm, trial.seed))
                self._same_overrides(trial, state)
                left = state is None or (state.state == "done" and not done(trial))
                if left or (state is not None and retry and state.state == "failed"):
                    attrs = {"arm": trial.arm, "seed": trial.seed, "overrides": list(trial.overrides)}
                    self.study.enqueue_trial({}, user_attrs=attrs)
                    count += 1
        return count

    def enqueue_search(self, done: Callable[[Trial], bool], retry: bool) -> int:
        """Queue the trials of a search again that are done and lack something, and with retry the failed ones."""
        count = 0
        with self._lock():
            self._requeue()
            for state in self.states():
                lacking = state.state == "done" and not done(self.make(state.arm, state.seed, state.params))
                if lacking or (retry and state.state == "failed"):
                    self._enqueue_again(self.study.trials[state.number])
                    count += 1
        return count

    def release(self) -> None:
        """Put back the trials whose worker is gone."""
        with self._lock():
            self._requeue()

    def claim(
        self, trials_of_search: int = 0, seed: int = 0, wanted: Container[tuple[str, int]] | None = None
    ) -> Claim | None:
        """Take the next trial, after requeueing those whose worker is gone; None where nothing is left to take.

        trials_of_search: how many a search has in all; a new one is drawn while there are fewer. wanted: arms and seeds
        that may be taken; all of them for None.
        """
        with self._lock():
            self._requeue()
            if self.search is not None:
                self.study.sampler = sampler_of(self.search, seed, len(self.study.trials))
            taken = self._take_waiting(wanted)
            if taken is None and len(begun := self.states()) < trials_of_search:
                taken = self.study.ask()
                taken.set_user_attr("arm", f"trial{len(begun):03d}")
                taken.set_user_attr("seed", seed)
            if taken is None:
                return None
            self._write_lease(taken._trial_id)
            params = draw(taken, self.search) if self.search is not None else {}
            attrs = taken.user_attrs
            return Claim(self.make(attrs["arm"], attrs["seed"], params), taken)

    def renew(self, claim: Claim) -> bool:
        """Renew a claim's lease; False where it is no longer this worker's."""
        self._renewed += 1
        try:
            self._write_lease(claim.optuna._trial_id)
        except optuna.exceptions.UpdateFinishedTrialError:
            return False
        return not self.storage.get_trial(claim.optuna._trial_id).state.is_finished()

    def others_at_work(self) -> bool:
        """Whether trials run on other machines, whose leases may yet turn out to be gone."""
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return any(t.user_attrs.get("lease", {}).get("machine", _machine()) != _machine() for t in running)

    def end(self, claim: Claim, how: str, reason: str = "", metrics: Mapping[str, float] | None = None) -> None:
        """Record how an attempt ended; nothing where another worker has taken it over meanwhile.

        how: done, pruned, failed, killed (by a signal, while its worker lives) or lost (its worker gone or told to
        stop). metrics: what was measured, by tag; the study's objective is its `objective`.
        """
        with self._lock():
            if how == "killed" and self._kills(claim) + 1 >= MOST_KILLS:
                how, reason = "failed", f"{reason}, {MOST_KILLS} times"
            self._end(claim.optuna._trial_id, how, reason, dict(metrics or {}))
            self._requeue()

    def states(self) -> list[State]:
        """The last attempt at each trial, in the order of first attempts."""
        last: dict[tuple[Any, Any], FrozenTrial] = {}
        minutes: dict[tuple[Any, Any], float] = {}
        for trial in self.study.get_trials(deepcopy=False):
            named = trial.user_attrs.get("arm"), trial.user_attrs.get("seed")
            if None not in named:  # a search's worker may have died before it named its trial
                last[named] = trial
                if trial.duration:
                    minutes[named] = minutes.get(named, 0.0) + trial.duration.total_seconds() / 60
        return [_state(trial, minutes.get(named)) for named, trial in last.items()]

    def _take_waiting(self, wanted: Container[tuple[str, int]] | None) -> optuna.trial.Trial | None:
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            if wanted is not None and (trial.user_attrs["arm"], trial.user_attrs["seed"]) not in wanted:
                continue
            try:
                if self.storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
                    return optuna.trial.Trial(self.study, trial._trial_id)
            except optuna.exceptions.UpdateFinishedTrialError:
                continue
        return None

    def _requeue(self) -> None:
        """End the attempts whose worker is gone, and queue what has to be begun again. Needs the lock."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if not self._alive(trial):
                self._end(trial._trial_id, "lost", "its worker ended before it", {})
        for state in self.states():
            if state.state in AGAIN:
                self._enqueue_again(self.study.trials[state.number])

    def _enqueue_again(self, trial: FrozenTrial) -> None:
        attrs: dict[str, Any] = {key: value for key, value in trial.user_attrs.items() if key in QUEUED}
        self.study.enqueue_trial(trial.params, user_attrs=attrs)

    def _end(self, number: int, how: str, reason: str, metrics: dict[str, float]) -> None:
        try:
            self.storage.set_trial_user_attr(number, "ended", how)
            self.storage.set_trial_user_attr(number, "reason", reason)
            self.storage.set_trial_user_attr(number, "metrics", metrics)
            value = metrics.get("objective")
            state = {"done": TrialState.COMPLETE, "pruned": TrialState.PRUNED}.get(how, TrialState.FAIL)
            values = None if value is None or state == TrialState.FAIL else [value]
            self.storage.set_trial_state_values(number, state, values)
        except optuna.exceptions.UpdateFinishedTrialError:
            return

    def _kills(self, claim: Claim) -> int:
        """How often a trial was killed since it was last done or failed."""
        ends = [t.user_attrs.get("ended") for t in self.study.get_trials(deepcopy=False) if _same(t, claim.trial)]
        before = itertools.takewhile(lambda how: how not in ("done", "failed"), reversed(ends))
        return list(before).count("killed")

    def _same_overrides(self, trial: Trial, last: State | None) -> None:
        """ValueError where a run lies in the trial's folder that was begun with other overrides."""
        if last is None or not trial.folder.exists():
            return
        found = self.study.trials[last.number].user_attrs["overrides"]
        if found != list(trial.overrides):
            raise ValueError(
                f"OUT={self.folder} holds the run {trial.title} with the overrides {' '.join(found) or 'none'}; "
                f"expected {' '.join(trial.overrides) or 'none'}: remove {trial.folder}, or give another OUT="
            )

    def _same_definition(self, definition: dict[str, Any]) -> None:
        found = self.study.user_attrs.get("definition", definition)
        for key, value in definition.items():
            if found.get(key) != value:
                raise ValueError(
                    f"OUT={self.folder} holds a study with {key} {found.get(key)}; expected {value}: give another OUT="
                )
        if "definition" not in self.study.user_attrs:
            self.study.set_user_attr("definition", definition)

    def _write_lease(self, number: int) -> None:
        lease = {"machine": _machine(), "worker": self._worker, "renewed": self._renewed}
        self.storage.set_trial_user_attr(number, "lease", lease)

    def _alive(self, trial: FrozenTrial) -> bool:
        """Whether the worker that took a running trial is still there."""
        lease = trial.user_attrs.get("lease")
        if lease is None:
            return False  # its worker died while it took it, since this one holds the lock now
        if lease["worker"] == self._worker:
            return True
        if lease["machine"] == _machine():
            return _is_locked(self.folder / ".workers" / lease["worker"])
        counter, since = self._seen.get(trial.number, (-1, 0.0))
        if counter != lease["renewed"]:
            self._seen[trial.number] = (lease["renewed"], time.monotonic())
            return True
        return time.monotonic() - since < EXPIRE_S

    def _lock(self) -> AbstractContextManager[None]:
        return waited_for(self.folder / ".lock")


def _same(other: FrozenTrial, trial: Trial) -> bool:
    return (other.user_attrs.get("arm"), other.user_attrs.get("seed")) == (trial.arm, trial.seed)


def _state(trial: FrozenTrial, minutes: float | None) -> State:
    attrs = trial.user_attrs
    state = attrs.get("ended", "failed") if trial.state.is_finished() else trial.state.name.lower()
    value = trial.values[0] if trial.values else None
    reason, metrics = attrs.get("reason", ""), attrs.get("metrics", {})
    return State(attrs["arm"], attrs["seed"], trial.number, state, reason, value, trial.params, metrics, minutes)


def _is_locked(path: Path) -> bool:
    """Whether a living process holds a file; one that is gone was given up."""
    try:
        with path.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    path.unlink(missing_ok=True)
    return False


def _machine() -> str:
    """This machine since it was started, told from others of the same name."""
    try:
        started = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # not Linux
        started = f"{uuid.getnode():x}"
    return f"{socket.gethostname()}-{started}"
