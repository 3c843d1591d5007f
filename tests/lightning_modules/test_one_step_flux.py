import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from callbacks.ema import Ema
from lightning_modules.latent_flux import check_widths
from lightning_modules.networks.codec import Codec
from lightning_modules.networks.flux import image_ids, pack
from lightning_modules.networks.small_codec import SmallF16Codec
from lightning_modules.super_resolution import resize_up


def random_lr(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def sample(number):
    lr, hr = random_lr(3, 16, 16, seed=number), random_lr(3, 64, 64, seed=9 + number)
    return {"lr": lr, "hr": hr, "key": torch.tensor([0, 0, number, 0])}


class Pairs(LightningDataModule):
    def train_dataloader(self):
        return DataLoader([sample(number) for number in range(4)], batch_size=2)


def fit(student, folder, steps=2):
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        callbacks=[Ema(0.5)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
    )
    trainer.fit(student, Pairs())
    trainer.save_checkpoint(folder / "last.ckpt")
    return trainer, torch.load(folder / "last.ckpt", weights_only=True)


@torch.no_grad()
def test_one_step_is_the_formula(make_student):
    """z0 = z_L - sigma v, each part by hand: the codec and the transformer called on their own."""
    student = make_student(sigma=0.3)
    student.codec.model.register_to_config(scaling_factor=0.5, shift_factor=0.25)
    image = random_lr(2, 3, 64, 96)
    latent = (student.codec.encoder(2 * image - 1) - 0.25) * 0.5
    (tokens,) = student.transformer(
        hidden_states=pack(latent),
        encoder_hidden_states=student.prompt.repeat(2, 1, 1),
        pooled_projections=student.pooled_prompt.repeat(2, 1),
        timestep=torch.tensor([0.3, 0.3]),
        img_ids=image_ids(2, 3),
        txt_ids=torch.zeros(3, 3),
        return_dict=False,
    )
    z0 = pack(latent) - 0.3 * tokens
    rows = [z0.reshape(2, 2, 3, 4, 2, 2)[:, :, :, c].permute(0, 1, 3, 2, 4).reshape(2, 4, 6) for c in range(4)]
    expected = student.codec.decoder(torch.stack(rows, 1) / 0.5 + 0.25) / 2 + 0.5
    assert (tokens * 0.3).abs().max() > 1e-2, "a velocity of zero would test nothing"
    torch.testing.assert_close(student.restore(image), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_an_untrained_student_is_the_codec_on_bicubic(make_student):
    student = make_student(trained=False)
    lr = random_lr(1, 3, 16, 24)
    up = resize_up(lr, (64, 96))
    expected = student.codec.decode(student.codec.encode(up))
    torch.testing.assert_close(student.upscale(lr), expected)


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 5), (8, 8), (9, 17), (33, 2)])
def test_any_size_works(make_student, size):
    sr = make_student().upscale(random_lr(1, 3, *size))
    assert sr.shape == (1, 3, 4 * size[0], 4 * size[1])
    assert sr.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_strips_restore_the_same_image(make_student, rows):
    student, image = make_student(), random_lr(1, 3, 131, 45)
    assert (student.restore(image, rows) - student.restore(image)).abs().max() <= 1e-4


