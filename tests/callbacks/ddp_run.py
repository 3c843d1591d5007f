"""Three steps of every callback on two gloo processes; run by test_ddp.py as a script, once per rank by Lightning."""

import importlib.util
import sys
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from callbacks.ema import Ema
from callbacks.hparams import LogHyperparameters
from callbacks.image_panel import ImagePanel
from callbacks.spectrum import Spectrum
from callbacks.throughput import Throughput


def main(folder: Path) -> None:
    spec = importlib.util.spec_from_file_location("tiny", Path(__file__).with_name("conftest.py"))
    assert spec is not None
    assert spec.loader is not None
    tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)

    ema = Ema(decay=0.5)
    callbacks = [ema, ImagePanel(), Spectrum(), LogHyperparameters({"seed": 1}, ["val/psnr"]), Throughput()]
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_steps=3,
        log_every_n_steps=3,
        callbacks=callbacks,
        logger=TensorBoardLogger(folder, name="", version="run", default_hp_metric=False),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(tiny.make_student(), tiny.Data())
    torch.save(ema.averaged_state(), folder / f"ema{trainer.global_rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
