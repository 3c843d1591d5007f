import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.curation.engine import Task, curate_files
from datamodules.curation.journal import Journal
from datamodules.curation.measure import measure_image
from datamodules.curation.scan import RawFile, scan
from datamodules.curation.settings import Curation, PreliminaryBounds, ScoreModels
from datamodules.curation.table import write_table

pytest.importorskip("ray", reason='the extra "ray" is not installed')

from datamodules.curation.ray_engine import run_ray

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # Ray takes most of a minute to start on two cores


@pytest.fixture(autouse=True)
def not_nice(monkeypatch):
    """Ray's processes give way to all others by default, and starve beside other tests."""
    monkeypatch.setenv("RAY_worker_niceness", "0")


@pytest.fixture
def deadly(monkeypatch):
    """The module deadly.py, importable in Ray's processes too."""
    folder = str(Path(__file__).parent)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", folder, prepend=":")
    return importlib.import_module("deadly")


def here(tasks, settings, workers):
    for task in tasks:
        yield task, measure_image(task.file.path, task.file.relative, settings, task.known, task.judging)


def test_ray_gives_the_same_table_byte_for_byte_and_keeps_the_journal(tmp_path):
    generator = np.random.default_rng(0)
    (tmp_path / "raw").mkdir()
    for i in range(12):
        pixels = generator.integers(0, 256, (96, 100 + i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "raw" / f"{i:02}.png")
    (tmp_path / "raw/broken.jpg").write_text("no image")
    files, _ = scan(tmp_path / "raw", tmp_path / "out")
    settings = Curation(PreliminaryBounds(short_side=64, pixels=9700, high_band=0))
    for name, engine in (("ray", run_ray), ("here", here)):
        with Journal(tmp_path / f"{name}.jsonl", settings) as journal:
            write_table(curate_files(files, settings, journal, engine, 2), tmp_path / f"{name}.parquet")
    assert (tmp_path / "ray.parquet").read_bytes() == (tmp_path / "here.parquet").read_bytes()
    rows = [
        sorted((json.loads(line)["row"] for line in (tmp_path / f"{name}.jsonl").open()), key=lambda row: row["path"])
        for name in ("ray", "here")
    ]
    assert rows[0] == rows[1]
    assert sum("sharpness" in row for row in rows[0]) == 10


def test_a_model_that_cannot_be_loaded_ends_the_run_with_one_sentence(deadly, tmp_path):
    tasks = [Task(RawFile(tmp_path / name, name, 1, 1), {}) for name in "ab"]
    with pytest.raises(ValueError, match=r"^judge.folder=here: no model can be loaded for [ab]$"):
        list(run_ray(tasks, Curation(), 1, deadly.refuse))
    wrong = Curation(models=ScoreModels(niqe=str(tmp_path / "no.npz")))
    with pytest.raises(ValueError, match=r"^models.niqe: found no file at .*no.npz, expected [^\n]*$"):
        list(run_ray(tasks, wrong, 1))


def test_a_process_that_dies_costs_its_image_and_not_the_run(deadly, tmp_path):
    tasks = [Task(RawFile(tmp_path / name, name, 1, 1), {}) for name in ("a", "deadly", "b", "once", "c")]
    rows = {row["path"]: row for _, row in run_ray(tasks, Curation(), 2, deadly.measure)}
    assert {name: row.get("failure") for name, row in rows.items()} == {
        "a": None,
        "b": None,
        "c": None,
        "once": None,
        "deadly": "crashed",
    }
