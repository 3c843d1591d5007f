import contextlib
import fcntl
import io
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.curation.settings import Curation
from datamodules.curation.table import read_table
from experiments import curate as command
from experiments.curation_options import load_curation, options_yaml
from experiments.options import FOLDER

ROOT = FOLDER.parent
TINY = ["preliminary.short_side=64", "preliminary.pixels=4096", "preliminary.high_band=0", "preliminary.flat_share=1"]
ANY = [
    *TINY,
    "preliminary.chroma=0",
    "preliminary.near_duplicate_bits=-1",
    "quality.sharpness=0",
    "quality.noise=1",
    "quality.blockiness=1000",
    "quality.saturated_share=1",
]
KEEPING = [*ANY, "preliminary.high_band=-1000"]
"""Keeps noise of any size."""


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Forty tiny pictures, two of them too small, and two broken files."""
    folder = tmp_path_factory.mktemp("photographs")
    generator = np.random.default_rng(0)
    for i in range(40):
        side = 32 if i in (7, 23) else 96
        pixels = generator.integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
    (folder / "text.jpg").write_text("no image")
    (folder / "empty.png").touch()
    (folder / "notes.txt").touch()
    (folder / "scan.TIF").touch()
    return folder


def run(*words, **options):
    """The command in a process of its own."""
    line = [sys.executable, "-m", "experiments.curate", *map(str, words)]
    return subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def main(capsys, monkeypatch, *words):
    """Exit code, output and errors of the command in this process (not counting those that measure)."""
    monkeypatch.setattr(sys, "argv", ["curate", *map(str, words)])
    try:
        command.main()
        code = 0
    except SystemExit as ended:
        code = ended.code
    said = capsys.readouterr()
    return code, said.out, said.err


def outputs(out):
    return {name: (out / name).read_bytes() for name in ("curation.parquet", "kept.txt", "report/index.html")}


@pytest.fixture(scope="module")
def undisturbed(raw, tmp_path_factory):
    """Output of one undisturbed run, and what it said."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        command.curate(raw, out, load_curation("small", [*ANY, "workers=2"]))
    return out, said.getvalue()


