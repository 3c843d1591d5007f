import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from datamodules.image_io import read_image, write_image
from experiments.checkpoints import load_system
from experiments.inference import GIB, expected_peak, super_resolve
from experiments.upscale import main, plan_jobs
from experiments.upscale_images import run_jobs
from experiments.upscaler import Upscaler, build_upscaler
from lightning_modules.one_step_flux import OneStepFlux
from lightning_modules.super_resolution import resize_up

ORIENTATION = 0x0112


def checkpoint(run: Path) -> str:
    return str(run / "checkpoints" / "last.ckpt")


@pytest.fixture(scope="module")
def upscaler(tiny_student_run: Path) -> Upscaler:
    return build_upscaler(checkpoint(tiny_student_run), ["trainer.precision=32-true"], "", "", 10**8)


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


def run_one(upscaler: Upscaler, source: Path, out: Path) -> int:
    return run_jobs(upscaler, plan_jobs(source, out, ".png"), skip_existing=False)


@pytest.mark.parametrize(("name", "size"), [("a.png", (7, 31)), ("b.jpg", (33, 5)), ("c.webp", (1, 1))])
def test_any_size_and_format_becomes_four_times_larger(
    upscaler: Upscaler, tmp_path: Path, name: str, size: tuple[int, int]
) -> None:
    Image.fromarray(noise(*size)).save(tmp_path / name)
    assert run_one(upscaler, tmp_path / name, tmp_path / "out") == 0
    (written,) = (tmp_path / "out").iterdir()
    assert written.name == Path(name).stem + ".png"
    assert read_image(written).pixels.shape == (3, 4 * size[0], 4 * size[1])


def test_a_student_of_adapters_upscales(tiny_lora_run: Path, tmp_path: Path) -> None:
    Image.fromarray(noise(7, 31)).save(tmp_path / "a.png")
    adapted = build_upscaler(checkpoint(tiny_lora_run), [], "", "", 10**8)
    assert run_one(adapted, tmp_path / "a.png", tmp_path / "b.png") == 0
    assert read_image(tmp_path / "b.png").pixels.shape == (3, 28, 124)


def test_output_is_the_students_own_image(upscaler: Upscaler, tmp_path: Path) -> None:
    Image.fromarray(noise(20, 24)).save(tmp_path / "a.png")
    run_one(upscaler, tmp_path / "a.png", tmp_path / "b.png")
    assert isinstance(upscaler.system, OneStepFlux)
    with torch.inference_mode():
        sr = upscaler.system.upscale(read_image(tmp_path / "a.png").rgb[None])[0]
    difference = read_image(tmp_path / "b.png").pixels.float() - sr.clamp(0, 1) * 255
    assert difference.abs().max() <= 0.51


