"""Training from shards: whole ones train, damaged ones end the run in one sentence, changed ones are not resumed on."""

import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.sampling import sample_key
from experiments import train as program
from experiments.shards import pack

CROPS_PER_IMAGE = 64


def train(shards, monkeypatch, *more):
    options = [f"data.train={shards}", f"runs={shards.parent / 'runs'}", "data.procedural_share=0", "trainer.threads=1"]
    arguments = ["rt4ksr/s_x2_mini", "--tiny", "trainer.accelerator=cpu", "network.start=random", *options, *more]
    monkeypatch.setattr(sys, "argv", ["train", *arguments])
    program.main()


def refused(shards, monkeypatch, capfd, *more):
    with pytest.raises(SystemExit) as ended:
        train(shards, monkeypatch, *more)
    assert ended.value.code == 2
    return the_sentence(capfd.readouterr().err)


def the_sentence(said):
    """The one line of an error output that is no progress bar and no warning of torch's; it is the last."""
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in said
    assert said.rstrip().endswith(line)
    return line


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_flipped_byte_ends_the_training_in_one_sentence(shards, monkeypatch, capfd, workers):
    for shard in shards.glob("*.tar"):
        flip(shard, 700)  # within the first image of each
    assert "was altered" in refused(shards, monkeypatch, capfd, f"data.workers={workers}", "data.batch_size=12")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda shards: sorted(shards.glob("*.tar"))[1].unlink(), "shard-000001.tar is missing"),
        (lambda shards: _cut(sorted(shards.glob("*.tar"))[1]), "shard-000001.tar is truncated"),
        (lambda shards: _cut(shards / "index.bin"), "index.bin is truncated"),
        (lambda shards: (shards / "dataset.json").unlink(), "dataset.json"),
    ],
    ids=["missing shard", "truncated shard", "truncated index", "no dataset.json"],
)
def test_a_damaged_data_set_ends_the_training_in_one_sentence(shards, monkeypatch, capfd, damage, said):
    damage(shards)
    line = refused(shards, monkeypatch, capfd)
    assert line.startswith(f"error: data.train={shards}: ")
    assert said in line


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def test_shards_train_as_the_folder_they_were_packed_from(shards, monkeypatch):
    train(shards, monkeypatch, "name=shards", "data.crop_preference=flat")
    train(shards.parent / "images", monkeypatch, "name=folder", "data.crop_preference=flat")
    ends = [shards.parent / "runs" / name / "checkpoints" / "last.ckpt" for name in ("shards", "folder")]
    first, second = (torch.load(end, weights_only=True)["state_dict"] for end in ends)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_data_set_that_changed_is_not_resumed_on(shards, monkeypatch, capfd):
    train(shards, monkeypatch, "name=run")
    images, checkpoint = shards.parent / "images", shards.parent / "runs" / "run" / "checkpoints" / "last.ckpt"
    flip_pixels(images / "3.png")
    for path in shards.iterdir():
        path.unlink()
    pack(images, shards, shard_mb=0.03)
    monkeypatch.setattr(sys, "argv", ["train", "--resume", str(checkpoint), "trainer.steps=3"])
    with pytest.raises(SystemExit):
        program.main()
    assert "cannot resume exactly: data.train was " in capfd.readouterr().err


def images_of_rank(rank):
    """Images of that rank's part of the first global batch, of 6 images in batches of 2 on two ranks."""
    return sample_key(rank, 6, CROPS_PER_IMAGE, seed=0)[2]


@pytest.mark.timeout(240)
@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_damage_that_one_of_two_ranks_meets_ends_both(rank, shards, tmp_path, command_environment):
    damaged, other = images_of_rank(rank), images_of_rank(1 - rank)
    assert damaged != other
    folder = tmp_path / "one"
    pack(shards.parent / "images", folder, shard_mb=1)
    with tarfile.open(folder / "shard-000000.tar") as tar:
        place = [member.offset_data for member in tar if member.name.endswith(".png")][damaged]
    flip(folder / "shard-000000.tar", place + 300)
    options = [f"data.train={folder}", f"runs={tmp_path / 'two'}", "trainer.devices=2", "trainer.accelerator=cpu"]
    options += ["data.procedural_share=0", "data.batch_size=2", "network.start=random", "trainer.threads=1"]
    command = [sys.executable, "-m", "experiments.train", "rt4ksr/s_x2_mini", "--tiny", *options]
    process = subprocess.Popen(
        command,
        env=command_environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 2, errors[-2000:]
    assert errors.count("was altered") == 1
    assert "Traceback" not in errors
    assert is_empty(process.pid), "no process is left"


def is_empty(group, seconds=5):
    """Whether a process group is, or soon becomes, empty."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def flip_pixels(path):
    """Another image of the same size, in px and, as noise does not compress, in bytes."""
    pixels = np.asarray(Image.open(path))[::-1]
    Image.fromarray(pixels).save(path)
