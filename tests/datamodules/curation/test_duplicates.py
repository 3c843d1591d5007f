import io
import time

import imagehash
import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from scipy.sparse.csgraph import connected_components

from datamodules.curation.duplicates import HASH_LENGTH, VIEWS, first_alike, near_groups, perceptual_hash
from datamodules.curation.settings import PreliminaryBounds
from datamodules.synthetic import bundled_path

BITS = PreliminaryBounds().near_duplicate_bits
PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "retina.jpg")
CROPS = {
    "none": (0, 0, 0, 0),
    "left": (0.08, 0, 0, 0),
    "top": (0, 0.1, 0, 0),
    "corner": (0, 0, 0.05, 0.05),
    "other corner": (0.03, 0.04, 0, 0),
    "around": (0.025, 0.025, 0.025, 0.025),
    "uneven": (0.01, 0.03, 0.04, 0.02),
}


def pixels_of(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def cropped(image, cut):
    left, top, right, bottom = cut
    return image.crop(
        (
            round(left * image.width),
            round(top * image.height),
            round((1 - right) * image.width),
            round((1 - bottom) * image.height),
        )
    )


def altered(image):
    """Half the size, a little brighter, JPEG of quality 75."""
    image = ImageEnhance.Brightness(image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC))
    buffer = io.BytesIO()
    image.enhance(1.08).save(buffer, "JPEG", quality=75)
    return Image.open(buffer).convert("RGB")


@pytest.fixture(scope="module")
def photographs():
    return {name: Image.open(bundled_path(name)).convert("RGB") for name in PHOTOGRAPHS}


@pytest.fixture(scope="module")
def originals(photographs):
    return [perceptual_hash(pixels_of(image)) for image in photographs.values()]


def test_the_hash_is_imagehashs_phash_with_its_bits_sorted(photographs, originals):
    image = photographs["astronaut.png"]
    small = image.reduce(1).convert("L").resize((256, 256), Image.Resampling.LANCZOS)
    expected = imagehash.phash(small.resize((64, 64), Image.Resampling.LANCZOS), 16).hash
    assert len(originals[0]) == HASH_LENGTH
    whole = np.unpackbits(np.frombuffer(bytes.fromhex(originals[0]), np.uint8))[:256]
    assert whole.sum() == expected.sum()
    low = whole[:64].reshape(8, 8)
    assert np.array_equal(low[0::2], expected[:4, :8])
    assert np.array_equal(low[1::2], expected[4:8, :8])


def test_distinct_photographs_stay_apart(originals):
    assert near_groups(originals, BITS) == list(range(len(originals)))


@pytest.mark.parametrize("cut", CROPS.values(), ids=CROPS)
def test_a_cropped_resized_brightened_and_encoded_copy_is_found(cut, photographs, originals):
    copies = [perceptual_hash(pixels_of(altered(cropped(image, cut)))) for image in photographs.values()]
    numbers = list(range(len(originals)))
    assert near_groups(originals + copies, BITS) == numbers + numbers


def test_the_hash_of_16_bits_is_that_of_8_bits(photographs, originals):
    wide = pixels_of(photographs["coffee.png"]).to(torch.uint16) * 257
    assert perceptual_hash(wide) == originals[PHOTOGRAPHS.index("coffee.png")]


@pytest.mark.parametrize("size", [(1, 1), (3, 700), (65, 64)])
def test_any_size_has_a_hash(size):
    assert len(perceptual_hash(torch.zeros(3, *size, dtype=torch.uint8))) == HASH_LENGTH


def random_hash(rng):
    return rng.integers(0, 2, (len(VIEWS), 256), dtype=np.uint8)


def text(bits):
    return np.packbits(bits, axis=1).tobytes().hex()


def flipped(bits, count, rng):
    flips = np.zeros(256, np.uint8)
    flips[rng.choice(256, count, replace=False)] = 1
    return bits ^ flips


@pytest.mark.parametrize("most_bits", [0, 3, 7])
def test_groups_are_those_of_all_pairs_compared(most_bits):
    rng = np.random.default_rng(most_bits)
    images = []
    for _ in range(12):  # chains, so that the ends of a group are far apart
        images.append(random_hash(rng))
        for _ in range(int(rng.integers(0, 5))):
            other = random_hash(rng)
            other[0] = flipped(images[-1][int(rng.integers(len(VIEWS)))], int(rng.integers(0, most_bits + 3)), rng)
            images.append(other)
    images.append(images[0])
    order = rng.permutation(len(images))
    images = [images[i] for i in order]
    wholes = np.stack([image[0] for image in images])
    distance = np.array([[(image ^ whole).sum(1).min() for whole in wholes] for image in images])
    _, expected = connected_components(distance <= most_bits, directed=False)
    found = near_groups([text(image) for image in images], most_bits)
    assert np.array_equal(np.equal.outer(found, found), np.equal.outer(expected, expected))
    assert list(dict.fromkeys(found)) == list(range(max(found) + 1))


def test_bits_of_high_frequencies_may_differ_up_to_the_bound():
    rng = np.random.default_rng(0)
    image, near, far = random_hash(rng), random_hash(rng), random_hash(rng)
    near[0], far[0] = image[4], image[4]
    near[0, 100:148] ^= 1
    far[0, 150:199] ^= 1
    assert near_groups([text(image), text(near), text(far)], 48) == [0, 0, 1]


def test_kept_ones_are_near_no_other_and_the_others_are_near_the_kept_one_named():
    rng = np.random.default_rng(0)
    images = [random_hash(rng)]
    for _ in range(40):  # a chain: each one's whole is a view of the one before, a few bits off
        images.append(random_hash(rng))
        images[-1][0] = flipped(images[-2][int(rng.integers(len(VIEWS)))], int(rng.integers(0, 7)), rng)
    images += [images[3], images[20]]

    def near(one, other):
        return min((one ^ other[0]).sum(1).min(), (other ^ one[0]).sum(1).min()) <= 7

    hashes = [text(image) for image in images]
    found = first_alike(hashes, 7)
    kept = [place for place, like in enumerate(found) if place == like]
    assert len(set(near_groups(hashes, 7))) < 8 < len(kept) < len(images) - 8
    for place, like in enumerate(found):
        assert like == next((other for other in kept if other < place and near(images[place], images[other])), place)


def test_minus_one_groups_nothing_and_nothing_has_no_groups(originals):
    assert near_groups([originals[0]] * 3, -1) == [0, 1, 2]
    assert near_groups([originals[0]] * 3, 0) == [0, 0, 0]
    assert near_groups([], 48) == []


def test_a_hash_of_another_form_is_told():
    with pytest.raises(ValueError, match=f"found 16 digits, expected {HASH_LENGTH}"):
        near_groups(["0123456789abcdef"], 48)


@pytest.mark.slow
def test_200_000_hashes_take_minutes_at_most():
    rng = np.random.default_rng(0)
    random_bytes = rng.bytes(200_000 * HASH_LENGTH // 2).hex()
    hashes = [random_bytes[first : first + HASH_LENGTH] for first in range(0, len(random_bytes), HASH_LENGTH)]
    hashes[1::1000] = hashes[0::1000]
    started = time.monotonic()
    groups = near_groups(hashes, BITS)
    assert time.monotonic() - started < 600
    assert max(groups) == 199_800 - 1