def test_depth_alpha_profile_and_exif_are_kept(upscaler: Upscaler, tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[ORIENTATION], exif[0x010F] = 6, "camera"
    alpha = torch.linspace(0, 1, 12).expand(1, 10, 12)
    write_image(tmp_path / "deep.png", torch.rand(3, 10, 12), alpha, 16, profile)
    Image.fromarray(noise(10, 12)).save(tmp_path / "turned.jpg", exif=exif, icc_profile=profile)
    assert run_one(upscaler, tmp_path, tmp_path / "out") == 0

    deep = read_image(tmp_path / "out" / "deep.png")
    assert (deep.bit_depth, deep.icc) == (16, profile)
    assert deep.alpha is not None
    torch.testing.assert_close(deep.alpha, resize_up(alpha[None], (40, 48))[0].clamp(0, 1), atol=1e-4, rtol=0)
    assert len(deep.pixels.int().unique()) > 256
    with Image.open(tmp_path / "out" / "turned.png") as turned:
        assert turned.size == (40, 48)  # upright: the stored 12 x 10 stand on their side
        assert turned.getexif()[ORIENTATION] == 1
        assert turned.getexif()[0x010F] == "camera"
        assert turned.info["icc_profile"] == profile


def test_names_that_differ_in_suffix_alone_do_not_replace_one_another(tmp_path: Path) -> None:
    for name in ("sub/a.png", "sub/a.jpg", "b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(noise(2, 2)).save(tmp_path / name)
    targets = [str(job.target) for job in plan_jobs(tmp_path, Path("out"), ".png")]
    assert targets == ["out/b.png", "out/sub/a.jpg.png", "out/sub/a.png.png"]


def test_an_input_is_never_replaced_and_finished_files_can_be_skipped(upscaler: Upscaler, tmp_path: Path) -> None:
    Image.fromarray(noise(4, 4)).save(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    assert run_one(upscaler, tmp_path, tmp_path) == 2
    assert (tmp_path / "a.png").read_bytes() == before
    assert run_jobs(upscaler, plan_jobs(tmp_path, tmp_path, ".png"), skip_existing=True) == 0


def test_another_scale_warns_and_gives_that_size(
    tiny_student_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(noise(10, 7)).save(tmp_path / "a.png")
    other = build_upscaler(checkpoint(tiny_student_run), [], "2.5", "", 10**8)
    assert "SCALE=2.5" in capsys.readouterr().err
    assert run_one(other, tmp_path / "a.png", tmp_path / "b.png") == 0
    assert read_image(tmp_path / "b.png").pixels.shape == (3, 25, 18)


@pytest.mark.parametrize("scale", ["0", "-2", "nan", "inf", "four", "0.5"])
def test_a_scale_that_is_none_is_refused(tiny_student_run: Path, scale: str) -> None:
    with pytest.raises(ValueError, match=f"SCALE={scale}: expected a number from 1 on"):
        build_upscaler(checkpoint(tiny_student_run), [], scale, "", 10**8)


def test_memory_limit_and_pixel_limit_refuse_in_one_sentence(
    tiny_student_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(noise(50, 30000)).save(tmp_path / "wide.png")
    low = build_upscaler(checkpoint(tiny_student_run), [], "", "0.01", 10**8)
    assert run_one(low, tmp_path / "wide.png", tmp_path / "out") == 2
    assert "120000 x 200 px needs about" in (said := capsys.readouterr().err)
    assert "--memory-limit" in said
    few = build_upscaler(checkpoint(tiny_student_run), [], "", "", 10**6)
    assert run_one(few, tmp_path / "wide.png", tmp_path / "out") == 2
    assert "max_pixels" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_jpeg_output_refuses_alpha_before_the_work(
    upscaler: Upscaler, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(noise(8, 8, 4), "RGBA").save(tmp_path / "a.png")
    assert run_one(upscaler, tmp_path / "a.png", tmp_path / "a.jpg") == 2
    assert "JPEG holds no alpha" in capsys.readouterr().err


def test_strips_equal_one_piece(tiny_student_run: Path) -> None:
    student, _ = load_system(checkpoint(tiny_student_run))
    assert isinstance(student, OneStepFlux)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # new residual paths end in zeros; only other weights show what strips cut off
        for parameter in student.codec.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    lr = torch.rand(3, 67, 21, generator=generator)
    with torch.inference_mode():
        whole = super_resolve(student, lr, (268, 84), strip_rows=0)
        for rows in (1, 2, 5, 16, 40):
            torch.testing.assert_close(super_resolve(student, lr, (268, 84), rows), whole, atol=1e-4, rtol=0)
        image = torch.rand(1, 3, 288, 96, generator=generator)
        latent = student.codec.encode(image)
        for rows in (1, 2, 5, 16, 40):
            torch.testing.assert_close(student.codec.encode(image, rows), latent, atol=1e-4, rtol=0)


def test_expected_memory_is_linear_in_the_pixels(upscaler: Upscaler) -> None:
    small, large = (expected_peak(upscaler.system, (side, side)) for side in (4096, 16384))
    assert 0.3 * GIB < small < 2 * GIB
    assert large == pytest.approx(16 * small, rel=0.2)
    assert expected_peak(upscaler.system, (4096, 4096), 16, True) > small


def test_bad_files_are_named_and_the_others_done(
    tiny_student_run: Path, tmp_path: Path, command_environment: dict[str, str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(noise(12, 9)).save(folder / "zz_good.png")
    encoded = io.BytesIO()
    Image.fromarray(noise(64, 64)).save(encoded, "PNG")
    (folder / "truncated.png").write_bytes(encoded.getvalue()[:4000])
    (folder / "text.jpg").write_text("this is no image\n")
    Image.fromarray(noise(1, 1)).save(folder / "dot.png")
    Image.fromarray(noise(2, 30000)).save(folder / "wide.png")
    Image.fromarray(noise(8, 8, 4), "CMYK").save(folder / "cmyk.jpg")
    write_image(folder / "deep.png", torch.rand(3, 6, 6), bit_depth=16)

    ended = upscale(command_environment, checkpoint(tiny_student_run), folder, tmp_path / "out")
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error:")]
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert len(errors) == 2
    assert "text.jpg holds text, expected a whole" in errors[0]
    assert "truncated.png begins as a PNG but is truncated" in errors[1]
    done = {path.name: tuple(read_image(path).pixels.shape[1:]) for path in (tmp_path / "out").iterdir()}
    assert done == {
        "zz_good.png": (48, 36),
        "dot.png": (4, 4),
        "wide.png": (8, 120000),
        "cmyk.png": (32, 32),
        "deep.png": (24, 24),
    }
    assert "5 upscaled, 0 skipped, 2 failed" in ended.stdout
    assert "zz_good.png  9 x 12 -> 36 x 48" in ended.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{student}", "{image}", "{out}", "data.crops=3"], "unknown option data.crops"),
        (["{student}", "{image}", "{out}", "data.crop=big"], "option data.crop='big'"),
        (["missing.ckpt", "{image}", "{out}"], "CKPT=missing.ckpt: no such file"),
        (["{codec}", "{image}", "{out}"], "is of system=autoencoder, expected one_step_flux or real_time_cnn"),
        (["{flow}", "{image}", "{out}"], "is of system=latent_flow, expected one_step_flux or"),
        (["{student}", "nowhere", "{out}"], "IN=nowhere: no such file or folder"),
    ],
)
def test_what_cannot_start_ends_in_one_sentence(
    arguments: list[str],
    said: str,
    tiny_student_run: Path,
    tiny_codec_run: Path,
    tiny_flow_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Image.fromarray(noise(4, 4)).save(tmp_path / "image.png")
    known = {
        "student": checkpoint(tiny_student_run),
        "codec": checkpoint(tiny_codec_run),
        "flow": checkpoint(tiny_flow_run),
        "image": tmp_path / "image.png",
        "out": tmp_path / "out",
    }
    monkeypatch.delenv("SR_TRACEBACK", raising=False)
    monkeypatch.setattr(sys, "argv", ["upscale", *[argument.format(**known) for argument in arguments]])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_the_command_itself_ends_with_the_code_and_the_sentence(
    tiny_codec_run: Path, tmp_path: Path, command_environment: dict[str, str]
) -> None:
    Image.fromarray(noise(4, 4)).save(tmp_path / "image.png")
    ended = upscale(command_environment, checkpoint(tiny_codec_run), tmp_path / "image.png", tmp_path / "out")
    assert ended.returncode == 2
    assert "is of system=autoencoder, expected one_step_flux or real_time_cnn" in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1


def upscale(environment: dict[str, str], *arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "experiments.upscale", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
