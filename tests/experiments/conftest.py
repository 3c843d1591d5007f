import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from experiments.options import load_options
from experiments.shards import pack
from experiments.train import train
from lightning_modules.networks.f16_vae import build_flux_vae


@pytest.fixture(scope="session")
def tiny_codec_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of f16_vae/small with its tiny overrides, trained for two steps."""
    return _train("f16_vae/small", tmp_path_factory.mktemp("codec"))


@pytest.fixture(scope="session")
def tiny_student_run(tiny_codec_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of op4ksr/mini with its tiny overrides, trained for two steps on the tiny codec."""
    return _train("op4ksr/mini", tmp_path_factory.mktemp("student"), f"codec.path={tiny_codec_run / 'codec'}")


@pytest.fixture(scope="session")
def tiny_flow_run(tiny_codec_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of op4ksr/pretrain_mini with its tiny overrides, trained for two steps on the tiny codec."""
    return _train("op4ksr/pretrain_mini", tmp_path_factory.mktemp("flow"), f"codec.path={tiny_codec_run / 'codec'}")


@pytest.fixture(scope="session")
def tiny_cnn_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of rt4ksr/s_x2_mini with its tiny overrides, trained for two steps."""
    return _train("rt4ksr/s_x2_mini", tmp_path_factory.mktemp("cnn"))


@pytest.fixture(scope="session")
def tiny_vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny AutoencoderKL in F8 layout with random weights, which stands for FLUX's."""
    folder = tmp_path_factory.mktemp("vae") / "vae"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        build_flux_vae((4, 4, 4, 4), layers_per_block=1, norm_groups=2, latent_channels=4).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def bases(tiny_codec_run: Path, tiny_flow_run: Path, tiny_vae: Path) -> Callable[[str], list[str]]:
    """Overrides that point a shipped experiment to the tiny models which it stands on."""

    def bases_of(name: str) -> list[str]:
        if name.startswith("f16_vae/decoder"):
            return [f"codec.path={tiny_vae}"]
        if name.startswith("rt4ksr"):
            return []
        codec = [] if name.startswith("f16_vae") else [f"codec.path={tiny_codec_run / 'codec'}"]
        adapted = name.startswith(("op4ksr/mini_lora", "op4ksr/mini_gan"))
        return [*codec, f"transformer.path={tiny_flow_run / 'transformer'}"] if adapted else codec

    return bases_of


@pytest.fixture(scope="session")
def tiny_lora_run(bases: Callable[[str], list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of op4ksr/mini_lora, tiny, at a rate at which two steps leave adapters of visible effect."""
    fast = ["optimizer.learning_rate=0.03", "optimizer.warmup_steps=0"]
    return _train("op4ksr/mini_lora", tmp_path_factory.mktemp("lora"), *bases("op4ksr/mini_lora"), *fast)


@pytest.fixture(scope="session")
def tiny_gan_run(bases: Callable[[str], list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of op4ksr/mini_gan with its tiny overrides, trained for two steps; a checkpoint after each."""
    paths = bases("op4ksr/mini_gan")
    return _train("op4ksr/mini_gan", tmp_path_factory.mktemp("gan"), *paths, "trainer.checkpoint_every=1")


@pytest.fixture(scope="session")
def tiny_decoder_run(tiny_vae: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of f16_vae/decoder with its tiny overrides, trained for two steps."""
    return _train("f16_vae/decoder", tmp_path_factory.mktemp("decoder"), f"codec.path={tiny_vae}")


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Six images of noise of 64 px and more, each in a shard of its own; their files are in images/ beside it."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number in range(6):
        pixels = rng.integers(0, 256, (64, 64 + 8 * number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    pack(tmp_path / "images", tmp_path / "shards", shard_mb=0.03)
    return tmp_path / "shards"


def _train(experiment: str, runs: Path, *overrides: str) -> Path:
    settings = [f"runs={runs}", "trainer.threads=1", "trainer.accelerator=cpu", *overrides]
    return train(load_options(experiment, settings, tiny=True))


@pytest.fixture(scope="session")
def command_environment() -> dict[str, str]:
    """Environment of the commands that tests start in processes of their own."""
    root = Path(__file__).resolve().parents[2]
    return {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
