"""One of two processes that train two steps and validate on pairs after each: pairs_run.py FOLDER OUT."""

import json
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy
from torchmetrics import MeanMetric

from datamodules.sr4k import SR4KDataModule


class Brightness(pl.LightningModule):
    """Trains one number and measures the mean of the images of each validation."""

    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(1))
        self.mean = MeanMetric()
        self.names, self.means = [], []

    def training_step(self, batch, batch_idx):
        return (self.gain * batch["lr"].mean() - 1).square().sum()

    def validation_step(self, batch, batch_idx):
        self.mean.update(batch["hr"].mean())
        self.names += batch["name"]
        self.log("val/mean", self.mean, batch_size=1)

    def on_validation_epoch_end(self):
        self.means.append(self.mean.compute().item())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def main():
    torch.set_num_threads(1)
    pairs, out = sys.argv[1:]
    data = SR4KDataModule(val=pairs, scale=2, crop=32, batch_size=2, steps=2, degradation="bicubic")
    module = Brightness()
    trainer = pl.Trainer(
        default_root_dir=out,
        accelerator="cpu",
        devices=2,
        strategy=DDPStrategy(broadcast_buffers=False),
        max_steps=2,
        val_check_interval=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, datamodule=data)
    result = {"names": module.names[: len(module.names) // 2], "means": module.means}
    Path(out, f"{trainer.global_rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
