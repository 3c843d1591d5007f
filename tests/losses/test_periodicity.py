import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter
from torch import Tensor

from losses.periodicity import PeriodicityLoss, autocorrelation, comb_ratio, periodicity_loss, periodicity_scores


def noise_with_tile(size: tuple[int, int], pitch: int, rms: float, seed: int = 0) -> Tensor:
    """Grey noise of rms 8/255 plus a zero-mean random tile of the given pitch and rms: (1, 3, H, W)."""
    rng = np.random.default_rng(seed)
    tile = rng.standard_normal((pitch, pitch))
    tile = (tile - tile.mean()) / tile.std() * rms
    rows, columns = np.arange(size[0]) % pitch, np.arange(size[1]) % pitch
    image = 0.5 + 8 / 255 * rng.standard_normal((3, *size)) + tile[np.ix_(rows, columns)]
    return torch.from_numpy(image).float()[None]


def direct_periodicity(image: Tensor, period: int, lags: int, parts: int = 2) -> float:
    """L_AP of one image by direct summation in float64, written from the formula and not from the code."""
    grey = np.tensordot([0.299, 0.587, 0.114], image[0].double().numpy(), axes=1)
    height, width = grey.shape
    scores = []
    for i in range(parts):
        for j in range(parts):
            x = grey[height * i // parts : height * (i + 1) // parts, width * j // parts : width * (j + 1) // parts]
            scores.append(max(_direct_quadrant(x, period, lags), 0.0))
    return float(np.mean(scores))


def _direct_quadrant(x: np.ndarray, p: int, k_max: int) -> float:
    y = x - uniform_filter(x, 17, mode="mirror")
    y = y - y.mean()
    s = 1.5 * np.abs(y).mean() + 1e-6
    y = s * np.tanh(y / s)
    h, w = y.shape

    def r(dy: int, dx: int) -> float:
        total, count = 0.0, 0
        for a in range(max(0, -dy), min(h, h - dy)):
            left, right = max(0, -dx), min(w, w - dx)
            total += float(y[a, left:right] @ y[a + dy, left + dx : right + dx])
            count += right - left
        return total / count

    zero = r(0, 0) + 1e-6
    around = range(-p // 2, p // 2)
    prominences = []
    for k in range(k_max + 1):
        for el in range(-k_max, k_max + 1):
            if k == 0 and el <= 0:
                continue
            if k == 0:
                window = [r(0, el * p + d) for d in around]
            elif el == 0:
                window = [r(k * p + d, 0) for d in around]
            else:
                window = [r(k * p + d, el * p + e) for d in around for e in around]
            prominences.append((r(k * p, el * p) - np.mean(window)) / zero)
    return float(np.mean(prominences))


@pytest.mark.parametrize(
    ("size", "period", "lags", "parts"), [((47, 53), 8, 1, 2), ((45, 44), 6, 2, 2), ((41, 30), 4, 2, 1)]
)
def test_equals_direct_summation(size: tuple[int, int], period: int, lags: int, parts: int) -> None:
    image = noise_with_tile(size, period, rms=6 / 255, seed=size[0])
    expected = direct_periodicity(image, period, lags, parts)
    assert expected > 0.05
    score = periodicity_loss(image, period=period, lags=lags, quadrants=parts)
    assert score.item() == pytest.approx(expected, rel=1e-4)


def test_defaults_are_those_of_the_paper_tokens() -> None:
    image = noise_with_tile((170, 163), 32, rms=6 / 255)
    explicit = periodicity_loss(image, period=32, lags=2, quadrants=2, highpass=17, clip=1.5)
    assert torch.equal(periodicity_loss(image), explicit)
    assert torch.equal(PeriodicityLoss()(image, image), explicit)


def test_loss_is_the_mean_of_the_scores() -> None:
    images = torch.cat([noise_with_tile((180, 180), 32, rms, seed=3) for rms in (0.0, 4 / 255, 8 / 255)])
    scores = periodicity_scores(images)
    assert scores[0] < 0.02 < scores[1] < scores[2]
    assert periodicity_loss(images).item() == pytest.approx(scores.mean().item())
    torch.testing.assert_close(scores[1:2], periodicity_scores(images[1:2]))


@pytest.mark.parametrize("pitch", [32, 16, 8, 4])
def test_sees_every_harmonic_of_the_pitch(pitch: int) -> None:
    score = periodicity_loss(noise_with_tile((192, 192), pitch, rms=8 / 255))
    assert score > 10 * periodicity_loss(noise_with_tile((192, 192), pitch, rms=0.0)).clamp(min=1e-3)


def test_ignores_a_pattern_of_another_pitch() -> None:
    assert periodicity_loss(noise_with_tile((256, 256), 27, rms=8 / 255)) < 0.01


def test_autocorrelation_is_symmetric_with_one_at_the_centre() -> None:
    maps = autocorrelation(noise_with_tile((180, 171), 32, rms=8 / 255))
    assert maps.shape == (1, 4, 161, 161)
    torch.testing.assert_close(maps, maps.flip(-1, -2), atol=1e-5, rtol=0)
    torch.testing.assert_close(maps[..., 80, 80], torch.ones(1, 4), atol=5e-3, rtol=0)
    assert maps[..., 80, 80 + 32].min() > 5 * maps[..., 80, 80 + 25].max()


def test_brightness_and_contrast_do_not_matter() -> None:
    image = noise_with_tile((192, 192), 32, rms=6 / 255)
    score = periodicity_loss(image).item()
    assert periodicity_loss(image + 0.2).item() == pytest.approx(score, rel=1e-3)
    # The absolute constants 1e-6 are 0.1 % of the power of this image and 0.5 % of that at half contrast.
    assert periodicity_loss(0.5 + 0.5 * (image - 0.5)).item() == pytest.approx(score, rel=0.01)
    assert periodicity_loss(0.5 + 2 * (image - 0.5)).item() == pytest.approx(score, rel=0.01)


def test_bfloat16_input_and_autocast_are_computed_in_float32() -> None:
    image = noise_with_tile((192, 192), 32, rms=6 / 255)
    rounded = image.bfloat16()
    expected = periodicity_loss(rounded.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(periodicity_loss(rounded), expected)
    assert periodicity_loss(rounded).dtype == torch.float32
    assert expected.item() == pytest.approx(periodicity_loss(image).item(), rel=0.1)


def test_descent_weakens_the_tile_and_spares_the_rest() -> None:
    image = noise_with_tile((192, 192), 32, rms=6 / 255)

    def folded_rms(x: Tensor) -> float:
        return x.mean(dim=1).unflatten(-1, (6, 32)).unflatten(-3, (6, 32)).mean(dim=(1, 3)).std().item()

    x = image.clone()
    for _ in range(10):
        x.requires_grad_(True)
        (gradient,) = torch.autograd.grad(periodicity_loss(x), x)
        assert gradient.isfinite().all()
        x = (x - 2 * gradient).detach()
    assert periodicity_loss(x) < 0.2 * periodicity_loss(image)
    # Not to zero: L_AP vanishes with about 60 % of the tile left, when negative prominences at far lags balance
    # positive ones at near lags. The comb ratio still shows that rest (3 here, where noise has 1).
    assert folded_rms(x) < 0.8 * folded_rms(image)
    assert comb_ratio(x)[0, 0] < 0.6 * comb_ratio(image)[0, 0]
    assert (x - image).square().mean().sqrt() < 6 / 255


def test_gradient_is_finite_where_nothing_repeats() -> None:
    for image in (torch.full((1, 3, 170, 170), 0.4), torch.zeros(1, 3, 170, 170)):
        image.requires_grad_(True)
        loss = periodicity_loss(image)
        loss.backward()
        assert loss.item() == pytest.approx(0.0, abs=1e-4)
        assert image.grad is not None
        assert image.grad.isfinite().all()


def test_162_px_is_the_smallest_image() -> None:
    assert periodicity_loss(torch.rand(1, 3, 162, 162)).isfinite()
    with pytest.raises(ValueError, match=r"161 x 200 px.*162 px.*losses\.periodicity\.period.*data\.crop"):
        periodicity_loss(torch.rand(1, 3, 161, 200))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"period": 7}, "losses.periodicity.period=7"),
        ({"highpass": 16}, "losses.periodicity.highpass=16"),
        ({"lags": 0}, "losses.periodicity.lags=0"),
        ({"clip": 0.0}, "clip=0.0"),
    ],
)
def test_impossible_options_are_named(options: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        periodicity_loss(torch.rand(1, 3, 200, 200), **options)


def test_grey_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 1, 200, 200\)"):
        periodicity_loss(torch.rand(1, 1, 200, 200))
