"""From options to the objects of a run: plain values to plain constructors."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor
from torchmetrics import Metric

from datamodules.randomness import generator_for
from datamodules.sr4k import SR4KDataModule
from datamodules.whole_images import bucket_ladder
from experiments.checks import period_of, pitch_of, size_unit
from experiments.schema import (
    Autoencoder,
    Experiment,
    F16Decoder,
    LatentFlow,
    OneStepFlux,
    OptimizerOptions,
    PerceptualOptions,
    RealTimeCnn,
    TransformerOptions,
)
from lightning_modules.adversarial_training import Manual
from lightning_modules.adversary import Adversary
from lightning_modules.autoencoder import Autoencoder as AutoencoderModule
from lightning_modules.f16_decoder import F16Decoder as F16DecoderModule
from lightning_modules.latent_flow import LatentFlow as LatentFlowModule
from lightning_modules.latent_flux import fixed_prompt
from lightning_modules.networks.codec import Codec, load_codec
from lightning_modules.networks.discriminator import Discriminator
from lightning_modules.networks.flux import build_flux, load_flux
from lightning_modules.networks.lora import add_encoder_lora, add_transformer_lora
from lightning_modules.networks.prompt import read_prompt
from lightning_modules.networks.rope import use_rope
from lightning_modules.networks.rt4ksr import RT4KSR, size_of
from lightning_modules.networks.rt4ksr_steps import STEP_BLOCKS, RT4KSRStep
from lightning_modules.networks.small_codec import PATCH, SmallF16Codec
from lightning_modules.one_step_flux import OneStepFlux as OneStepFluxModule
from lightning_modules.real_time_cnn import RealTimeCnn as RealTimeCnnModule
from lightning_modules.super_resolution import AdamWSchedule, SuperResolution
from losses.backbone import FrozenBackbone
from losses.dists import BackboneDistance
from losses.fidelity import L1, L2, ColorError, PsnrRgb, PsnrY, SsimRgb, SsimY
from losses.high_frequency import HighFrequencyLoss
from losses.per_image import PerImageLoss
from losses.perceptual import Lpips, PerceptualDistance, RandomFeatureDistance
from losses.periodicity import CombRatio, Periodicity, PeriodicityLoss
from losses.texture import TextureLoss
from losses.wavelet import WaveletLoss
from losses.weighted_sum import WeightedSum

CODEC_METRICS = ("psnr_y", "ssim_y", "perceptual", "periodicity", "comb_32", "comb_16", "comb_8", "color_error")
"""Validation metrics of systems on a codec, logged as val/<name>; `perceptual` is what `perceptual_of` gives."""

CNN_METRICS = ("psnr_y", "ssim_y", "psnr_rgb", "ssim_rgb", "perceptual", "color_error")
"""The same of RT4KSR; PSNR and SSIM by the protocol of `make evaluate`: 8 bits, a border of the scale less."""

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
        crops_per_decode=data.crops_per_decode,
        procedural_share=data.procedural_share,
        val_crop=data.val_crop,
        val_count=data.val_count,
        val_batch_size=data.val_batch_size,
        degradation=data.degradation,
        sample=data.sample,
        whole_side=data.whole_side,
        size_unit=size_unit(options),
        crop_preference=data.crop_preference,
        crop_candidates=data.crop_candidates,
        cache=data.cache,
        cache_gb=data.cache_gb,
        decoded_mb=data.decoded_mb,
    )


def build_system(options: Experiment) -> SuperResolution:
    """The LightningModule of an experiment, its new weights drawn from the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        if isinstance(options, OneStepFlux):
            return build_student(options)
        if isinstance(options, LatentFlow):
            return build_latent_flow(options)
        if isinstance(options, Autoencoder):
            return build_autoencoder(options)
        if isinstance(options, F16Decoder):
            return build_f16_decoder(options)
        if isinstance(options, RealTimeCnn):
            return build_real_time_cnn(options)
    raise ValueError(f"system={options.system}: no such system")


def build_student(options: OneStepFlux) -> OneStepFluxModule:
    codec, adapters = load_codec(options.codec.path, options.codec.layout), options.codec.lora
    codec.requires_grad_(False)
    transformer = build_transformer(options.transformer, codec, window_of(options))
    if options.transformer.lora.rank:
        lora = options.transformer.lora
        add_transformer_lora(transformer, lora.rank, lora.alpha or lora.rank)
    if adapters.rank:
        add_encoder_lora(codec.encoder, adapters.rank, adapters.alpha or adapters.rank)
    if options.transformer.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
        codec.enable_gradient_checkpointing()
    prompt, pooled = build_prompt(options.transformer, transformer)
    return OneStepFluxModule(
        codec=codec,
        transformer=transformer,
        sigma=options.student.sigma,
        prompt=prompt,
        pooled_prompt=pooled,
        scale=options.data.scale,
        losses=build_losses(options, period_of(options)),
        metrics=build_metrics(options.perceptual, pitch_of(options)),
        schedule=build_schedule(options.optimizer, options.trainer.steps),
        noise=options.student.noise,
        color_fix=options.student.color_fix,
        latent_weight=options.losses.lrr.weight,
        adversary=build_adversary(options),
        optimisation=build_optimisation(options),
    )


