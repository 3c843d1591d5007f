"""Values that no run can use, refused before anything is built."""

from collections.abc import Callable, Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import torch

from datamodules.crops import PREFERENCES
from datamodules.degradations.pipeline import PRESETS
from datamodules.pairs import has_pairs
from datamodules.shards.reader import is_shards
from datamodules.sr4k import SAMPLES
from experiments.schema import (
    Autoencoder,
    CodecExperiment,
    Experiment,
    F16Decoder,
    LatentFlow,
    LossOptions,
    NetworkOptions,
    OneStepFlux,
    RealTimeCnn,
)
from lightning_modules.color_fix import COLOR_FIXES
from lightning_modules.networks.codec import LAYOUTS, codec_cell
from lightning_modules.networks.flux import TOKEN_CELLS
from lightning_modules.networks.rope import VARIANTS
from lightning_modules.networks.rt4ksr import BLOCKS, EXTRACTIONS, SCALES, UNSHUFFLE
from lightning_modules.networks.rt4ksr import VARIANTS as NETWORK_VARIANTS
from lightning_modules.networks.rt4ksr_start import FEWEST_CHANNELS
from lightning_modules.networks.rt4ksr_steps import FEATURES, STEP_BLOCKS
from lightning_modules.networks.small_codec import PATCH
from losses.adversarial import KINDS
from losses.periodicity import smallest_side


class OptionError(ValueError):
    """A wrong option; the message names the key, the value found and what was expected."""


Rule = tuple[str, Callable[[Any], bool]]

POSITIVE: Rule = ("a value above 0", lambda value: value > 0)
NOT_NEGATIVE: Rule = ("0 or more", lambda value: value >= 0)
SHARE: Rule = ("a value from 0 to 1", lambda value: 0 <= value <= 1)
BELOW_ONE: Rule = ("a value from 0 to below 1", lambda value: 0 <= value < 1)
FOLDER: Rule = (
    'an existing folder of images, the folder or address of shards, or "bundled"',
    lambda value: value == "bundled" or (value != "" and (is_shards(value) or Path(value).is_dir())),
)
FILE: Rule = ("an existing file, or nothing", lambda value: not value or Path(value).is_file())
BETAS: Rule = ("two values from 0 to below 1", lambda value: len(value) == 2 and all(0 <= beta < 1 for beta in value))
STAGES: Rule = (
    "ascending indices from 0",
    lambda value: bool(value) and min(value) >= 0 and sorted(set(value)) == value,
)
WIDTHS: Rule = ("three values above 0", lambda value: len(value) == 3 and min(value) > 0)


def _one_of(*choices: Any) -> Rule:
    return ("one of " + ", ".join(map(str, choices)), lambda value: value in choices)


