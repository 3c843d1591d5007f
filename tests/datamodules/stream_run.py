"""One of the processes that train on a data set and write down what they were fed: stream_run.py OPTIONS.json.

OPTIONS: data (of SR4KDataModule), folder, devices, checkpoint ("" or one to resume), pause (s per step). Each rank
appends a line per step to <folder>/rank<R>.jsonl: step, and of each sample its place in the global batch, its key and a
hash of hr and lr.
"""

import hashlib
import json
import sys
import time
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy

from datamodules.sr4k import SR4KDataModule
from experiments.checkpoints import AtomicCheckpoints


class Record(pl.LightningModule):
    """Trains one number and writes down its batches."""

    def __init__(self, folder, pause):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(1))
        self.folder, self.pause, self.file = Path(folder), pause, None

    def on_train_start(self):
        self.file = self.folder / f"rank{self.global_rank}.jsonl"

    def training_step(self, batch, batch_idx):
        first = self.global_rank * len(batch["key"])
        samples = [
            [
                first + place,
                key,
                hashlib.blake2b(hr.numpy().tobytes() + lr.contiguous().numpy().tobytes(), digest_size=8).hexdigest(),
            ]
            for place, (key, hr, lr) in enumerate(zip(batch["key"].tolist(), batch["hr"], batch["lr"], strict=True))
        ]
        with self.file.open("a") as file:
            file.write(json.dumps({"step": self.global_step, "samples": samples}) + "\n")
        time.sleep(self.pause)
        return (self.gain * batch["lr"].mean() - 1).square().sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def main():
    torch.set_num_threads(1)
    options = json.loads(Path(sys.argv[1]).read_text())
    folder, devices = Path(options["folder"]), options["devices"]
    data = SR4KDataModule(**options["data"])
    saver = pl.callbacks.ModelCheckpoint(folder, "last", every_n_train_steps=1, enable_version_counter=False)
    trainer = pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        devices=devices,
        strategy=DDPStrategy(broadcast_buffers=False) if devices > 1 else "auto",
        max_steps=options["data"]["steps"],
        limit_val_batches=0,
        logger=False,
        callbacks=[saver],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        plugins=[AtomicCheckpoints()],
    )
    module = Record(folder, options["pause"])
    trainer.fit(module, datamodule=data, ckpt_path=options["checkpoint"] or None, weights_only=True)


if __name__ == "__main__":
    main()
