"""Noise level by signal-to-noise ratio, on latents whose answer is known and on a tiny codec."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.build import build_data
from experiments.options import load_options
from experiments.sigma import (
    FLUX_LAST,
    FLUX_MU,
    flux_index,
    latent_powers,
    main,
    match_sigma,
    measure_powers,
    report,
    training_pairs,
)
from lightning_modules.networks.codec import load_codec
from lightning_modules.networks.small_codec import SmallF16Codec
from lightning_modules.super_resolution import resize_up

SHAPE = (3, 16, 64, 64)


def draw(seed: int, deviation: float = 1.0) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)) * deviation


@pytest.mark.parametrize("sigma", [0.1, 0.505, 0.9])
@pytest.mark.parametrize("deviation", [0.5, 1.0, 1.7])
def test_a_noised_latent_gets_back_its_own_level(sigma: float, deviation: float) -> None:
    """The defining property: z_L = (1 - sigma) z_H + sigma eps matches at sigma, whatever z_H's power."""
    z_h = draw(0, deviation)
    signal, error = latent_powers((1 - sigma) * z_h + sigma * draw(1), z_h)
    np.testing.assert_allclose(match_sigma(signal, error).numpy(), sigma, rtol=0.01)


def test_it_is_the_level_that_a_search_over_the_schedule_finds() -> None:
    """OMGSR's procedure: the level whose noised latent is as far from z_H as z_L is."""
    z_h = draw(0, 1.2)
    z_l = 0.8 * z_h + draw(1, 0.3)
    u = torch.linspace(0, 1, FLUX_LAST + 1)[1:]
    levels = np.exp(FLUX_MU) / (np.exp(FLUX_MU) + 1 / u - 1)
    wanted = (z_l - z_h).square().mean()
    noise = draw(2)
    gaps = [abs(float(((1 - s) * z_h + s * noise - z_h).square().mean() - wanted)) for s in levels[::10]]
    signal, error = latent_powers(z_l, z_h)
    assert float(match_sigma(signal.mean(), error.mean())) == pytest.approx(
        float(levels[::10][np.argmin(gaps)]), abs=0.02
    )


def test_powers_are_mean_squares_of_each_image() -> None:
    z_h, z_l = draw(0), draw(1)
    signal, error = latent_powers(z_l, z_h)
    np.testing.assert_allclose(signal.numpy(), (z_h.double().numpy() ** 2).mean((1, 2, 3)))
    np.testing.assert_allclose(error.numpy(), ((z_l.double().numpy() - z_h.double().numpy()) ** 2).mean((1, 2, 3)))


def test_the_index_is_the_nearest_of_the_shifted_schedule() -> None:
    u = np.arange(1, FLUX_LAST + 1) / FLUX_LAST
    levels = np.concatenate([[0], np.exp(FLUX_MU) / (np.exp(FLUX_MU) + 1 / u - 1)])
    assert [flux_index(float(level)) for level in levels] == list(range(FLUX_LAST + 1))
    assert levels[244] == pytest.approx(0.505, abs=5e-4)


def test_the_report_pools_the_crops_and_shows_their_spread() -> None:
    signal, error = torch.tensor([1.0, 3.0]).double(), torch.tensor([0.5, 1.0]).double()
    text = report(signal, error)
    assert "crops       2\n" in text
    assert "sigma       0.500; crop by crop 0.500 (10 %), 0.500 (50 %), 0.500 (90 %)" in text
    assert "index 240 of 999, mu 1.15" in text
    assert text.endswith('\n\nSET="student.sigma=0.500"')


def test_no_level_fits_latents_beyond_noise() -> None:
    with pytest.raises(ValueError, match=r"further from hr's than noise is .* data\.degradation"):
        report(torch.tensor([1.0]), torch.tensor([2.5]))


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides under which op4ksr/mini runs on a tiny codec of untrained weights."""
    folder = tmp_path_factory.mktemp("codec")
    torch.manual_seed(0)
    SmallF16Codec(4, (8, 8, 8), 1).save_pretrained(folder)
    return [f"codec.path={folder}", "trainer.accelerator=cpu", "data.crop=64", "data.val_crop=192", "trainer.threads=1"]


def test_crops_are_those_of_the_training_in_its_own_order(settings: list[str]) -> None:
    options = load_options("op4ksr/mini", [*settings, "data.batch_size=2"], tiny=True)
    pairs = list(training_pairs(build_data(options), 3, torch.device("cpu")))
    assert [tuple(lr.shape) for lr, _ in pairs] == [(2, 3, 16, 16), (1, 3, 16, 16)]
    data = build_data(options)
    data.setup("fit")
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert torch.equal(pairs[0][0], batch["lr"])
    assert torch.equal(pairs[0][1], batch["hr"])


def test_powers_are_those_of_the_upsampled_lr(settings: list[str]) -> None:
    codec = load_codec(settings[0].partition("=")[2], "f16")
    hr = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    lr = hr[..., ::4, ::4]
    signal, error = measure_powers(codec.encode, [(lr[:1], hr[:1]), (lr[1:], hr[1:])])
    with torch.no_grad():
        expected = latent_powers(codec.encode(resize_up(lr, (64, 64))), codec.encode(hr))
    torch.testing.assert_close((signal, error), expected)


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SR_TRACEBACK", raising=False)
    monkeypatch.setattr(sys, "argv", ["sigma", *arguments])
    main()


def test_the_command_prints_the_override(
    settings: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for extra in ("student.noise=0", "student.noise=0.3", "student.noise=0"):
        run(["op4ksr/mini", *settings, extra, "--tiny", "--crops", "3"], monkeypatch)
        last = capsys.readouterr().out.strip().splitlines()[-1]
        assert last.startswith('SET="student.sigma=0.')
        found.append(float(last[len('SET="student.sigma=') : -1]))
    assert found[0] == found[2] < found[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no/such"], "EXP=no/such: no such experiment"),
        (["f16_vae/small"], "EXP=f16_vae/small is of system=autoencoder, expected one_step_flux"),
        (["op4ksr/mini", "{codec}", "--crops", "0"], "--crops=0: expected at least 1"),
    ],
)
def test_wrong_input_ends_in_one_sentence(
    arguments: list[str],
    said: str,
    settings: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        run([argument.format(codec=settings[0]) for argument in arguments], monkeypatch)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {said}")


def test_a_codec_that_is_not_there_names_its_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(["op4ksr/mini", f"codec.path={tmp_path}", "--crops", "1"], monkeypatch)
    assert "codec.path=" in capsys.readouterr().err
