"""OP4KSR's recipe on the one-step student: entry noise, LRR, adapters, colours, gradient checkpointing."""

import pytest
import torch

from datamodules.randomness import generator_for
from experiments.measure import codec_round_trip
from lightning_modules.super_resolution import resize_up

KEYS = [[0, 0, 1, 0], [0, 0, 2, 3]]


def random_images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def batch_of(keys=KEYS):
    lr = torch.stack([random_images(3, 16, 16, seed=key[2]) for key in keys])
    hr = torch.stack([random_images(3, 64, 64, seed=9 + key[2]) for key in keys])
    return {"lr": lr, "hr": hr, "key": torch.tensor(keys)}


@torch.no_grad()
def test_the_entry_noise_is_the_samples_own(make_student):
    student = make_student(noise=0.3)
    whole = student.forward_batch(batch_of())
    assert torch.equal(student.forward_batch(batch_of()), whole)
    for number, key in enumerate(KEYS):
        torch.testing.assert_close(student.forward_batch(batch_of([key]))[0], whole[number])
    other = batch_of() | {"key": torch.tensor([[0, 1, 1, 0], [0, 1, 2, 3]])}
    assert (student.forward_batch(other) - whole).abs().max() > 1e-3


@torch.no_grad()
def test_the_entry_noise_has_its_deviation_and_zero_changes_nothing(make_student):
    noisy, plain, latent = make_student(noise=0.3), make_student(), torch.zeros(1, 4, 64, 64)
    added = noisy.noised(latent, [generator_for(KEYS[0], "entry noise")])
    assert added.std().item() == pytest.approx(0.3, rel=0.03)
    assert plain.noised(latent, [generator_for(KEYS[0], "entry noise")]) is latent


@torch.no_grad()
def test_an_image_is_restored_with_the_same_noise_each_time(make_student):
    student, image = make_student(noise=0.3), random_images(1, 3, 70, 90)
    assert torch.equal(student.restore(image), student.restore(image))
    assert (student.restore(image) - make_student().restore(image)).abs().max() > 1e-3


def test_the_latent_loss_looks_at_hr_through_the_encoder_without_adapters(make_student):
    """mean (z_L - ((1 - sigma) z_H + sigma eps))^2, z_L of the adapted encoder, z_H of the plain one."""
    student, plain, batch = make_student(latent_weight=5.0, lora_rank=2), make_student().codec, batch_of()
    ((name, (weight, value)),) = student.train().extra_terms(batch, student.forward_batch(batch)).items()
    with torch.no_grad():
        adapted, target = student.codec.encode(resize_up(batch["lr"], (64, 64))), plain.encode(batch["hr"])
        noise = torch.stack(
            [torch.randn(target.shape[1:], generator=generator_for(key, "latent loss")) for key in KEYS]
        )
        expected = (adapted - (0.495 * target + 0.505 * noise)).square().mean()
        assert (student.codec.encode(batch["hr"]) - target).abs().max() > 1e-2, "the adapters change the latent"
    assert (name, weight) == ("lrr", 5.0)
    torch.testing.assert_close(value, expected)
    value.backward()
    lora = [parameter for parameter in student.codec.parameters() if parameter.requires_grad]
    assert lora
    assert all(parameter.grad.abs().sum() > 0 for parameter in lora)


def test_there_is_no_latent_loss_at_weight_zero_or_in_validation(make_student):
    for student in (make_student(lora_rank=2).train(), make_student(latent_weight=1.0, lora_rank=2).eval()):
        assert student.extra_terms(batch_of(), student.forward_batch(batch_of())) == {}


def test_adapters_alone_are_trained_and_the_decoder_is_frozen(make_student):
    student = make_student(lora_rank=2)
    trained = set(student.trainable_parameters())
    assert all(".lora_A." in name or ".lora_B." in name for name in trained)
    assert {name.split(".")[0] for name in trained} == {"codec", "transformer"}
    assert not any(name.startswith("codec.model.decoder") for name in trained)
    assert student.base_fingerprint() == make_student(lora_rank=2).base_fingerprint()


@torch.no_grad()
def test_the_reference_row_of_the_codec_knows_no_adapters(make_student):
    adapted, plain, image = make_student(lora_rank=2), make_student(), random_images(1, 3, 61, 83)
    assert torch.equal(codec_round_trip(adapted.codec)(image), codec_round_trip(plain.codec)(image))
    padded = random_images(1, 3, 64, 64)
    assert (adapted.codec.encode(padded) - plain.codec.encode(padded)).abs().max() > 1e-2, "and the student does"


@torch.no_grad()
def test_colours_are_taken_over_at_inference_alone(make_student):
    fixed, plain, batch = make_student(color_fix="adain"), make_student(), batch_of()
    assert torch.equal(fixed.forward_batch(batch), plain.forward_batch(batch))
    up = resize_up(batch["lr"], (64, 64))
    for moment in (torch.mean, torch.std):
        torch.testing.assert_close(
            moment(fixed.upscale(batch["lr"]), (-2, -1)), moment(up, (-2, -1)), atol=1e-3, rtol=0
        )
    assert (fixed.upscale(batch["lr"]) - plain.upscale(batch["lr"])).abs().max() > 1e-2


def test_gradient_checkpointing_gives_the_same_gradients(make_student):
    gradients = []
    for checkpointing in (False, True):
        student = make_student(lora_rank=2, noise=0.2).train()
        if checkpointing:
            student.transformer.enable_gradient_checkpointing()
            student.codec.enable_gradient_checkpointing()
        student.forward_batch(batch_of()).square().mean().backward()
        gradients.append({name: p.grad for name, p in student.named_parameters() if p.requires_grad})
    plain, recomputed = gradients
    assert plain.keys() == recomputed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=1e-4, atol=1e-7, msg=name)


def test_a_bf16_base_runs_under_autocast_and_keeps_its_adapters_in_fp32(make_student):
    student = make_student(lora_rank=2)
    for parameter in student.transformer.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        student.forward_batch(batch_of(KEYS[:1])).float().square().mean().backward()
    trained = [p for p in student.transformer.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {p.grad.dtype for p in trained} == {torch.float32}
