"""Studies: their files, their runs as processes of their own, the table at the end."""

import json
import subprocess
import sys

import pytest
import torch

from datamodules.image_io import write_image
from experiments.checks import OptionError
from experiments.options import FOLDER
from experiments.study import STUDIES, Trial, comparisons, read_study, report, run_study, table, trials_of

SMALL = """
base: rt4ksr/s_x2_mini
overrides: [trainer.accelerator=cpu, trainer.threads=1, network.blocks=1, network.channels=12]
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
    assert "| 1 seeds | psnr_y |" in text
    assert "branch_off" in text
    assert (folder / "study.md").read_text() == text
    logs = {path: path.read_text() for path in folder.glob("*/seed3.log")}
    assert len(logs) == 2
    assert all("experiments.train" in log and "network.channels=12" in log for log in logs.values())

    results = {arm: folder / arm / "seed3" / "evaluate" / "set" / "results.json" for arm in ("base", "branch_off")}
    value = {arm: _psnr(path) for arm, path in results.items()}
    difference = value["branch_off"] - value["base"]
    assert f"{difference:+.4f} ± inf (within the noise)" in text

    again, _ = run_study(study, folder, workers=1, data=[], tiny=True)
    assert again == text
    assert {path: path.read_text() for path in folder.glob("*/seed3.log")} == logs, "nothing was run twice"


def _psnr(path):
    (row,) = [row for row in json.loads(path.read_text())["images"] if row["method"] == "rt4ksr"]
    return row["values"]["psnr_y"]


def test_a_failed_run_is_reported_and_the_others_go_on(write, tmp_path, command_environment):
    study, folder = write(SMALL.format(data="bundled")), tmp_path / "runs"
    for arm in ("base", "branch_off"):  # finished trainings whose checkpoint is none
        (folder / arm / "seed3" / "checkpoints").mkdir(parents=True)
        (folder / arm / "seed3" / "checkpoints" / "last.ckpt").write_text("damaged")
        (folder / arm / "seed3" / "finished").touch()
    command = [sys.executable, "-m", "experiments.study", study, "--runs", str(folder)]
    ended = subprocess.run(command, env=command_environment, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 1
    assert "No seed is finished in every arm." in ended.stdout
    for arm in ("base", "branch_off"):
        assert f"Failed: {arm}, seed 3: experiments.evaluate ended with 2: error: CKPT=" in ended.stdout


def _finished(options, trials, data, value):
    for trial in trials:
        images = [{"image": i, "method": "rt4ksr", "values": {"psnr_y": value(trial, i)}} for i in ("a", "b")]
        images.append({"image": "a", "method": "bicubic", "values": {"psnr_y": 0.0}})
        trial.results(data).mkdir(parents=True)
        (trial.results(data) / "results.json").write_text(json.dumps({"images": images}))


def test_arms_are_compared_seed_by_seed(write, tmp_path):
    _, options = read_study(write(SMALL.format(data="bundled").replace("[3]", "[0, 1, 2]")))
    trials = trials_of(options, tmp_path)
    gain = {0: 0.1, 1: 0.2, 2: 0.3}
    _finished(options, trials, "bundled", lambda t, i: 10.0 * t.seed + ord(i) + (t.arm != "base") * gain[t.seed])
    found = comparisons(options, trials, "bundled")["branch_off"]["psnr_y"]
    assert (found.difference, found.seeds) == (pytest.approx(0.2), 3)
    assert found.half_width == pytest.approx(4.3027 * 0.1 / 3**0.5, rel=1e-4)  # Student's t with 2 degrees of freedom
    (trials[-1].results("bundled") / "results.json").unlink()
    assert comparisons(options, trials, "bundled")["branch_off"]["psnr_y"].seeds == 2, "only whole seeds are compared"
    assert "(within the noise)" in table(options, comparisons(options, trials, "bundled"))
    assert "Arm branch_off: network.hf_branch=false." in report("mine", options, trials, [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: no/such\narms: {a: [], b: []}\nmethod: rt4ksr\n", "EXP=no/such: no such experiment"),
        ("base: rt4ksr/s_x2_mini\narms: {a: [], b: [network.hf=1]}\nmethod: rt4ksr\n", "unknown option network.hf"),
        ("base: rt4ksr/s_x2_mini\narms: {a: []}\nmethod: rt4ksr\n", "expected at least two arms"),
        ("base: rt4ksr/s_x2_mini\narmes: {}\n", "armes"),
        ("base: [\n", "mine.yaml"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_before_any_run(write, text, message):
    with pytest.raises(OptionError) as raised:
        read_study(write(text))
    assert message in str(raised.value)


def test_a_missing_study_lists_what_there_is():
    with pytest.raises(OptionError, match=r"STUDY=no: no such study; found .*l_hf"):
        read_study("no")


def test_results_of_test_sets_do_not_mix(tmp_path):
    trial = Trial("base", 0, tmp_path)
    assert trial.results("bundled") != trial.results("data/set5")
