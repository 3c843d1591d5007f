import pytest
import torch

from datamodules.randomness import generator_for
from datamodules.sampling import ResumableBatchSampler, even_batches, sample_key, single_batches


def test_generators_are_stable_across_versions_and_apart_by_purpose():
    # a frozen value: a change of the hash would silently change every resumed run
    assert generator_for((1, 2, 3, 4), "crop").initial_seed() == generator_for([1, 2, 3, 4], "crop").initial_seed()
    assert generator_for((0, -1, 5, 0), "degradation").initial_seed() == 6534949836420965208
    seeds = {generator_for(key, purpose).initial_seed() for key in ((0, 1), (1, 0), (0,)) for purpose in ("a", "b")}
    assert len(seeds) == 6


def test_an_epoch_holds_every_crop_once_and_the_next_is_ordered_anew():
    keys = [sample_key(n, images=5, crops_per_image=3, seed=9) for n in range(30)]
    first, second = keys[:15], keys[15:]
    assert {key[2:] for key in first} == {(i, c) for i in range(5) for c in range(3)} == {key[2:] for key in second}
    assert {key[:2] for key in first} == {(9, 0)}
    assert {key[:2] for key in second} == {(9, 1)}
    assert [key[2:] for key in first] != [key[2:] for key in second]


def test_crops_of_one_image_follow_one_another_and_come_once_per_epoch():
    keys = [sample_key(n, images=5, crops_per_image=6, seed=9, crops_per_decode=3) for n in range(60)]
    groups = [keys[first : first + 3] for first in range(0, 60, 3)]
    assert all(len({key[:3] for key in group}) == 1 for group in groups)
    for epoch in range(2):
        seen = [key for key in keys if key[1] == epoch]
        assert sorted(key[2:] for key in seen) == [(i, c) for i in range(5) for c in range(6)]
        assert keys[30 * epoch] == seen[0]
    order = [[key[2] for key in keys[30 * epoch : 30 * epoch + 30 : 3]] for epoch in range(2)]
    assert order[0] != order[1]
    assert all(images != sorted(images) for images in order)


def test_one_crop_per_decode_keeps_the_order_that_runs_had_before_the_option():
    keys = [sample_key(n, images=3, crops_per_image=4, seed=5) for n in range(6)]
    order = torch.randperm(12, generator=generator_for((5, 0), "order")).tolist()
    assert keys == [(5, 0, slot // 4, slot % 4) for slot in order[:6]]


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_global_batches_do_not_depend_on_the_number_of_ranks(world_size):
    ranks = [list(ResumableBatchSampler(4, 6, rank, world_size)) for rank in range(world_size)]
    joined = [[n for share in shares for n in share] for shares in zip(*ranks, strict=True)]
    assert joined == [list(range(6 * b, 6 * b + 6)) for b in range(4)]


def test_resumed_sampler_continues_and_keeps_the_length_of_the_run():
    whole, rest = ResumableBatchSampler(10, 4), ResumableBatchSampler(10, 4, start_batch=7)
    assert list(rest) == list(whole)[7:]
    assert len(rest) == len(whole) == 10
    assert list(rest) == list(rest)


def test_batch_not_divisible_by_ranks_names_the_option():
    with pytest.raises(ValueError, match=r"data\.batch_size=6 .* 4 ranks"):
        ResumableBatchSampler(10, 6, 0, 4)


@pytest.mark.parametrize("count", [3, 4, 7, 12])
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_validation_is_seen_once_in_equally_many_batches(count, world_size, batch_size):
    ranks = [even_batches(count, batch_size, rank, world_size) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    assert sorted(n for batches in ranks for batch in batches for n in batch) == list(range(count))
    sizes = [len(batch) for batches in ranks for batch in batches]
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1
    if world_size == 1:
        assert max(sizes) <= batch_size


def test_fewer_validation_images_than_ranks_is_said():
    with pytest.raises(ValueError, match=r"data\.val_count=2"):
        even_batches(2, 1, 0, 3)


@pytest.mark.parametrize(("count", "world_size"), [(3, 1), (5, 2), (3, 3), (14, 4)])
def test_single_batches_are_shared_out_once_and_evenly(count, world_size):
    ranks = [single_batches(count, rank, world_size) for rank in range(world_size)]
    assert [batch for batches in ranks for batch in batches] == [[i] for i in range(count)]
    assert max(map(len, ranks)) - min(map(len, ranks)) <= 1


def test_fewer_pairs_than_ranks_is_said():
    with pytest.raises(ValueError, match=r"data\.val holds 2 pairs.* 3 ranks"):
        single_batches(2, 0, 3)
