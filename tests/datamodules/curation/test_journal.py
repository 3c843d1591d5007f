import ast
import importlib
import importlib.metadata
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from datamodules.curation.journal import CODE, PACKAGES, Journal, score_keys
from datamodules.curation.scan import RawFile
from datamodules.curation.settings import Curation, JudgeModel, ScoreModels

FILE = RawFile(Path("raw/a.jpg"), "a.jpg", 10, 123)
ROW = {"path": "a.jpg", "fingerprint": "aa", "chroma": 0.1, "sharpness": 0.2, "niqe": None, "judge_keep": True}


def written(folder, rows, settings=None):
    path = folder / "journal.jsonl"
    with Journal(path, settings or Curation()) as journal:
        for file, row in rows:
            journal.append(file, row)
    return path


def test_rows_come_back_with_every_bit_of_their_floats(tmp_path):
    values = np.random.default_rng(0).standard_normal(500) * 10.0 ** np.arange(-250, 250)
    path = written(tmp_path, [(FILE, ROW | {f"pyiqa_{i}": v for i, v in enumerate(values.tolist())})])
    row = Journal(path, Curation()).row(FILE)
    assert [row[f"pyiqa_{i}"] for i in range(500)] == values.tolist()
    assert row["niqe"] is None


def test_a_line_is_there_as_soon_as_it_was_appended(tmp_path):
    with Journal(tmp_path / "journal.jsonl", Curation()) as journal:
        journal.append(FILE, ROW)
        assert Journal(tmp_path / "journal.jsonl", Curation()).row(FILE) == ROW


@pytest.mark.parametrize("change", [{"relative": "b.jpg"}, {"size": 11}, {"mtime_ns": 124}])
def test_a_file_that_changed_is_not_known(tmp_path, change):
    path = written(tmp_path, [(FILE, ROW)])
    assert Journal(path, Curation()).row(replace(FILE, path=Path("moved/a.jpg"))) == ROW
    assert Journal(path, Curation()).row(replace(FILE, **change)) is None


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_line_cut_by_a_kill_is_dropped_and_the_next_one_is_whole(tmp_path, cut):
    other = replace(FILE, relative="b.jpg")
    path = written(tmp_path, [(FILE, ROW), (other, ROW)])
    os.truncate(path, path.stat().st_size - cut)
    assert Journal(path, Curation()).row(other) is None
    written(tmp_path, [(other, ROW)])
    journal = Journal(path, Curation())
    assert journal.row(FILE) == journal.row(other) == ROW


def test_a_damaged_line_in_the_middle_costs_that_line(tmp_path):
    path = written(tmp_path, [(FILE, ROW)])
    whole = path.read_bytes()
    path.write_bytes(b"\0\0\0\n[1]\n\xff\n" + b'{"path": 1}\n' + whole)
    assert Journal(path, Curation()).row(FILE) == ROW


def test_the_last_of_several_lines_counts(tmp_path):
    path = written(tmp_path, [(FILE, ROW), (FILE, ROW | {"chroma": 0.5})])
    assert Journal(path, Curation()).row(FILE)["chroma"] == 0.5


def test_bounds_change_nothing_but_models_and_the_judge_do(tmp_path):
    path = written(tmp_path, [(FILE, ROW)])
    bounds = Curation(workers=3)
    bounds.preliminary.short_side = bounds.preliminary.max_pixels = 1
    bounds.quality.noise, bounds.judge.least_score, bounds.judge.timeout = 0.0, 5, 1.0
    assert Journal(path, bounds).row(FILE) == ROW
    prompt = Curation(models=ScoreModels(good_prompt="Sharp photo."))
    assert Journal(path, prompt).row(FILE) == {k: ROW[k] for k in ("path", "fingerprint", "chroma", "judge_keep")}
    judge = Curation(judge=JudgeModel(endpoint="http://localhost:1/v1"))
    assert Journal(path, judge).row(FILE) == {k: v for k, v in ROW.items() if k != "judge_keep"}


def test_a_model_is_known_by_its_files_and_not_by_its_place(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "niqe.npz").write_bytes(b"12")
        os.utime(tmp_path / folder / "niqe.npz", ns=(0, 0))

    def key(folder):
        models = ScoreModels(niqe=str(tmp_path / folder / "niqe.npz"), clip=str(tmp_path / folder))
        return score_keys(Curation(models=models))["quality"]

    assert key("a") == key("b")
    os.utime(tmp_path / "b/niqe.npz", ns=(0, 1))
    assert key("a") != key("b")
    assert key("a") != score_keys(Curation())["quality"]


