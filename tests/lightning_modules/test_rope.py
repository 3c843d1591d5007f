"""Rotary variants against numpy, written anew from the formulas, and against diffusers' own embedding."""

import numpy as np
import pytest
import torch
from diffusers.models.transformers.transformer_flux import FluxPosEmbed

from lightning_modules.networks.flux import build_flux, distinguishable_pairs, image_ids, neighbour_phases
from lightning_modules.networks.rope import VARIANTS, RotaryEmbedding, frequencies, use_rope

AXES = (16, 56, 56)
STRETCHED = [variant for variant in VARIANTS if variant != "plain"]


def flux():
    torch.manual_seed(0)
    transformer = build_flux(latent_channels=4, double_blocks=1, single_blocks=1, heads=1, prompt_width=16)
    torch.nn.init.normal_(transformer.proj_out.weight)
    return transformer.eval()


def ids_with_text(rows, columns):
    return torch.cat([torch.zeros(3, 3), image_ids(rows, columns)])


def reference_base(theta):
    return np.array([theta ** (-2 * i / 56) for i in range(28)])


def reference_ntk(theta, s):
    return np.array([(theta * s ** (56 / 54)) ** (-2 * i / 56) for i in range(28)])


def reference_yarn(theta, s, window):
    """Pair by pair, for windows whose ramps have a length."""
    out = []
    for i in range(28):
        f = theta ** (-2 * i / 56)
        r = window * f / (2 * np.pi)
        if r >= 1:
            f = 2 * np.pi * np.round(r) / window
        a = -np.log(f) / np.log(theta)

        def m(first, second, i=i):
            c = [28 * np.log(window / (2 * np.pi * turns)) / np.log(theta) for turns in (first, second)]
            low, high = max(0, np.floor(c[0])), min(28, np.ceil(c[1]))
            return 1 - np.clip((i - low) / (high - low), 0, 1)

        scaled = (theta * s ** (56 / 54)) ** -a
        g = (1 - m(1.25, 0.75)) * f / s + m(1.25, 0.75) * scaled
        out.append((1 - m(16, 2)) * g + m(16, 2) * f)
    return np.array(out)


@pytest.mark.parametrize("theta", [10000, 10000.0, 100, 31.5])
@pytest.mark.parametrize("ids", [ids_with_text(5, 7), ids_with_text(1, 150), torch.rand(9, 3) * 40])
def test_plain_is_diffusers_embedding_bit_for_bit(theta, ids):
    expected = FluxPosEmbed(theta=theta, axes_dim=list(AXES))(ids)
    found = RotaryEmbedding(AXES, theta)(ids)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("s", [2, 4, 2.75])
@pytest.mark.parametrize("theta", [10000, 100])
@pytest.mark.parametrize("window", [32, 64])
def test_formulas(s, theta, window):
    base, n = reference_base(theta), int(s * window)
    expected = {
        "plain": (base, 1),
        "interpolation": (base / s, 1),
        "ntk": (reference_ntk(theta, s), 1),
        "yarn": (reference_yarn(theta, s, window), 0.1 * np.log(s) + 1),
    }
    for variant, (values, amplitude) in expected.items():
        found, factor = frequencies(56, theta, variant, n, window)
        np.testing.assert_allclose(found.numpy(), values, rtol=1e-12)
        assert factor == pytest.approx(amplitude)


def test_ntk_keeps_the_fastest_pair_and_interpolates_the_slowest():
    base = reference_base(10000)
    found = frequencies(56, 10000, "ntk", 128, 32)[0].numpy()
    assert found[0] == 1
    assert found[-1] == pytest.approx(base[-1] / 4)


def test_resonant_pairs_turn_whole_times_in_the_window():
    """m_gamma is 1 at pair 0 here, which therefore keeps its resonant frequency: 2 pi 10 / 64 for a plain 1."""
    found = frequencies(56, 10000, "yarn", 128, 64)[0]
    assert float(found[0]) == pytest.approx(2 * np.pi * 10 / 64)


@pytest.mark.parametrize("window", [6, 8, 12])
def test_yarn_in_a_window_too_small_for_its_outer_ramp_changes_every_pair(window):
    found = frequencies(56, 10000, "yarn", 4 * window, window)[0].numpy()
    base = reference_base(10000)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[8:], base[8:] / 4, rtol=1e-12)
    assert (found[1:] < base[1:]).all()


def test_yarn_leaves_pairs_alone_that_all_turn_often():
    """theta = 50, 20,000 tokens: the slowest pair turns 73 times in the window; only resonance moves them, a little."""
    found, base = frequencies(56, 50, "yarn", 40000, 20000)[0].numpy(), reference_base(50)
    np.testing.assert_allclose(found, base, rtol=0.01)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("tokens", [1, 20, 32])
def test_within_the_window_every_variant_is_plain(variant, tokens):
    ids = ids_with_text(tokens, 32)
    plain = FluxPosEmbed(theta=100, axes_dim=list(AXES))(ids)
    assert all(map(torch.equal, RotaryEmbedding(AXES, 100, variant, window=32)(ids), plain))


