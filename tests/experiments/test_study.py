"""Studies as their users run them: trials in processes of their own, kept, resumed and joined; killed at any moment."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time

import optuna
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from datamodules.image_io import write_image
from experiments.processes import marked
from experiments.study_options import arm_trials, named_tests, read_study
from experiments.study_store import open_storage
from experiments.study_trial import killed_rank, launcher, reason, steps_done
from experiments.study_worker import share_of_gpus

SMALL = """
base: rt4ksr/s_x2_mini
overrides: [trainer.accelerator=cpu, trainer.threads=1, network.blocks=1, trainer.panel_images=0]
arms:
  base: []
  branch_off: [network.hf_branch=false]
seeds: [3]
tests: {one: {data: {data}}}
method: rt4ksr
metrics: {psnr_y: higher}
"""

LONGER = SMALL.replace(
    "trainer.panel_images=0", "trainer.panel_images=0, trainer.steps={steps}, trainer.checkpoint_every=5"
)


@pytest.fixture
def photograph(tmp_path):
    """A folder with one small image."""
    write_image(tmp_path / "set" / "a.png", torch.rand(3, 48, 64, generator=torch.Generator().manual_seed(0)))
    return tmp_path / "set"


@pytest.fixture
def study(tmp_path, photograph, command_environment):
    return Command(tmp_path, photograph, command_environment)


class Command:
    """`make study` on a file of the test's own."""

    def __init__(self, folder, data, environment):
        self.file, self.out, self.data, self.environment = folder / "mine.yaml", folder / "out", data, environment

    def write(self, text, **values):
        for name, value in {"data": self.data, **values}.items():
            text = text.replace(f"{{{name}}}", str(value))
        self.file.write_text(text)
        return self

    def line(self, *arguments):
        return [
            sys.executable,
            "-m",
            "experiments.study",
            str(self.file),
            "--runs",
            str(self.out),
            "--tiny",
            *arguments,
        ]

    def start(self, *arguments):
        """In a session of its own, so that a signal can be sent to all of it."""
        with (self.out.parent / "said.txt").open("a") as said:
            return subprocess.Popen(
                self.line(*arguments), env=self.environment, stdout=said, stderr=said, start_new_session=True
            )

    def run(self, *arguments):
        return subprocess.run(self.line(*arguments), env=self.environment, capture_output=True, text=True, timeout=280)

    def trials(self):
        return arm_trials(read_study(str(self.file))[1], self.out)

    def attempts(self):
        """All that the storage knows, an entry per attempt: arm, seed and how it ended."""
        storage = open_storage("", self.out)
        found = optuna.load_study(study_name=self.out.name, storage=storage).trials
        return [(t.user_attrs["arm"], t.user_attrs["seed"], t.user_attrs.get("ended", t.state.name)) for t in found]

    def psnr(self, trial):
        (path,) = trial.folder.glob("study/*/results.json")
        (row,) = [row for row in json.loads(path.read_text())["images"] if row["method"] == "rt4ksr"]
        return row["values"]["psnr_y"]

    def nothing_is_left(self):
        return not any(marked(trial.folder) for trial in self.trials())