def test_scores_of_other_code_are_measured_anew(tmp_path):
    path = written(tmp_path, [(FILE, ROW)])
    line = json.loads(path.read_text())
    line["keys"]["preliminary"] = "0" * 32
    path.write_text(json.dumps(line) + "\n")
    # a judgement depends on the pixels alone, and may have been paid for
    assert Journal(path, Curation()).row(FILE) == {"path": "a.jpg", "fingerprint": "aa", "judge_keep": True}
    other = Curation(judge=JudgeModel(endpoint="http://localhost:1/v1"))
    assert Journal(path, other).row(FILE) is None


def imported(*names):
    """Names of all modules of datamodules that these import, directly or not, and their own."""
    found, waiting = set(), [f"datamodules.{name}" for name in names]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        for node in ast.walk(ast.parse(Path(importlib.import_module(name).__file__).read_text())):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("datamodules"):
                waiting.append(node.module)
    return found


def test_every_module_that_measuring_imports_is_part_of_a_key():
    no_scores = {"datamodules.files", *(f"datamodules.curation.{name}" for name in ("rows", "settings", "verdicts"))}
    code = {stage: {module.__name__ for module in modules} for stage, modules in CODE.items()}
    assert imported("curation.measure") - no_scores == set.union(*code.values())
    assert imported("curation.vision_judge", "image_io") - no_scores == code["judge"]


def test_packages_are_there_and_their_versions_count(monkeypatch):
    for names in PACKAGES.values():
        assert all(importlib.metadata.version(name) for name in names if name != "pyiqa")
    before = score_keys(Curation())
    monkeypatch.setattr("datamodules.curation.journal.version", lambda name: "0")
    after = score_keys(Curation())
    assert not [stage for stage in before if before[stage] == after[stage]]


def test_a_judgement_outlives_runs_with_another_judge_or_none(tmp_path):
    judge = Curation(judge=JudgeModel(endpoint="http://localhost:1/v1"))
    path = written(tmp_path, [(FILE, ROW)], judge)
    unjudged = {name: value for name, value in ROW.items() if name != "judge_keep"}
    written(tmp_path, [(FILE, unjudged | {"sharpness": 0.5})])
    assert Journal(path, Curation()).row(FILE) == unjudged | {"sharpness": 0.5}
    assert Journal(path, judge).row(FILE) == ROW | {"sharpness": 0.5}
    written(tmp_path, [(FILE, unjudged | {"fingerprint": "bb"})])
    assert Journal(path, judge).row(FILE) == unjudged | {"fingerprint": "bb"}


def test_lines_that_later_ones_replace_go_at_the_end_of_a_run(tmp_path):
    others = [replace(FILE, relative=f"{i}.jpg") for i in range(3)]
    path = tmp_path / "journal.jsonl"
    with Journal(path, Curation()) as journal:
        for value in (0.1, 0.2):
            for file in others:
                journal.append(file, ROW | {"chroma": value, "path": file.relative})
        assert path.read_bytes().count(b"\n") == 6
        assert journal.measured == 3
    assert path.read_bytes().count(b"\n") == 3
    assert list(tmp_path.iterdir()) == [path]
    for again in (journal, Journal(path, Curation())):
        assert [again.row(file)["chroma"] for file in others] == [0.2] * 3


def test_what_may_go_otherwise_next_time_is_not_kept(tmp_path):
    unread = {"path": "a.jpg", "failure": "unreadable", "failure_detail": "Permission denied"}
    crashed = [ROW | {"failure": name, "failure_detail": ""} for name in ("crashed", "out_of_memory")]
    path = written(tmp_path, [(FILE, row) for row in (unread, *crashed)])
    assert Journal(path, Curation()).row(FILE) is None
    broken = ROW | {"failure": "unreadable", "failure_detail": "truncated"}
    assert Journal(written(tmp_path, [(FILE, broken)]), Curation()).row(FILE) == broken


def test_a_judgement_that_failed_is_asked_for_again(tmp_path):
    unsure = {"path": "a.jpg", "fingerprint": "aa", "judge_keep": None, "judge_error": "slow"}
    path = written(tmp_path, [(FILE, unsure)])
    assert Journal(path, Curation()).row(FILE) == {"path": "a.jpg", "fingerprint": "aa"}
