"""A run killed with SIGKILL and resumed goes on as if nothing had been, bit for bit on the CPU."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments.checkpoints import options_of, read_checkpoint
from experiments.options import load_options, to_yaml
from experiments.train import run_folder, train

ROOT = Path(__file__).resolve().parents[2]
STEPS, EVERY, COMPARED = 40, 5, 20


def losses(event_file):
    """Training loss by step of one event file, float32 as logged."""
    accumulator = EventAccumulator(str(event_file), size_guidance={"scalars": 0}).Reload()
    return {event.step: event.value for event in accumulator.Scalars("train/loss")}


def event_files(folder):
    return sorted(folder.glob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime)


def wait_for(path, process, seconds=300):
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, f"{path} did not appear in {seconds} s"
        time.sleep(0.02)


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.train", *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def contents(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("precision", ["32-true", pytest.param("bf16-mixed", marks=pytest.mark.slow)])
def test_a_killed_run_resumes_bit_for_bit(precision, tiny_codec_run, tmp_path):
    overrides = [
        f"codec.path={tiny_codec_run / 'codec'}",
        f"trainer.precision={precision}",
        f"trainer.steps={STEPS}",
        f"trainer.checkpoint_every={EVERY}",
        "trainer.validate_every=12",
        "trainer.panel_images=0",
        "trainer.log_every=1",
        "trainer.accelerator=cpu",
        "trainer.threads=1",
        "data.val_count=1",
    ]
    killed = tmp_path / "killed" / "op4ksr" / "mini-tiny"
    process = start("op4ksr/mini", "--tiny", *overrides, f"runs={tmp_path / 'killed'}")
    wait_for(killed / "checkpoints" / "last.ckpt", process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "the run ended before it was killed"
    done = contents(killed)["global_step"]
    assert EVERY <= done <= STEPS - COMPARED

    process = start("--resume", str(killed / "checkpoints" / "last.ckpt"))
    whole = train(load_options("op4ksr/mini", [*overrides, f"runs={tmp_path / 'whole'}"], tiny=True))
    errors = process.communicate()[1]
    assert process.returncode == 0, errors

    (expected,), (_, resumed) = ([losses(path) for path in event_files(folder)] for folder in (whole, killed))
    assert list(resumed) == list(range(done, STEPS))
    following = range(done, done + COMPARED)
    assert [resumed[step] for step in following] == [expected[step] for step in following]
    assert len({expected[step] for step in following}) == COMPARED, "every loss is another"
    assert_same_end(contents(killed), contents(whole))


def assert_same_end(first, second):
    assert_equal(first["state_dict"], second["state_dict"])
    assert_equal(first["callbacks"]["Ema"]["shadow"], second["callbacks"]["Ema"]["shadow"])
    moments, others = (c["optimizer_states"][0]["state"] for c in (first, second))
    for number, state in moments.items():
        assert_equal(state, others[number])
    assert first["lr_schedulers"] == second["lr_schedulers"]
    assert first["SR4KDataModule"] == second["SR4KDataModule"]


def assert_equal(first, second):
    assert first.keys() == second.keys()
    assert [name for name, value in first.items() if not torch.equal(value, second[name])] == []


def test_resuming_goes_on_in_the_folder_of_the_checkpoint(tiny_student_run, monkeypatch):
    options = options_of(read_checkpoint(tiny_student_run / "checkpoints" / "last.ckpt"), "last.ckpt")
    monkeypatch.chdir(tiny_student_run / "checkpoints")
    assert run_folder(options, "last.ckpt") == tiny_student_run.resolve()


def test_a_second_run_does_not_overwrite_the_first(tiny_student_run):
    options = options_of(read_checkpoint(tiny_student_run / "checkpoints" / "last.ckpt"), "last.ckpt")
    with pytest.raises(ValueError, match=r"already holds a run: continue it with RESUME=.*SET=name="):
        run_folder(options)


def test_resuming_with_other_data_is_refused(tiny_student_run):
    path = tiny_student_run / "checkpoints" / "last.ckpt"
    options = options_of(read_checkpoint(path), path, ["data.batch_size=4", "trainer.steps=3"])
    with pytest.raises(ValueError, match=r"cannot resume exactly: data\.batch_size was 2 in the checkpoint and is 4"):
        train(options, resume=str(path))
    assert (tiny_student_run / "options.yaml").read_text() == to_yaml(options_of(read_checkpoint(path), path))