def build_latent_flow(options: LatentFlow) -> LatentFlowModule:
    codec = load_codec(options.codec.path, options.codec.layout)
    transformer = build_transformer(options.transformer, codec, window_of(options))
    if options.transformer.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    prompt, pooled = build_prompt(options.transformer, transformer)
    return LatentFlowModule(
        codec=codec,
        transformer=transformer,
        sigma=options.flow.sigma,
        logit_mean=options.flow.logit_mean,
        logit_std=options.flow.logit_std,
        prompt=prompt,
        pooled_prompt=pooled,
        metrics=build_metrics(options.perceptual, pitch_of(options)),
        schedule=build_schedule(options.optimizer, options.trainer.steps),
    )


def build_transformer(options: TransformerOptions, codec: Codec, window: int) -> FluxTransformer2DModel:
    """The transformer from its folder, or a new one that fits the codec, with the options' position embedding."""
    if options.path:
        transformer = load_flux(options.path, getattr(torch, options.dtype))
    else:
        transformer = build_flux(
            codec.latent_channels, options.double_blocks, options.single_blocks, options.heads, options.prompt_width
        )
    use_rope(transformer, options.rope.variant, options.rope.theta, window)
    return transformer


def window_of(options: OneStepFlux | LatentFlow) -> int:
    """Tokens per side that the position embedding takes as trained: as given, or of the crop or longest whole image."""
    data, unit = options.data, size_unit(options)
    side = data.crop
    if data.sample == "whole":
        side = max(map(max, bucket_ladder(data.whole_side, data.crop, math.lcm(unit, data.scale))))
    return options.transformer.rope.window or side // unit


def build_prompt(options: TransformerOptions, transformer: FluxTransformer2DModel) -> tuple[Tensor, Tensor]:
    """The fixed prompt's embeddings (T,D) and (D,): from their file, or seeded noise."""
    if options.prompt:
        return read_prompt(options.prompt)
    widths = (transformer.config["joint_attention_dim"], transformer.config["pooled_projection_dim"])
    # not of options.seed: the prompt is part of the model, and no option of a later command may change it
    return fixed_prompt(options.prompt_tokens, *widths, generator_for((0,), "fixed prompt"))


def build_autoencoder(options: Autoencoder) -> AutoencoderModule:
    codec = SmallF16Codec(options.codec.latent_channels, tuple(options.codec.widths), options.codec.blocks)
    return AutoencoderModule(
        codec=codec,
        linear_learning_rate=options.codec_training.linear_learning_rate,
        losses=build_losses(options, period_of(options)),
        metrics=build_metrics(options.perceptual, pitch_of(options)),
        schedule=build_schedule(options.optimizer, options.trainer.steps),
        adversary=build_adversary(options),
        optimisation=build_optimisation(options),
    )


def build_f16_decoder(options: F16Decoder) -> F16DecoderModule:
    folder, weight = options.codec.path, options.decoder_training.scale_consistency
    return F16DecoderModule(
        codec=load_codec(folder, "f16"),
        teacher=load_codec(folder, "f8") if weight else None,
        scale_consistency=weight,
        losses=build_losses(options, period_of(options)),
        metrics=build_metrics(options.perceptual, pitch_of(options)),
        schedule=build_schedule(options.optimizer, options.trainer.steps),
        adversary=build_adversary(options),
        optimisation=build_optimisation(options),
    )


def build_real_time_cnn(options: RealTimeCnn) -> RealTimeCnnModule:
    """RT4KSR, or one of the networks before it."""
    return RealTimeCnnModule(
        network=build_network(options),
        scale=options.data.scale,
        losses=build_losses(options, period_of(options)),
        metrics=build_cnn_metrics(options),
        schedule=build_schedule(options.optimizer, options.trainer.steps),
        adversary=build_adversary(options),
        optimisation=build_optimisation(options),
    )


def build_network(options: RealTimeCnn) -> RT4KSR | RT4KSRStep:
    network = options.network
    blocks, channels = size_of(network.variant)
    if network.block in STEP_BLOCKS:
        return RT4KSRStep(
            scale=options.data.scale,
            channels=network.channels or channels,
            blocks=network.blocks or blocks,
            hf_branch=network.hf_branch,
            extraction=network.extraction,
            features=network.features,
            block=network.block,
            shared_head=network.shared_head,
        )
    return RT4KSR(
        scale=options.data.scale,
        channels=network.channels or channels,
        blocks=network.blocks or blocks,
        hf_branch=network.hf_branch,
        extraction=network.extraction,
        block=network.block,
        online=network.online_folding,
    )


