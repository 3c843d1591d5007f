from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_modules.adversary import Adversary
from lightning_modules.f16_decoder import F16Decoder
from lightning_modules.networks.codec import Codec, load_codec
from lightning_modules.networks.discriminator import Discriminator
from lightning_modules.networks.f16_vae import build_flux_vae, to_f16
from lightning_modules.networks.small_codec import SmallF16Codec
from lightning_modules.super_resolution import AdamWSchedule
from losses.backbone import FrozenBackbone
from losses.fidelity import L2, PsnrY
from losses.wavelet import WaveletLoss
from losses.weighted_sum import WeightedSum

SCHEDULE = AdamWSchedule(2e-3, (0.9, 0.99), 0.0, warmup_steps=0, decay_share=0.0, final_factor=1.0, steps=100)


def build(seed: int = 0, teacher: bool = True, weight: float = 1.0, adversary: Adversary | None = None) -> F16Decoder:
    """Student and teacher from one set of F8 weights, as a user with FLUX's VAE has them."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        f8 = build_flux_vae((8, 8, 8, 8), layers_per_block=1, norm_groups=4, latent_channels=4)
        student = to_f16(build_flux_vae((8, 8, 8, 8), layers_per_block=1, norm_groups=4, latent_channels=4))
    student.load_state_dict(f8.state_dict())
    return F16Decoder(
        codec=Codec(student),
        teacher=Codec(f8) if teacher else None,
        scale_consistency=weight,
        losses=WeightedSum({"l2": (1.0, L2()), "wavelet": (1.0, WaveletLoss())}),
        metrics={"psnr_y": PsnrY()},
        schedule=SCHEDULE,
        adversary=adversary,
    )


def batch_of(count: int = 2, side: int = 32) -> dict[str, Tensor]:
    smooth = torch.rand(count, 3, side // 8, side // 8, generator=torch.Generator().manual_seed(0))
    hr = torch.nn.functional.interpolate(smooth, scale_factor=8, mode="bilinear")
    return {"hr": hr, "lr": hr, "key": torch.tensor([[0, 0, index, 0] for index in range(count)])}


def fit(system: F16Decoder, folder: Path, steps: int) -> Trainer:
    samples = [{name: value[0] for name, value in batch_of(1).items()}] * steps
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
    )
    trainer.fit(system, DataLoader(samples, batch_size=1))
    return trainer


def seen_by_the_last_convolution(codec: Codec, image: Tensor) -> np.ndarray:
    """By a hook on diffusers' own encode and decode."""
    seen: list[Tensor] = []
    handle = codec.decoder.conv_out.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    codec.decode(codec.encode(image))
    handle.remove()
    return seen[0].double().numpy()


@torch.no_grad()
def test_it_reconstructs_as_the_codec_does() -> None:
    system, batch = build(), batch_of()
    expected = system.codec.decode(system.codec.encode(batch["hr"]))
    torch.testing.assert_close(system.forward_batch(batch), expected)
    panel = system.panel(batch)
    torch.testing.assert_close(panel["reconstruction"], expected)
    assert torch.equal(panel["hr"], batch["hr"])


def test_scale_consistency_compares_what_the_last_convolutions_see() -> None:
    system, batch = build(), batch_of()
    sr = system.forward_batch(batch)
    ((name, (weight, value)),) = system.extra_terms(batch, sr).items()
    with torch.no_grad():
        student = seen_by_the_last_convolution(system.codec, batch["hr"])
        assert system.teacher is not None
        teacher = seen_by_the_last_convolution(system.teacher, batch["hr"])
    assert student.shape == teacher.shape == (2, 8, 32, 32)
    assert (name, weight) == ("scale_consistency", 1.0)
    assert value.item() == pytest.approx(np.square(student - teacher).mean(), rel=1e-5)
    assert value.item() > 1e-3, "two layouts of the same weights do not agree at once"


