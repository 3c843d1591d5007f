"""The command that compares a study: what it reads, what it writes, how it ends."""

import json
import math
import re
import sys

import pytest
from omegaconf import OmegaConf
from PIL import Image

from experiments.compare import main
from experiments.study_options import arm_trials, read_study
from experiments.study_worker import Work

STUDY = """
base: rt4ksr/s_x2_mini
arms:
  base: []
  new: [network.blocks=1]
seeds: [0, 1]
tests:
  one: {data: bundled}
  two: {data: bundled, crop: 64}
method: rt4ksr
metrics: {psnr_y: higher}
"""
SEARCH = """
base: rt4ksr/s_x2_mini
search:
  space: {optimizer.learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}}
  objective: {val/perceptual: 1}
seeds: [0]
method: rt4ksr
"""


@pytest.fixture
def study(tmp_path):
    """Path of a study's file, and its folder of runs."""
    (tmp_path / "mine.yaml").write_text(STUDY)
    (tmp_path / "runs").mkdir()
    return tmp_path / "mine.yaml", tmp_path / "runs"


@pytest.fixture
def end_of(monkeypatch, capsys):
    """end_of(arguments) -> exit code, output and errors of the command."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["compare", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capsys.readouterr()

    return run


def finish(study, *tests, **facts_of_new):
    """Give every run results of these tests; PSNR is 30 + seed, of the arm `new` 1 more."""
    _, options = read_study(str(study[0]))
    for trial in arm_trials(options, study[1]):
        for name in tests:
            values = {"psnr_y": 30.0 + trial.seed + (trial.arm == "new")}
            rows = [
                {"group": "photo", "method": method, "images": 1, "values": values} for method in ("bicubic", "rt4ksr")
            ]
            facts = {"protocol": "Border 2.", "precision": "fp32", "data_fingerprint": name, "machine": "a"}
            facts |= {"date": "today", "versions": {}} | (facts_of_new if trial.arm == "new" else {})
            folder = trial.results(name, options.tests[name])
            folder.mkdir(parents=True)
            images = [{**row, "image": "a"} for row in rows]
            (folder / "results.json").write_text(json.dumps({**facts, "rows": rows, "images": images}))


def test_it_writes_the_report_the_figures_and_the_page(study, end_of):
    finish(study, "one", "two")
    code, text, _ = end_of(study[0], "--runs", study[1])
    assert code == 0
    assert re.search(r"\| new \(2 seeds\) +\| \+1\.000 ± 0\.000 better \|", text)
    assert (study[1] / "study.md").read_text() in text
    assert (study[1] / "report" / "index.html").is_file()
    for name in ("one", "two"):
        with Image.open(study[1] / "figures" / f"{name}-psnr_y.png") as image:
            assert image.size[0] == 900


def test_it_ends_with_1_for_a_part_and_with_2_for_nothing(study, end_of):
    finish(study, "one")
    code, text, _ = end_of(study[0], "--runs", study[1])
    assert code == 1
    assert "not trained yet: base, seeds 0 1; new, seeds 0 1" in text
    finish(study, "two", precision="bf16 autocast")
    code, text, _ = end_of(study[0], "--runs", study[1])
    assert code == 1
    assert text.count("Not compared: ") == 1
    (study[1] / "study.yaml").write_text(STUDY.replace("one: {data: bundled}", ""))
    assert end_of(study[0], "--runs", study[1])[0] == 2


def test_the_options_are_those_of_the_runs_and_data_those_of_the_command(study, end_of):
    finish(study, "one")
    one_arm = STUDY.replace("  new: [network.blocks=1]\n", "").replace("  two: {data: bundled, crop: 64}\n", "")
    (study[1] / "study.yaml").write_text(one_arm)
    code, text, _ = end_of(study[0], "--runs", study[1])
    assert code == 0
    assert "new" not in text.split("report")[0]
    code, text, _ = end_of(study[0], "elsewhere/set5", "--runs", study[1])
    assert code == 2
    assert "## Test set set5" in text


def test_a_study_without_runs_is_told(study, end_of):
    code, _, said = end_of(study[0], "--runs", study[1] / "none")
    assert code == 2
    assert said == f"error: OUT={study[1] / 'none'}: no such folder: run make study STUDY={study[0]} first\n"
    assert not (study[1] / "none").exists()


def test_reasons_of_failed_trials_come_from_the_storage(study, end_of):
    finish(study, "one", "two")
    name, options = read_study(str(study[0]))
    store = Work(name, options, study[1], "", False, 1, math.inf).open_store()
    store.enqueue(arm_trials(options, study[1]), lambda trial: False, False)
    claim = store.claim()
    store.end(claim, "failed", "no room left")
    store.close()
    for path in claim.trial.folder.glob("study/*/results.json"):
        path.unlink()
    _, text, _ = end_of(study[0], "--runs", study[1])
    assert text.count(f"failed: no room left: {claim.trial.title}") == 2


def test_a_search_is_a_table_of_its_trials(study, end_of):
    study[0].write_text(SEARCH)
    name, options = read_study(str(study[0]))
    store = Work(name, options, study[1], "", False, 1, math.inf).open_store()
    for value in (0.5, 0.25):
        store.end(store.claim(2, 0), "done", "", {"objective": value})
    store.close()
    _, text, _ = end_of(study[0], "--runs", study[1])
    assert text.startswith("Best trial: trial001.")
    assert (study[1] / "study.md").read_text().startswith("Best trial: trial001.")


def test_study_yaml_as_the_study_writes_it_is_read(study, end_of):
    finish(study, "one", "two")
    _, options = read_study(str(study[0]))
    (study[1] / "study.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(options)))
    assert end_of(study[0], "--runs", study[1])[0] == 0
