from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from datamodules.sampling import ResumableBatchSampler
from datamodules.sources import open_source
from datamodules.whole_images import BucketOrder, WholeImages, assign_buckets, bucket_ladder, fit_to

SIZES = [(64, 96)] * 5 + [(96, 64)] * 3 + [(128, 128), (70, 70), (64, 128)]


@pytest.fixture
def source(tmp_path):
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate(SIZES):
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number:02}.png")
    return open_source(str(tmp_path), (), 32, "data.train", "data.crop")


def test_the_ladder_holds_multiples_of_the_unit_up_to_the_area():
    ladder = bucket_ladder(4096, 512, 32)
    assert ladder[0] == (4096, 4096)
    assert all(h % 32 == 0 and w % 32 == 0 and h * w <= 4096**2 and min(h, w) >= 512 for h, w in ladder)
    assert {(w, h) for h, w in ladder} == set(ladder)
    assert len(set(ladder)) == len(ladder)


def test_photographs_keep_nearly_all_of_their_area():
    sizes = np.array([(2160, 3840), (4000, 6000), (3648, 5472), (3000, 4000), (4000, 3000), (4096, 4096), (3376, 6000)])
    ladder = bucket_ladder(4096, 512, 32)
    for (height, width), bucket in zip(sizes, assign_buckets(sizes, ladder), strict=True):
        h, w = ladder[bucket]
        factor = max(h / height, w / width)
        assert 0.7 < factor <= 1, "shrunk a little, never enlarged"
        assert h * w / (factor**2 * height * width) > 0.95


def test_an_image_below_every_bucket_has_none():
    assert assign_buckets(np.array([(500, 900), (512, 512)]), bucket_ladder(512, 512, 32)).tolist() == [-1, 0]
    assert assign_buckets(np.array([(500, 900)]), []).tolist() == [-1]


@pytest.mark.parametrize("counts", [[5, 3, 1], [4, 4], [1], [17, 2, 9, 30]])
@pytest.mark.parametrize("batch", [1, 4, 6])
def test_every_image_is_seen_once_per_epoch_up_to_less_than_a_batch_of_its_bucket(counts, batch):
    order, epochs, number = BucketOrder(counts, batch, seed=3), 5, 0
    seen = Counter()
    for epoch in range(1, epochs + 1):
        batches = sum(epoch * count // batch for count in counts)
        while number < batches * batch:
            _, bucket, member = order.place(number)
            seen[bucket, member] += 1
            number += 1
        for bucket, count in enumerate(counts):
            times = [seen[bucket, member] for member in range(count)]
            assert max(times) - min(times) <= 1
            assert epoch * count - sum(times) < batch, "the remainder that opens the next epoch"


def test_a_batch_is_of_one_bucket_and_epochs_are_ordered_anew():
    order = BucketOrder([8, 12], 4, seed=1)
    buckets = [[order.place(4 * batch + i)[1] for i in range(4)] for batch in range(40)]
    assert all(len(set(batch)) == 1 for batch in buckets)
    epochs = [[batch[0] for batch in buckets[5 * epoch : 5 * epoch + 5]] for epoch in range(8)]
    assert all(sorted(epoch) == [0, 0, 1, 1, 1] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 2


def batches(source, rank=0, world=1, start=0, workers=0):
    data = WholeImages(source, 128, 32, 16, seed=5, global_batch=2, option="data.whole_side")
    sampler = ResumableBatchSampler(12, 2, rank, world, start)
    return list(DataLoader(data, batch_sampler=sampler, num_workers=workers))


def test_batches_depend_neither_on_ranks_nor_on_workers_nor_on_a_resume(source):
    whole = batches(source)
    assert len({tuple(batch["hr"].shape) for batch in whole}) > 2
    for rank in (0, 1):
        for batch, share in zip(whole, batches(source, rank, 2, workers=2), strict=True):
            assert torch.equal(batch["hr"][rank : rank + 1], share["hr"])
    for batch, other in zip(whole[7:], batches(source, start=7), strict=True):
        assert torch.equal(batch["hr"], other["hr"])
        assert torch.equal(batch["key"], other["key"])


def test_an_image_of_its_buckets_size_is_itself_or_mirrored(source):
    batch = next(batch for batch in batches(source) if batch["hr"].shape[-2:] == (128, 128))
    hr, pixels = batch["hr"][0], source.load(int(batch["key"][0, 2])).float() / 255
    assert torch.equal(hr, pixels) or torch.equal(hr, pixels.flip(-1))


def test_shrinking_is_pillows_bicubic_up_to_its_rounding():
    rng = np.random.default_rng(1)
    pixels = rng.integers(64, 192, (90, 120, 3), dtype=np.uint8)  # Pillow clips between its two passes
    found = fit_to(torch.from_numpy(pixels).permute(2, 0, 1), (60, 80), torch.Generator())
    expected = np.asarray(Image.fromarray(pixels).resize((80, 60), Image.Resampling.BICUBIC)) / 255
    assert np.abs(found.permute(1, 2, 0).numpy() - expected).max() < 2.5 / 255


@pytest.mark.parametrize(
    ("side", "smallest", "unit"), [(1024, 900, 4), (1000, 512, 32), (2048, 768, 32), (384, 192, 8)]
)
def test_no_image_of_large_enough_sides_is_left_out(side, smallest, unit):
    sizes = np.random.default_rng(0).integers(smallest, 2 * side, (5000, 2))
    ladder = bucket_ladder(side, smallest, unit)
    assert all(h * w <= side**2 for h, w in ladder)
    assert (assign_buckets(sizes, ladder) >= 0).all()


def test_an_image_below_all_buckets_is_named(source):
    with pytest.raises(ValueError, match=r"data\.whole_side=512: 9 of 11 images have a side below data\.crop=70, 00 "):
        WholeImages(source, 512, 70, 2, seed=5, global_batch=2, option="data.whole_side")


@pytest.mark.parametrize(("side", "smallest", "unit"), [(64, 96, 16), (64, 16, 32)])
def test_impossible_sides_name_the_option(source, side, smallest, unit):
    with pytest.raises(ValueError, match=rf"data\.whole_side=64: expected at least data\.crop={smallest}"):
        WholeImages(source, side, smallest, unit, seed=5, global_batch=2, option="data.whole_side")
