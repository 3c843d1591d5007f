import pickle

import numpy as np
import pytest
import torch

from datamodules.image_cache import ImageCache, large_enough


def image(index):
    return torch.full((3, 10, 10), index, dtype=torch.uint8)


def test_what_was_used_longest_ago_goes_first():
    cache = ImageCache(650)
    loaded = []

    def load(index):
        loaded.append(index)
        return image(index)

    for index in (0, 1, 0, 2, 0, 1):
        assert torch.equal(cache.get(index, load), image(index))
    assert loaded == [0, 1, 2, 1]
    assert (0 in cache, 1 in cache, 2 in cache, len(cache)) == (True, True, False, 2)


def test_the_latest_image_stays_however_large_it_is():
    cache = ImageCache(1)
    assert cache.get(0, image) is cache.get(0, image)
    cache.get(1, image)
    assert len(cache) == 1


def test_a_failed_load_leaves_nothing():
    cache = ImageCache(1)
    with pytest.raises(KeyError):
        cache.get(0, {}.__getitem__)
    assert len(cache) == 0


def test_a_pickled_copy_is_empty():
    cache = ImageCache(1000)
    cache.get(0, image)
    copy = pickle.loads(pickle.dumps(cache))
    assert (len(copy), copy.most_bytes) == (0, 1000)


def test_small_images_are_named_up_to_five():
    sizes = np.array([[10, 40], [32, 32], [40, 31], *[[8, 8]] * 9])
    with pytest.warns(UserWarning, match=r"^data\.val=x: 11 of 12 .*=32 and left out: 0, 2, 3, 4, 5, \.\.\.$"):
        assert large_enough(sizes, str, 32, "data.val=x", "data.crop").tolist() == [1]
    with pytest.raises(ValueError, match=r"all 12 images .*lower data\.crop or point data\.val at larger images"):
        large_enough(sizes, str, 50, "data.val=x", "data.crop")
