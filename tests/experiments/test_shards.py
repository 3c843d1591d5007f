import multiprocessing
import random
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.shards.reader import open_shards
from experiments import shards, shards_check

FORK = multiprocessing.get_context("fork")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for i in range(8):
        name = f"sub/{i}.png" if i % 2 else f"{i}.jpg"
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(folder / name)
    return folder


def run(program, monkeypatch, *arguments):
    """Exit code of a command."""
    monkeypatch.setattr(sys, "argv", [program.__name__, *map(str, arguments)])
    try:
        program.main()
    except SystemExit as ended:
        return ended.code
    return 0


def test_a_folder_is_packed_and_the_option_for_training_is_told(images, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    assert run(shards, monkeypatch, images, out, "--shard-mb", "0.02") == 0
    said = capsys.readouterr().out.splitlines()
    count = len(list(out.glob("shard-*.tar")))
    assert count > 1
    assert re.fullmatch(rf"packing 8 images, \d+\.\dkB, in {count} shards of 0\.02 MB to {out}", said[0])
    assert said[-1] == f"data.train={out}"
    assert len(open_shards(str(out), "", 0, 8, "data.train", "data.crop")) == 8
    assert run(shards, monkeypatch, images, out, "--shard-mb", "0.02") == 0
    assert f"; {count} shards are finished" in capsys.readouterr().out
    assert run(shards_check, monkeypatch, out) == 0
    assert "all as they were packed" in capsys.readouterr().out


def curate(folder, raw, verdicts, **changes):
    """What `make curate` leaves behind, as far as packing reads it."""
    from datamodules.curation.table import write_table
    from datamodules.shards.manifest import checksum_of

    folder.mkdir()
    rows = []
    for path, verdict in verdicts.items():
        data = (raw / path).read_bytes()
        rows.append({"path": path, "verdict": verdict, "bytes": len(data), "fingerprint": checksum_of(data)} | changes)
    write_table(rows, folder / "curation.parquet")
    (folder / "options.yaml").write_text(f"raw: {raw}\n")
    return folder


def test_of_a_curation_the_kept_images_are_packed(images, tmp_path, monkeypatch, capsys):
    verdicts = {"0.jpg": "keep", "2.jpg": "drop", "sub/1.png": "keep", "sub/3.png": "drop", "6.jpg": "keep"}
    curation = curate(tmp_path / "curation", images, verdicts)
    assert run(shards, monkeypatch, curation, tmp_path / "out") == 0
    assert "3 of 5 images in" in capsys.readouterr().out
    source = open_shards(str(tmp_path / "out"), "", 0, 8, "data.train", "data.crop")
    assert [source.name(i) for i in range(len(source))] == ["0", "6", "sub/1"]
    assert source.read(2) == (images / "sub" / "1.png").read_bytes()


def same_length(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def rewrite_options(curation, text):
    (curation / "options.yaml").write_text(text)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw, curation: (raw / "0.jpg").unlink(), r"0.jpg is missing, which was to be packed"),
        (lambda raw, curation: (raw / "0.jpg").write_bytes(b"x"), "0.jpg has 1 bytes and had"),
        (lambda raw, curation: same_length(raw / "0.jpg"), "0.jpg is not the file that was curated; run `make curate`"),
        (lambda raw, curation: (curation / "options.yaml").unlink(), "no options.yaml with the key raw; run"),
        (
            lambda raw, curation: rewrite_options(curation, "raw: a\n b: c: [\n"),
            "options.yaml cannot be read (",
        ),
        (
            lambda raw, curation: rewrite_options(curation, "raw: ${a\n"),
            "; correct it, or run `make curate`",
        ),
        (lambda raw, curation: rewrite_options(curation, "text"), "options.yaml"),
        (lambda raw, curation: raw.rename(raw.with_name("moved")), "the curated images are no longer at"),
    ],
)
def test_images_that_are_not_those_curated_are_refused(images, tmp_path, monkeypatch, capsys, damage, message):
    curation = curate(tmp_path / "curation", images, {"0.jpg": "keep", "2.jpg": "drop"})
    damage(images, curation)
    assert run(shards, monkeypatch, curation, tmp_path / "out") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line


