"""Values that no run can use, refused before anything is built."""

from collections.abc import Callable, Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import torch

from datamodules.degradations.pipeline import PRESETS
from experiments.schema import Autoencoder, Experiment, OneStepFlux
from lightning_modules.networks.small_codec import PATCH
from lightning_modules.one_step_flux import TOKEN_PITCH
from losses.periodicity import smallest_side


class OptionError(ValueError):
    """A wrong option; the message names the key, the value found and what was expected."""


Rule = tuple[str, Callable[[Any], bool]]

POSITIVE: Rule = ("a value above 0", lambda value: value > 0)
NOT_NEGATIVE: Rule = ("0 or more", lambda value: value >= 0)
SHARE: Rule = ("a value from 0 to 1", lambda value: 0 <= value <= 1)
BELOW_ONE: Rule = ("a value from 0 to below 1", lambda value: 0 <= value < 1)
FOLDER: Rule = (
    'an existing folder of images, or "bundled"',
    lambda value: value == "bundled" or (value != "" and Path(value).is_dir()),
)
FILE: Rule = ("an existing file, or nothing", lambda value: not value or Path(value).is_file())
BETAS: Rule = ("two values from 0 to below 1", lambda value: len(value) == 2 and all(0 <= beta < 1 for beta in value))
WIDTHS: Rule = ("three values above 0", lambda value: len(value) == 3 and min(value) > 0)


def _one_of(*choices: Any) -> Rule:
    return ("one of " + ", ".join(map(str, choices)), lambda value: value in choices)


RULES: dict[str, Rule] = {
    "name": ("a name", bool),
    "seed": ("a whole number from 0 to 2^63 - 1", lambda value: 0 <= value < 2**63),
    "data.train": FOLDER,
    "data.val": FOLDER,
    "data.scale": POSITIVE,
    "data.crop": POSITIVE,
    "data.val_crop": POSITIVE,
    "data.batch_size": POSITIVE,
    "data.workers": NOT_NEGATIVE,
    "data.crops_per_image": POSITIVE,
    "data.procedural_share": SHARE,
    "data.val_count": POSITIVE,
    "data.val_batch_size": POSITIVE,
    "data.degradation": _one_of(*PRESETS),
    "perceptual.net": _one_of("squeeze", "alex", "vgg"),
    "perceptual.backbone": FILE,
    "perceptual.linear": FILE,
    "losses.l1.weight": NOT_NEGATIVE,
    "losses.l2.weight": NOT_NEGATIVE,
    "losses.lpips.weight": NOT_NEGATIVE,
    "losses.texture.weight": NOT_NEGATIVE,
    "losses.texture.levels": POSITIVE,
    "losses.texture.window": POSITIVE,
    "losses.texture.epsilon": POSITIVE,
    "losses.periodicity.weight": NOT_NEGATIVE,
    "losses.periodicity.period": ("0 or an even number", lambda value: value >= 0 and value % 2 == 0),
    "losses.periodicity.lags": POSITIVE,
    "losses.periodicity.quadrants": POSITIVE,
    "losses.periodicity.highpass": ("an odd number from 3", lambda value: value >= 3 and value % 2 == 1),
    "losses.periodicity.clip": POSITIVE,
    "optimizer.learning_rate": POSITIVE,
    "optimizer.betas": BETAS,
    "optimizer.weight_decay": NOT_NEGATIVE,
    "optimizer.warmup_steps": NOT_NEGATIVE,
    "optimizer.decay_share": SHARE,
    "optimizer.final_factor": SHARE,
    "ema.decay": BELOW_ONE,
    "trainer.steps": POSITIVE,
    "trainer.accelerator": _one_of("auto", "cpu", "gpu"),
    "trainer.devices": POSITIVE,
    "trainer.strategy": _one_of("auto", "ddp"),
    "trainer.precision": _one_of("32-true", "bf16-mixed"),
    "trainer.threads": NOT_NEGATIVE,
    "trainer.accumulate": POSITIVE,
    "trainer.clip": POSITIVE,
    "trainer.validate_every": POSITIVE,
    "trainer.checkpoint_every": POSITIVE,
    "trainer.log_every": POSITIVE,
    "trainer.panel_images": NOT_NEGATIVE,
}
STUDENT_RULES: dict[str, Rule] = {
    "transformer.rope.theta": POSITIVE,
    "transformer.double_blocks": POSITIVE,
    "transformer.single_blocks": POSITIVE,
    "transformer.heads": POSITIVE,
    "transformer.prompt_tokens": POSITIVE,
    "transformer.prompt_width": POSITIVE,
    "student.sigma": ("a value above 0, at most 1", lambda value: 0 < value <= 1),
}
CODEC_RULES: dict[str, Rule] = {
    "codec.latent_channels": POSITIVE,
    "codec.widths": WIDTHS,
    "codec.blocks": POSITIVE,
    "codec_training.pca_crops": POSITIVE,
    "codec_training.linear_learning_rate": NOT_NEGATIVE,
}


