from dataclasses import replace

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from lightning_modules.super_resolution import AdamWSchedule, check_trainable, pad_to_multiple
from losses.weighted_sum import NonFiniteLossError

SCHEDULE = AdamWSchedule(1e-3, (0.9, 0.99), 0.0, warmup_steps=10, decay_share=0.4, final_factor=0.1, steps=100)


def test_schedule_warms_up_stays_and_falls():
    warm = [SCHEDULE.factor(step) for step in range(10)]
    np.testing.assert_allclose(warm, np.arange(1, 11) / 10)
    assert {SCHEDULE.factor(step) for step in range(10, 61)} == {1.0}
    np.testing.assert_allclose([SCHEDULE.factor(s) for s in range(60, 101)], np.linspace(1, 0.1, 41))
    assert SCHEDULE.factor(1000) == pytest.approx(0.1)


def test_schedule_without_warm_up_and_decay_is_constant():
    flat = replace(SCHEDULE, warmup_steps=0, decay_share=0.0)
    assert {flat.factor(step) for step in range(200)} == {1.0}


def test_the_optimiser_follows_the_schedule(make_student):
    student = make_student()
    student.schedule = SCHEDULE
    parts = student.configure_optimizers()
    optimizer, scheduler = parts["optimizer"], parts["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    np.testing.assert_allclose(rates, [1e-3 * SCHEDULE.factor(step) for step in range(100)])


@pytest.mark.parametrize("size", [(1, 1), (31, 33), (32, 64), (65, 7)])
def test_padding_repeats_the_edge_and_crops_back(size):
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    padded = pad_to_multiple(image, 32)
    bottom, right = -size[0] % 32, -size[1] % 32
    expected = np.pad(image.numpy(), ((0, 0), (0, 0), (0, bottom), (0, right)), mode="edge")
    np.testing.assert_array_equal(padded.numpy(), expected)
    assert torch.equal(padded[..., : size[0], : size[1]], image)


def test_a_non_finite_loss_stops_the_run_and_names_term_rank_and_step(make_student, tmp_path):
    generator = torch.Generator().manual_seed(0)
    samples = [
        {"lr": torch.rand(3, 8, 8, generator=generator), "hr": torch.rand(3, 32, 32), "key": torch.zeros(4).long()}
        for _ in range(6)
    ]
    samples[2]["hr"] = torch.full((3, 32, 32), float("nan"))
    trainer = Trainer(
        accelerator="cpu",
        max_steps=6,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
    )
    with pytest.raises(NonFiniteLossError, match="rank 0 at step 2: l1 = nan"):
        trainer.fit(make_student(), DataLoader(samples, batch_size=1))
    assert trainer.global_step == 2


def test_extra_terms_join_the_loss_by_their_weights_and_the_log_without(make_student, monkeypatch):
    """d/dw of l1 + features + 0.5 |w|^2 of one trained tensor w: the gradients differ by w."""
    generator = torch.Generator().manual_seed(0)
    lr, hr = torch.rand(1, 3, 8, 8, generator=generator), torch.rand(1, 3, 32, 32, generator=generator)
    batch = {"lr": lr, "hr": hr, "key": torch.zeros(1, 4).long()}
    logged, gradients, totals = {}, [], []
    for extra in (False, True):
        student = make_student()
        weight = student.transformer.proj_out.weight
        monkeypatch.setattr(student, "log", lambda name, value, **_: totals.append(value.item()))
        monkeypatch.setattr(student, "log_dict", lambda values, **_: logged.update(values))
        if extra:
            monkeypatch.setattr(student, "extra_terms", lambda batch, sr, w=weight: {"decay": (0.5, w.square().sum())})
        student.training_step(batch, 0).backward()
        gradients.append(weight.grad)
    torch.testing.assert_close(gradients[1] - gradients[0], weight.detach(), rtol=1e-4, atol=1e-5)
    assert set(logged) == {"train/l1", "train/features", "train/decay"}
    assert totals[1] - totals[0] == pytest.approx(0.5 * logged["train/decay"].item(), rel=1e-4)


def test_an_extra_term_must_be_finite(make_student, monkeypatch):
    student = make_student()
    monkeypatch.setattr(student, "extra_terms", lambda batch, sr: {"latent": (1.0, sr.sum() * float("inf"))})
    batch = {"lr": torch.rand(1, 3, 8, 8), "hr": torch.rand(1, 3, 32, 32), "key": torch.zeros(1, 4).long()}
    with pytest.raises(NonFiniteLossError, match=r"latent = (nan|-?inf)"):
        student.training_step(batch, 0)


def test_tensors_must_fit_by_name_and_shape():
    model = {"a": torch.zeros(2), "b": torch.zeros(3)}
    check_trainable({"a": torch.ones(2), "b": torch.ones(3)}, model)
    with pytest.raises(ValueError, match=r"1 trainable tensors are missing \['b'\], 1 are not of this model \['c'\]"):
        check_trainable({"a": torch.ones(2), "c": torch.ones(3)}, model)
    with pytest.raises(ValueError, match=r"tensor b has shape \(4,\) in the checkpoint and \(3,\) in the model"):
        check_trainable({"a": torch.ones(2), "b": torch.ones(4)}, model)


def test_the_cosine_is_torchs():
    schedule = AdamWSchedule(1.0, (0.9, 0.99), 0.0, 0, decay_share=1.0, final_factor=0.1, steps=50, decay="cosine")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50, eta_min=0.1)
    for step in range(50):
        assert schedule.factor(step) == pytest.approx(reference.get_last_lr()[0])
        optimizer.step()
        reference.step()


def test_steps_halve_as_in_the_paper():
    schedule = AdamWSchedule(1.0, (0.9, 0.99), 0.0, 0, decay_share=1.0, final_factor=0.0, steps=100, decay="steps")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    reference = torch.optim.lr_scheduler.StepLR(optimizer, step_size=20, gamma=0.5)
    for step in range(100):
        assert schedule.factor(step) == pytest.approx(reference.get_last_lr()[0])
        optimizer.step()
        reference.step()