RULES: dict[str, Rule] = {
    "name": ("a name", bool),
    "seed": ("a whole number from 0 to 2^63 - 1", lambda value: 0 <= value < 2**63),
    "data.train": FOLDER,
    "data.val": FOLDER,
    "data.scale": POSITIVE,
    "data.sample": _one_of(*SAMPLES),
    "data.crop": POSITIVE,
    "data.crop_preference": _one_of(*PREFERENCES),
    "data.crop_candidates": POSITIVE,
    "data.whole_side": POSITIVE,
    "data.cache": ("a folder", bool),
    "data.cache_gb": POSITIVE,
    "data.decoded_mb": NOT_NEGATIVE,
    "data.val_crop": POSITIVE,
    "data.batch_size": POSITIVE,
    "data.workers": NOT_NEGATIVE,
    "data.crops_per_image": POSITIVE,
    "data.crops_per_decode": POSITIVE,
    "data.procedural_share": SHARE,
    "data.val_count": POSITIVE,
    "data.val_batch_size": POSITIVE,
    "data.degradation": _one_of(*PRESETS),
    "perceptual.net": _one_of("squeeze", "alex", "vgg"),
    "perceptual.backbone": FILE,
    "perceptual.linear": FILE,
    "dists.weights": FILE,
    "dists.stages": STAGES,
    "adversary.weights": FILE,
    "adversary.stages": STAGES,
    "adversary.channels": POSITIVE,
    "adversary.kind": _one_of(*KINDS),
    "adversary.real_label": ("a value above 0.5, at most 1", lambda value: 0.5 < value <= 1),
    "adversary.learning_rate_factor": POSITIVE,
    **{f"losses.{name}.weight": NOT_NEGATIVE for name in vars(LossOptions())},
    "losses.texture.levels": POSITIVE,
    "losses.texture.window": POSITIVE,
    "losses.texture.epsilon": POSITIVE,
    "losses.periodicity.period": ("0 or an even number", lambda value: value >= 0 and value % 2 == 0),
    "losses.periodicity.lags": POSITIVE,
    "losses.periodicity.quadrants": POSITIVE,
    "losses.periodicity.highpass": ("an odd number from 3", lambda value: value >= 3 and value % 2 == 1),
    "losses.periodicity.clip": POSITIVE,
    "optimizer.learning_rate": POSITIVE,
    "optimizer.betas": BETAS,
    "optimizer.weight_decay": NOT_NEGATIVE,
    "optimizer.warmup_steps": NOT_NEGATIVE,
    "optimizer.decay": _one_of("linear", "cosine", "steps"),
    "optimizer.decay_share": SHARE,
    "optimizer.step_share": ("a value above 0, at most 1", lambda value: 0 < value <= 1),
    "optimizer.step_factor": ("a value above 0, at most 1", lambda value: 0 < value <= 1),
    "optimizer.final_factor": SHARE,
    "ema.decay": BELOW_ONE,
    "trainer.steps": POSITIVE,
    "trainer.accelerator": _one_of("auto", "cpu", "gpu"),
    "trainer.devices": POSITIVE,
    "trainer.strategy": _one_of("auto", "ddp"),
    "trainer.precision": _one_of("auto", "32-true", "bf16-mixed"),
    "trainer.threads": NOT_NEGATIVE,
    "trainer.accumulate": POSITIVE,
    "trainer.clip": NOT_NEGATIVE,
    "trainer.validate_every": POSITIVE,
    "trainer.checkpoint_every": POSITIVE,
    "trainer.log_every": POSITIVE,
    "trainer.panel_images": NOT_NEGATIVE,
}
LORA_RULES: dict[str, Rule] = {"rank": NOT_NEGATIVE, "alpha": NOT_NEGATIVE}
TRANSFORMER_RULES: dict[str, Rule] = {
    "codec.layout": _one_of(*LAYOUTS),
    "transformer.prompt": FILE,
    "transformer.dtype": _one_of("float32", "bfloat16"),
    "transformer.rope.theta": POSITIVE,
    "transformer.rope.variant": _one_of(*VARIANTS),
    "transformer.rope.window": NOT_NEGATIVE,
    "transformer.double_blocks": POSITIVE,
    "transformer.single_blocks": POSITIVE,
    "transformer.heads": POSITIVE,
    "transformer.prompt_tokens": POSITIVE,
    "transformer.prompt_width": POSITIVE,
    **{f"{part}.lora.{name}": rule for part in ("codec", "transformer") for name, rule in LORA_RULES.items()},
}
NOISE_LEVEL: Rule = ("a value above 0, at most 1", lambda value: 0 < value <= 1)
CODEC_RULES: dict[str, Rule] = {
    "codec.latent_channels": POSITIVE,
    "codec.widths": WIDTHS,
    "codec.blocks": POSITIVE,
    "codec_training.pca_crops": POSITIVE,
    "codec_training.linear_learning_rate": NOT_NEGATIVE,
}
SYSTEM_RULES: dict[type[Experiment], dict[str, Rule]] = {
    OneStepFlux: {
        **TRANSFORMER_RULES,
        "student.sigma": NOISE_LEVEL,
        "student.noise": NOT_NEGATIVE,
        "student.color_fix": _one_of(*COLOR_FIXES),
    },
    LatentFlow: {**TRANSFORMER_RULES, "flow.sigma": NOISE_LEVEL, "flow.logit_std": NOT_NEGATIVE},
    Autoencoder: CODEC_RULES,
    F16Decoder: {"codec.layout": _one_of("f16"), "decoder_training.scale_consistency": NOT_NEGATIVE},
    RealTimeCnn: {
        "data.scale": _one_of(*SCALES),
        "network.variant": _one_of(*NETWORK_VARIANTS),
        "network.blocks": NOT_NEGATIVE,
        "network.channels": NOT_NEGATIVE,
        "network.extraction": _one_of(*EXTRACTIONS),
        "network.block": _one_of(*BLOCKS, *STEP_BLOCKS),
        "network.features": _one_of(*FEATURES),
        "network.start": _one_of("random", "linear"),
        "network.start_crops": POSITIVE,
    },
}


