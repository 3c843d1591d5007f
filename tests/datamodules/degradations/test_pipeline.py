import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from datamodules.degradations.pipeline import PRESETS, DegradationPipeline


def photographs(count, height=96, width=128):
    whole = torch.from_numpy(data.astronaut()).permute(2, 0, 1) / 255
    return torch.stack([whole[:, 40 * i : 40 * i + height, 60 * i : 60 * i + width] for i in range(count)])


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_lr_has_its_size_and_whole_grey_levels(name, scale):
    hr = photographs(2)
    lr = DegradationPipeline(PRESETS[name], scale)(hr, generators(1, 2))
    assert lr.shape == (2, 3, 96 // scale, 128 // scale)
    assert lr.dtype == torch.float32
    assert lr.min() >= 0
    assert lr.max() <= 1
    torch.testing.assert_close(lr * 255, (lr * 255).round(), atol=1e-4, rtol=0)


def test_a_sample_is_the_same_bits_in_any_batch():
    pipeline, seeds = DegradationPipeline(PRESETS["omgsr"], 4), range(12)
    hr = photographs(4).repeat(3, 1, 1, 1)
    batch = pipeline(hr, generators(*seeds))
    singles = torch.cat([pipeline(hr[i : i + 1], generators(seeds[i])) for i in seeds])
    assert torch.equal(batch, singles)
    assert torch.equal(pipeline(hr.flip(0), generators(*reversed(seeds))), batch.flip(0))
    assert not torch.equal(batch[0], batch[4])  # the same photograph, another generator


def test_hr_the_global_generator_and_autocast_have_no_part():
    pipeline, hr = DegradationPipeline(PRESETS["omgsr"], 4), photographs(3)
    before, state = hr.clone(), torch.get_rng_state()
    expected = pipeline(hr, generators(1, 2, 3))
    assert torch.equal(hr, before)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(pipeline(hr, generators(1, 2, 3)), expected)


def test_bicubic_is_antialiased_bicubic():
    hr = photographs(1)
    lr = DegradationPipeline(PRESETS["bicubic"], 4)(hr, generators(0))
    channels = [Image.fromarray(c.numpy()).resize((32, 24), Image.Resampling.BICUBIC) for c in hr[0]]
    expected = np.clip(np.stack([np.asarray(c) for c in channels]), 0, 1)
    assert np.abs(lr[0].numpy() - expected).max() <= 0.5 / 255 + 1e-5


def test_omgsr_degrades_visibly_but_keeps_the_picture():
    hr = photographs(1).expand(24, -1, -1, -1)
    lr = DegradationPipeline(PRESETS["omgsr"], 4)(hr, generators(*range(24)))
    clean = DegradationPipeline(PRESETS["bicubic"], 4)(hr[:1], generators(0))
    psnr = -10 * torch.log10((lr - clean).square().mean((1, 2, 3)))
    assert 18 < psnr.median() < 32
    assert psnr.min() > 12
    assert psnr.max() - psnr.min() > 5
    # Neither brightness nor position drifts.
    assert (lr.mean(0) - clean[0]).mean().abs() < 0.01
    assert (lr.mean(0) - clean[0]).square().mean() < (torch.roll(clean[0], 1, -1) - clean[0]).square().mean()


def test_small_images_pass_through_large_kernels():
    lr = DegradationPipeline(PRESETS["omgsr"], 8)(photographs(4, 16, 24), generators(*range(4)))
    assert lr.shape == (4, 3, 2, 3)
    assert lr.isfinite().all()


def test_kernels_grow_with_the_scale():
    assert DegradationPipeline(PRESETS["omgsr"], 4).kernel_size == (7, 21)
    assert DegradationPipeline(PRESETS["omgsr"], 8).kernel_size == (11, 41)


@pytest.mark.parametrize(("height", "width"), [(98, 128), (96, 127)])
def test_sizes_off_the_scale_are_refused(height, width):
    with pytest.raises(ValueError, match=rf"{height} x {width}.*scale 4.*data\.crop or data\.scale"):
        DegradationPipeline(PRESETS["bicubic"], 4)(photographs(1, height, width), generators(0))


def test_one_generator_per_image_is_required():
    with pytest.raises(ValueError, match="found 1 generators for 2 images"):
        DegradationPipeline(PRESETS["bicubic"], 4)(photographs(2), generators(0))


def test_scale_below_one_is_refused():
    with pytest.raises(ValueError, match=r"data\.scale: found 0"):
        DegradationPipeline(PRESETS["bicubic"], 0)
