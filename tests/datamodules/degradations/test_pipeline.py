import io

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from datamodules.degradations.parameters import draw_parameters
from datamodules.degradations.pipeline import PRESETS, DegradationPipeline, stages

RANDOM = ["omgsr", "real_esrgan"]


def photographs(count, height=96, width=128):
    whole = torch.from_numpy(data.astronaut()).permute(2, 0, 1) / 255
    return torch.stack([whole[:, 40 * i : 40 * i + height, 60 * i : 60 * i + width] for i in range(count)])


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("name", [*RANDOM, "bicubic", "ntire"])
@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_lr_has_its_size_and_whole_grey_levels(name, scale):
    hr = photographs(2)
    lr = DegradationPipeline(PRESETS[name], scale)(hr, generators(1, 2))
    assert lr.shape == (2, 3, 96 // scale, 128 // scale)
    assert lr.dtype == torch.float32
    assert lr.min() >= 0
    assert lr.max() <= 1
    torch.testing.assert_close(lr * 255, (lr * 255).round(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", RANDOM)
def test_a_sample_is_the_same_bits_in_any_batch(name):
    pipeline, seeds = DegradationPipeline(PRESETS[name], 4), range(12)
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


def test_none_is_hr_itself():
    hr = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(DegradationPipeline(PRESETS["none"], 1)(hr, generators(0, 1)), hr)
    with pytest.raises(
        ValueError, match=r"data\.degradation='none'.*bicubic, ntire, omgsr, real_esrgan.*data\.scale=2"
    ):
        DegradationPipeline(PRESETS["none"], 2)


def pillow_jpeg(image):
    """Quality 90 by Pillow's defaults, which halve the colours' sides (4:2:0)."""
    code = io.BytesIO()
    image.save(code, "JPEG", quality=90)
    return np.array(Image.open(code))


def test_ntire_is_matlabs_bicubic_then_pillows_jpeg_90(shared):
    for name in ("butterfly", "woman"):
        hr = np.array(Image.open(shared / f"set5/HR/{name}.png").convert("RGB"))
        lr = Image.open(shared / f"set5/LR_bicubic/X2/{name}x2.png").convert("RGB")
        image = torch.from_numpy(hr).permute(2, 0, 1)[None] / 255
        found = DegradationPipeline(PRESETS["ntire"], 2)(image, generators(0))
        levels = (found[0] * 255).permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(levels.round(), pillow_jpeg(lr))
        np.testing.assert_allclose(levels, levels.round(), atol=1e-4)


def test_ntire_compresses_what_bicubic_makes():
    hr = photographs(1)
    lr, clean = (DegradationPipeline(PRESETS[name], 2)(hr, generators(0)) for name in ("ntire", "bicubic"))
    expected = pillow_jpeg(Image.fromarray((clean[0] * 255).round().byte().permute(1, 2, 0).numpy()))
    np.testing.assert_array_equal((lr[0] * 255).round().byte().permute(1, 2, 0), expected)
    assert not torch.equal(lr, clean)


def names_of_stages(seeds, preset="omgsr"):
    drawn = [draw_parameters(PRESETS[preset], 4, torch.Generator().manual_seed(seed)) for seed in seeds]
    return drawn, [[name for name, _ in stages(parameters, (8, 8))] for parameters in drawn]


def test_two_orders_end_with_sinc_and_jpeg_in_either_order():
    drawn, names = names_of_stages(range(60))
    for parameters, steps in zip(drawn, names, strict=True):
        sinc = ["sinc"] if parameters.final_sinc else []
        ending = ["resize", *sinc, "jpeg"] if parameters.jpeg_last else ["jpeg", "resize", *sinc]
        blurs = [["blur"] if order.kernel else [] for order in parameters.orders]
        noises = ["gaussian noise" if order.noise.gaussian else "poisson noise" for order in parameters.orders]
        rounds = [*blurs[0], "resize", noises[0], "jpeg", *blurs[1], "resize", noises[1]]
        assert steps == [*rounds, *ending]
    assert len({tuple(steps[-3:]) for steps in names}) >= 4


def test_resizes_multiply_the_image_and_then_the_lr_size():
    hr = photographs(1)
    for seed in range(12):
        parameters = draw_parameters(PRESETS["real_esrgan"], 4, torch.Generator().manual_seed(seed))
        image, sizes = hr, []
        for name, stage in stages(parameters, (24, 32)):
            image = stage(image)
            if name == "resize":
                sizes.append(tuple(image.shape[-2:]))
        first, second = (order.factor for order in parameters.orders)
        assert sizes[0] == (int(96 * first), int(128 * first))
        assert sizes[1] == (int(24 * second), int(32 * second))
        assert sizes[2] == (24, 32)


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


def test_real_esrgan_is_harsher_than_omgsr():
    hr, clean = photographs(1).expand(16, -1, -1, -1), DegradationPipeline(PRESETS["bicubic"], 4)
    errors = [
        (DegradationPipeline(PRESETS[name], 4)(hr, generators(*range(16))) - clean(hr[:1], generators(0))).square()
        for name in RANDOM
    ]
    assert errors[0].mean() < errors[1].mean()


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