def test_gradient_reaches_all_of_the_transformer_and_nothing_of_the_codec(make_student):
    student = make_student()
    student.upscale(random_lr(1, 3, 16, 16)).square().mean().backward()
    silent = [n for n, p in student.transformer.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # keys of one constant text position: softmax is blind to what is common to all keys
    assert [name for name in silent if not name.endswith("_k_proj.bias") and not name.endswith("to_k.bias")] == []
    assert all(p.grad is None for p in student.codec.parameters())


def test_nothing_frozen_is_optimised_averaged_or_saved(make_student, tmp_path):
    student = make_student()
    before = {name: value.clone() for name, value in student.codec.state_dict().items()}
    trainer, checkpoint = fit(student, tmp_path)
    expected = {f"transformer.{name}" for name, _ in student.transformer.named_parameters()}

    optimised = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert optimised == {id(p) for p in student.transformer.parameters()}
    assert set(checkpoint["state_dict"]) == expected
    assert set(checkpoint["callbacks"]["Ema"]["shadow"]) == expected
    assert all(torch.equal(value, before[name]) for name, value in student.codec.state_dict().items())
    moved = [
        n
        for n, p in student.transformer.named_parameters()
        if not torch.equal(p, checkpoint["state_dict"][f"transformer.{n}"])
    ]
    assert moved == []


def test_a_checkpoint_is_as_large_as_four_copies_of_what_is_trained(make_student, tmp_path):
    """Weights, average and two moments; the frozen codec here and any perceptual network would make it larger."""
    student = make_student(codec_width=64)
    features = student.losses.terms["features"]
    frozen = [sum(p.numel() * 4 for p in student.codec.parameters()), sum(b.numel() * 4 for b in features.buffers())]
    fit(student, tmp_path)
    trained = sum(p.numel() * 4 for p in student.transformer.parameters())
    overhead = (tmp_path / "last.ckpt").stat().st_size - 4 * trained
    tensors = 4 * len(list(student.transformer.parameters()))
    assert 0 < overhead < 600 * tensors + 50_000 < min(frozen)


def test_another_base_is_refused_with_a_sentence(make_student, tmp_path):
    fit(make_student(codec_seed=0), tmp_path)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=3,
        logger=False,
        enable_progress_bar=False,
        barebones=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
    )
    with pytest.raises(ValueError, match=r"frozen base \(fingerprint \w{16}\) is not the one .* codec\.path"):
        trainer.fit(make_student(codec_seed=5), Pairs(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)


def test_the_fingerprint_covers_codec_and_prompt_and_ignores_what_is_trained(make_student):
    first, second, third, fourth = make_student(), make_student(trained=False), make_student(), make_student()
    with torch.no_grad():
        next(iter(third.codec.parameters())).view(-1)[0] += 1e-3
        fourth.prompt[0, 0] += 1e-3
    assert first.base_fingerprint() == second.base_fingerprint()
    assert len({student.base_fingerprint() for student in (first, third, fourth)}) == 3


def test_shuffled_ids_cost_a_student_that_reads_positions(make_student):
    image, generator = random_lr(1, 3, 128, 128), torch.Generator().manual_seed(0)
    with torch.no_grad():
        blind, seeing = make_student(trained=False), make_student(trained=True)
        assert torch.equal(blind.restore(image, shuffle=generator), blind.restore(image))
        assert (seeing.restore(image, shuffle=generator) - seeing.restore(image)).abs().max() > 1e-4


def test_shuffling_is_reproducible_and_keeps_odd_sizes(make_student):
    student, image = make_student(), random_lr(1, 3, 76, 84)
    first, second = (student.restore(image, shuffle=torch.Generator().manual_seed(7)) for _ in range(2))
    assert first.shape == (1, 3, 76, 84)
    assert torch.equal(first, second)


def test_panel_shows_lr_sr_hr_in_one_size(make_student):
    batch = {"lr": random_lr(2, 3, 16, 16), "hr": random_lr(2, 3, 64, 64), "key": torch.arange(8).view(2, 4)}
    student = make_student()
    panel = student.panel(batch)
    assert torch.equal(panel["sr"], student.forward_batch(batch)), "the panel shows what validation measures"
    assert list(panel) == ["lr", "sr", "hr"]
    assert {tuple(image.shape) for image in panel.values()} == {(2, 3, 64, 64)}


def test_parts_that_do_not_fit_together_are_refused(make_student):
    student, wider = make_student(), Codec(SmallF16Codec(8, (8, 8, 8), 1))
    with pytest.raises(ValueError, match=r"tokens of 16 channels, the codec gives 8 x 4.*transformer\.path"):
        check_widths(student.transformer, wider, student.prompt, student.pooled_prompt)
    with pytest.raises(ValueError, match=r"prompt of 16 .* found 7 and 16.*transformer\.prompt_width"):
        check_widths(student.transformer, student.codec, torch.zeros(3, 7), student.pooled_prompt)
