"""A real, tiny generator and discriminator and their data; as a script, one of two gloo processes that train them."""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset

from callbacks.ema import Ema
from lightning_modules.adversarial_training import Manual
from lightning_modules.adversary import Adversary
from lightning_modules.networks.discriminator import Discriminator
from lightning_modules.super_resolution import AdamWSchedule, SuperResolution
from losses.backbone import FrozenBackbone
from losses.fidelity import L1, PsnrY
from losses.weighted_sum import WeightedSum

SIDE = 16
SCHEDULE = AdamWSchedule(2e-3, (0.9, 0.99), 0.01, warmup_steps=3, decay_share=0.5, final_factor=0.1, steps=12)


class Generator(SuperResolution):
    """Bicubic plus two convolutions, of which the frozen projection before them stands for a base."""

    scale = 2

    def __init__(self, adversary: Adversary | None = None, optimisation: Manual | None = None) -> None:
        super().__init__(WeightedSum({"l1": (1.0, L1())}), {"psnr_y": PsnrY()}, SCHEDULE, adversary, optimisation)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.base = nn.Conv2d(3, 8, 3, padding=1).requires_grad_(False)
            self.conv1 = nn.Conv2d(8, 8, 3, padding=1)
            self.conv2 = nn.Conv2d(8, 3, 3, padding=1)

    def forward_batch(self, batch: dict[str, Any]) -> Tensor:
        up = F.interpolate(batch["lr"], scale_factor=self.scale, mode="bicubic")
        return up + self.conv2(F.silu(self.conv1(self.base(up))))

    def panel(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        return {"sr": self.forward_batch(batch), "hr": batch["hr"]}

    def last_layer(self) -> Tensor:
        return self.conv2.weight

    def frozen_modules(self) -> list[nn.Module]:
        return [self.base]


class GeneratorWithoutLastLayer(Generator):
    last_layer = SuperResolution.last_layer


def make_adversary(
    kind: str = "bce", augment: bool = True, weight: float = 0.5, adaptive: bool = False, factor: float = 2.0
) -> Adversary:
    backbone = FrozenBackbone("test_efficientnet", [0, 1], None, torch.Generator().manual_seed(1), "adversary")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        discriminator = Discriminator(backbone, channels=8)
    return Adversary(discriminator, kind, 0.8, augment, weight, adaptive, factor)


class Crops(Dataset):
    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        coarse = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(index))
        hr = F.interpolate(coarse, size=(SIDE, SIDE), mode="bicubic").clamp(0, 1)[0]
        return {"hr": hr, "lr": F.avg_pool2d(hr, 2), "key": torch.tensor([0, 0, index, 0])}


def loader(batches: int, batch_size: int = 2, rank: int = 0, ranks: int = 1) -> DataLoader:
    """Global batches of `batch_size` consecutive samples, of which a rank takes every `ranks`-th."""
    own = Subset(Crops(batches * batch_size), range(rank, batches * batch_size, ranks))
    return DataLoader(own, batch_size=batch_size // ranks)


def make_trainer(steps: int, **options: Any) -> Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    settings = quiet | {"accelerator": "cpu", "devices": 1, "enable_checkpointing": False} | options
    return Trainer(max_steps=steps, **settings)


def train_adaptively(folder: Path, name: str, rank: int = 0, ranks: int = 1, **options: Any) -> None:
    """Two steps of two batches of four samples, with every part of the adversary in use; writes a checkpoint."""
    module = Generator(make_adversary(adaptive=True), Manual(accumulate=2, clip=0.05))
    trainer = make_trainer(2, callbacks=[Ema(0.5)], use_distributed_sampler=False, **options)
    trainer.fit(module, loader(4, 4, rank, ranks), loader(1, 4, rank, ranks))
    trainer.save_checkpoint(folder / f"{name}.ckpt")
    torch.save(module.state_dict(), folder / f"{name}{rank}.pt")


if __name__ == "__main__":
    train_adaptively(Path(sys.argv[1]), "two", int(os.environ["LOCAL_RANK"]), 2, devices=2, strategy="ddp")