def test_a_folder_is_curated(raw, undisturbed):
    out, said = undisturbed
    table = read_table(out / "curation.parquet").to_pylist()
    assert [row["path"] for row in table] == sorted(p.name for p in raw.iterdir() if p.suffix in (".png", ".jpg"))
    reasons = {row["path"]: row["reason"] for row in table if row["verdict"] == "drop"}
    assert reasons == {
        "07.png": "short_side",
        "23.png": "short_side",
        "empty.png": "unreadable",
        "text.jpg": "unreadable",
    }
    assert (out / "kept.txt").read_text().split() == [row["path"] for row in table if row["verdict"] == "keep"]
    for line in ("42 images below", "1 .txt", "1 .tif", "niqe is skipped: set models.niqe", "38 kept", "4 dropped"):
        assert line in said
    assert f"raw: {raw}\n" in (out / "options.yaml").read_text()
    assert str(raw) not in (out / "curation.parquet").read_bytes().decode("latin-1")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_after_ten_kills_the_output_is_byte_equal(tmp_path):
    raw, generator = tmp_path / "raw", np.random.default_rng(0)
    raw.mkdir()
    for i in range(100):  # large enough that ten kills come before the last of them
        pixels = generator.integers(0, 256, (512, 512 + i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(raw / f"{i:02}.png", compress_level=1)
    command.curate(raw, tmp_path / "undisturbed", load_curation("small", [*KEEPING, "workers=2"]))
    out, journal, lines = tmp_path / "out", tmp_path / "out/journal.jsonl", []
    for _ in range(10):
        lines.append(_lines(journal))
        # at some moment after something new was measured, which is where work could be lost or doubled
        _kill(raw, out, lambda: _lines(journal) > lines[-1], generator.random() * 0.2)
    assert lines == sorted(lines)
    assert lines[-1] < 100
    assert run(raw, out, "--workers", 2, *KEEPING).wait(300) == 0
    assert _lines(journal) == 100
    for _ in range(4):
        # at some moment after options.yaml, the first file of the result, was written
        start = time.time()
        _kill(raw, out, partial(_is_newer, out / "options.yaml", start), generator.random() * 0.2)
    assert run(raw, out, "--workers", 2, *KEEPING).wait(300) == 0
    assert outputs(out) == outputs(tmp_path / "undisturbed")
    left = [path.name for path in out.rglob(".*")]
    assert left == [".lock"]


def _is_newer(path, start):
    return path.exists() and path.stat().st_mtime > start


def _kill(raw, out, begun, seconds):
    """Start the command, and kill it so many seconds after something has begun."""
    process = run(raw, out, "--workers", 2, *KEEPING)
    while process.poll() is None and not begun():
        time.sleep(0.005)
    time.sleep(seconds)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def _lines(journal):
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


@pytest.mark.slow
def test_no_process_stays_behind_when_the_command_is_killed(raw, tmp_path):
    process = run(raw, tmp_path, "--workers", 2, *ANY)
    while process.poll() is None and not _lines(tmp_path / "journal.jsonl"):
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) >= 2
    process.kill()
    process.communicate()
    end = time.monotonic() + 60
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < end, "a process that measures outlives the command"
        time.sleep(0.1)


@pytest.mark.slow
def test_ctrl_c_ends_with_one_line_and_the_same_command_goes_on(raw, undisturbed, tmp_path):
    process = run(raw, tmp_path, "--workers", 2, *ANY, start_new_session=True)
    while process.poll() is None and not _lines(tmp_path / "journal.jsonl"):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process of the command
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped; what was measured is kept: the same command goes on from here" in said
    assert "Traceback" not in errors
    assert run(raw, tmp_path, "--workers", 2, *ANY).wait(120) == 0
    assert outputs(tmp_path) == outputs(undisturbed[0])


def test_other_bounds_measure_nothing_again(raw, undisturbed, tmp_path, capsys, monkeypatch):
    (tmp_path / "journal.jsonl").write_bytes((undisturbed[0] / "journal.jsonl").read_bytes())
    before = _lines(tmp_path / "journal.jsonl")
    words = [raw, tmp_path, "--workers", 1, *ANY, "quality.noise=0.0001"]
    code, said, _ = main(capsys, monkeypatch, *words)
    assert code == 0
    assert "No image is kept: the commonest reason is noisy, 38 of 42 images; its option is quality.noise." in said
    assert "0 measured, 42 known before" in said
    assert _lines(tmp_path / "journal.jsonl") == before
    assert (tmp_path / "kept.txt").read_text() == ""


def test_a_second_curation_of_the_same_folder_is_refused(raw, tmp_path, capsys, monkeypatch):
    with (tmp_path / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        code, _, errors = main(capsys, monkeypatch, raw, tmp_path, *ANY)
    assert code == 2
    assert errors == f"error: OUT={tmp_path}: another curation is at work there; wait for it, or give another OUT=\n"


def folders(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/a.tif").touch()
    (tmp_path / "file").touch()


@pytest.mark.parametrize(
    ("raw", "out", "message"),
    [
        ("nowhere", "out", "RAW={0}/nowhere: expected a folder of photographs, found nothing"),
        ("file", "out", "RAW={0}/file: expected a folder of photographs, found a file"),
        ("raw", "file", "OUT={0}/file is a file; give a folder"),
        ("raw", "raw", "OUT={0}/raw is the folder RAW= itself; give another one, it may lie inside of it"),
        ("raw", "out", "RAW={0}/raw holds no PNG, JPEG, WebP or BMP image: found 1 .tif"),
    ],
)
def test_wrong_folders_end_in_one_sentence(tmp_path, capsys, monkeypatch, raw, out, message):
    folders(tmp_path)
    code, _, errors = main(capsys, monkeypatch, tmp_path / raw, tmp_path / out)
    assert code == 2
    assert errors == f"error: {message.format(tmp_path)}\n"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("preliminary.shortside=1", "unknown option preliminary.shortside in .*: did you mean short_side?"),
        ("short_side=1", "unknown option short_side in .*: known at the top: preliminary, quality"),
        ("preliminary.short_side=large", "option preliminary.short_side='large' in .*: expected int"),
        ("preliminary=1", "option preliminary=1 in .*: expected a group of options"),
        ("preliminary.short_side=0", "option preliminary.short_side=0: expected a value above 0"),
        ("preliminary.aspect=0.5", "option preliminary.aspect=0.5: expected 1 or more"),
        ("preliminary.bit_depth=12", "option preliminary.bit_depth=12: expected 8 or 16"),
        ("preliminary.near_duplicate_bits=-2", "option preliminary.near_duplicate_bits=-2: expected -1 to"),
        ("quality.dark_share=1.5", "option quality.dark_share=1.5: expected a value from 0 to 1"),
        ("quality.niqe=.nan", "option quality.niqe=nan: expected a finite number"),
        ("quality.pyiqa.nice=1", "option quality.pyiqa.nice: unknown metric; known: brisque"),
        ("workers=-1", "option workers=-1: expected 0 .one per core. or more"),
        ("models.niqe=no.npz", "models.niqe=no.npz: no such file"),
        ("judge.folder=nowhere", "judge.folder=nowhere: no such folder"),
        ("judge.attempts=0", "judge.attempts=0, expected 1 or more"),
    ],
)
def test_a_wrong_option_ends_in_a_sentence_with_key_value_and_expectation(override, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_curation("photos4k", [override])


def test_an_unknown_configuration_lists_what_there_is():
    with pytest.raises(ValueError, match=r"CONFIG=no: no such curation; found photos4k, small, or give a .yaml file"):
        load_curation("no")


@pytest.mark.parametrize("name", [path.stem for path in (FOLDER / "curation").glob("*.yaml")])
def test_shipped_configurations_load_and_come_back_from_their_own_file(name, tmp_path):
    options = load_curation(name)
    text = options_yaml(options, tmp_path)
    (tmp_path / "options.yaml").write_text(text.split("\n", 1)[1])
    assert text.startswith(f"raw: {tmp_path}\n")
    assert load_curation(str(tmp_path / "options.yaml")) == options


def test_the_default_configuration_says_what_the_dataclass_says():
    assert load_curation("photos4k") == Curation()


def test_a_file_may_stand_on_a_shipped_one(tmp_path):
    (tmp_path / "mine.yaml").write_text("base: curation/photos4k.yaml\nquality: {niqe: 5}\n")
    options = load_curation(str(tmp_path / "mine.yaml"), ["preliminary.short_side=100"])
    assert (options.quality.niqe, options.preliminary.short_side) == (5.0, 100)
