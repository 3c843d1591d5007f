import os
from pathlib import Path

import pytest

from experiments.options import load_options
from experiments.train import train


@pytest.fixture(scope="session")
def tiny_codec_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of f16_vae/small with its tiny overrides, trained for two steps."""
    return _train("f16_vae/small", tmp_path_factory.mktemp("codec"))


@pytest.fixture(scope="session")
def tiny_student_run(tiny_codec_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of op4ksr/mini with its tiny overrides, trained for two steps on the tiny codec."""
    return _train("op4ksr/mini", tmp_path_factory.mktemp("student"), f"codec.path={tiny_codec_run / 'codec'}")


def _train(experiment: str, runs: Path, *overrides: str) -> Path:
    settings = [f"runs={runs}", "trainer.threads=1", "trainer.accelerator=cpu", *overrides]
    return train(load_options(experiment, settings, tiny=True))


@pytest.fixture(scope="session")
def command_environment() -> dict[str, str]:
    """Environment of the commands that tests start in processes of their own."""
    root = Path(__file__).resolve().parents[2]
    return {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
