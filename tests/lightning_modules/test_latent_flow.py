"""Pretraining by flow matching: the loss by hand, the one-step estimate, and what is trained."""

import pytest
import torch

from datamodules.randomness import generator_for
from lightning_modules.latent_flow import mix
from lightning_modules.networks.flux import image_ids, pack, unpack

KEYS = [[0, 0, 1, 0], [0, 0, 2, 3]]


def random_images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def batch_of(keys=KEYS, side=64):
    hr = torch.stack([random_images(3, side, side, seed=key[2]) for key in keys])
    return {"hr": hr, "key": torch.tensor(keys)}


@pytest.fixture
def quiet_flow(make_flow, monkeypatch):
    """A flow whose scalars go nowhere: there is no Trainer."""

    def build(**options):
        flow = make_flow(**options)
        monkeypatch.setattr(flow, "log", lambda *_, **__: None)
        return flow

    return build


def test_the_loss_is_the_formula_with_the_samples_own_draws(quiet_flow):
    """mean |v(z_sigma, sigma) - (eps - z)|^2 with sigma = sigmoid(m + s n), each part by hand."""
    flow, batch = quiet_flow(logit_mean=-0.5, logit_std=2.0), batch_of()
    errors = []
    with torch.no_grad():
        for hr, key in zip(batch["hr"], KEYS, strict=True):
            latent = flow.codec.encode(hr[None])
            level = torch.randn(1, generator=generator_for(key, "flow noise level"))
            sigma = 1 / (1 + torch.exp(0.5 - 2 * level))
            noise = torch.randn(latent.shape[1:], generator=generator_for(key, "flow noise"))[None]
            (tokens,) = flow.transformer(
                hidden_states=pack((1 - sigma) * latent + sigma * noise),
                encoder_hidden_states=flow.prompt[None],
                pooled_projections=flow.pooled_prompt[None],
                timestep=sigma,
                img_ids=image_ids(2, 2),
                txt_ids=torch.zeros(3, 3),
                return_dict=False,
            )
            errors.append((unpack(tokens, 4, 4) - (noise - latent)).square().mean())
    torch.testing.assert_close(flow.training_step(batch, 0), torch.stack(errors).mean(), rtol=1e-5, atol=1e-6)


def test_a_batch_trains_what_its_samples_do(quiet_flow):
    flow = quiet_flow()
    with torch.no_grad():
        alone = [flow.training_step(batch_of([key]), 0) for key in KEYS]
        torch.testing.assert_close(flow.training_step(batch_of(), 0), torch.stack(alone).mean())
        assert flow.training_step(batch_of([[0, 1, 1, 0]]), 0) != alone[0], "another pass draws anew"


def test_the_transformer_alone_is_trained(quiet_flow):
    flow = quiet_flow()
    assert set(flow.trainable_parameters()) == {
        f"transformer.{name}" for name, _ in flow.transformer.named_parameters()
    }
    flow.training_step(batch_of(), 0).backward()
    assert all(parameter.grad is None for parameter in flow.codec.parameters())
    assert flow.transformer.proj_out.weight.grad.abs().sum() > 0


@torch.no_grad()
def test_without_a_velocity_the_estimate_is_the_noised_image(make_flow):
    flow, image = make_flow(trained=False), random_images(1, 3, 64, 96)
    latent = flow.codec.encode(image)
    noise = torch.randn(latent.shape[1:], generator=torch.Generator().manual_seed(1))[None]
    denoised = flow.denoise(image, [torch.Generator().manual_seed(1)])
    torch.testing.assert_close(denoised, flow.codec.decode(0.6 * latent + 0.4 * noise))
    torch.testing.assert_close(mix(latent, noise, torch.tensor([0.4])), 0.6 * latent + 0.4 * noise)


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 1), (33, 70)])
def test_any_size_is_denoised(make_flow, size):
    image = random_images(1, 3, *size)
    assert make_flow().denoise(image, [torch.Generator().manual_seed(1)]).shape == image.shape


@torch.no_grad()
def test_shuffled_ids_cost_a_flow_that_reads_positions(make_flow):
    image = random_images(1, 3, 128, 128)

    def difference(flow):
        plain, mixed = (flow.denoise(image, [torch.Generator().manual_seed(1)], s) for s in (None, torch.Generator()))
        return (plain - mixed).abs().max()

    assert difference(make_flow(trained=False)) == 0
    assert difference(make_flow()) > 1e-4


@torch.no_grad()
def test_validation_and_panel_depend_on_the_key_alone(make_flow):
    flow = make_flow()
    whole = flow.forward_batch(batch_of())
    for number, key in enumerate(KEYS):
        torch.testing.assert_close(flow.forward_batch(batch_of([key]))[0], whole[number])
    panel = flow.panel(batch_of())
    assert list(panel) == ["denoised", "hr"]
    assert torch.equal(panel["denoised"], whole)
