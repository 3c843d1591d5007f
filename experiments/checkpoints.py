"""Reading the project's checkpoints: options, trainable tensors or their moving average, on top of a frozen base."""

import os
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning.pytorch.plugins import TorchCheckpointIO
from omegaconf import OmegaConf

from callbacks.ema import averaged_weights
from experiments.build import build_system
from experiments.options import from_yaml
from experiments.released import converted
from experiments.schema import Experiment, LossOptions
from lightning_modules.networks.rt4ksr_released import is_released
from lightning_modules.super_resolution import (
    BASE_FINGERPRINT,
    SuperResolution,
    check_base,
    check_trainable,
    fingerprint,
    without_adversary,
)

OPTIONS_KEY = "options_yaml"
NOT_OF_TRAINING = (
    "data.train=bundled",
    "data.val=bundled",
    "trainer.accelerator=auto",
    "trainer.threads=0",
)
"""Overrides under which a checkpoint loads for inference where the files and the machine of its training are not."""

NO_LOSSES = ("losses.l1.weight=1", *[f"losses.{name}.weight=0" for name in vars(LossOptions()) if name != "l1"])
"""The same for the losses, in a system whose losses compare images."""

NO_FILES = ("dists.weights=", "adversary.weights=")
"""The same for the files that those losses need, in every system."""


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes beside the target and renames, so that a killed run leaves the whole old checkpoint or the whole new one.

    Lightning writes to the system's temporary folder and moves: on another file system than the run's that is a copy.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        with open(partial, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)


def read_checkpoint(path: str | Path, variable: str = "CKPT", hf_branch: bool = False) -> dict[str, Any]:
    """A checkpoint's contents on the CPU, nothing of it executed; a released RT4KSR file comes in this project's form.

    hf_branch: keep the branch of such a file, which starts with gamma = 0; the released code never ran it.
    FileNotFoundError or ValueError name the file, what is wrong with it, and the make variable to change.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{variable}={path}: no such file; training writes runs/<name>/checkpoints/last.ckpt")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        raise ValueError(f"{variable}={path}: not a readable checkpoint ({type(error).__name__})") from error
    if isinstance(checkpoint, dict) and OPTIONS_KEY not in checkpoint and is_released(checkpoint):
        options_yaml, weights = converted(checkpoint, path, variable, hf_branch)
        return {OPTIONS_KEY: options_yaml, "state_dict": weights, BASE_FINGERPRINT: fingerprint([], {})}
    if not isinstance(checkpoint, dict) or OPTIONS_KEY not in checkpoint:
        found = ", ".join(map(str, list(checkpoint)[:5])) if isinstance(checkpoint, dict) else type(checkpoint).__name__
        raise ValueError(f"{variable}={path}: not a checkpoint of this project; it holds {found}, but no {OPTIONS_KEY}")
    return checkpoint


def run_of(path: str | Path) -> Path | None:
    """The run's folder of a checkpoint that lies in one of this project's runs."""
    checkpoints = Path(path).absolute().parent
    return (
        checkpoints.parent
        if checkpoints.name == "checkpoints" and (checkpoints.parent / "options.yaml").is_file()
        else None
    )


def options_of(checkpoint: dict[str, Any], path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """The options that a checkpoint was trained with, with overrides."""
    return from_yaml(checkpoint[OPTIONS_KEY], overrides, origin=str(path))


def load_weights(system: SuperResolution, checkpoint: dict[str, Any], averaged: bool) -> None:
    """Put a checkpoint's trainable tensors into a system; `averaged` takes their moving average where one was kept.

    An adversary's tensors stay as the system has them. ValueError where the tensors or the frozen base are not the
    system's.
    """
    weights = checkpoint["state_dict"]
    if averaged:
        weights = averaged_weights(checkpoint) or weights
    weights = without_adversary(weights)
    check_trainable(weights, system.generator_parameters())
    check_base(checkpoint, system.base_fingerprint())
    parameters = dict(system.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(value)


def load_system(path: str | Path, overrides: Sequence[str] = ()) -> tuple[SuperResolution, Experiment]:
    """The trained system of a checkpoint with its averaged weights, ready for inference, and its options.

    What only the training needed, its data above all, may be missing here.
    """
    checkpoint = read_checkpoint(path)
    options = options_of(checkpoint, path, [*NOT_OF_TRAINING, *NO_FILES, *_of_system(checkpoint), *overrides])
    system = build_system(options)
    load_weights(system, checkpoint, averaged=True)
    return system.eval().requires_grad_(False), options


def _of_system(checkpoint: dict[str, Any]) -> tuple[str, ...]:
    system = OmegaConf.create(checkpoint[OPTIONS_KEY]).get("system")
    if system == "latent_flow":
        return ()
    return (*NO_LOSSES, "decoder_training.scale_consistency=0") if system == "f16_decoder" else NO_LOSSES
