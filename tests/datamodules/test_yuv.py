import numpy as np
import pytest
import torch

from datamodules.yuv import BT601, BT709, FULL, LIMITED, LUMA_WEIGHTS, RGB, Colour, from_rgb, to_rgb

# White, yellow, cyan, green, magenta, red, blue and black of 100 % colour bars in 8 bits and limited range.
BARS = torch.tensor(
    [[1, 1, 1], [1, 1, 0], [0, 1, 1], [0, 1, 0], [1, 0, 1], [1, 0, 0], [0, 0, 1], [0, 0, 0]], dtype=torch.float32
).T[:, None]
# As ITU-R BT.1729 and every vectorscope have them.
PUBLISHED = {
    BT601: [
        [235, 210, 170, 145, 106, 81, 41, 16],
        [128, 16, 166, 54, 202, 90, 240, 128],
        [128, 146, 16, 34, 222, 240, 110, 128],
    ],
    BT709: [
        [235, 219, 188, 173, 78, 63, 32, 16],
        [128, 16, 154, 42, 214, 102, 240, 128],
        [128, 138, 16, 26, 230, 240, 118, 128],
    ],
}


@pytest.mark.parametrize("matrix", PUBLISHED)
def test_colour_bars_have_their_published_levels(matrix: int) -> None:
    planes = from_rgb(BARS, 8, matrix, full=False, halved=(False, False))
    assert [plane[0].tolist() for plane in planes] == PUBLISHED[matrix]
    assert all(plane.dtype == torch.uint8 for plane in planes)
    torch.testing.assert_close(to_rgb(planes, 8, matrix, full=False), BARS, atol=0.007, rtol=0)


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", LUMA_WEIGHTS)
def test_levels_follow_h273_and_come_back_exactly(matrix: int, full: bool, bits: int) -> None:
    rgb = 0.2 + 0.6 * np.random.default_rng(0).random((3, 9, 7))
    kr, kb = LUMA_WEIGHTS[matrix]
    luma = kr * rgb[0] + (1 - kr - kb) * rgb[1] + kb * rgb[2]
    cb, cr = (rgb[2] - luma) / (2 - 2 * kb), (rgb[0] - luma) / (2 - 2 * kr)
    top = 2**bits - 1
    if full:
        levels = [top * luma, top * cb + 2 ** (bits - 1), top * cr + 2 ** (bits - 1)]
    else:
        step = 2 ** (bits - 8)
        levels = [step * (219 * luma + 16), step * (224 * cb + 128), step * (224 * cr + 128)]

    planes = from_rgb(torch.from_numpy(rgb), bits, matrix, full, (False, False))
    for plane, level in zip(planes, levels, strict=True):
        assert np.abs(plane.numpy() - level).max() < 0.51 + 2**-24 * 2**bits * 8  # rounding, and fp32's own
    again = from_rgb(to_rgb(planes, bits, matrix, full), bits, matrix, full, (False, False))
    assert all(torch.equal(a, b) for a, b in zip(planes, again, strict=True))


def test_halved_chroma_lies_at_the_left_sample_and_between_the_rows() -> None:
    rows, columns = torch.meshgrid(torch.arange(12.0), torch.arange(16.0), indexing="ij")
    ramp = 0.3 + 0.01 * columns + 0.02 * rows
    rgb = torch.stack([ramp, torch.full_like(ramp, 0.5), 1 - ramp])
    fine = to_rgb(from_rgb(rgb, 16, BT709, True, (False, False)), 16, BT709, True)
    planes = from_rgb(rgb, 16, BT709, True)
    whole = from_rgb(rgb, 16, BT709, True, (False, False))
    for small, large in zip(planes[1:], whole[1:], strict=True):
        expected = (large[0::2, 0::2] + large[1::2, 0::2]) / 2
        torch.testing.assert_close(small[:, 1:].float(), expected[:, 1:], atol=1.5, rtol=0)
    coarse = to_rgb(planes, 16, BT709, True)
    torch.testing.assert_close(coarse[:, 1:-1, 2:-2], fine[:, 1:-1, 2:-2], atol=2e-4, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(7, 9), (6, 9), (7, 8), (1, 1)])
def test_odd_sizes_have_chroma_of_half_their_size_rounded_up(height: int, width: int) -> None:
    luma = torch.full((height, width), 180, dtype=torch.uint8)
    chroma = torch.full(((height + 1) // 2, (width + 1) // 2), 128, dtype=torch.uint8)
    rgb = to_rgb([luma, chroma, chroma], 8, BT709, full=True)
    torch.testing.assert_close(rgb, torch.full((3, height, width), 180 / 255), atol=1e-6, rtol=0)


def test_grey_and_rgb_planes_are_read() -> None:
    grey = torch.tensor([[16, 235, 255]], dtype=torch.uint8)
    torch.testing.assert_close(to_rgb([grey], 8, BT709, full=False), torch.tensor([0.0, 1, 1]).expand(3, 1, 3))
    torch.testing.assert_close(to_rgb([grey], 8, BT709, full=True)[:, 0, 2], torch.ones(3))
    green, blue, red = (torch.full((1, 1), value, dtype=torch.int32) for value in (1023, 0, 512))
    torch.testing.assert_close(to_rgb([green, blue, red], 10, RGB, True).flatten(), torch.tensor([512 / 1023, 1, 0]))


def test_values_beyond_the_range_are_clamped() -> None:
    planes = from_rgb(torch.tensor([-0.5, 0.5, 1.5]).reshape(3, 1, 1), 8, BT709, False, (False, False))
    inside = from_rgb(torch.tensor([0.0, 0.5, 1.0]).reshape(3, 1, 1), 8, BT709, False, (False, False))
    assert planes == inside
    extreme = [torch.tensor([[255, 0]], dtype=torch.uint8)] * 3
    assert 0 <= to_rgb(extreme, 8, BT709, False).min() <= to_rgb(extreme, 8, BT709, False).max() <= 1


def test_a_matrix_that_is_no_plain_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"colour matrix 10 .* expected one of \[1, 4, 5, 6, 7, 9\]"):
        from_rgb(torch.zeros(3, 2, 2), 8, 10, False)


def test_an_untold_matrix_is_the_one_that_players_take_at_that_size() -> None:
    untold = Colour()
    assert untold.resolved((270, 480)).matrix == BT601
    assert untold.resolved((576, 720)).matrix == BT601
    assert untold.resolved((720, 1280)).matrix == BT709
    assert untold.at((270, 480), (540, 960)) == untold
    assert untold.at((1080, 1920), (2160, 3840)) == untold
    assert untold.at((540, 960), (1080, 1920)).matrix == BT601  # else it would be read as BT.709 from now on
    assert Colour(9, 9, 16, 1).at((540, 960), (1080, 1920)) == Colour(9, 9, 16, 1)
    assert Colour(RGB, 1, 13, FULL).at((540, 960), (1080, 1920)) == Colour(BT709, 1, 13, LIMITED)