def test_wrong_input_ends_with_one_sentence(images, tmp_path, monkeypatch, capsys):
    nothing_kept = curate(tmp_path / "curation", images, {"0.jpg": "drop"})
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ((tmp_path / "nowhere", tmp_path / "out"), "expected a folder of images at"),
        ((tmp_path / "empty", tmp_path / "out"), "holds no PNG, JPEG, WebP or BMP image and no curation.parquet"),
        ((nothing_kept, tmp_path / "out"), "the curation kept none of 1 images; loosen"),
        ((images, images), "is not empty and holds no shards; give another folder with OUT="),
        ((images, tmp_path / "out", "--shard-mb", "0"), "SHARD_MB=0: expected the length of a shard in MB"),
    ):
        assert run(shards, monkeypatch, *arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert message in line


def test_the_check_tells_damage_by_its_exit_code(images, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    run(shards, monkeypatch, images, out, "--shard-mb", "0.02")
    same_length(out / "shard-000000.tar")
    (out / "shard-000001.tar").unlink()
    capsys.readouterr()
    assert run(shards_check, monkeypatch, out, "--workers", "1") == 1
    said = capsys.readouterr().out.splitlines()
    assert "shard-000000.tar was altered outside of its images" in said[0]
    assert "shard-000001.tar is missing" in said[1]
    assert "2 problems; delete the damaged file and run `make shards` again" in said[2]
    assert run(shards_check, monkeypatch, out, "--workers", "-1") == 2
    assert capsys.readouterr().err.startswith("error: WORKERS=-1: expected how many shards are read at once, 1 or more")
    (out / "dataset.json").unlink()
    assert run(shards_check, monkeypatch, out) == 2
    assert "is unfinished" in capsys.readouterr().err


def command(images, out):
    """The command in a process of its own, forked: imports would take longer than packing."""
    sys.argv = ["shards", str(images), str(out), "--shard-mb", "2"]
    process = FORK.Process(target=shards.main)
    process.start()
    return process


def started(images, out):
    """The command as a user starts it."""
    arguments = [sys.executable, "-m", "experiments.shards", images, out, "--shard-mb", "2"]
    return subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kill_after(process, out, count, seconds):
    """Kill as soon as there are `count` shards, and a while after that."""
    while process.poll() is None and len(list(out.glob("shard-*.tar"))) < count:
        time.sleep(0.001)
    time.sleep(seconds)
    process.kill()
    return process.wait()


@pytest.mark.parametrize("attempts", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_commands_leave_equal_bytes(tmp_path, monkeypatch, attempts):
    monkeypatch.setattr(sys, "argv", [])
    rng, draw = np.random.default_rng(0), random.Random(0)
    (tmp_path / "images").mkdir()
    for i in range(80):
        pixels = rng.integers(0, 256, (300, 300, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png", compress_level=0)

    def contents(out):
        return {path.name: path.read_bytes() for path in out.iterdir()}

    def finished(out):
        process = command(tmp_path / "images", out)
        process.join()
        assert process.exitcode == 0
        return contents(out)

    outs = [tmp_path / f"killed-{attempt}" for attempt in range(attempts)]
    processes = [started(tmp_path / "images", out) for out in outs]  # at the same time, as imports take seconds
    expected = finished(tmp_path / "whole")
    assert len(expected) > 10
    with ThreadPoolExecutor(attempts) as pool:
        counts = [draw.randrange(len(expected) - 4) for _ in outs]
        pauses = [draw.uniform(0, 0.02) for _ in outs]
        codes = list(pool.map(kill_after, processes, outs, counts, pauses))
    assert codes.count(-signal.SIGKILL) >= attempts // 2
    assert all(finished(out) == expected for out in outs)


def test_commands_at_the_same_time_leave_one_dataset(images, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [])
    children = [command(images, tmp_path / "out") for _ in range(3)]
    for child in children:
        child.join()
    assert 0 in {child.exitcode for child in children} <= {0, 2}
    assert len(open_shards(str(tmp_path / "out"), "", 0, 8, "data.train", "data.crop")) == 8
