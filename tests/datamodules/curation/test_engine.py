import functools
import importlib
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tqdm import tqdm

from datamodules.curation.engine import Task, curate_files, run_local
from datamodules.curation.journal import Journal
from datamodules.curation.measure import measure_image
from datamodules.curation.scan import RawFile, scan
from datamodules.curation.settings import Curation, JudgeModel, PreliminaryBounds, QualityBounds
from datamodules.curation.table import write_table
from datamodules.curation.verdicts import is_judged


@pytest.fixture
def deadly(monkeypatch):
    """The module deadly.py, importable in other processes too."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return importlib.import_module("deadly")


def tasks(folder, names):
    return [Task(RawFile(folder / name, name, 1, 1), {}) for name in names]


def test_a_process_that_dies_costs_its_image_and_not_the_run(deadly, tmp_path):
    names = ["a", "deadly", "b", "endless", "once", "d"]
    rows = {row["path"]: row for _, row in run_local(tasks(tmp_path, names), Curation(), 2, deadly.measure)}
    assert sorted(rows) == sorted(names)
    assert {name: row["failure"] for name, row in rows.items() if "failure" in row} == {
        "deadly": "crashed",
        "endless": "crashed",
    }
    assert all(row["threads"] == ["1", "1"] for row in rows.values() if "failure" not in row)
    assert os.getpid() not in {row.get("process") for row in rows.values()}


def test_a_model_that_cannot_be_loaded_ends_the_run(deadly, tmp_path):
    with pytest.raises(ValueError, match=r"^judge.folder=here: no model can be loaded for a$"):
        list(run_local(tasks(tmp_path, "abcd"), Curation(), 1, deadly.refuse))


def in_this_process(measured):
    """An engine that measures here, one image after the other, and notes which."""

    def engine(tasks, settings, workers):
        for task in tasks:
            measured.append(task.file.relative)
            yield task, measure_image(task.file.path, task.file.relative, settings, task.known, task.judging)

    return engine


@pytest.fixture
def files(tmp_path):
    """Three pictures of noise, of 64, 96 and 128 px, and one of 600 x 16 px."""
    generator = np.random.default_rng(0)
    for i, (height, width) in enumerate([(64, 64), (96, 96), (128, 128), (16, 600)]):
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    return scan(tmp_path, tmp_path / "out")[0]


def bounds(**preliminary):
    """Bounds that let any noise pass."""
    loose = PreliminaryBounds(short_side=1, pixels=1, high_band=0, flat_share=1, near_duplicate_bits=-1)
    for name, value in preliminary.items():
        setattr(loose, name, value)
    return Curation(loose, QualityBounds(sharpness=0, noise=1, blockiness=1e9, saturated_share=1))


def test_other_bounds_measure_only_what_is_lacking(files, tmp_path):
    def curated(settings, journal="journal.jsonl"):
        measured = []
        with Journal(tmp_path / journal, settings) as opened:
            rows = curate_files(files, settings, opened, in_this_process(measured), 1)
        return rows, measured

    rows, measured = curated(bounds(short_side=96))
    assert measured == ["0.png", "1.png", "2.png", "3.png"]
    assert [row["reason"] for row in rows] == ["short_side", "", "", "short_side"]
    assert ["sharpness" in row for row in rows] == [False, True, True, False]
    for settings, lacking in [
        (bounds(short_side=97), []),
        (bounds(short_side=96, max_pixels=10_000), []),
        (bounds(short_side=64), ["0.png"]),
        (bounds(short_side=96), []),
        (bounds(short_side=1, aspect=40.0), ["3.png"]),
    ]:
        rows, measured = curated(settings)
        assert measured == lacking
        assert rows == curated(settings, f"{settings.preliminary}.jsonl"[-40:])[0]


def test_after_kills_at_any_moment_the_table_is_byte_equal(tmp_path):
    generator = np.random.default_rng(0)
    for i in range(40):
        pixels = generator.integers(0, 256, (64 + i, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    files, settings = scan(tmp_path, tmp_path / "out")[0], bounds(pixels=65 * 64)

    def curate(journal):
        with Journal(tmp_path / journal, settings) as opened:
            return curate_files(files, settings, opened, in_this_process([]), 1)

    start = time.monotonic()
    write_table(curate("undisturbed.jsonl"), tmp_path / "undisturbed.parquet")
    seconds = time.monotonic() - start
    for _ in range(8):
        process = os.fork()
        if not process:
            try:
                torch.set_num_threads(1)
                tqdm.set_lock(threading.RLock())  # its own is shared with forks, and would stay held by a killed one
                curate("disturbed.jsonl")
            finally:
                os._exit(0)
        time.sleep(seconds * generator.random() / 3)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    write_table(curate("disturbed.jsonl"), tmp_path / "disturbed.parquet")
    assert (tmp_path / "disturbed.parquet").read_bytes() == (tmp_path / "undisturbed.parquet").read_bytes()


def test_an_image_of_too_many_pixels_is_decoded_when_more_are_allowed(files, tmp_path):
    for most, reason in [(5000, "too_many_pixels"), (10_000_000, "")]:
        measured = []
        settings = bounds(max_pixels=most, aspect=40.0)
        with Journal(tmp_path / "journal.jsonl", settings) as journal:
            rows = curate_files(files, settings, journal, in_this_process(measured), 1)
        assert [row["reason"] for row in rows] == ["", reason, reason, reason]
    assert measured == ["1.png", "2.png", "3.png"]


def test_names_that_no_table_holds_are_rows(tmp_path):
    names = ["two\nlines.png", b"caf\xe9.png".decode("utf-8", "surrogateescape")]
    for name in names:
        Image.new("RGB", (8, 8)).save(os.fsencode(tmp_path / name))
    with Journal(tmp_path / "journal.jsonl", bounds()) as journal:
        rows = curate_files(scan(tmp_path, tmp_path / "out")[0], bounds(), journal, in_this_process([]), 1)
    assert [(row["path"], row["reason"]) for row in rows] == [("caf\\udce9.png", "name"), ("two\\nlines.png", "name")]


def test_an_image_that_the_memory_does_not_hold_is_a_row(deadly, tmp_path):
    Image.new("RGB", (8000, 8000)).save(tmp_path / "large.png")
    ((_, row),) = run_local(tasks(tmp_path, ["large.png"]), Curation(), 1, deadly.measure_in_little_memory)
    assert row["failure"] == "out_of_memory"
    assert (row["width"], row["height"]) == (8000, 8000)


def test_an_image_that_kills_its_judge_stays_kept_and_is_asked_about_again(deadly, files, tmp_path):
    settings = replace(bounds(aspect=40.0), judge=JudgeModel(endpoint="http://localhost:1/v1"))
    engine = functools.partial(run_local, measure=deadly.die_when_asked_to_judge)
    with Journal(tmp_path / "journal.jsonl", settings) as journal:
        (row,) = curate_files(files[:1], settings, journal, engine, 1)
        assert not is_judged(journal.row(files[0]))
        assert journal.row(files[0])["sharpness"] == row["sharpness"]
        assert journal.measured == 1
    assert (row["verdict"], row["stage"]) == ("keep", 2)
    assert row["detail"] == "not judged: the process that judged it was killed, twice"


def test_nothing_to_measure_starts_no_process():
    assert list(run_local([], Curation(), 2)) == []
