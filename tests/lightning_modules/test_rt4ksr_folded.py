"""The folded network against the training form, layer by layer and in bands, and against the released outputs."""

import copy
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from lightning_modules.networks import real_time, rt4ksr_bands, rt4ksr_folded
from lightning_modules.networks.real_time import accelerate, can_compile
from lightning_modules.networks.rt4ksr import RT4KSR, ChannelNorm
from lightning_modules.networks.rt4ksr_bands import upscale_in_bands
from lightning_modules.networks.rt4ksr_folded import fold
from lightning_modules.networks.rt4ksr_released import read_released

SHARED = Path(os.environ.get("SR_SHARED", "../shared"))
CLOSE = 1e-5

needs_released = pytest.mark.skipif(
    not (SHARED / "data/weights/rt4ksr").is_dir() or not (SHARED / "data/rt4ksr_ref").is_dir(),
    reason="no SR_SHARED/data/weights/rt4ksr or SR_SHARED/data/rt4ksr_ref",
)


def network(scale=2, channels=24, blocks=4, seed=0, **options):
    """A training form in which nothing is zero or one by chance."""
    torch.manual_seed(seed)
    made = RT4KSR(scale, channels, blocks, **options)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        for norm in (part for part in made.modules() if isinstance(part, ChannelNorm)):
            norm.weight.add_(0.2 * torch.randn_like(norm.weight))
            norm.bias.add_(0.4 * torch.randn_like(norm.bias))
    return made


def image(height, width, batch=1, seed=1):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def furthest(one, other):
    assert one.shape == other.shape
    return float((one - other).abs().max())


@pytest.fixture
def narrow_bands(monkeypatch):
    """As many bands as there can be, in images of any size."""
    monkeypatch.setattr(rt4ksr_bands, "BAND_BYTES", 0)
    monkeypatch.setattr(rt4ksr_folded, "FEWEST_PIXELS", 0)