def test_its_gradient_reaches_the_students_decoder_alone() -> None:
    system, batch = build(), batch_of()
    _, value = system.extra_terms(batch, system.forward_batch(batch))["scale_consistency"]
    value.backward()
    reached = {name for name, p in system.named_parameters() if p.grad is not None}
    decoder = {f"codec.model.decoder.{name}" for name, _ in system.codec.decoder.named_parameters()}
    assert reached == {name for name in decoder if "conv_out" not in name}
    assert set(system.generator_parameters()) == decoder
    assert system.last_layer() is system.generator_parameters()["codec.model.decoder.conv_out.weight"]


def test_without_a_teacher_there_is_no_term_and_nothing_is_kept() -> None:
    system = build(teacher=False, weight=0.0)
    assert system.extra_terms(batch_of(), system.forward_batch(batch_of())) == {}
    evaluated, batch = build().eval(), batch_of()
    sr = evaluated.forward_batch(batch)
    with pytest.raises(RuntimeError, match="without a forward_batch in training mode"):
        evaluated.extra_terms(batch, sr)


def test_training_moves_the_decoder_towards_both_targets(tmp_path: Path) -> None:
    system, batch = build(), batch_of(1)
    before = {name: value.clone() for name, value in system.state_dict().items()}

    def terms() -> list[float]:
        with torch.no_grad():
            sr = system.train().forward_batch(batch)
            total, _ = system.losses(sr, batch["hr"])
            return [total.item(), system.extra_terms(batch, sr)["scale_consistency"][1].item()]

    start = terms()
    fit(system, tmp_path, 25)
    assert all(after < 0.7 * first for after, first in zip(terms(), start, strict=True))
    moved = {name for name, value in system.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == set(system.generator_parameters())

    system.codec.save_pretrained(tmp_path / "codec")
    with torch.no_grad():
        reconstruction = system.panel(batch)["reconstruction"]
        codec = load_codec(tmp_path / "codec", "f16")
        assert torch.equal(codec.decode(codec.encode(batch["hr"])), reconstruction)


def test_an_adaptive_adversary_compares_gradients_at_the_last_convolution(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = FrozenBackbone("test_convnext", (0, 1, 2), None, torch.Generator().manual_seed(0), "adversary")
        adversary = Adversary(Discriminator(backbone, channels=8), kind="hinge", weight=0.05, adaptive=True)
    system = build(adversary=adversary)
    trainer = fit(system, tmp_path, 2)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert trainer.global_step == 2
    assert logged["train/adaptive_weight"] > 0
    assert logged["train/scale_consistency"] > 0
    assert np.isfinite(list(logged.values())).all()


def test_the_fingerprint_covers_the_encoder_and_neither_decoder_nor_teacher() -> None:
    """Inference needs no teacher, so a checkpoint must load where none is built."""
    first = build().base_fingerprint()
    for part, same in (("codec", "encoder"), False), (("codec", "decoder"), True), (("teacher", "decoder"), True):
        system = build()
        with torch.no_grad():
            next(getattr(getattr(system, part[0]), part[1]).parameters()).view(-1)[0] += 1e-3
        assert (system.base_fingerprint() == first) == same, part


def test_codec_and_teacher_must_fit() -> None:
    system = build()
    student, teacher = system.codec, system.teacher
    assert teacher is not None
    rest = system.losses, {"psnr_y": PsnrY()}, SCHEDULE
    wider = Codec(build_flux_vae((8, 8, 8, 12), layers_per_block=1, norm_groups=4, latent_channels=4))
    with pytest.raises(ValueError, match=r"AutoencoderKL with 8 px per cell.*codec\.layout"):
        F16Decoder(teacher, teacher, 1.0, *rest)
    with pytest.raises(ValueError, match=r"SmallF16Codec with 16 px per cell.*codec\.path"):
        F16Decoder(Codec(SmallF16Codec(4, (4, 4, 4), 1)), teacher, 1.0, *rest)
    with pytest.raises(ValueError, match=r"scale_consistency=1\.0 without a teacher"):
        F16Decoder(student, None, 1.0, *rest)
    with pytest.raises(ValueError, match=r"teacher of .* with 16 px per cell.*F8 layout"):
        F16Decoder(student, student, 1.0, *rest)
    with pytest.raises(ValueError, match=r"teacher of .*12.* with 8 px per cell"):
        F16Decoder(student, wider, 1.0, *rest)
