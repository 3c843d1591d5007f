import numpy as np
import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline

from lightning_modules.networks.flux import (
    build_flux,
    distinguishable_pairs,
    image_ids,
    load_flux,
    neighbour_phases,
    pack,
    unpack,
)
from lightning_modules.networks.rope import use_rope


def tiny_flux():
    torch.manual_seed(0)
    transformer = build_flux(latent_channels=4, double_blocks=1, single_blocks=1, heads=1, prompt_width=16)
    torch.nn.init.normal_(transformer.proj_out.weight)
    return transformer.eval()


@torch.no_grad()
def run(transformer):
    generator = torch.Generator().manual_seed(1)
    return transformer(
        hidden_states=torch.randn(1, 12, 16, generator=generator),
        encoder_hidden_states=torch.randn(1, 3, 16, generator=generator),
        pooled_projections=torch.randn(1, 16, generator=generator),
        timestep=torch.tensor([0.505]),
        img_ids=image_ids(3, 4),
        txt_ids=torch.zeros(3, 3),
        return_dict=False,
    )[0]


@pytest.mark.parametrize(("theta", "pairs"), [(10000, 8), (100, 15)])
def test_pairs_that_tell_neighbours_apart_as_in_the_paper(theta, pairs):
    transformer = tiny_flux()
    use_rope(transformer, "plain", theta, 0)
    assert distinguishable_pairs(transformer) == (pairs, 28)


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("theta", [10000, 100, 31.5])
def test_phases_follow_the_formula(theta, axis):
    transformer = tiny_flux()
    use_rope(transformer, "plain", theta, 0)
    expected = np.degrees(theta ** (-2 * np.arange(28) / 56))
    np.testing.assert_allclose(neighbour_phases(transformer, axis).numpy(), expected, rtol=1e-4, atol=1e-4)


def test_theta_changes_the_output_and_comes_back():
    transformer = tiny_flux()
    before = run(transformer)
    use_rope(transformer, "plain", 100, 0)
    assert (run(transformer) - before).abs().max() > 1e-3
    use_rope(transformer, "plain", 10000, 0)
    assert torch.equal(run(transformer), before)


def test_a_new_transformer_has_velocity_zero():
    transformer = build_flux(latent_channels=4, double_blocks=1, single_blocks=1, heads=1, prompt_width=16)
    assert torch.equal(run(transformer), torch.zeros(1, 12, 16))


def test_packing_is_that_of_diffusers():
    latent = torch.arange(2 * 3 * 6 * 8.0).reshape(2, 3, 6, 8)
    tokens = pack(latent)
    assert torch.equal(tokens, FluxPipeline._pack_latents(latent, 2, 3, 6, 8))
    assert torch.equal(unpack(tokens, 6, 8), FluxPipeline._unpack_latents(tokens, 6 * 16, 8 * 16, 16))
    assert torch.equal(unpack(tokens, 6, 8), latent)
    assert torch.equal(image_ids(3, 4), FluxPipeline._prepare_latent_image_ids(2, 3, 4, "cpu", torch.float32))


def test_a_token_holds_two_by_two_cells_of_every_channel():
    latent = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert pack(latent)[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


@pytest.mark.parametrize("size", [(3, 4), (4, 3)])
def test_odd_latents_are_refused(size):
    with pytest.raises(ValueError, match=f"{size[0]} x {size[1]} cells: expected even sides"):
        pack(torch.zeros(1, 4, *size))


def test_a_saved_transformer_loads_from_its_folder(tmp_path):
    transformer = tiny_flux()
    transformer.save_pretrained(tmp_path / "flux")
    assert torch.equal(run(load_flux(tmp_path / "flux").eval()), run(transformer))


def test_a_missing_transformer_names_option_and_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"transformer\.path=.*nothing.*no config\.json"):
        load_flux(tmp_path / "nothing")
