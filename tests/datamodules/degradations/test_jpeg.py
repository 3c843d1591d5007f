import io

import numpy as np
import pytest
import torch
from PIL import Image, features
from skimage import data

from datamodules.degradations.jpeg import compress, jpeg, quantisation_tables

QUALITIES = (30, 50, 75, 95)
CROPS = {
    "whole": (slice(None), slice(None)),
    "odd": (slice(0, 101), slice(50, 127)),
    "small": (slice(5, 22), slice(9, 27)),
}


def pillow_jpeg(image, quality):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling=2)
    return np.array(Image.open(buffer))


def own_jpeg(image, quality):
    tensor = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None] / 255
    result = jpeg(tensor, torch.tensor([quality]))[0] * 255
    torch.testing.assert_close(result, result.round(), atol=1e-4, rtol=0)
    return result.round().byte().permute(1, 2, 0).numpy()


def assert_like_pillow(image, quality):
    difference = own_jpeg(image, quality).astype(int) - pillow_jpeg(image, quality)
    psnr = 10 * np.log10(255**2 / max((difference**2).mean(), 1e-12))
    assert psnr >= 44
    if features.check("libjpeg_turbo"):  # other builds of libjpeg may round elsewhere
        assert not difference.any()


@pytest.mark.parametrize("quality", QUALITIES)
@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("name", ["astronaut", "coffee"])
def test_bundled_photographs_are_as_from_pillow(name, crop, quality):
    assert_like_pillow(getattr(data, name)()[CROPS[crop]], quality)


@pytest.mark.parametrize("quality", QUALITIES)
def test_4k_photographs_are_as_from_pillow(shared, quality):
    files = sorted((shared / "photos4k").glob("*.jpg"))[:4]
    if not files:
        pytest.skip(f"no photographs in {shared / 'photos4k'}")
    for file in files:
        with Image.open(file) as photo:
            assert_like_pillow(np.array(photo.convert("RGB"))[600:1003, 800:1299], quality)


@pytest.mark.parametrize("quality", [1, 49, 100])
def test_noise_and_extreme_qualities_are_as_from_pillow(quality):
    image = np.random.default_rng(0).integers(0, 256, (63, 65, 3), dtype=np.uint8)
    difference = own_jpeg(image, quality).astype(int) - pillow_jpeg(image, quality)
    assert np.sqrt((difference**2).mean()) < 1


def test_tables_are_those_pillow_writes():
    qualities = [1, 10, 49, 50, 51, 90, 100]
    luma, chroma = quantisation_tables(torch.tensor(qualities))
    for index, quality in enumerate(qualities):
        buffer = io.BytesIO()
        Image.new("RGB", (16, 16)).save(buffer, "JPEG", quality=quality, subsampling=2)
        written = Image.open(buffer).quantization
        assert luma[index].flatten().tolist() == list(written[0])
        assert chroma[index].flatten().tolist() == list(written[1])


def test_each_sample_has_its_own_quality_whatever_the_batch():
    images = torch.rand(4, 3, 37, 50, generator=torch.Generator().manual_seed(0))
    qualities = torch.tensor([10, 40, 75, 98])
    singles = torch.cat([jpeg(images[i : i + 1], qualities[i : i + 1]) for i in range(4)])
    assert torch.equal(jpeg(images, qualities), singles)
    errors = (singles - images).square().mean((1, 2, 3))
    assert (errors.diff() < 0).all()


@pytest.mark.parametrize("quality", [torch.tensor([0]), torch.tensor([101]), torch.tensor([70.5])])
def test_bad_quality_is_refused(quality):
    with pytest.raises(ValueError, match="expected integers from 1 to 100"):
        jpeg(torch.rand(1, 3, 16, 16), quality)


@pytest.mark.parametrize(("shape", "count"), [((1, 1, 16, 16), 1), ((3, 16, 16), 3), ((2, 3, 16, 16), 1)])
def test_bad_shape_is_refused(shape, count):
    with pytest.raises(ValueError, match=r"expected \(B, 3, H, W\), \(B,\)"):
        jpeg(torch.zeros(shape), torch.full((count,), 70))


@pytest.mark.parametrize("quality", [1, 30, 50, 77, 95, 100])
@pytest.mark.parametrize("crop", CROPS)
def test_compress_on_the_cpu_is_the_tensor_version_bit_for_bit(crop, quality):
    if not features.check("libjpeg_turbo"):
        pytest.skip("Pillow's libjpeg is not libjpeg-turbo, which the tensor version follows")
    image = torch.from_numpy(data.coffee()[CROPS[crop]][:256, :300]).permute(2, 0, 1)[None] / 255
    for sigma in (0, 0.01, 0.3):  # the second falls between grey levels, the last outside [0, 1]
        noisy = image + sigma * torch.randn(image.shape, generator=torch.Generator().manual_seed(quality))
        assert torch.equal(compress(noisy, quality), jpeg(noisy, torch.tensor([quality])))


def test_compress_of_a_narrow_image_is_the_tensor_version():
    image = torch.rand(1, 3, 20, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(compress(image, 40), jpeg(image, torch.tensor([40])))


@pytest.mark.parametrize("quality", [0, 101])
def test_compress_refuses_a_bad_quality(quality):
    with pytest.raises(ValueError, match="expected integers from 1 to 100"):
        compress(torch.rand(1, 3, 16, 16), quality)