def wait_for(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


THREE = SMALL.replace("branch_off: [", "broken: [network.channels=24]\n  branch_off: [trainer.devices=2, ")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_study_runs_on_past_a_failure_and_runs_nothing_twice(study):
    """Three arms: one whose checkpoint is damaged, one on two devices, by torchrun."""
    study.write(THREE)
    base, broken, off = study.trials()
    broken.checkpoint.parent.mkdir(parents=True)
    broken.checkpoint.write_text("damaged")
    first = study.run("--workers", "2")
    assert first.returncode == 1, first.stderr
    assert "3 arms x 1 seeds = 3 runs of 2 steps, 0 finished, 3 to do, 2 at a time." in first.stdout
    assert "How long a run takes is not known" in first.stdout
    assert "broken, seed 3: failed" in first.stdout
    assert "experiments.train ended with 2: error: RESUME=" in first.stdout
    assert "RETRY=1 runs the failed ones again." in first.stdout
    assert f"{study.psnr(base):.3f}" in first.stdout
    assert f"{study.psnr(off) - study.psnr(base):+.3f}" in first.stdout
    assert (study.out / "study.md").is_file()
    assert (study.out / "report" / "index.html").is_file()
    assert sorted(study.attempts()) == [("base", 3, "done"), ("branch_off", 3, "done"), ("broken", 3, "failed")]
    assert "torch.distributed.run --standalone --nproc-per-node=2 -m experiments.train" in off.log.read_text()
    for trial in (base, off):
        (last,) = EventAccumulator(str(trial.folder)).Reload().Scalars("final/one/photo/psnr_y")
        assert last.value == pytest.approx(study.psnr(trial), rel=1e-5)

    broken.checkpoint.unlink()
    other = study.data.with_name("other")
    write_image(other / "b.png", torch.rand(3, 48, 48, generator=torch.Generator().manual_seed(1)))
    more = study.run("--retry", "--data", str(study.data), str(other))
    assert more.returncode == 0, more.stdout + more.stderr
    assert "0 finished, 3 to do" in more.stdout, "two lack evaluations, one has failed"
    for trial in (base, broken, off):
        names = {path.parent.name.rpartition("-")[0] for path in trial.folder.glob("study/*/results.json")}
        assert names >= {"set", "other"}
        assert trial.log.read_text().count("-m experiments.train") == (2 if trial is broken else 1), "nothing twice"


@pytest.mark.slow
def test_a_killed_training_is_resumed_and_counted(study):
    study.write(LONGER, steps=40)
    running = study.start()
    trial = study.trials()[0]
    wait_for(lambda: steps_done(trial.checkpoint) >= 5)
    (training,) = [p for p in marked(trial.folder) if p.cmdline()[2] == "experiments.train"]
    training.kill()
    assert running.wait(timeout=250) == 0
    assert study.attempts() == [("base", 3, "killed"), ("branch_off", 3, "done"), ("base", 3, "done")]
    log = trial.log.read_text()
    assert log.count("--resume") == 1
    assert "branch_off, seed 3: done" in (study.out.parent / "said.txt").read_text()


VICTIMS = ["command", *[pytest.param(victim, marks=pytest.mark.slow) for victim in ("worker", "guard", "terminated")]]


@pytest.mark.parametrize("victim", VICTIMS)
def test_nothing_lives_on_and_nothing_is_lost_when_one_of_its_processes_is_killed(study, victim):
    study.write(LONGER, steps=40)
    running = study.start()
    trial = study.trials()[0]
    wait_for(lambda: steps_done(trial.checkpoint) >= 5)
    guard = next(p for p in marked(trial.folder) if p.cmdline()[2] == "experiments.guard")
    if victim == "terminated":
        running.terminate()
    else:
        os.kill({"command": running.pid, "worker": guard.ppid(), "guard": guard.pid}[victim], signal.SIGKILL)
    if victim in ("command", "terminated"):
        assert running.wait(timeout=60) != 0
        wait_for(study.nothing_is_left, 20)
        assert study.run().returncode == 0
    else:
        assert running.wait(timeout=250) == 0
    assert steps_done(trial.checkpoint) == 40
    done = [attempt[:2] for attempt in study.attempts() if attempt[2] == "done"]
    assert sorted(done) == [("base", 3), ("branch_off", 3)]
    assert "--resume" in trial.log.read_text()


SEARCH = """
base: rt4ksr/s_x2_mini
overrides: [trainer.accelerator=cpu, trainer.threads=1, network.blocks=1, trainer.panel_images=0, trainer.steps=12,
  trainer.validate_every=3, network.start=random]
search:
  space:
    optimizer.learning_rate: {low: 1.0e-5, high: 3.0, log: true}
    losses.high_frequency.weight: {low: 0.01, high: 1, log: true}
  objective: {val/psnr_y: 1}
  direction: higher
  startup: 1
seeds: [0]
budget: {trials: 4}
method: rt4ksr
"""


@pytest.mark.slow
def test_a_search_prunes_and_prints_its_best_trial_and_its_command(study):
    study.write(SEARCH)
    ended = study.run("--sweep")
    refused = study.run("--sweep", "trainer.steps=20")
    assert refused.returncode == 2
    assert "holds a study with overrides [" in refused.stderr
    assert "trainer.steps=20" not in (study.out / "study.yaml").read_text()
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "a search of 4 trials of up to 12 steps" in ended.stdout
    found = study.attempts()
    assert [arm for arm, _, _ in found] == ["trial000", "trial001", "trial002", "trial003"]
    assert {how for _, _, how in found} == {"done", "pruned"}
    storage = optuna.load_study(study_name="out", storage=open_storage("", study.out))
    best = storage.best_trial
    assert f"Best: {best.user_attrs['arm']}, objective {best.value:.6g} = 1 val/psnr_y" in ended.stdout
    (command,) = {line.strip() for line in ended.stdout.splitlines() if line.strip().startswith("make train")}
    rate = float(command.partition("optimizer.learning_rate=")[2].split()[0])
    assert rate == best.params["optimizer.learning_rate"]
    events = EventAccumulator(str(study.out / best.user_attrs["arm"] / "seed0")).Reload()
    assert best.value == pytest.approx(events.Scalars("val/psnr_y")[-1].value)


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_its_trial_alone(study):
    study.write(LONGER.replace("steps={steps}", "steps={steps}, trainer.devices=2"), steps=30)
    running = study.start()
    trial = study.trials()[0]
    wait_for(lambda: steps_done(trial.checkpoint) >= 5)
    ranks = [p for p in marked(trial.folder) if p.environ().get("LOCAL_RANK") == "1"]
    ranks[0].kill()
    assert running.wait(timeout=280) == 0
    assert ("base", 3, "killed") in study.attempts()
    assert steps_done(trial.checkpoint) == 30


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_kills_at_random_of_anything_in_two_commands_on_one_storage(study):
    study.write(LONGER.replace("seeds: [3]", "seeds: [0, 1, 2]"), steps=300)
    draw = random.Random(0)
    commands = [study.start("--workers", "1") for _ in range(2)]
    trials = study.trials()

    def at_work():
        return [process for trial in trials for process in marked(trial.folder)]

    for _ in range(10):
        wait_for(at_work)
        time.sleep(draw.uniform(0, 12))
        victims = [c.pid for c in commands if c.poll() is None] + [process.pid for process in at_work()]
        victims += [process.ppid() for process in at_work() if process.cmdline()[2:3] == ["experiments.guard"]]
        with contextlib.suppress(ProcessLookupError):
            os.kill(draw.choice(victims), signal.SIGKILL)
        time.sleep(0.5)
        commands = [c if c.poll() is None else study.start("--workers", "1") for c in commands]
    for command in commands:
        command.wait(timeout=900)
    assert study.run("--retry").returncode == 0, "three of the kills may have hit one trial"
    how = [attempt[2] for attempt in study.attempts()]
    assert how.count("lost") + how.count("killed") >= 5, "the kills have hit trials"
    done = [attempt[:2] for attempt in study.attempts() if attempt[2] == "done"]
    assert sorted(done) == sorted((trial.arm, trial.seed) for trial in trials)
    for trial in trials:
        assert steps_done(trial.checkpoint) == 300
        assert len(list(trial.folder.glob("study/*/results.json"))) == 1
    assert study.nothing_is_left()


@pytest.mark.slow
def test_two_commands_share_the_trials(study):
    study.write(SMALL.replace("seeds: [3]", "seeds: [0, 1]"))
    commands = [study.start("--workers", "1") for _ in range(2)]
    assert [command.wait(timeout=280) for command in commands] == [0, 0]
    done = study.attempts()
    assert sorted(done) == sorted((t.arm, t.seed, "done") for t in study.trials())
    assert all(t.log.read_text().count("$ python -m experiments.train") == 1 for t in study.trials())
    trials = optuna.load_study(study_name="out", storage=open_storage("", study.out)).trials
    assert len({t.user_attrs["lease"]["worker"] for t in trials}) == 2, "both took some"


def test_the_reason_of_a_failure_is_its_own_sentence_before_what_torchrun_says():
    assert reason(
        ["error: data.train=x: no folder", "Traceback", "E  torch.distributed ChildFailedError: 1"]
    ).startswith("error: data")
    assert reason(["a", "torch.OutOfMemoryError: CUDA out of memory.", "  [rank 1] bye"]).startswith("torch.OutOfMem")
    assert reason(["[rank0]: ValueError: no", "[rank0]:[W] bye", "====="]) == "ValueError: no"
    assert reason(["", "last words"]) == "last words"
    assert reason([]) == "it said nothing"
    assert killed_rank(["  traceback : Signal 9 (SIGKILL) received by PID 7"]) == 9
    assert killed_rank(["error: no"]) == 0


def test_a_single_device_needs_no_torchrun():
    assert launcher(1) == [sys.executable, "-m"]


def test_workers_divide_the_gpus():
    assert [share_of_gpus(8, None, 4, index) for index in range(4)] == ["0,1", "2,3", "4,5", "6,7"]
    assert [share_of_gpus(2, "3,5", 3, index) for index in range(3)] == ["3", "5", "3"]
    assert share_of_gpus(0, None, 2, 1) == ""


def test_test_sets_of_one_name_have_results_of_their_own(tmp_path):
    tests = named_tests(["bundled", "a/set5", "b/set5"])
    assert list(tests) == ["bundled", "set5", "set5-2"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: no/such\narms: {a: [], b: []}\nmethod: rt4ksr\n", "EXP=no/such: no such experiment"),
        ("base: rt4ksr/s_x2_mini\narms: {a: [], b: [network.hf=1]}\nmethod: rt4ksr\n", "arm b: unknown option"),
        ("base: rt4ksr/s_x2_mini\narms: {a: []}\nmethod: rt4ksr\n", "expected at least two arms"),
        ("base: rt4ksr/s_x2_mini\nmethod: rt4ksr\n", "expected either arms or search.space"),
        ("base: rt4ksr/s_x2_mini\narms: {a/b: [], c: []}\nmethod: rt4ksr\n", "'a/b': expected a name of letters"),
        ("base: rt4ksr/s_x2_mini\narmes: {}\n", "armes"),
        ("base: [\n", "mine.yaml"),
        ("- a\n- b\n", "mine.yaml"),
        (SMALL.replace("[3]", "[3, 3]"), "expected at least one seed, each once"),
        (SMALL.replace("psnr_y: higher", "psnr: higher"), "metrics: psnr: expected psnr_y"),
        (SMALL.replace("method: rt4ksr", "method: student"), "method=student: expected rt4ksr for real_time_cnn"),
        (SMALL.replace("higher", "up"), "metrics.psnr_y=up: expected higher or lower"),
        (SMALL.replace("{data}", "no/folder"), "tests.one.data=no/folder: no such folder"),
        (SEARCH.replace("val/psnr_y", "val/psnr"), "search.objective: val/psnr: expected val/psnr_y"),
        (SEARCH.replace("low: 1.0e-5", "low: 4.0"), "expected low below high"),
        (
            SEARCH.replace("{low: 0.01, high: 1, log: true}", "{low: 0, high: 1, log: true}"),
            "expected low above 0 with log",
        ),
        (SEARCH.replace("optimizer.learning_rate", "optimizer.rate"), "unknown option optimizer.rate"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_before_any_run(study, text, message, monkeypatch, capsys):
    from experiments.study import main

    study.write(text)
    monkeypatch.setattr(sys, "argv", ["study", *study.line()[3:]])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not study.out.exists()


def test_a_missing_study_lists_what_there_is(monkeypatch, capsys):
    from experiments.study import main

    monkeypatch.setattr(sys, "argv", ["study", "no"])
    with pytest.raises(SystemExit):
        main()
    assert "STUDY=no: no such study; found artifact, l_ap, l_hf" in capsys.readouterr().err
