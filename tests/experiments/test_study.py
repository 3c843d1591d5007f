"""Studies: their files, their runs as processes of their own, the report at the end."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from datamodules.image_io import write_image
from experiments.checks import OptionError
from experiments.options import FOLDER
from experiments.study import STUDIES, Trial, main, read_study, run_study, steps_done, trials_of
from experiments.study_report import compared, report

SMALL = """
base: rt4ksr/s_x2_mini
overrides: [trainer.accelerator=cpu, trainer.threads=1, network.blocks=1]
arms:
  base: []
  branch_off: [network.hf_branch=false]
seeds: [3]
data: [{data}]
method: rt4ksr
metrics: [psnr_y]
"""


@pytest.fixture
def write(tmp_path):
    def write_study(text):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return str(path)

    return write_study


@pytest.fixture
def photograph(tmp_path):
    """A folder with one small image."""
    write_image(tmp_path / "set" / "a.png", torch.rand(3, 48, 64, generator=torch.Generator().manual_seed(0)))
    return tmp_path / "set"


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_study_is_one(path):
    name, options = read_study(path.stem)
    assert name == path.stem
    assert len(options.seeds) >= 5
    assert len(trials_of(options, FOLDER)) == len(options.arms) * len(options.seeds)


def test_a_study_is_run_once_and_then_read(write, photograph, tmp_path):
    study, folder = write(SMALL.format(data=photograph)), tmp_path / "runs"
    text, errors = run_study(study, folder, workers=2, data=[], tiny=True)
    assert errors == []
    assert (folder / "study.md").read_text() == text
    logs = {path: path.read_text() for path in folder.glob("*/seed3.log")}
    assert len(logs) == 2
    assert all("experiments.train" in log and "network.blocks=1" in log for log in logs.values())
    (base, off) = (_psnr(folder / arm / "seed3") for arm in ("base", "branch_off"))
    assert f"| base | {base:.4f} |" in text
    assert f"| branch_off | {off - base:+.4f} ± inf (within the noise) |" in text

    again, _ = run_study(study, folder, workers=1, data=[], tiny=True)
    assert again == text
    assert {path: path.read_text() for path in folder.glob("*/seed3.log")} == logs, "nothing was run twice"

    (_, other) = run_study(study, folder, workers=1, data=[], tiny=False)
    assert len(other) == 2
    assert all("holds a run of other options: give another folder with OUT=" in error for error in other)


def _psnr(trial):
    (path,) = trial.glob("study/*/results.json")
    (row,) = [row for row in json.loads(path.read_text())["images"] if row["method"] == "rt4ksr"]
    return row["values"]["psnr_y"]


def test_a_training_that_was_killed_is_resumed(write, photograph, tmp_path, command_environment):
    text = SMALL.format(data=photograph).replace("network.blocks=1", "trainer.steps=60, trainer.checkpoint_every=5")
    text = text.replace("trainer.threads=1", "trainer.threads=1, trainer.validate_every=60, trainer.panel_images=0")
    study, folder = write(text + "\n"), tmp_path / "runs"
    command = [sys.executable, "-m", "experiments.study", study, "--runs", str(folder), "--tiny"]
    running = subprocess.Popen(command, env=command_environment, start_new_session=True, stdout=subprocess.DEVNULL)
    trial = Trial("base", 3, folder / "base" / "seed3")
    deadline = time.monotonic() + 200
    while steps_done(trial.checkpoint) < 5 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    assert 5 <= steps_done(trial.checkpoint) < 60
    _, errors = run_study(study, folder, workers=1, data=[], tiny=True)
    assert errors == []
    assert steps_done(trial.checkpoint) == 60
    assert "--resume" in trial.log.read_text()
    assert "--resume" not in (folder / "branch_off" / "seed3.log").read_text()


def test_a_failed_run_is_reported_and_the_others_go_on(write, photograph, tmp_path, monkeypatch, capsys):
    study, folder = write(SMALL.format(data=photograph)), tmp_path / "runs"
    (folder / "base" / "seed3" / "checkpoints").mkdir(parents=True)
    (folder / "base" / "seed3" / "checkpoints" / "last.ckpt").write_text("damaged")
    monkeypatch.setattr(sys, "argv", ["study", study, "--runs", str(folder), "--tiny"])
    with pytest.raises(SystemExit) as ended:
        main()
    shown = capsys.readouterr().out
    assert ended.value.code == 1
    assert "No seed is finished in every arm." in shown
    assert "Failed: base, seed 3: experiments.train ended with 2: error: RESUME=" in shown
    assert (folder / "branch_off" / "seed3" / "study").is_dir()


def test_one_study_at_a_time_works_in_a_folder(write, tmp_path):
    with (tmp_path / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another study is at work there; wait for it, or give another OUT="):
            run_study(write(SMALL.format(data="bundled")), tmp_path, workers=1, data=[], tiny=True)


def evaluation(value, **facts):
    """What an evaluation of two photographs and a flat image writes, as far as a report reads it."""
    rows = [("a", "photo"), ("b", "photo"), ("sky", "flat")]
    images = [{"image": i, "group": g, "method": "rt4ksr", "values": {"psnr_y": value(i)}} for i, g in rows]
    images += [{"image": "a", "group": "photo", "method": "hr", "values": {"psnr_y": "inf"}}]
    same = {"protocol": "border 2.", "precision": "fp32", "data_fingerprint": "00", "machine": "a", "date": "today"}
    return {**same, **facts, "images": images}


GAIN = {0: 0.1, 1: 0.2, 2: 0.3}
ARMS = {"base": [], "new": ["x=1"]}


def results(**facts):
    found = {("base", seed): evaluation(lambda i, s=seed: 10.0 * s + ord(i[0])) for seed in GAIN}
    gains = {s: evaluation(lambda i, s=s: 10.0 * s + ord(i[0]) + GAIN[s] * (1 + 9 * (i == "sky"))) for s in GAIN}
    return {**found, **{("new", seed): {**made, **facts} for seed, made in gains.items()}}


def test_arms_are_compared_seed_by_seed_and_group_by_group():
    photo, flat = compared(results(), list(ARMS), "rt4ksr", ["psnr_y"])
    assert (photo.name, photo.images, flat.name, flat.images) == ("photo", 2, "flat", 1)
    found = photo.arms["new"]["psnr_y"]
    assert (found.difference, found.seeds) == (pytest.approx(0.2), 3)
    assert found.half_width == pytest.approx(4.3027 * 0.1 / 3**0.5, rel=1e-4)  # Student's t with 2 degrees of freedom
    assert flat.arms["new"]["psnr_y"].difference == pytest.approx(2.0)


def test_only_seeds_that_every_arm_has_are_compared():
    found = results()
    del found["new", 2]
    (photo, _) = compared(found, list(ARMS), "rt4ksr", ["psnr_y"])
    assert photo.arms["new"]["psnr_y"].seeds == 2
    assert compared({("base", 0): found["base", 0]}, list(ARMS), "rt4ksr", ["psnr_y"]) == []


@pytest.mark.parametrize("key", ["protocol", "precision", "data_fingerprint"])
def test_evaluations_of_another_kind_are_not_compared(key):
    text = report("s", "b", ARMS, "rt4ksr", ["psnr_y"], {"set5": results(**{key: "other"})}, [])
    assert f"Not compared: evaluations differ in {key}: " in text


def test_a_method_or_metric_that_was_not_measured_is_named():
    for method, metric, message in (("rtksr", "psnr_y", "method: rtksr is none"), ("rt4ksr", "psnr", "metrics: psnr")):
        assert message in report("s", "b", ARMS, method, [metric], {"set5": results()}, [])
    assert "psnr_y of a is not finite" in report("s", "b", ARMS, "hr", ["psnr_y"], {"set5": results()}, [])


def test_the_report_says_what_the_arms_are_and_how_they_were_measured():
    text = report("s", "rt4ksr/x", ARMS, "rt4ksr", ["psnr_y"], {"set5": results()}, ["no room"])
    assert "| new | +0.2000 ± 0.2484 (within the noise) |" in text
    for part in ("Arm base: the base.", "Arm new: x=1.", "a, today, fp32. border 2.", "Failed: no room"):
        assert part in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: no/such\narms: {a: [], b: []}\nmethod: rt4ksr\n", "EXP=no/such: no such experiment"),
        ("base: rt4ksr/s_x2_mini\narms: {a: [], b: [network.hf=1]}\nmethod: rt4ksr\n", "arm b: unknown option"),
        ("base: rt4ksr/s_x2_mini\narms: {a: []}\nmethod: rt4ksr\n", "expected at least two arms"),
        ("base: rt4ksr/s_x2_mini\narmes: {}\n", "armes"),
        ("base: [\n", "mine.yaml"),
        ("- a\n- b\n", "mine.yaml"),
        (SMALL.format(data="bundled").replace("[3]", "[3, 3]"), "expected at least one seed, each once"),
        (SMALL.format(data=""), "data is empty"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_before_any_run(write, text, message):
    with pytest.raises(OptionError) as raised:
        read_study(write(text))
    assert message in str(raised.value)


def test_a_missing_study_lists_what_there_is():
    with pytest.raises(OptionError, match=r"STUDY=no: no such study; found .*l_hf"):
        read_study("no")


def test_test_sets_of_one_name_have_results_of_their_own(tmp_path):
    trial = Trial("base", 0, tmp_path)
    assert len({trial.results(data) for data in ("bundled", "a/set5", "b/set5")}) == 3
