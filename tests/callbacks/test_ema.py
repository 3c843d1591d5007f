import numpy as np
import pytest
import torch
from lightning.pytorch import Callback

from callbacks.ema import Ema, averaged_weights, decay_at


class Recorder(Callback):
    """Keeps the trained weight after every batch on which the optimizer stepped."""

    def __init__(self):
        self.weights = []
        self.steps = 0

    def on_train_start(self, trainer, pl_module):
        self.initial = pl_module.trained.weight.detach().clone()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step != self.steps:
            self.steps = trainer.global_step
            self.weights.append(pl_module.trained.weight.detach().clone())


def closed_form(initial, weights, decay):
    """w0 d^n + (1 - d) sum d^(n - k) w_k in float64."""
    n = len(weights)
    terms = [(1 - decay) * decay ** (n - k) * w.double().numpy() for k, w in enumerate(weights, start=1)]
    return initial.double().numpy() * decay**n + np.sum(terms, axis=0)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_average_is_the_closed_formula_over_optimizer_steps(student, data, trainer_with, accumulate):
    ema, recorder = Ema(decay=0.8, warmup=False), Recorder()
    trainer_with(ema, recorder, max_epochs=2, max_steps=-1, accumulate_grad_batches=accumulate).fit(student, data)
    assert len(recorder.weights) == 12 // accumulate
    expected = closed_form(recorder.initial, recorder.weights, 0.8)
    np.testing.assert_allclose(ema.averaged_state()["trained.weight"].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_every_n_steps_averages_the_nth_weights(student, data, trainer_with):
    ema, recorder = Ema(decay=0.8, every_n_steps=3, warmup=0), Recorder()
    trainer_with(ema, recorder).fit(student, data)
    expected = closed_form(recorder.initial, recorder.weights[2::3], 0.8)
    np.testing.assert_allclose(ema.averaged_state()["trained.weight"].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_warmup_follows_its_formula():
    assert [decay_at(n, 0.9, 4.0) for n in (0, 1, 2)] == [1 / 4, 2 / 5, 3 / 6]
    assert decay_at(10_000, 0.9, 4.0) == 0.9
    assert Ema(warmup=True).warmup == 10
    assert Ema(warmup=False).warmup == 0


def test_only_trainable_parameters_in_fp32_are_kept(student, data, trainer_with):
    ema = Ema(decay=0.5)
    trainer_with(ema, precision="bf16-true").fit(student, data)
    assert student.validated[-1].dtype == torch.bfloat16
    state = ema.averaged_state()
    assert set(state) == {"trained.weight", "trained.bias"}
    assert {value.dtype for value in state.values()} == {torch.float32}


def test_a_module_names_the_parameters_of_its_generator(student, data, trainer_with):
    student.generator_parameters = lambda: {"trained.bias": student.trained.bias}
    ema = Ema(decay=0.5)
    trainer_with(ema).fit(student, data)
    assert set(ema.averaged_state()) == {"trained.bias"}


class SaveDuringValidation(Callback):
    def __init__(self, path):
        self.path = path

    def on_validation_epoch_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            trainer.save_checkpoint(self.path)


def test_validation_sees_the_average_and_training_goes_on_bit_for_bit(new_student, data, trainer_with, tmp_path):
    plain, averaged = new_student(), new_student()
    ema = Ema(decay=0.9, warmup=False)
    trainer_with(ema, SaveDuringValidation(tmp_path / "mid.ckpt")).fit(averaged, data)
    trainer_with().fit(plain, data)
    for name, value in plain.state_dict().items():
        assert torch.equal(averaged.state_dict()[name], value), name
    state = ema.averaged_state()["trained.weight"]
    assert torch.equal(averaged.validated[-1], state)
    assert not torch.equal(plain.validated[-1], state)
    checkpoint = torch.load(tmp_path / "mid.ckpt", weights_only=True)
    assert torch.equal(checkpoint["state_dict"]["trained.weight"], plain.trained.weight)
    assert torch.equal(averaged_weights(checkpoint)["trained.weight"], state)


def test_exception_in_validation_restores_the_weights(new_student, data, trainer_with):
    plain, broken = new_student(), new_student()
    trainer_with().fit(plain, data)
    step = broken.validation_step

    def failing_step(batch, batch_idx):
        step(batch, batch_idx)
        if not broken.trainer.sanity_checking:
            raise RuntimeError("stop")

    broken.validation_step = failing_step
    with pytest.raises(RuntimeError, match="stop"):
        trainer_with(Ema(decay=0.9, warmup=False)).fit(broken, data)
    assert torch.equal(broken.trained.weight, plain.trained.weight)
    assert not torch.equal(broken.validated[-1], plain.trained.weight)


def test_resume_is_exact(new_student, data, trainer_with, tmp_path):
    whole, first, second = (Ema(decay=0.9, every_n_steps=4) for _ in range(3))
    trainer_with(whole, max_steps=12).fit(new_student(), data)
    trainer = trainer_with(first, max_steps=6)
    trainer.fit(new_student(), data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    trainer_with(second, max_steps=12).fit(new_student(), data, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    for name, value in whole.averaged_state().items():
        assert torch.equal(second.averaged_state()[name], value), name
    assert second.state_dict()["updates"] == 3


def test_resume_with_other_trainable_parameters_names_them(new_student, data, trainer_with, tmp_path):
    trainer = trainer_with(Ema(), max_steps=1)
    trainer.fit(new_student(), data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    changed = new_student()
    changed.trained.bias.requires_grad_(False)
    with pytest.raises(ValueError, match=r"trained\.bias.*INIT="):
        trainer_with(Ema(), max_steps=2).fit(changed, data, ckpt_path=tmp_path / "last.ckpt", weights_only=True)


@pytest.mark.parametrize("options", [{"decay": 1.0}, {"decay": -0.1}, {"every_n_steps": 0}, {"warmup": 0.5}])
def test_values_out_of_range_name_the_option(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Ema(**options)
