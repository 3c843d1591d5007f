"""What reaches a training step: the same batches after kills, on other ranks and workers; every image equally often."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.shards import pack

ROOT = Path(__file__).resolve().parents[2]
IMAGES = 13
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Thirteen images of three shapes: a number that no batch divides."""
    folder, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for number in range(IMAGES):
        height, width = [(64, 96), (96, 64), (80, 80)][number % 3]
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / f"{number:02}.png")
    return folder


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def settings(train, **changes):
    data = {"train": str(train), "scale": 2, "crop": 32, "batch_size": 4, "steps": 30, "crops_per_image": 4}
    return data | {"crops_per_decode": 2, "procedural_share": 0.0, "degradation": "real_esrgan", "seed": 3} | changes


def start(folder, data, devices=1, resume=False, pause=0.0):
    """The ranks' processes, each in a group of its own with its workers."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = str(folder / "last.ckpt") if resume else ""
    options = {"data": data, "folder": str(folder), "devices": devices, "checkpoint": checkpoint, "pause": pause}
    (folder / "run.json").write_text(json.dumps(options))
    command = [sys.executable, str(Path(__file__).with_name("stream_run.py")), str(folder / "run.json")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if devices > 1:
        environment |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(devices)}
    return [
        subprocess.Popen(
            command,
            env=environment | ({"LOCAL_RANK": str(rank)} if devices > 1 else {}),
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for rank in range(devices)
    ]


def finish(processes):
    errors = [process.communicate(timeout=300)[1][-3000:] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(errors)


def kill(processes):
    """SIGKILL for all ranks and their workers at once."""
    for process in processes:
        os.killpg(process.pid, signal.SIGKILL)
    for process in processes:
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "the run ended before it was killed"


def steps_done(folder):
    file = folder / "rank0.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


def wait_for_steps(folder, count, processes):
    """Wait until rank 0 was fed `count` batches in all and a checkpoint is there."""
    end = time.monotonic() + 200
    while steps_done(folder) < count or not (folder / "last.ckpt").exists():
        assert all(process.poll() is None for process in processes), [p.communicate()[1][-3000:] for p in processes]
        assert time.monotonic() < end, f"{steps_done(folder)} of {count} steps in 200 s"
        time.sleep(0.01)


def fed(folder):
    """(step, place in the global batch) -> all {(key, hash)} that were fed there; one, unless a restart was unlike."""
    found = {}
    for file in sorted(folder.glob("rank*.jsonl")):
        for line in file.read_text().splitlines():
            if not line.endswith("}"):  # cut short by a kill
                continue
            step = json.loads(line)
            for place, key, digest in step["samples"]:
                found.setdefault((step["step"], place), set()).add((tuple(key), digest))
    return found


def images_seen(folder):
    """How often each image was fed, epoch by epoch of the run."""
    return Counter(key[2] for samples in fed(folder).values() for key, _ in samples)


@pytest.fixture(scope="module")
def shards(photographs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shards"
    pack(photographs, folder, shard_mb=0.06)
    return folder


def killed_run(folder, data, kills, seed):
    """Run to the end through `kills` kills at random steps, world sizes 1 and 2 and workers 0 and 2 in turn."""
    draw = random.Random(seed)
    for number in range(kills + 1):
        place = {"devices": 1 + number % 2, "resume": number > 0}
        processes = start(folder, data | {"workers": 2 * (number // 2 % 2)}, pause=0.05, **place)
        if number == kills:
            finish(processes)
            return
        wait_for_steps(folder, steps_done(folder) + draw.randint(1, 3), processes)
        time.sleep(draw.uniform(0, 0.06))
        kill(processes)


KINDS = {
    "crops": {},
    "whole": {"sample": "whole", "whole_side": 64, "size_unit": 16},
}


@pytest.mark.parametrize(
    ("kind", "kills"),
    [
        ("crops", 2),
        pytest.param("crops", 10, marks=pytest.mark.slow),
        pytest.param("whole", 10, marks=pytest.mark.slow),
    ],
)
def test_kills_in_mid_epoch_change_no_batch(kind, kills, shards, tmp_path):
    data = settings(shards, steps=10 + 4 * kills, **KINDS[kind])
    killed_run(tmp_path / "killed", data, kills, seed=kills)
    finish(start(tmp_path / "whole", data))
    expected = fed(tmp_path / "whole")
    assert len(expected) == 4 * data["steps"]
    assert len({digest for samples in expected.values() for _, digest in samples}) == 4 * data["steps"]
    assert fed(tmp_path / "killed") == expected


def epochs_seen(folder, samples_per_epoch):
    """How often each image was fed in each whole epoch, in the order of the run."""
    ordered = [samples for _, samples in sorted(fed(folder).items())]
    keys = [key for samples in ordered for key, _ in samples]
    whole = len(keys) // samples_per_epoch
    parts = [keys[samples_per_epoch * epoch : samples_per_epoch * (epoch + 1)] for epoch in range(whole)]
    return [Counter(key[2] for key in part) for part in parts], Counter(
        key[2] for key in keys[samples_per_epoch * whole :]
    )


def assert_seen_equally(folder, data, steps):
    """Three epochs of 13 images x 4 crops in batches of 4, and one batch of the next."""
    shares = [len((folder / f"rank{rank}.jsonl").read_text().splitlines()) for rank in (0, 1)]
    assert shares == [steps, steps], "equal batches on both ranks"
    epochs, rest = epochs_seen(folder, IMAGES * data["crops_per_image"])
    assert epochs == [Counter(dict.fromkeys(range(IMAGES), data["crops_per_image"]))] * 3
    assert sum(rest.values()) < data["batch_size"] + 1


@pytest.mark.parametrize("place", ["folder", pytest.param("server", marks=pytest.mark.slow)])
def test_two_processes_see_every_image_equally_often(place, shards, tmp_path, serve):
    steps = 3 * IMAGES * 4 // 4 + 1
    size = sum(path.stat().st_size for path in shards.glob("*.tar"))
    address, server = serve(shards)
    cache = {"cache": str(tmp_path / "cache"), "cache_gb": size / 3e9}
    train = {"train": address, **cache} if place == "server" else {"train": str(shards)}
    data = settings(**train, steps=steps, degradation="bicubic", workers=1, decoded_mb=0)
    finish(start(tmp_path / "run", data, devices=2))
    assert_seen_equally(tmp_path / "run", data, steps)
    if place == "server":
        kept = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file())
        assert kept < size / 2, "the index and what fits into the cache"
        assert server.requests > IMAGES, "images were fetched again"


@pytest.mark.slow
def test_whole_images_are_seen_equally_often_by_two_processes(shards, tmp_path):
    data = settings(shards, steps=9, degradation="bicubic", **KINDS["whole"])
    finish(start(tmp_path, data, devices=2))
    seen = Counter(key[2] for samples in fed(tmp_path).values() for key, _ in samples)
    assert sum(seen.values()) == 36
    assert set(seen) == set(range(IMAGES))
    assert max(seen.values()) - min(seen.values()) <= 1, "three epochs of 13 images, less a remainder in each bucket"