def size_unit(options: Experiment) -> int:
    """Pixels of which image sides are a multiple: a token's pitch for the student, a cell's for the codec."""
    return TOKEN_PITCH if isinstance(options, OneStepFlux) else PATCH


def check(options: Experiment) -> None:
    """Raise OptionError with every impossible value, one line each."""
    system_rules = {OneStepFlux: STUDENT_RULES, Autoencoder: CODEC_RULES}[type(options)]
    problems = [*_broken(RULES | system_rules, options), *_sizes(options), *_combinations(options)]
    if problems:
        raise OptionError("\n".join(f"option {problem}" for problem in problems))


def _broken(rules: dict[str, Rule], options: Experiment) -> Iterator[str]:
    for key, (expected, holds) in rules.items():
        value = reduce(getattr, key.split("."), options)
        if not holds(value):
            yield f"{key}={value}: expected {expected}"


def _sizes(options: Experiment) -> Iterator[str]:
    data, unit = options.data, size_unit(options)
    for key, side in (("data.crop", data.crop), ("data.val_crop", data.val_crop)):
        if side % unit or side % max(data.scale, 1):
            yield f"{key}={side}: expected a multiple of the model's size unit {unit} and of data.scale={data.scale}"
    period, term = period_of(options), options.losses.periodicity
    needed = smallest_side(period)
    if data.val_crop < needed:
        yield f"data.val_crop={data.val_crop}: the metric val/periodicity needs crops of at least {needed} px"
    needed = smallest_side(period, term.lags, term.quadrants, term.highpass)
    if term.weight > 0 and data.crop < needed:
        yield f"data.crop={data.crop}: losses.periodicity needs crops of at least {needed} px"


def _combinations(options: Experiment) -> Iterator[str]:
    data, trainer = options.data, options.trainer
    if data.batch_size % max(trainer.devices, 1):
        yield f"data.batch_size={data.batch_size}: expected a multiple of trainer.devices={trainer.devices}"
    if trainer.accelerator == "gpu" and not torch.cuda.is_available():
        yield "trainer.accelerator=gpu: torch finds no GPU here; expected cpu or auto"
    if options.losses.lpips.weight > 0 and not options.perceptual.backbone:
        yield "losses.lpips.weight is above 0, but perceptual.backbone names no file with trained weights"
    weights = [getattr(options.losses, name).weight for name in vars(options.losses)]
    if not any(weight > 0 for weight in weights):
        yield f"losses.*.weight: all are 0; expected at least one of {', '.join(vars(options.losses))} above 0"
    if isinstance(options, OneStepFlux) and not Path(options.codec.path, "config.json").is_file():
        yield (
            f"codec.path={options.codec.path!r}: no config.json there; expected the folder of a trained codec "
            "(`make train EXP=f16_vae/small` writes one to runs/f16_vae/small/codec)"
        )


def period_of(options: Experiment) -> int:
    """L_AP's period in px: as given, or the pitch of the student's tokens."""
    return options.losses.periodicity.period or TOKEN_PITCH