def build_adversary(options: Experiment) -> Adversary | None:
    """The discriminator and its loss, where the adversarial term has a weight."""
    chosen, weight = options.adversary, options.losses.adversarial.weight
    if not weight:
        return None
    backbone = build_backbone(chosen.model, chosen.stages, chosen.weights, "adversary")
    return Adversary(
        Discriminator(backbone, chosen.channels),
        kind=chosen.kind,
        real_label=chosen.real_label,
        augment=chosen.augment,
        weight=weight,
        adaptive=chosen.adaptive,
        learning_rate_factor=chosen.learning_rate_factor,
    )


def build_backbone(model: str, stages: Sequence[int], weights: str, option: str) -> FrozenBackbone:
    """A frozen timm network from its file or, where there is none, from a seed that every run shares."""
    generator = None if weights else generator_for((0,), "backbone")
    return FrozenBackbone(model, stages, Path(weights) if weights else None, generator, option)


def build_optimisation(options: Experiment) -> Manual:
    return Manual(accumulate=options.trainer.accumulate, clip=options.trainer.clip)


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
        decay=optimizer.decay,
        step_share=optimizer.step_share,
        step_factor=optimizer.step_factor,
    )


def build_losses(options: Experiment, period: int) -> WeightedSum:
    """The terms that compare images and whose weight is above 0."""
    losses, dists = options.losses, options.dists
    ap, texture = losses.periodicity, losses.texture
    terms = {
        "l1": (losses.l1.weight, lambda: L1()),
        "l2": (losses.l2.weight, lambda: L2()),
        "lpips": (losses.lpips.weight, lambda: perceptual_of(options.perceptual)),
        "dists": (
            losses.dists.weight,
            lambda: BackboneDistance(build_backbone(dists.model, dists.stages, dists.weights, "dists")),
        ),
        "high_frequency": (losses.high_frequency.weight, lambda: HighFrequencyLoss()),
        "wavelet": (losses.wavelet.weight, lambda: WaveletLoss()),
        "texture": (texture.weight, lambda: TextureLoss(texture.levels, texture.window, texture.epsilon)),
        "periodicity": (
            ap.weight,
            lambda: PeriodicityLoss(period, ap.lags, ap.quadrants, ap.highpass, ap.clip),
        ),
    }
    return WeightedSum({name: (weight, make()) for name, (weight, make) in terms.items() if weight > 0})


def build_metrics(perceptual: PerceptualOptions, period: int) -> dict[str, Metric]:
    """Metrics by the names in CODEC_METRICS; periodicity and comb ratio keep their own constants in every arm."""
    return {
        "psnr_y": PsnrY(),
        "ssim_y": SsimY(),
        "perceptual": PerceptualDistance(perceptual_of(perceptual)),
        "periodicity": Periodicity(period=period),
        **{f"comb_{pitch}": CombRatio(pitch) for pitch in COMB_PITCHES},
        "color_error": ColorError(),
    }


def build_cnn_metrics(options: RealTimeCnn) -> dict[str, Metric]:
    """Validation metrics by the names in CNN_METRICS."""
    border = options.data.scale
    return {
        "psnr_y": PsnrY(border, round_to_8bit=True),
        "ssim_y": SsimY(border, round_to_8bit=True),
        "psnr_rgb": PsnrRgb(border, round_to_8bit=True),
        "ssim_rgb": SsimRgb(border, round_to_8bit=True),
        "perceptual": PerceptualDistance(perceptual_of(options.perceptual)),
        "color_error": ColorError(),
    }


def metric_names(options: Experiment) -> tuple[str, ...]:
    """Names of an experiment's validation metrics."""
    return CNN_METRICS if isinstance(options, RealTimeCnn) else CODEC_METRICS


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


def start_crops(data: SR4KDataModule, crops: int) -> tuple[torch.Tensor, torch.Tensor]:
    """lr and hr of the first training crops, (N,3,h,w) and (N,3,H,W), for a network's linear start."""
    training = data.training_crops()
    items = [training[number] for number in range(crops)]
    batch = {name: torch.stack([item[name] for item in items]) for name in ("hr", "key")}
    batch = data.on_after_batch_transfer(batch, 0)
    return batch["lr"], batch["hr"]


def pca_patches(data: SR4KDataModule, crops: int) -> torch.Tensor:
    """Patches (N,3,16,16) in [-1,1] of the first training crops, for the codec's linear path."""
    training = data.training_crops()
    images = torch.stack([training[number]["hr"] for number in range(crops)]) * 2 - 1
    tiles = images.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)
    return tiles.permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, PATCH, PATCH)
