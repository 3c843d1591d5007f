"""Train one experiment: `python -m experiments.train op4ksr/mini seed=1` (make train EXP= SET= RESUME= INIT=)."""

import argparse
import json
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException

from callbacks.ema import Ema
from callbacks.hparams import LogHyperparameters
from callbacks.image_panel import ImagePanel
from callbacks.spectrum import Spectrum
from callbacks.throughput import Throughput
from datamodules.sr4k import SR4KDataModule
from experiments.build import build_data, build_system, metric_names, pca_patches, start_crops
from experiments.checkpoints import OPTIONS_KEY, AtomicCheckpoints, load_weights, options_of, read_checkpoint
from experiments.checks import has_bf16_base
from experiments.command_line import USER_ERRORS, quiet, user_errors
from experiments.inference import has_bf16
from experiments.options import load_options, to_yaml
from experiments.schema import Autoencoder, Experiment, RealTimeCnn
from lightning_modules.autoencoder import Autoencoder as AutoencoderModule
from lightning_modules.f16_decoder import F16Decoder
from lightning_modules.latent_flow import LatentFlow
from lightning_modules.latent_flux import LatentFlux
from lightning_modules.networks.flux import distinguishable_pairs
from lightning_modules.networks.lora import has_lora, save_encoder_lora, save_lora
from lightning_modules.networks.rt4ksr import RT4KSR
from lightning_modules.networks.rt4ksr_start import start_linear
from lightning_modules.one_step_flux import OneStepFlux
from lightning_modules.real_time_cnn import RealTimeCnn as RealTimeCnnModule
from lightning_modules.super_resolution import SuperResolution

SECONDS_TO_END = 10.0
"""How long a process that has failed may take to end."""


class SaveOptions(Callback):
    """Puts the resolved options into the run's folder and into every checkpoint."""

    def __init__(self, options_yaml: str, folder: Path) -> None:
        super().__init__()
        self.options_yaml = options_yaml
        self.folder = folder

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Not earlier: a refused resume leaves the file as it was, and ranks that start late find no finished run.
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "options.yaml").write_text(self.options_yaml)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[OPTIONS_KEY] = self.options_yaml


def train(options: Experiment, resume: str = "", init: str = "") -> Path:
    """Run an experiment and return its folder, which holds options.yaml, checkpoints/ and TensorBoard's event files.

    resume: a checkpoint to continue in every respect (weights, average, optimiser, position in the data). init: a
    checkpoint that gives the weights only; a new run starts.
    """
    quiet()
    if options.trainer.threads:
        torch.set_num_threads(options.trainer.threads)
    data, system = build_data(options), build_system(options)
    if init:
        hf_branch = isinstance(options, RealTimeCnn) and options.network.hf_branch
        load_weights(system, read_checkpoint(init, "INIT", hf_branch), averaged=True)
    elif not resume:
        start_from_data(options, system, data)
    folder = run_folder(options, resume)
    trainer = build_trainer(options, folder)
    if trainer.is_global_zero:
        print(summary(options, system, folder), flush=True)
    try:
        trainer.fit(system, datamodule=data, ckpt_path=resume or None, weights_only=True if resume else None)
    except SIGTERMException:  # Lightning would end with 0, as if the run were finished
        raise SystemExit(128 + signal.SIGTERM) from None
    except Exception as error:
        end_other_ranks(trainer, error)
        raise
    trainer.save_checkpoint(folder / "checkpoints" / "last.ckpt")
    if trainer.is_global_zero:
        save_products(system, folder)
    return folder


def end_other_ranks(trainer: pl.Trainer, error: Exception) -> None:
    """End the processes that this one has started, as they would wait for it for ever.

    SystemExit with the code of a process that failed first and has said why: what this one met is only that it is gone.
    """
    processes = getattr(trainer.strategy.launcher, "procs", [])
    end = time.monotonic() + (0 if isinstance(error, USER_ERRORS) else SECONDS_TO_END)
    while processes and not (failed := [p.returncode for p in processes if p.poll()]) and time.monotonic() < end:
        time.sleep(0.1)
    for process in processes:
        process.kill()
    if processes and failed and not isinstance(error, USER_ERRORS):
        raise SystemExit(failed[0]) from None


