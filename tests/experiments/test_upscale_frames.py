import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.image_io import read_image, write_image
from experiments.checkpoints import load_system
from experiments.inference import expected_peak
from experiments.upscale import plan_jobs
from experiments.upscale_images import remove_left_overs, run_jobs
from experiments.upscaler import Acceleration, Upscaler, build_upscaler
from lightning_modules.networks.real_time import can_compile
from lightning_modules.real_time_cnn import RealTimeCnn


@pytest.fixture(scope="module")
def checkpoint(tiny_cnn_run: Path) -> str:
    return str(tiny_cnn_run / "checkpoints" / "last.ckpt")


@pytest.fixture(scope="module")
def upscaler(checkpoint: str) -> Upscaler:
    return build_upscaler(checkpoint, ["trainer.accelerator=cpu"], "", "", 10**8)


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 frames of noise, each of its own."""
    folder = tmp_path_factory.mktemp("frames")
    for number in range(150):
        noise = np.random.default_rng(number).integers(0, 256, (96, 128, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"frame_{number:06d}.png", compress_level=1)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_each_output_is_the_trained_networks_image_of_its_own_frame(
    checkpoint: str, upscaler: Upscaler, frames: Path, tmp_path: Path
) -> None:
    assert run_jobs(upscaler, plan_jobs(frames, tmp_path, ".png"), skip_existing=False) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in frames.iterdir())
    trained, _ = load_system(checkpoint)
    assert isinstance(trained, RealTimeCnn)
    for name in ("frame_000000.png", "frame_000073.png", "frame_000149.png"):
        with torch.inference_mode():
            sr = trained.restore(read_image(frames / name).rgb[None])[0].clamp(0, 1)
        assert (read_image(tmp_path / name).pixels.float() - sr * 255).abs().max() <= 0.52


def test_frames_per_second_are_told_and_no_line_for_each_of_many(
    upscaler: Upscaler, frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_jobs(upscaler, plan_jobs(frames, tmp_path, ".jpg"), skip_existing=False)
    said = capsys.readouterr()
    assert "150/150" in said.err
    assert "frames/s" in said.err
    (line,) = said.out.splitlines()
    assert line.startswith("150 upscaled, 0 skipped, 0 failed, ")
    assert line.endswith(" frames/s")


def test_a_killed_run_goes_on_and_leaves_the_files_of_an_undisturbed_one(
    checkpoint: str,
    upscaler: Upscaler,
    frames: Path,
    tmp_path: Path,
    command_environment: dict[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    run_jobs(upscaler, plan_jobs(frames, whole, ".png"), skip_existing=False)
    command = [sys.executable, "-m", "experiments.upscale", checkpoint, str(frames), str(resumed)]
    running = subprocess.Popen(command, env=command_environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not resumed.is_dir() or len(list(resumed.glob("frame*"))) < 10:
        assert running.poll() is None
        time.sleep(0.002)
    running.send_signal(signal.SIGKILL)
    running.wait()
    before = {path.name: path.stat().st_mtime_ns for path in resumed.glob("frame*")}
    assert 10 <= len(before) < 150
    (resumed / f".frame_000149.png.{running.pid}.part").write_bytes(b"half a fra")
    (resumed / f".frame_000148.png.{os.getppid()}.part").write_bytes(b"of a living process")

    capsys.readouterr()
    assert run_jobs(upscaler, plan_jobs(frames, resumed, ".png"), skip_existing=True) == 0
    assert f"{150 - len(before)} upscaled, {len(before)} skipped, 0 failed" in capsys.readouterr().out
    assert {name: (resumed / name).stat().st_mtime_ns for name in before} == before
    assert [path.name for path in resumed.glob(".*")] == [f".frame_000148.png.{os.getppid()}.part"]
    (resumed / f".frame_000148.png.{os.getppid()}.part").unlink()
    assert files(resumed) == files(whole)


def test_only_left_overs_of_the_planned_outputs_are_removed(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    names = [
        "a.png",
        f".b.png.{gone.pid}.part",
        f".a.png.{gone.pid}.part",
        f".a.mp4.{gone.pid}.part.mp4",
        ".a.png.part",
    ]
    for name in names:
        (tmp_path / name).touch()
    remove_left_overs([tmp_path / "a.png", tmp_path / "a.mp4", tmp_path / "missing" / "a.png"])
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", f".b.png.{gone.pid}.part", ".a.png.part"}


@pytest.mark.parametrize("limit", ["", "small"])
def test_a_bad_frame_is_named_and_ends_nothing_but_itself(
    limit: str, checkpoint: str, frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for number in range(12):
        (source / f"{number:02d}.png").symlink_to(frames / f"frame_{number:06d}.png")
    (source / "03.png").unlink()
    (source / "03.png").write_bytes((frames / "frame_000003.png").read_bytes()[:9000])
    tight = build_upscaler(checkpoint, [], "", "", 10**8)
    if limit:  # room for one frame at a time
        room = tight.base + int(1.5 * expected_peak(tight.system, (192, 256)))
        tight = Upscaler(tight.system, tight.options, 2, room, tight.base, 10**8)
    assert run_jobs(tight, plan_jobs(source, tmp_path / "out", ".png"), skip_existing=False) == 1
    said = capsys.readouterr()
    assert "11 upscaled, 0 skipped, 1 failed" in said.out
    (error,) = [line for line in said.err.splitlines() if "error:" in line]
    assert "03.png begins as a PNG but is truncated" in error
    assert len(list((tmp_path / "out").iterdir())) == 11


def test_sixteen_bits_alpha_and_tiny_images_pass_the_network(upscaler: Upscaler, tmp_path: Path) -> None:
    source = tmp_path / "in"
    alpha = torch.linspace(0, 1, 12).expand(1, 10, 12)
    write_image(source / "deep.png", torch.rand(3, 10, 12, generator=torch.Generator().manual_seed(0)), alpha, 16)
    for height, width in ((1, 1), (3, 2), (5, 7)):
        write_image(source / f"{height}x{width}.png", torch.rand(3, height, width))
    assert run_jobs(upscaler, plan_jobs(source, tmp_path / "out", ".png"), skip_existing=False) == 0
    sizes = {path.name: tuple(read_image(path).pixels.shape) for path in (tmp_path / "out").iterdir()}
    assert sizes == {"deep.png": (3, 20, 24), "1x1.png": (3, 2, 2), "3x2.png": (3, 6, 4), "5x7.png": (3, 10, 14)}
    deep = read_image(tmp_path / "out" / "deep.png")
    assert deep.bit_depth == 16
    assert deep.alpha is not None


@pytest.mark.parametrize("precision", ["bf16-mixed", "auto"])
def test_the_network_stays_in_fp32_whatever_the_training_computed_in(checkpoint: str, precision: str) -> None:
    mixed = build_upscaler(checkpoint, [f"trainer.precision={precision}"], "", "", 10**8)
    exact = build_upscaler(checkpoint, ["trainer.precision=32-true"], "", "", 10**8)
    lr = torch.rand(3, 17, 20)
    assert torch.equal(mixed.sr(lr), exact.sr(lr))


def test_released_weights_upscale_without_an_experiment(shared: Path, tmp_path: Path) -> None:
    released = build_upscaler(str(shared / "weights" / "rt4ksr" / "rt4ksr_x2.pth"), [], "", "", 10**8)
    source = shared / "set5" / "LR_bicubic" / "X2" / "butterflyx2.png"
    assert run_jobs(released, plan_jobs(source, tmp_path / "sr.png", ".png"), skip_existing=False) == 0
    reference = shared / "rt4ksr_ref" / "Set5_x2" / "rep" / "butterfly.png"
    difference = read_image(tmp_path / "sr.png").pixels.int() - read_image(reference).pixels.int()
    assert difference.abs().max() <= 1


@pytest.mark.parametrize(
    ("scale", "acceleration", "said"),
    [
        ("3", Acceleration(), "SCALE=3: this network upscales by 2 alone; leave SCALE= out"),
        ("", Acceleration(half=True), "--half needs a GPU, the device is cpu"),
        ("", Acceleration(cuda_graph=True), "--cuda-graph needs a GPU, the device is cpu"),
    ],
)
def test_what_the_network_cannot_do_is_refused(
    checkpoint: str, scale: str, acceleration: Acceleration, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        build_upscaler(checkpoint, ["trainer.accelerator=cpu"], scale, "", 10**8, acceleration)


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(torch.device("cpu")), reason="there is no C++ compiler")
def test_a_compiled_network_gives_the_same_image(checkpoint: str, upscaler: Upscaler) -> None:
    compiled = build_upscaler(checkpoint, ["trainer.accelerator=cpu"], "", "", 10**8, Acceleration(compiled=True))
    lr = torch.rand(3, 15, 20, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(compiled.sr(lr), upscaler.sr(lr), atol=1e-5, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_half_precision_and_cuda_graphs_give_the_same_grey_levels(checkpoint: str, upscaler: Upscaler) -> None:
    fast = build_upscaler(checkpoint, [], "", "", 10**8, Acceleration(half=True, cuda_graph=True))
    lr = torch.rand(3, 64, 80, generator=torch.Generator().manual_seed(0))
    for bits, tolerance in ((8, 1 / 255), (16, 1e-3)):
        for _ in range(2):
            torch.testing.assert_close(fast.sr(lr, bits).cpu(), upscaler.sr(lr).cpu(), atol=tolerance, rtol=0)


def test_flags_of_the_network_are_refused_for_a_student(tiny_student_run: Path) -> None:
    path = str(tiny_student_run / "checkpoints" / "last.ckpt")
    with pytest.raises(ValueError, match="--compile is for RT4KSR"):
        build_upscaler(path, [], "", "", 10**8, Acceleration(compiled=True))
