"""A real, tiny super-resolution module and its data, for runs of a few steps on the CPU."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset


class Crops(Dataset):
    """Seeded random crops of 32 px, each taking `delay` seconds to read."""

    def __init__(self, count: int, delay: float = 0.0) -> None:
        self.count = count
        self.delay = delay

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        time.sleep(self.delay)
        hr = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(index))
        return {"hr": hr, "name": f"crop{index}"}


class Data(LightningDataModule):
    degrade_seconds = 0.0
    delay = 0.0

    def train_dataloader(self) -> DataLoader:
        return DataLoader(Crops(12, self.delay), batch_size=2)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(Crops(6), batch_size=2)

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        self.degrade_seconds = 0.001
        return batch | {"lr": F.avg_pool2d(batch["hr"], 2)}


class Student(LightningModule):
    """Bicubic plus a trained convolution; one frozen convolution and one buffer stand for a frozen base."""

    scale = 2

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Conv2d(3, 3, 1).requires_grad_(False)
        self.trained = nn.Conv2d(3, 3, 3, padding=1)
        self.register_buffer("offset", torch.zeros(1))
        self.validated: list[Tensor] = []

    def upscale(self, lr: Tensor) -> Tensor:
        up = F.interpolate(lr, scale_factor=2, mode="bicubic")
        return up + self.trained(self.frozen(up))

    def panel(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        up = F.interpolate(batch["lr"], scale_factor=2, mode="bicubic")
        return {"lr": up.clamp(0, 1), "sr": self.upscale(batch["lr"]).clamp(0, 1), "hr": batch["hr"]}

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        loss = F.mse_loss(self.upscale(batch["lr"]), batch["hr"])
        self.log("train/l2", loss)
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.validated.append(self.trained.weight.detach().clone())
        error = F.mse_loss(self.upscale(batch["lr"]), batch["hr"])
        self.log("val/psnr", -10 * error.log10(), batch_size=len(batch["hr"]), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=0.05)


@pytest.fixture
def student() -> Student:
    return make_student()


def make_student() -> Student:
    torch.manual_seed(0)
    return Student()


@pytest.fixture
def data() -> Data:
    return Data()


@pytest.fixture
def new_student() -> Callable[[], Student]:
    return make_student


@pytest.fixture
def trainer_with(tmp_path: Path) -> Callable[..., Trainer]:
    """Trainer on the CPU with a TensorBoardLogger in tmp_path/run; options override."""

    def build(*callbacks: Any, **options: Any) -> Trainer:
        logger = TensorBoardLogger(tmp_path, name="", version="run", default_hp_metric=False)
        defaults: dict[str, Any] = {"max_steps": 6, "log_every_n_steps": 2, "num_sanity_val_steps": 1}
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
        settings = {"accelerator": "cpu", "devices": 1, "logger": logger} | quiet | defaults | options
        return Trainer(callbacks=list(callbacks), **settings)

    return build