@pytest.mark.parametrize("variant", STRETCHED)
@pytest.mark.parametrize("times", [2, 4])
def test_beyond_the_window_the_stretched_axis_alone_changes(variant, times):
    ids = ids_with_text(8 * times, 8)
    text, rows, columns = slice(0, 16), slice(16, 72), slice(72, 128)
    plain = RotaryEmbedding(AXES)(ids)
    found = RotaryEmbedding(AXES, variant=variant, window=8)(ids)
    for a, b in zip(plain, found, strict=True):
        assert torch.equal(a[:, text], b[:, text])
        assert torch.equal(a[:, columns], b[:, columns])
        assert (a[:, rows] - b[:, rows]).abs().max() > 0.3


@pytest.mark.parametrize("variant", STRETCHED)
def test_cos_and_sin_are_those_of_the_frequencies(variant):
    ids = image_ids(40, 24)
    cos, sin = RotaryEmbedding(AXES, 100, variant, window=16)(ids)
    offset = 16
    for axis, n in ((1, 40), (2, 24)):
        frequency, amplitude = frequencies(56, 100, variant, n, 16)
        angles = np.repeat(np.outer(ids[:, axis].numpy(), frequency.numpy()), 2, axis=1)
        np.testing.assert_allclose(cos[:, offset : offset + 56].numpy(), amplitude * np.cos(angles), atol=1e-6)
        np.testing.assert_allclose(sin[:, offset : offset + 56].numpy(), amplitude * np.sin(angles), atol=1e-6)
        offset += 56


@pytest.mark.parametrize("variant", VARIANTS)
def test_shuffled_ids_get_the_same_rows(variant):
    ids = ids_with_text(12, 20)
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))
    embed = RotaryEmbedding(AXES, 100, variant, window=8)
    assert all(torch.equal(a[order], b) for a, b in zip(embed(ids), embed(ids[order]), strict=True))


def test_the_text_axis_never_changes():
    ids = torch.zeros(20, 3)
    ids[:, 0] = torch.arange(20)
    assert torch.equal(RotaryEmbedding(AXES, variant="interpolation", window=5)(ids)[0], RotaryEmbedding(AXES)(ids)[0])


def test_no_parameters_no_gradients_no_tensors_in_the_state():
    embed = RotaryEmbedding(AXES, 100, "yarn", 4)
    ids = image_ids(9, 9).requires_grad_()
    assert not any(table.requires_grad for table in embed(ids))
    assert not list(embed.parameters())
    assert not embed.state_dict()


@torch.no_grad()
def run(transformer, rows):
    generator = torch.Generator().manual_seed(1)
    return transformer(
        hidden_states=torch.randn(1, rows * 4, 16, generator=generator),
        encoder_hidden_states=torch.randn(1, 3, 16, generator=generator),
        pooled_projections=torch.randn(1, 16, generator=generator),
        timestep=torch.tensor([0.505]),
        img_ids=image_ids(rows, 4),
        txt_ids=torch.zeros(3, 3),
        return_dict=False,
    )[0]


def test_use_rope_keeps_a_transformer_in_its_window_and_changes_it_beyond():
    transformer = flux()
    plain = {rows: run(transformer, rows) for rows in (4, 8)}
    names = set(transformer.state_dict())
    for variant in STRETCHED:
        use_rope(transformer, variant, 10000, window=4)
        assert torch.equal(run(transformer, 4), plain[4])
        assert (run(transformer, 8) - plain[8]).abs().max() > 1e-4
    use_rope(transformer, "plain", 10000, window=0)
    assert torch.equal(run(transformer, 8), plain[8])
    assert set(transformer.state_dict()) == names


@pytest.mark.parametrize(("theta", "pairs"), [(10000, 8), (100, 15)])
def test_pairs_that_tell_neighbours_apart_as_in_the_paper(theta, pairs):
    transformer = flux()
    use_rope(transformer, "plain", theta, 0)
    assert distinguishable_pairs(transformer) == (pairs, 28)
    use_rope(transformer, "interpolation", theta, 32)
    assert distinguishable_pairs(transformer, tokens=32) == (pairs, 28)


@pytest.mark.parametrize("variant", VARIANTS)
def test_neighbour_phases_are_those_of_the_image_size(variant):
    transformer = flux()
    use_rope(transformer, variant, 100, 8)
    for tokens in (8, 32):
        expected = np.degrees(frequencies(56, 100, variant, tokens, 8)[0].numpy())
        for axis in (1, 2):
            found = neighbour_phases(transformer, axis, tokens).numpy()
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("variant", "theta", "window", "said"),
    [
        ("dype", 100, 8, r"transformer\.rope\.variant='dype': expected one of plain, interpolation, ntk, yarn"),
        ("plain", 0, 8, r"transformer\.rope\.theta=0: .*above 0"),
        ("ntk", float("nan"), 8, r"transformer\.rope\.theta=nan"),
        ("yarn", 1, 8, r"transformer\.rope\.theta=1: .*above 1"),
        ("interpolation", 100, 0, r"transformer\.rope\.window=0: expected the training crop in tokens"),
    ],
)
def test_impossible_values_name_their_option(variant, theta, window, said):
    with pytest.raises(ValueError, match=said):
        RotaryEmbedding(AXES, theta, variant, window)
    with pytest.raises(ValueError, match=said):
        frequencies(56, theta, variant, 16, window)
