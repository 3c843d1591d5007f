"""The sheet that the judge sees: bounded, and its crops are the photograph's own pixels."""

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.curation.contact_sheet import CROP, SIDE, contact_sheet, crop_places, to_8_bits
from datamodules.image_io import read_image


def photograph(height, width):
    """Flat at the left, ever more noise towards the right."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(3, height, width, generator=generator) * torch.linspace(0, 60, width)
    return (128 + noise).clamp(0, 255).to(torch.uint8)


def holds(sheet, piece):
    """Whether the pixels of `piece` (3,h,w) stand somewhere in the sheet unchanged."""
    wanted = piece.permute(1, 2, 0).numpy()
    height, width, _ = wanted.shape
    corner = wanted[0, :40].tobytes()
    for y in reversed(range(sheet.shape[0] - height + 1)):
        at = sheet[y].tobytes().find(corner)
        if at >= 0 and at % 3 == 0 and np.array_equal(sheet[y : y + height, at // 3 : at // 3 + width], wanted):
            return True
    return False


@pytest.mark.parametrize(
    "size", [(2160, 3840), (3840, 2160), (2400, 2400), (1200, 3600), (3600, 1200), (40, 60), (1, 9)]
)
def test_the_sheet_is_bounded_for_every_form(size):
    sheet = contact_sheet(torch.zeros(3, *size, dtype=torch.uint8))
    assert sheet.mode == "RGB"
    assert max(sheet.size) <= SIDE


def test_crops_are_full_size_of_most_median_and_least_detail_and_the_centre():
    image = photograph(1200, 1600)
    places = crop_places(image, CROP)
    left = {name: x for name, (_, x) in places.items()}
    assert left["least detail"] == 0
    assert left["most detail"] == (1600 // CROP - 1) * CROP
    assert 0 < left["median detail"] < left["most detail"]
    assert places["centre"] == ((1200 - CROP) // 2, (1600 - CROP) // 2)
    sheet = np.asarray(contact_sheet(image))
    for y, x in places.values():
        assert holds(sheet, image[:, y : y + CROP, x : x + CROP])


def test_the_whole_is_scaled_down_in_proportion():
    image = torch.zeros(3, 1000, 4000, dtype=torch.uint8)
    image[0] = 255
    red = (np.asarray(contact_sheet(image)) == (255, 0, 0)).all(-1)
    wide = red.sum(1) > 4 * CROP
    assert 3.8 < red.sum(1).max() / wide.sum() < 4.2
    assert red.sum(1).max() <= SIDE


def test_sixteen_bits_are_shown_as_the_nearest_of_eight():
    levels = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(1, 256, 256).expand(3, -1, -1)
    expected = np.rint(np.arange(65536) / 257).astype(np.uint8)
    assert np.array_equal(to_8_bits(levels)[0].numpy().ravel(), expected)
    assert np.array_equal(np.asarray(contact_sheet(levels)), np.asarray(contact_sheet(to_8_bits(levels))))
    with pytest.raises(ValueError, match="float32"):
        to_8_bits(torch.zeros(3, 2, 2))


def test_a_real_photograph(shared):
    image = read_image(shared / "photos4k" / "pierotofy__DJI_0030.jpg").pixels
    sheet = contact_sheet(image)
    assert max(sheet.size) <= SIDE
    assert min(sheet.size) > 1000
    assert sheet.tobytes() == contact_sheet(image).tobytes()
    y, x = crop_places(image, CROP)["most detail"]
    piece = Image.fromarray(image[:, y : y + CROP, x : x + CROP].permute(1, 2, 0).numpy())
    assert holds(np.asarray(sheet), torch.from_numpy(np.array(piece)).permute(2, 0, 1))
