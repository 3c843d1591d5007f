"""RT4KSR through the training command: pairs, the linear start, released weights, and a polite end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from datamodules.degradations.resize import matlab_bicubic
from datamodules.image_io import read_image, write_image
from datamodules.synthetic import HELD_OUT_PHOTOGRAPHS, bundled_path
from experiments.build import build_system
from experiments.checkpoints import load_system, load_weights, read_checkpoint
from experiments.evaluate import evaluate
from experiments.options import load_options
from experiments.schema import RealTimeCnn
from experiments.train import main, train
from lightning_modules.networks.rt4ksr import RT4KSR

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["trainer.accelerator=cpu", "trainer.threads=1", "network.blocks=2"]


def validated(run, name):
    """The last value of a validation metric."""
    return EventAccumulator(str(run)).Reload().Scalars(f"val/{name}")[-1].value


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Three pairs of unequal sizes."""
    folder = tmp_path_factory.mktemp("pairs")
    photograph = read_image(bundled_path(HELD_OUT_PHOTOGRAPHS[0])).rgb
    for name, height, width in (("a", 48, 64), ("b", 80, 40), ("c", 52, 96)):
        hr = photograph[:, 40 : 40 + height, 60 : 60 + width]
        write_image(folder / "HR" / f"{name}.png", hr)
        write_image(folder / "LR_bicubic" / "X2" / f"{name}x2.png", matlab_bicubic(hr, 2))
    return folder


def test_validation_on_pairs_is_what_the_evaluation_of_the_checkpoint_says(pairs, tmp_path):
    options = load_options("rt4ksr/s_x2_mini", [*SMALL, f"runs={tmp_path}", f"data.val={pairs}"], tiny=True)
    run = train(options)
    _, values = evaluate(str(run / "checkpoints" / "last.ckpt"), str(pairs), [], None, None)
    (row,) = [row for row in values["rows"] if row["method"] == "rt4ksr"]
    assert row["images"] == 3
    for metric, tolerance in (("psnr_y", 1e-3), ("psnr_rgb", 1e-3), ("ssim_y", 1e-5), ("ssim_rgb", 1e-5)):
        assert validated(run, metric) == pytest.approx(row["values"][metric], abs=tolerance)
    assert {"panel", "spectrum"} & {tag.split("/")[0] for tag in EventAccumulator(str(run)).Reload().Tags()["images"]}


def test_a_linear_start_is_far_above_a_random_one(tmp_path):
    values = {}
    for start in ("linear", "random"):
        overrides = [*SMALL, f"runs={tmp_path}", f"name={start}", f"network.start={start}", "trainer.panel_images=0"]
        values[start] = validated(train(load_options("rt4ksr/s_x2_mini", overrides, tiny=True)), "psnr_y")
    assert values["linear"] > values["random"] + 10


@pytest.fixture
def released(released_form, tmp_path):
    """A released file of a small network whose branch was never trained, and that network."""
    network = RT4KSR(2, blocks=2)
    torch.nn.init.zeros_(network.gamma)
    torch.save(released_form(network), tmp_path / "released.pth")
    return tmp_path / "released.pth", network


@pytest.mark.parametrize("hf_branch", [True, False])
def test_a_new_run_starts_from_released_weights(released, hf_branch):
    path, network = released
    options = load_options("rt4ksr/s_x2_mini", [*SMALL, f"network.hf_branch={hf_branch}", "network.start=random"])
    system = build_system(options)
    load_weights(system, read_checkpoint(path, "INIT", hf_branch), averaged=True)
    lr = torch.rand(1, 3, 12, 16)
    assert torch.equal(system.restore(lr), network(lr))


def test_released_weights_are_loaded_for_inference_without_their_branch(released):
    path, network = released
    system, options = load_system(path)
    assert isinstance(options, RealTimeCnn)
    assert (options.data.scale, options.network.blocks, options.network.hf_branch) == (2, 2, False)
    lr = torch.rand(1, 3, 12, 16)
    assert torch.equal(system.restore(lr), network(lr))


def test_weights_alone_are_no_run_to_resume(released, monkeypatch, capsys):
    path, _ = released
    monkeypatch.setattr(sys, "argv", ["train", "--resume", str(path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "weights and no run; start from them with EXP= and INIT=" in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="SIGTERM is POSIX's")
def test_a_run_that_is_asked_to_end_says_that_it_is_not_finished(tmp_path):
    overrides = [*SMALL, f"runs={tmp_path}", "trainer.steps=100000", "trainer.panel_images=0", "trainer.log_every=1"]
    overrides += ["trainer.checkpoint_every=5", "trainer.validate_every=100000"]
    running = subprocess.Popen(
        [sys.executable, "-m", "experiments.train", "rt4ksr/s_x2_mini", "--tiny", *overrides],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    checkpoint = tmp_path / "rt4ksr" / "s_x2_mini-tiny" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 200
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    running.send_signal(signal.SIGTERM)
    assert running.wait(timeout=60) == 128 + signal.SIGTERM