OPTIONS = [
    {"hf_branch": False},
    {"hf_branch": True},
    {"hf_branch": True, "extraction": "down_up"},
    {"hf_branch": False, "block": "plain"},
    {"hf_branch": True, "block": "plain"},
    {"hf_branch": True, "block": "residual"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("scale", "online"), [(2, False), (3, True), (4, False)])
@torch.no_grad()
def test_training_form_and_folded_form_are_the_same_function_up_to_the_border(options, scale, online):
    trained = network(scale, online=online, **options)
    lr = image(6, 10, batch=2)
    expected = trained(lr)
    assert expected.shape == (2, 3, 6 * scale, 10 * scale)
    assert furthest(fold(trained).whole(lr), expected) < CLOSE


def check_bands(trained, sizes):
    for size in sizes:
        folded, lr = fold(trained), image(*size)
        assert furthest(folded(lr), folded.whole(lr)) < CLOSE
        assert furthest(folded(lr), trained(lr)) < CLOSE


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("scale", [2, 3])
@torch.no_grad()
def test_bands_give_the_whole_image(options, scale, narrow_bands):
    check_bands(network(scale, **options), [(6, 10), (74, 12)])


@pytest.mark.parametrize(("scale", "channels", "blocks"), [(4, 24, 1), (2, 32, 2), (2, 8, 8)])
@pytest.mark.parametrize("hf_branch", [False, True])
@torch.no_grad()
def test_bands_fit_networks_and_images_of_all_sizes(scale, channels, blocks, hf_branch, narrow_bands):
    sizes = [(4, 6), (46, 4), (130, 8)]
    check_bands(network(scale, channels, blocks, hf_branch=hf_branch), sizes if hf_branch else [(2, 2), *sizes])


@torch.no_grad()
def test_bands_of_any_height_give_the_whole_image(monkeypatch):
    folded, lr = fold(network(blocks=2, hf_branch=True)), image(106, 8)
    expected = folded.whole(lr)
    for rows in range(1, 60, 3):
        monkeypatch.setattr(rt4ksr_bands, "BAND_BYTES", -(-rows * 4 * 24 * 4 // torch.get_num_threads()))
        assert furthest(upscale_in_bands(folded, lr), expected) < CLOSE


@torch.no_grad()
def test_images_of_a_batch_and_memory_formats_do_not_matter(narrow_bands):
    folded, lr = fold(network(hf_branch=True)), image(60, 20, batch=3)
    expected = folded.whole(lr)
    assert furthest(folded(lr), expected) < CLOSE
    assert furthest(folded(lr.contiguous(memory_format=torch.channels_last)), expected) < CLOSE
    assert furthest(folded(F.pad(lr, (1, 2, 3, 4))[..., 3:-4, 1:-2]), expected) < CLOSE


@torch.no_grad()
def test_bands_do_without_onednn(narrow_bands):
    folded, lr = fold(network(hf_branch=True)), image(60, 20)
    with torch.backends.mkldnn.flags(enabled=False):
        assert furthest(folded(lr), folded.whole(lr)) < CLOSE


def in_float64(folded, lr):
    return copy.deepcopy(folded).double().whole(lr.double())


@torch.no_grad()
def test_nothing_cancels_where_all_channels_are_far_from_zero(narrow_bands):
    folded, lr = fold(network(blocks=2, hf_branch=False)), image(48, 20)
    for layer in (folded.head, *folded.body):
        layer.bias.add_(300.0)
    # at a mean of 300 and a deviation below 1 few digits are left, and of a difference of two squares none
    expected = in_float64(folded, lr)
    assert furthest(folded(lr), expected) < 10 * furthest(folded.whole(lr), expected) < 0.01


@torch.no_grad()
def test_flat_features_and_dead_scales_are_no_special_case(narrow_bands):
    folded = fold(network(hf_branch=False))
    folded.norms[0].weight[:5] = 0
    folded.body[1].weight.zero_()
    folded.body[1].bias.zero_()
    for lr in (image(48, 20), torch.zeros(1, 3, 48, 20), torch.full((1, 3, 48, 20), 0.5)):
        assert furthest(folded(lr), folded.whole(lr)) < CLOSE
        assert bool(folded(lr).isfinite().all())


@torch.no_grad()
def test_a_value_that_is_no_number_does_not_get_lost(narrow_bands):
    folded, lr = fold(network(hf_branch=False)), image(80, 20)
    lr[0, 1, 40, 10] = math.nan
    assert bool((folded(lr).isnan() == folded.whole(lr).isnan()).all())


def test_folding_leaves_the_source_as_it_was():
    trained = network(hf_branch=True)
    before = copy.deepcopy(trained.state_dict())
    folded = fold(trained)
    folded.head.weight.data.zero_()
    assert list(before) == list(trained.state_dict())
    assert all(torch.equal(before[name], tensor) for name, tensor in trained.state_dict().items())
    assert trained.training
    assert not folded.training
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    trained(image(8, 8)).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in trained.parameters())


def test_gradients_reach_lr_through_the_folded_network(narrow_bands):
    folded, lr = fold(network(hf_branch=True)), image(24, 24).requires_grad_()
    folded(lr).sum().backward()
    assert bool(lr.grad.any())


def test_autocast_and_float64_take_the_layers_one_by_one(narrow_bands):
    folded, lr = fold(network(hf_branch=False)), image(24, 24)
    with torch.autocast("cpu", torch.bfloat16):
        assert folded(lr).dtype == torch.bfloat16
    assert furthest(folded.double()(lr.double()), in_float64(folded, lr)) == 0


def convolutions(run, lr):
    """How many convolutions PyTorch is asked for."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run(lr)
    return sum(event.count for event in profile.key_averages() if event.key == "aten::conv2d")


@pytest.mark.parametrize("form", ["whole", "bands"])
@torch.no_grad()
def test_a_branch_that_is_off_costs_nothing(form):
    def count(trained):
        folded = fold(trained)
        run = folded.whole if form == "whole" else lambda lr: upscale_in_bands(folded, lr)
        return convolutions(run, image(16, 16))

    unused = network(hf_branch=True)
    unused.gamma.data.zero_()  # as in the released checkpoints
    assert count(network(hf_branch=False)) == 1 + 4 + 1 + 1
    assert count(unused) == count(network(hf_branch=False))
    # the blur, the shared convolution once more, and the branch's own
    assert count(network(hf_branch=True)) == count(network(hf_branch=False)) + 3


@torch.no_grad()
def test_exporters_see_the_plain_layers_and_any_size():
    folded, half_height, half_width = fold(network(hf_branch=True)), torch.export.Dim("h"), torch.export.Dim("w")
    sizes = {2: 2 * half_height, 3: 2 * half_width}
    exported = torch.export.export(folded, (image(300, 300),), dynamic_shapes=(sizes,)).module()
    for size in ((34, 46), (220, 250)):
        assert furthest(exported(image(*size)), folded.whole(image(*size))) < CLOSE


def released():
    path = SHARED / "data/weights/rt4ksr/rt4ksr_x2.pth"
    return read_released(torch.load(path, map_location="cpu", weights_only=True), path)


@needs_released
@pytest.mark.parametrize("name", ["baby", "bird", "butterfly", "head", "woman"])
@torch.no_grad()
def test_released_weights_give_the_official_images(name, narrow_bands):
    lr = np.array(Image.open(SHARED / f"data/set5/LR_bicubic/X2/{name}x2.png").convert("RGB"))
    sr = fold(released())(torch.from_numpy(lr).permute(2, 0, 1)[None] / 255)
    ours = (sr[0].clamp(0, 1) * 255).round().permute(1, 2, 0).numpy().astype(int)
    for form in ("rep", "train_form"):
        official = np.asarray(Image.open(SHARED / f"data/rt4ksr_ref/Set5_x2/{form}/{name}.png").convert("RGB"))
        height, width = official.shape[:2]
        assert abs(ours[:height, :width] - official.astype(int)).max() <= 1


@needs_released
@torch.no_grad()
def test_released_weights_give_the_official_tensors(narrow_bands):
    reference = torch.load(SHARED / "data/rt4ksr_ref/raw_Set5_butterfly_x2.pt", map_location="cpu", weights_only=True)
    trained = released()
    folded = fold(trained)
    for form in ("out_train_form", "out_rep"):
        for run in (trained, folded, folded.whole):
            assert furthest(run(reference["lr"]), reference[form]) < CLOSE


def test_accelerate_leaves_the_network_and_refuses_what_a_cpu_cannot_do():
    folded, lr = fold(network(hf_branch=False)), image(16, 20)
    fast = accelerate(folded, "cpu")
    assert furthest(fast(lr.double()), folded(lr)) == 0
    folded.head.weight.zero_()
    assert furthest(fast(lr), folded(lr)) > 0.01
    with pytest.raises(ValueError, match="half=True with device=cpu"):
        accelerate(folded, "cpu", half=True)
    with pytest.raises(ValueError, match="cuda_graph=True with device=cpu"):
        accelerate(folded, "cpu", cuda_graph=True)


def test_without_a_compiler_one_sentence_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert not can_compile(torch.device("cpu"))
    with pytest.raises(ValueError, match=r"without a C\+\+ compiler"):
        accelerate(fold(network()), "cpu", compiled=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_a_gpu_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="device=cuda, but no CUDA device"):
        accelerate(fold(network()), "cuda", half=True)


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(torch.device("cpu")), reason="no C++ compiler")
def test_the_compiled_network_is_the_same_function():
    folded, lr = fold(network(hf_branch=True)), image(32, 40)
    assert furthest(accelerate(folded, "cpu", compiled=True)(lr), folded(lr)) < CLOSE


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_on_a_gpu_every_mode_gives_the_same_images_in_half_precision(compiled, cuda_graph):
    folded = fold(network(hf_branch=True))
    fast = accelerate(folded, "cuda", half=True, compiled=compiled, cuda_graph=cuda_graph)
    results = [fast(image(*size)) for size in ((16, 20), (32, 24), (16, 20))]
    assert results[0].dtype == torch.float16
    assert furthest(results[0], results[2]) == 0
    for size, found in zip(((16, 20), (32, 24)), results, strict=False):
        expected = folded(image(*size))
        assert furthest(found.float().cpu(), expected) < 0.02 * float(expected.abs().max())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_graphs_of_old_sizes_are_given_up():
    fast = accelerate(fold(network(hf_branch=False)), "cuda", half=True, cuda_graph=True)
    sizes = [(16, 16 + 2 * step) for step in range(real_time.MOST_GRAPHS + 2)]
    first = [fast(image(*size)) for size in sizes]
    assert all(torch.equal(fast(image(*size)), found) for size, found in zip(sizes, first, strict=True))