def size_unit(options: Experiment) -> int:
    """Pixels of which hr's sides are a multiple: a token's pitch on Flux, a codec's cell, RT4KSR's two pixels of lr."""
    if not isinstance(options, CodecExperiment):
        return UNSHUFFLE * options.data.scale
    return cell_of(options) * (TOKEN_CELLS if isinstance(options, OneStepFlux | LatentFlow) else 1)


def cell_of(options: CodecExperiment) -> int:
    """Pixels per latent cell of the codec that the options name; the small codec's where it is trained or missing."""
    if isinstance(options, Autoencoder) or not options.codec.path:
        return PATCH
    try:
        return codec_cell(options.codec.path, options.codec.layout)
    except (ValueError, OSError):
        return PATCH  # `_combinations` says what is wrong with the folder


def check(options: Experiment) -> None:
    """Raise OptionError with every impossible value, one line each."""
    problems = [*_broken(RULES | SYSTEM_RULES[type(options)], options), *_sizes(options), *_combinations(options)]
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
    if isinstance(options, RealTimeCnn):
        for key, side, least in (("crop", data.crop, 4 * data.scale), ("val_crop", data.val_crop, 11 + 2 * data.scale)):
            if side < least:  # lr that the blur can mirror; hr that SSIM's window fits without the border
                yield f"data.{key}={side}: expected at least {least} px at data.scale={data.scale}"
    needed = smallest_side(pitch_of(options))
    if isinstance(options, CodecExperiment) and data.val_crop < needed:
        yield f"data.val_crop={data.val_crop}: the metric val/periodicity needs crops of at least {needed} px"
    term = options.losses.periodicity
    needed = smallest_side(period_of(options), term.lags, term.quadrants, term.highpass)
    if term.weight > 0 and data.crop < needed:
        yield f"data.crop={data.crop}: losses.periodicity needs crops of at least {needed} px"


def _combinations(options: Experiment) -> Iterator[str]:
    data, trainer = options.data, options.trainer
    if data.batch_size % max(trainer.devices, 1):
        yield f"data.batch_size={data.batch_size}: expected a multiple of trainer.devices={trainer.devices}"
    if data.crops_per_image % max(data.crops_per_decode, 1):
        expected = f"expected a divisor of data.crops_per_image={data.crops_per_image}"
        yield f"data.crops_per_decode={data.crops_per_decode}: {expected}"
    if data.sample == "whole" and data.procedural_share:
        expected = "procedural images are square crops; expected 0 beside data.sample=whole"
        yield f"data.procedural_share={data.procedural_share}: {expected}"
    if data.sample == "whole" and data.whole_side < data.crop:
        yield f"data.whole_side={data.whole_side}: expected at least data.crop={data.crop}, the least shorter side"
    paired = has_pairs(data.val)
    if paired and not isinstance(options, RealTimeCnn):
        expected = "expected the folder of the HR images alone"
        yield f"data.val={data.val}: pairs of images, which system={options.system} cannot validate on; {expected}"
    if not paired and data.val_count < trainer.devices:
        yield f"data.val_count={data.val_count}: expected at least trainer.devices={trainer.devices}, a crop for each"
    if trainer.accelerator == "gpu" and not torch.cuda.is_available():
        yield "trainer.accelerator=gpu: torch finds no GPU here; expected cpu or auto"
    if options.losses.lpips.weight > 0 and not options.perceptual.backbone:
        yield "losses.lpips.weight is above 0, but perceptual.backbone names no file with trained weights"
    yield from _losses(options)
    if isinstance(options, CodecExperiment):
        yield from _adapters(options)
    if isinstance(options, OneStepFlux | LatentFlow):
        yield from _transformer(options)
    if isinstance(options, RealTimeCnn):
        yield from _network(options.network)
    if isinstance(options, CodecExperiment) and not isinstance(options, Autoencoder):
        try:
            codec_cell(options.codec.path, options.codec.layout)
        except (ValueError, OSError) as error:
            yield str(error)


