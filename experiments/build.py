"""From options to the objects of a run: plain values to plain constructors."""

from pathlib import Path

import torch
from torchmetrics import Metric

from datamodules.randomness import generator_for
from datamodules.sr4k import SR4KDataModule
from experiments.checks import period_of
from experiments.schema import Autoencoder, Experiment, LossOptions, OneStepFlux, OptimizerOptions, PerceptualOptions
from lightning_modules.autoencoder import Autoencoder as AutoencoderModule
from lightning_modules.networks.flux import build_flux, load_flux, set_theta
from lightning_modules.networks.local_folder import load_whole
from lightning_modules.networks.small_codec import PATCH, SmallF16Codec
from lightning_modules.one_step_flux import OneStepFlux as OneStepFluxModule
from lightning_modules.one_step_flux import fixed_prompt
from lightning_modules.super_resolution import AdamWSchedule, SuperResolution
from losses.fidelity import L1, L2, PsnrY, SsimY
from losses.per_image import PerImageLoss
from losses.perceptual import Lpips, PerceptualDistance, RandomFeatureDistance
from losses.periodicity import CombRatio, Periodicity, PeriodicityLoss
from losses.texture import TextureLoss
from losses.weighted_sum import WeightedSum

METRICS = ("psnr_y", "ssim_y", "perceptual", "periodicity", "comb_32", "comb_16", "comb_8")
"""Validation metrics, logged as val/<name>; `perceptual` is what `perceptual_of` gives."""

COMB_PITCHES = (32, 16, 8)


def build_data(options: Experiment) -> SR4KDataModule:
    data = options.data
    return SR4KDataModule(
        train=data.train,
        val=data.val,
        scale=data.scale,
        crop=data.crop,
        batch_size=data.batch_size,
        steps=options.trainer.steps * options.trainer.accumulate,
        workers=data.workers,
        seed=options.seed,
        crops_per_image=data.crops_per_image,
        procedural_share=data.procedural_share,
        val_crop=data.val_crop,
        val_count=data.val_count,
        val_batch_size=data.val_batch_size,
        degradation=data.degradation,
    )


def build_system(options: Experiment) -> SuperResolution:
    """The LightningModule of an experiment, its new weights drawn from the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        if isinstance(options, OneStepFlux):
            return build_student(options)
        if isinstance(options, Autoencoder):
            return build_autoencoder(options)
    raise ValueError(f"system={options.system}: no such system")


def build_student(options: OneStepFlux) -> OneStepFluxModule:
    codec = load_whole(SmallF16Codec, options.codec.path, "codec.path")
    latent_channels, sizes = codec.config["latent_channels"], options.transformer
    if sizes.path:
        transformer = load_flux(sizes.path)
    else:
        transformer = build_flux(
            latent_channels, sizes.double_blocks, sizes.single_blocks, sizes.heads, sizes.prompt_width
        )
    set_theta(transformer, sizes.rope.theta)
    widths = (transformer.config["joint_attention_dim"], transformer.config["pooled_projection_dim"])
    # not of options.seed: the prompt is part of the model, and no option of a later command may change it
    prompt, pooled = fixed_prompt(sizes.prompt_tokens, *widths, generator_for((0,), "fixed prompt"))
    return OneStepFluxModule(
        codec=codec,
        transformer=transformer,
        sigma=options.student.sigma,
        prompt=prompt,
        pooled_prompt=pooled,
        scale=options.data.scale,
        losses=build_losses(options.losses, options.perceptual, period_of(options)),
        metrics=build_metrics(options.perceptual, period_of(options)),
        schedule=build_schedule(options.optimizer, options.trainer.steps),
    )


def build_autoencoder(options: Autoencoder) -> AutoencoderModule:
    codec = SmallF16Codec(options.codec.latent_channels, tuple(options.codec.widths), options.codec.blocks)
    return AutoencoderModule(
        codec=codec,
        linear_learning_rate=options.codec_training.linear_learning_rate,
        losses=build_losses(options.losses, options.perceptual, period_of(options)),
        metrics=build_metrics(options.perceptual, period_of(options)),
        schedule=build_schedule(options.optimizer, options.trainer.steps),
    )


def build_schedule(optimizer: OptimizerOptions, steps: int) -> AdamWSchedule:
    first, second = optimizer.betas
    return AdamWSchedule(
        learning_rate=optimizer.learning_rate,
        betas=(first, second),
        weight_decay=optimizer.weight_decay,
        warmup_steps=optimizer.warmup_steps,
        decay_share=optimizer.decay_share,
        final_factor=optimizer.final_factor,
        steps=steps,
    )


def build_losses(losses: LossOptions, perceptual: PerceptualOptions, period: int) -> WeightedSum:
    """The terms whose weight is above 0."""
    ap, texture = losses.periodicity, losses.texture
    terms = {
        "l1": (losses.l1.weight, lambda: L1()),
        "l2": (losses.l2.weight, lambda: L2()),
        "lpips": (losses.lpips.weight, lambda: perceptual_of(perceptual)),
        "texture": (texture.weight, lambda: TextureLoss(texture.levels, texture.window, texture.epsilon)),
        "periodicity": (
            ap.weight,
            lambda: PeriodicityLoss(period, ap.lags, ap.quadrants, ap.highpass, ap.clip),
        ),
    }
    return WeightedSum({name: (weight, make()) for name, (weight, make) in terms.items() if weight > 0})


def build_metrics(perceptual: PerceptualOptions, period: int) -> dict[str, Metric]:
    """Validation metrics by the names in METRICS; periodicity and comb ratio keep their own constants in every arm."""
    return {
        "psnr_y": PsnrY(),
        "ssim_y": SsimY(),
        "perceptual": PerceptualDistance(perceptual_of(perceptual)),
        "periodicity": Periodicity(period=period),
        **{f"comb_{pitch}": CombRatio(pitch) for pitch in COMB_PITCHES},
    }


def perceptual_of(options: PerceptualOptions) -> PerImageLoss:
    """LPIPS over the trained network that the options name, or over the seeded untrained one."""
    if not options.backbone:
        return random_features()
    return Lpips(Path(options.backbone), Path(options.linear) if options.linear else None, options.net)


def perceptual_name(options: PerceptualOptions) -> str:
    """What `perceptual` stands for in tables."""
    return f"LPIPS ({options.net})" if options.backbone else "untrained-feature distance"


def random_features() -> RandomFeatureDistance:
    """The perceptual distance that needs no weights: one fixed network for every run, so that figures compare."""
    return RandomFeatureDistance(generator_for((0,), "random features"))


def pca_patches(data: SR4KDataModule, crops: int) -> torch.Tensor:
    """Patches (N,3,16,16) in [-1,1] of the first training crops, for the codec's linear path."""
    data.setup("fit")
    if data.train_set is None:
        raise RuntimeError("the data module has no training set after setup('fit')")
    images = torch.stack([data.train_set[number]["hr"] for number in range(crops)]) * 2 - 1
    tiles = images.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)
    return tiles.permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, PATCH, PATCH)
