import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from experiments.demo import CODEC_SECTIONS, Stage, _of
from experiments.options import to_yaml
from experiments.pictures import GAP, LABEL, MARGIN, crop_rows, raise_contrast, sheet

TINY = [
    "trainer.steps=2",
    "trainer.validate_every=2",
    "data.val_count=2",
    "data.crop=192",
    "data.batch_size=2",
    "codec.latent_channels=8",
    "codec.widths=[8,16,16]",
    "codec_training.pca_crops=2",
    "transformer.double_blocks=1",
    "transformer.single_blocks=1",
    "transformer.heads=1",
]


def test_contrast_is_raised_about_the_mean() -> None:
    image = torch.full((3, 8, 8), 0.2)
    image[:, 0, 0] += 0.064
    raised = raise_contrast(image, 4.0)
    assert raised[0, 0, 0].item() == pytest.approx(0.5 + 4 * 0.063, abs=1e-5)
    assert raised[0, 1, 1].item() == pytest.approx(0.5 - 4 * 0.001, abs=1e-5)


def test_sheet_shows_every_method_in_its_column() -> None:
    crops = {"black": torch.zeros(3, 64, 64), "white": torch.ones(3, 64, 64)}
    rows = crop_rows(crops, "plain", 1.0) | crop_rows(crops, "flat", 4.0)
    page = sheet(rows, list(crops))
    assert page.size == (MARGIN + 2 * (64 + GAP), LABEL + 4 * (64 + GAP))
    assert page.getpixel((MARGIN + 32, LABEL + 32)) == (0, 0, 0)
    assert page.getpixel((MARGIN + 64 + GAP + 32, LABEL + 32)) == (255, 255, 255)


def test_progress_is_read_off_the_log(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "codec", "f16_vae/small", [], 1)
    stage.log.write_text("run x\n")
    assert stage.step() == 0
    stage.log.write_text(
        "Epoch 0:   3%|x| 10/400 [00:02<01:00]\rEpoch 0:   5%|x| 20/400 [00:04<01:00, 4it/s]\rVal 1/2 [0"
    )
    assert (stage.step(), stage.steps) == (20, 400)


def test_overrides_reach_the_trainings_that_know_them() -> None:
    overrides = ["transformer.rope.theta=100", "data.crop=192", "codec.blocks=2", "losses.l2.weight=1"]
    assert _of(overrides, CODEC_SECTIONS) == ["data.crop=192", "codec.blocks=2"]


@pytest.mark.slow
def test_demo_end_to_end_and_again(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "experiments.demo", *TINY, "--folder", str(tmp_path / "demo")]
    first = subprocess.run(command, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr[-2000:]
    for said in ("bicubic", "codec(lr)", "codec(hr)", "student + L_AP", "Id-shuffle cost", "make board RUNS="):
        assert said in first.stdout
    with Image.open(tmp_path / "demo" / "large_4096.png") as large:
        assert large.size == (4096, 4096)
    before = (tmp_path / "demo" / "student" / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0
    assert (tmp_path / "demo" / "student" / "checkpoints" / "last.ckpt").stat().st_mtime_ns == before


def test_a_folder_with_other_options_is_not_taken_for_this_demo(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "codec", "f16_vae/small", ["seed=0"], 1)
    stage.checkpoint.parent.mkdir(parents=True)
    stage.checkpoint.touch()
    (stage.folder / "options.yaml").write_text(to_yaml(stage.options))
    (stage.folder / "done").touch()
    assert Stage(tmp_path, "codec", "f16_vae/small", ["seed=0"], 4).done()
    with pytest.raises(ValueError, match=r"other options .*DEMO="):
        Stage(tmp_path, "codec", "f16_vae/small", ["seed=1"], 1).done()