def start_from_data(options: Experiment, system: SuperResolution, data: SR4KDataModule) -> None:
    """Set the weights that start from training crops: a codec's linear path, a network that starts as a filter."""
    if isinstance(options, Autoencoder) and isinstance(system, AutoencoderModule):
        system.codec.initialise_by_pca(pca_patches(data, options.codec_training.pca_crops))
    network = system.network if isinstance(system, RealTimeCnnModule) else None
    if isinstance(options, RealTimeCnn) and options.network.start == "linear" and isinstance(network, RT4KSR):
        start_linear(network, *start_crops(data, options.network.start_crops))


def run_folder(options: Experiment, resume: str = "") -> Path:
    """The folder of a run: the resumed checkpoint's, or <runs>/<name>; ValueError where a run is there already."""
    if resume:
        checkpoints = Path(resume).resolve().parent
        if checkpoints.name != "checkpoints":
            raise ValueError(f"RESUME={resume}: expected a checkpoint in its run's folder, <run>/checkpoints/last.ckpt")
        return checkpoints.parent
    folder = Path(options.runs) / options.name
    if (folder / "options.yaml").exists():
        raise ValueError(
            f"{folder} already holds a run: continue it with RESUME={folder}/checkpoints/last.ckpt, "
            "or give the new one another name with SET=name=..."
        )
    return folder


def build_trainer(options: Experiment, folder: Path) -> pl.Trainer:
    trainer = options.trainer
    manual = options.losses.adversarial.weight > 0  # the system does itself what the Trainer refuses then
    return pl.Trainer(
        # auto is a CUDA GPU or the CPU: the degradations compute in float64, which Apple's MPS lacks
        accelerator="cuda" if trainer.accelerator != "cpu" and torch.cuda.is_available() else "cpu",
        devices=trainer.devices,
        # no buffers at each step: they are frozen networks that measure, and equal on all ranks
        strategy=DDPStrategy(broadcast_buffers=False) if trainer.strategy == "ddp" or trainer.devices > 1 else "auto",
        precision=precision_of(options),  # type: ignore[arg-type]  # one of the choices in checks.py
        max_steps=trainer.steps,
        accumulate_grad_batches=1 if manual else trainer.accumulate,
        gradient_clip_val=None if manual else trainer.clip,
        val_check_interval=min(trainer.validate_every, trainer.steps) * trainer.accumulate,
        check_val_every_n_epoch=1,
        num_sanity_val_steps=0,
        log_every_n_steps=trainer.log_every,
        use_distributed_sampler=False,
        enable_model_summary=False,
        logger=TensorBoardLogger(folder.parent, name=folder.name, version="", default_hp_metric=False),
        callbacks=build_callbacks(options, folder),
        plugins=[AtomicCheckpoints()],
    )


def precision_of(options: Experiment) -> str:
    """The precision of training: as given, or for `auto` the faster one of the two on this machine."""
    trainer = options.trainer
    if trainer.precision != "auto":
        return trainer.precision
    if has_bf16_base(options):
        return "bf16-mixed"
    gpu = trainer.accelerator != "cpu" and torch.cuda.is_available()
    return "bf16-mixed" if has_bf16(torch.device("cuda" if gpu else "cpu")) else "32-true"


def build_callbacks(options: Experiment, folder: Path) -> list[Callback]:
    every, panel = options.trainer.checkpoint_every, options.trainer.panel_images
    callbacks: list[Callback] = [
        TQDMProgressBar(refresh_rate=1 if sys.stderr.isatty() else options.trainer.log_every),
        Throughput(),
        hparams_row(options),
        SaveOptions(to_yaml(options), folder),
        ModelCheckpoint(folder / "checkpoints", "last", every_n_train_steps=every, enable_version_counter=False),
    ]
    if options.ema.decay:
        callbacks.insert(0, Ema(options.ema.decay))
    if panel:
        largest = options.data.val_crop
        callbacks += [ImagePanel(max_images=panel, largest=largest), Spectrum(max_images=panel, largest=largest)]
    return callbacks


def hparams_row(options: Experiment) -> LogHyperparameters:
    """The run's row of TensorBoard's HParams table: all options but those that say what the table shows."""
    values, table = asdict(options), options.table
    del values["table"]
    measured = [f"val/{name}" for name in metric_names(options)]
    return LogHyperparameters(values, measured, table.labels, table.columns, table.metrics)


