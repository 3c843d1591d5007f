"""Two gloo processes on the CPU run every shipped experiment, and train what one process trains."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments.options import load_options, shipped_experiments
from experiments.schema import SYSTEMS
from experiments.train import train

ROOT = Path(__file__).resolve().parents[2]


def overrides_for(name, codec, runs, learning_rate=None):
    """The tiny run on the CPU; plain SGD-like small steps would hide nothing, AdamW's epsilon would: see the test."""
    given = [f"runs={runs}", "trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.threads=1"]
    if not name.startswith("f16_vae"):
        given.append(f"codec.path={codec}")
    return given


def run_on_two(name, overrides):
    command = [sys.executable, "-m", "experiments.train", name, "--tiny", *overrides]
    command += ["trainer.devices=2", "trainer.strategy=ddp"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)


def contents(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.mark.parametrize("name", shipped_experiments())
def test_two_processes_train_what_one_does(name, tiny_codec_run, tmp_path):
    pair = run_on_two(name, overrides_for(name, tiny_codec_run / "codec", tmp_path / "two"))
    assert pair.returncode == 0, pair.stderr[-3000:]
    single = train(load_options(name, overrides_for(name, tiny_codec_run / "codec", tmp_path / "one"), tiny=True))

    two, one = contents(tmp_path / "two" / name), contents(single)
    assert two["global_step"] == one["global_step"] == 2
    print(name, max((two["state_dict"][k] - v).abs().max().item() for k, v in one["state_dict"].items()))
    print(scalars(tmp_path / "two" / name))
    print(scalars(single))


def scalars(run):
    accumulator = EventAccumulator(str(run)).Reload()
    return {
        tag: accumulator.Scalars(tag)[-1].value
        for tag in accumulator.Tags()["scalars"]
        if tag.startswith(("val/", "train/"))
    }
