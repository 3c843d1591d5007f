"""Generator and discriminator against each other: steps, gradients on two processes, checkpoints, resume."""

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks.ema import Ema, averaged_weights
from callbacks.image_panel import logging_step
from lightning_modules.adversarial_training import Manual, sample_generators
from lightning_modules.autoencoder import Autoencoder
from lightning_modules.networks.small_codec import SmallF16Codec
from lightning_modules.super_resolution import check_base, check_trainable, without_adversary
from losses.weighted_sum import NonFiniteLossError

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("adversarial_run.py")
spec = importlib.util.spec_from_file_location("adversarial_run", SCRIPT)
run = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run)


class Recorder(Callback):
    """What each batch left behind: global step, logging step, learning rates, Adam's steps, logged values."""

    def __init__(self):
        self.global_steps, self.logging_steps, self.rates, self.adam_steps, self.values = [], [], [], [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.global_steps.append(trainer.global_step)
        self.logging_steps.append(logging_step(trainer))
        self.rates.append([optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers])
        self.adam_steps.append([steps_of(optimizer) for optimizer in trainer.optimizers])
        self.values.append({name: value.item() for name, value in trainer.callback_metrics.items()})


def steps_of(optimizer):
    """How often each parameter was stepped, one number as they must agree."""
    counts = {int(state["step"]) for state in optimizer.state.values()} or {0}
    assert len(counts) == 1
    return counts.pop()


def equal(first, second):
    """Equality of nested state dictionaries, bit for bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(equal, first, second))
    return first == second


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_global_step_is_one_of_the_generator_and_one_of_the_heads(accumulate):
    recorder, factor = Recorder(), 2.0
    module = run.Generator(run.make_adversary(factor=factor), Manual(accumulate))
    trainer = run.make_trainer(6, callbacks=[recorder])
    trainer.fit(module, run.loader(6 * accumulate))
    done = [(batch + 1) // accumulate for batch in range(6 * accumulate)]
    assert trainer.global_step == 6
    assert recorder.global_steps == done
    assert recorder.logging_steps == [batch // accumulate for batch in range(6 * accumulate)]
    assert recorder.adam_steps == [[steps, steps] for steps in done]
    expected = [[run.SCHEDULE.learning_rate * run.SCHEDULE.factor(s) * f for f in (1, factor)] for s in done]
    np.testing.assert_allclose(recorder.rates, expected, rtol=1e-12)
    assert trainer.accumulate_grad_batches == 1, "a second fit finds the Trainer as it was"


def events(folder):
    accumulator = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def test_at_weight_zero_the_generator_trains_and_logs_as_without_an_adversary(tmp_path):
    def fit(name, module, **options):
        logger = TensorBoardLogger(tmp_path, name="", version=name, default_hp_metric=False)
        settings = {"val_check_interval": 4, "log_every_n_steps": 2, "num_sanity_val_steps": 0} | options
        trainer = run.make_trainer(6, callbacks=[Ema(0.5)], logger=logger, **settings)
        trainer.fit(module, run.loader(12), run.loader(1))
        return trainer.callbacks[0].averaged_state(), events(tmp_path / name)

    plain, opposed = run.Generator(), run.Generator(run.make_adversary(weight=0.0), Manual(accumulate=2, clip=0.05))
    average, logged = fit("plain", plain, accumulate_grad_batches=2, gradient_clip_val=0.05)
    opposed_average, opposed_logged = fit("opposed", opposed)
    for name, value in plain.generator_parameters().items():
        assert torch.equal(opposed.generator_parameters()[name], value), name
    assert equal(opposed_average, average)
    assert {tag: opposed_logged[tag] for tag in logged} == logged
    assert [step for step, _ in logged["train/loss"]] == [1, 3, 5], "every second step, once"
    assert [step for step, _ in logged["val/psnr_y"]] == [1, 3, 5]
    assert set(opposed_logged) - set(logged) == {"train/adversarial", "train/discriminator"}


def test_both_sides_are_clipped_each_on_its_own():
    clip = 1e-3
    trainer = run.make_trainer(1)
    trainer.fit(run.Generator(run.make_adversary(), Manual(clip=clip)), run.loader(1))
    beta = run.SCHEDULE.betas[0]
    for optimizer in trainer.optimizers:  # after one step the first moment is (1 - beta) times the gradient
        moments = [state["exp_avg"] for state in optimizer.state.values()]
        assert torch.nn.utils.get_total_norm(moments).item() == pytest.approx((1 - beta) * clip, rel=1e-3)


def test_adaptive_weight_is_the_ratio_of_gradient_norms_at_the_last_layer():
    batch = next(iter(run.loader(1)))
    module, adversary = run.Generator(), run.make_adversary(adaptive=True, weight=0.25)
    sr = module.forward_batch(batch)
    reconstruction = (sr - batch["hr"]).abs().mean()
    adversarial = adversary.generator_loss(sr, sample_generators(batch, "adversary, generator"))
    norms = []
    for loss in (reconstruction, adversarial):
        (gradient,) = torch.autograd.grad(loss, module.conv2.weight, retain_graph=True)
        norms.append(np.sqrt((gradient.double().numpy() ** 2).sum()))
    recorder = Recorder()
    trained = run.Generator(run.make_adversary(adaptive=True, weight=0.25))
    run.make_trainer(1, callbacks=[recorder]).fit(trained, run.loader(1))
    (values,) = recorder.values
    ratio = norms[0] / (norms[1] + 1e-4)
    assert values["train/adaptive_weight"] == pytest.approx(ratio, rel=1e-4)
    assert values["train/adversarial"] == pytest.approx(adversarial.item(), rel=1e-5)
    assert values["train/loss"] == pytest.approx(reconstruction.item() + 0.25 * ratio * adversarial.item(), rel=1e-4)


def test_adaptive_needs_a_last_layer():
    module = run.GeneratorWithoutLastLayer(run.make_adversary(adaptive=True))
    with pytest.raises(ValueError, match=r"GeneratorWithoutLastLayer names no last layer; .*adaptive=false"):
        run.make_trainer(1).fit(module, run.loader(1))


def test_the_discriminator_learns_from_its_own_loss_alone():
    """Its first gradient is that of its loss, and the frozen backbone stays as it was."""
    batch, module, expected = next(iter(run.loader(1))), run.Generator(), run.make_adversary()
    sr = module.forward_batch(batch).detach()
    # The generator's phase comes first: its call takes one step of the power iteration too.
    expected.generator_loss(sr, sample_generators(batch, "adversary, generator"))
    loss = expected.discriminator_loss(sr, batch["hr"], sample_generators(batch, "adversary, discriminator"))
    gradients = torch.autograd.grad(loss, list(expected.parameters()))
    trained = run.Generator(run.make_adversary())
    trainer = run.make_trainer(1)
    trainer.fit(trained, run.loader(1))
    moments = [state["exp_avg"] / (1 - run.SCHEDULE.betas[0]) for state in trainer.optimizers[1].state.values()]
    for moment, gradient in zip(moments, gradients, strict=True):
        torch.testing.assert_close(moment, gradient, rtol=1e-4, atol=1e-7)
    backbone = expected.discriminator.backbone.named_buffers()
    for (name, before), after in zip(backbone, trained.adversary.discriminator.backbone.buffers(), strict=True):
        assert torch.equal(before, after), name


def test_two_hundred_steps_stay_finite():
    recorder = Recorder()
    module = run.Generator(run.make_adversary("hinge", adaptive=True), Manual(clip=1.0))
    before = {name: value.detach().clone() for name, value in module.named_parameters() if value.requires_grad}
    run.make_trainer(200, callbacks=[recorder]).fit(module, run.loader(200))
    assert len(recorder.values) == 200
    assert np.isfinite([list(values.values()) for values in recorder.values]).all()
    assert all(value.isfinite().all() for value in module.trainable_parameters().values())
    unmoved = [name for name, value in before.items() if torch.equal(module.get_parameter(name), value)]
    assert not unmoved
    errors = [values["train/l1"] for values in recorder.values]
    assert np.mean(errors[-20:]) < np.mean(errors[:20]), "the generator learns beside its adversary"


def test_mixed_precision_trains_both_sides():
    recorder, module = Recorder(), run.Generator(run.make_adversary(adaptive=True))
    run.make_trainer(2, callbacks=[recorder], precision="bf16-mixed").fit(module, run.loader(2))
    assert recorder.adam_steps[-1] == [2, 2]
    assert np.isfinite(list(recorder.values[-1].values())).all()
    assert {value.dtype for value in module.trainable_parameters().values()} == {torch.float32}


def test_the_codec_has_a_last_layer():
    losses, metrics = run.WeightedSum({"l1": (1.0, run.L1())}), {"psnr_y": run.PsnrY()}
    adversary = run.make_adversary(adaptive=True)
    module = Autoencoder(SmallF16Codec(4, (8, 8, 8), 1), 0.1, losses, metrics, run.SCHEDULE, adversary, Manual(2, 1.0))
    recorder = Recorder()
    run.make_trainer(1, callbacks=[recorder]).fit(module, run.loader(2))
    assert recorder.adam_steps == [[0, 0], [1, 1]]
    assert recorder.values[-1]["train/adaptive_weight"] > 0


def test_a_non_finite_generator_loss_names_the_term_and_leaves_the_heads_trainable():
    module = run.Generator(run.make_adversary())
    with torch.no_grad():
        next(module.adversary.parameters()).fill_(float("nan"))
    with pytest.raises(NonFiniteLossError, match="rank 0 at step 0: adversarial = nan"):
        run.make_trainer(1).fit(module, run.loader(1))
    assert all(parameter.requires_grad for parameter in module.adversary.parameters())


class Darkness(torch.nn.Module):
    """A loss of sr alone, which stays finite whatever hr is."""

    def forward(self, sr, hr):
        return sr.mean()


def test_a_non_finite_discriminator_loss_names_the_term():
    module = run.Generator(run.make_adversary())
    module.losses = run.WeightedSum({"darkness": (1.0, Darkness())})
    crops = run.Crops(2)
    samples = [crops[index] | {"hr": crops[index]["hr"] * float("nan")} for index in range(2)]
    with pytest.raises(NonFiniteLossError, match="rank 0 at step 0: discriminator = nan"):
        run.make_trainer(1).fit(module, run.DataLoader(samples, batch_size=2))


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    """Checkpoint after 3 of 6 steps, and the module, average and trainer of 6 steps in one go; accumulation of 2."""
    folder = tmp_path_factory.mktemp("halves")
    first = run.make_trainer(3, callbacks=[Ema(0.5)])
    first.fit(run.Generator(run.make_adversary(adaptive=True), Manual(2, 0.05)), run.loader(12))
    first.save_checkpoint(folder / "half.ckpt")
    whole = run.make_trainer(6, callbacks=[Ema(0.5)])
    whole.fit(run.Generator(run.make_adversary(adaptive=True), Manual(2, 0.05)), run.loader(12))
    whole.save_checkpoint(folder / "whole.ckpt")
    return folder


def contents(path):
    return torch.load(path, weights_only=True)


class Rest:
    """The batches of a loader from a position on; the counters of a resumed run go on by themselves."""

    def __init__(self, loader, start):
        self.loader, self.start = loader, start

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        return iter(list(self.loader)[self.start :])


def test_resume_is_exact_for_both_sides(halves, tmp_path):
    module = run.Generator(run.make_adversary(adaptive=True), Manual(2, 0.05))
    trainer = run.make_trainer(6, callbacks=[Ema(0.5)])
    trainer.fit(module, Rest(run.loader(12), 6), ckpt_path=halves / "half.ckpt", weights_only=True)
    trainer.save_checkpoint(tmp_path / "resumed.ckpt")
    resumed, whole = contents(tmp_path / "resumed.ckpt"), contents(halves / "whole.ckpt")
    assert resumed["global_step"] == whole["global_step"] == 6
    assert len(whole["optimizer_states"]) == len(whole["lr_schedulers"]) == 2
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "callbacks"):
        assert equal(resumed[part], whole[part]), part
    assert not equal(contents(halves / "half.ckpt")["optimizer_states"][1], whole["optimizer_states"][1])


def test_a_checkpoint_holds_the_heads_and_their_spectral_norms_but_no_backbone(halves):
    state = contents(halves / "whole.ckpt")["state_dict"]
    generator = {f"{layer}.{kind}" for layer in ("conv1", "conv2") for kind in ("weight", "bias")}
    heads = set(state) - generator
    assert generator < set(state)
    assert all(name.startswith("adversary.discriminator.heads.") for name in heads)
    kinds = {name.rsplit(".", 1)[1] for name in heads}
    assert kinds == {"original", "bias", "_u", "_v"}
    assert set(averaged_weights(contents(halves / "whole.ckpt"))) == generator


def test_a_system_without_an_adversary_loads_the_generator(halves):
    checkpoint, system = contents(halves / "whole.ckpt"), run.Generator()
    weights = without_adversary(checkpoint["state_dict"])
    check_trainable(weights, system.trainable_parameters())
    check_base(checkpoint, system.base_fingerprint())
    with pytest.raises(ValueError, match="are not of this model"):
        check_trainable(checkpoint["state_dict"], system.trainable_parameters())
    with pytest.raises(ValueError, match="are missing"):
        check_trainable(weights, run.Generator(run.make_adversary()).trainable_parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"accumulate": 0}, "trainer.accumulate=0"), ({"clip": -1.0}, "trainer.clip=-1"), ({"clip": np.inf}, "clip=inf")],
)
def test_impossible_values_name_the_option(options, message):
    with pytest.raises(ValueError, match=message):
        Manual(**options)


def test_the_phases_draw_apart_and_from_the_sample_alone():
    batch = next(iter(run.loader(1, batch_size=3)))
    draws = {
        phase: [torch.rand(2, generator=g).tolist() for g in sample_generators(batch, phase)]
        for phase in ("adversary, generator", "adversary, discriminator")
    }
    assert len({tuple(draw) for drawn in draws.values() for draw in drawn}) == 6
    alone = {"key": batch["key"][2:]}
    (generator,) = sample_generators(alone, "adversary, generator")
    assert torch.rand(2, generator=generator).tolist() == draws["adversary, generator"][2]


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory):
    """Folder with two.ckpt of two gloo processes, one.ckpt of one on the same global batches, and all states."""
    folder, port = tmp_path_factory.mktemp("ranks"), str(free_port())
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    cluster = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder)],
            env=environment | cluster | {"LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    run.train_adaptively(folder, "one")
    errors = [process.communicate(timeout=280)[1][-3000:] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], "\n".join(errors)
    return folder


def test_two_processes_train_both_sides_as_one_does(one_and_two):
    two, one = (contents(one_and_two / f"{name}.ckpt") for name in ("two", "one"))
    assert two["global_step"] == one["global_step"] == 2
    assert two["state_dict"].keys() == one["state_dict"].keys()
    for name, value in one["state_dict"].items():
        assert (two["state_dict"][name] - value).abs().max() < 1e-6, name
    # Adam hides the gradients' size; their first moments do not, and gradients of half a batch would give others.
    for ours, expected in zip(two["optimizer_states"], one["optimizer_states"], strict=True):
        for number, state in expected["state"].items():
            size = state["exp_avg"].abs().max()
            assert size > 1e-6
            assert (ours["state"][number]["exp_avg"] - state["exp_avg"]).abs().max() < 1e-6 + 1e-4 * size


def test_both_processes_hold_the_same_tensors(one_and_two):
    first, second = (contents(one_and_two / f"two{rank}.pt") for rank in (0, 1))
    assert any(name.endswith("._u") for name in first)
    assert equal(first, second)