def _adapters(options: CodecExperiment) -> Iterator[str]:
    """Adapters where nothing adds them, and an adversary that needs a layer which adapters leave frozen."""
    codec, student = options.codec.lora.rank, isinstance(options, OneStepFlux)
    if codec and not student:
        yield f"codec.lora.rank={codec}: system {options.system} has no adapters; expected 0"
    if isinstance(options, LatentFlow) and options.transformer.lora.rank:
        rank = options.transformer.lora.rank
        yield f"transformer.lora.rank={rank}: system latent_flow trains the transformer whole; expected 0"
    adapted = isinstance(options, OneStepFlux) and options.transformer.lora.rank
    if adapted and options.adversary.adaptive and options.losses.adversarial.weight:
        yield "adversary.adaptive=true: it compares gradients at the last projection, which adapters leave frozen"


def _transformer(options: OneStepFlux | LatentFlow) -> Iterator[str]:
    """A base that is not there, or that cannot be trained in its type."""
    folder = options.transformer.path
    if folder and not Path(folder, "config.json").is_file():
        yield (
            f"transformer.path={folder!r}: no config.json there; expected the folder of a FluxTransformer2DModel "
            "(`make train EXP=op4ksr/pretrain_mini` writes one to runs/op4ksr/pretrain_mini/transformer)"
        )
    adapted = isinstance(options, OneStepFlux) and options.transformer.lora.rank
    if options.transformer.dtype == "bfloat16" and not (folder and adapted and options.trainer.precision != "32-true"):
        yield (
            "transformer.dtype=bfloat16: expected transformer.path, transformer.lora.rank above 0 and "
            "trainer.precision other than 32-true"
        )
    if options.transformer.rope.variant == "yarn" and options.transformer.rope.theta <= 1:
        yield f"transformer.rope.theta={options.transformer.rope.theta}: expected a value above 1 for yarn"


def _network(network: NetworkOptions) -> Iterator[str]:
    """Options of table 1's networks beside a block of RT4KSR and the reverse, and a start that needs its norms."""
    _, channels = NETWORK_VARIANTS.get(network.variant, (0, FEWEST_CHANNELS))  # another name is refused by its rule
    channels = network.channels or channels
    if network.start == "linear" and channels < FEWEST_CHANNELS:
        yield f"network.channels={channels}: network.start=linear needs {FEWEST_CHANNELS} or more"
    if network.start == "linear" and network.block != "layer_norm":
        yield f"network.start=linear with network.block={network.block}: expected block layer_norm, or start random"
    if network.block in STEP_BLOCKS and not network.online_folding:
        yield f"network.online_folding=false with network.block={network.block}, which has no RRB; expected true"
    if network.block not in BLOCKS:
        return
    expected = f"with network.block={network.block}, which is RT4KSR's; expected block conv or nafnet, or"
    if network.features != "full":
        yield f"network.features={network.features} {expected} full"
    if network.shared_head:
        yield f"network.shared_head=true {expected} false"


def _losses(options: Experiment) -> Iterator[str]:
    """Losses that nothing trains with, and none at all."""
    weights = {name: term.weight for name, term in vars(options.losses).items()}
    used = [name for name, weight in weights.items() if weight > 0]
    if isinstance(options, LatentFlow):
        if used:
            yield f"losses.{used[0]}.weight={weights[used[0]]}: system latent_flow has one loss of its own; expected 0"
        return
    images = [name for name in used if name not in ("lrr", "adversarial")]
    if not images:
        expected = ", ".join(name for name in weights if name not in ("lrr", "adversarial"))
        yield f"losses.*.weight: no term compares images; expected at least one of {expected} above 0"
    if weights["lrr"] > 0 and not (isinstance(options, OneStepFlux) and options.codec.lora.rank):
        yield f"losses.lrr.weight={weights['lrr']}: it trains the encoder's adapters; expected codec.lora.rank above 0"


def has_bf16_base(options: Experiment) -> bool:
    """Whether the transformer's weights are bf16, so that it runs under autocast alone."""
    return isinstance(options, OneStepFlux) and options.transformer.dtype == "bfloat16"


def pitch_of(options: Experiment) -> int:
    """The pitch in px of the tokens on the codec in use, of RT4KSR's cells: what the metrics look for in every arm."""
    return cell_of(options) * TOKEN_CELLS if isinstance(options, CodecExperiment) else size_unit(options)


def period_of(options: Experiment) -> int:
    """L_AP's period in px: as given, or the pitch."""
    return options.losses.periodicity.period or pitch_of(options)