def save_products(system: SuperResolution, folder: Path) -> None:
    """Write the averaged weights as other experiments and other programs take them.

    A codec to <run>/codec (`codec.path`), a pretrained transformer to <run>/transformer (`transformer.path`), adapters
    to <run>/lora, where plain diffusers reads the transformer's; student.json says what it must be run with.
    """
    load_weights(system, read_checkpoint(folder / "checkpoints" / "last.ckpt"), averaged=True)
    if isinstance(system, AutoencoderModule | F16Decoder):
        system.codec.save_pretrained(folder / "codec")
    if isinstance(system, LatentFlow):
        system.transformer.save_pretrained(folder / "transformer")
    if isinstance(system, OneStepFlux) and has_lora(system.transformer):
        save_lora(system.transformer, folder / "lora")
        rope = system.transformer.pos_embed
        facts = {"theta": rope.theta, "variant": rope.variant, "window": rope.window}
        entry = {"sigma": system.sigma, "noise": system.noise}
        (folder / "lora" / "student.json").write_text(json.dumps({"rope": facts, **entry}, indent=1) + "\n")
    if isinstance(system, OneStepFlux) and has_lora(system.codec.encoder):
        save_encoder_lora(system.codec.encoder, folder / "lora")


def summary(options: Experiment, system: SuperResolution, folder: Path) -> str:
    """The facts that explain speed and memory later, one line each."""
    count = {True: 0, False: 0}
    for parameter in system.parameters():
        count[parameter.requires_grad] += parameter.numel()
    weights = {name: term.weight for name, term in vars(options.losses).items() if term.weight}
    lines = [
        f"run         {folder}",
        f"parameters  {count[True] / 1e6:.2f} M trained, {count[False] / 1e6:.2f} M frozen",
        f"batches     {options.data.batch_size} {samples(options)}, {options.trainer.steps} steps",
        f"losses      {', '.join(f'{name} x {weight:g}' for name, weight in weights.items()) or 'flow matching'}",
        f"precision   {precision_of(options)}",
    ]
    if isinstance(system, LatentFlux):
        rope = system.transformer.pos_embed
        pairs, of = distinguishable_pairs(system.transformer)
        variant = "" if rope.variant == "plain" else f", {rope.variant} above {rope.window} tokens per side"
        lines.append(f"rope        theta {rope.theta:g}: {pairs}/{of} pairs >= 5 degrees{variant}")
    return "\n".join(lines)


def samples(options: Experiment) -> str:
    """What a batch holds."""
    data = options.data
    if data.sample == "whole":
        return f"whole images of up to {data.whole_side} x {data.whole_side} px"
    return f"crops of {data.crop} px"


def resumed_options(arguments: argparse.Namespace) -> Experiment:
    """Options of the checkpoint to resume, with overrides; ValueError for what would be ignored."""
    given = [item for item in [arguments.experiment, *arguments.overrides] if item]
    restored = [item for item in given if "=" not in item or item.startswith(("optimizer.", "seed="))]
    if arguments.init or arguments.tiny or restored:
        raise ValueError(
            "RESUME= continues a run with its own experiment, seed and optimizer, found "
            f"{' '.join(restored) or 'INIT= or TINY='} beside it; leave that out, or start a new run from the weights "
            "with EXP= and INIT="
        )
    checkpoint = read_checkpoint(arguments.resume, "RESUME")
    if "loops" not in checkpoint:
        raise ValueError(f"RESUME={arguments.resume}: weights and no run; start from them with EXP= and INIT=")
    return options_of(checkpoint, arguments.resume, given)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train one experiment.")
    parser.add_argument("experiment", nargs="?", default="", help="name below experiments/ or a YAML file (EXP=)")
    parser.add_argument("overrides", nargs="*", default=[], help="key=value ... (SET=)")
    parser.add_argument("--resume", default="", help="checkpoint to continue in every respect (RESUME=)")
    parser.add_argument("--init", default="", help="checkpoint that gives the weights only (INIT=)")
    parser.add_argument("--tiny", action="store_true", help="apply the experiment's own tiny overrides (TINY=1)")
    arguments = parser.parse_intermixed_args()
    with user_errors():
        if arguments.resume:
            options = resumed_options(arguments)
        else:
            options = load_options(arguments.experiment, arguments.overrides, arguments.tiny)
        train(options, arguments.resume, arguments.init)


if __name__ == "__main__":
    main()
