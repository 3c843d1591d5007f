import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms.functional import to_tensor

from lightning_modules.networks.rt4ksr import RRB, RT4KSR
from lightning_modules.networks.rt4ksr_released import is_released, read_released, without_hf_branch

SHARED = Path(os.environ.get("SR_SHARED", "../shared")) / "data"
needs_weights = pytest.mark.skipif(
    not (SHARED / "weights" / "rt4ksr").is_dir(), reason="the released RT4KSR weights of SR_SHARED are not there"
)


@pytest.fixture(scope="module")
def checkpoint():
    return torch.load(SHARED / "weights" / "rt4ksr" / "rt4ksr_x2.pth", weights_only=True, map_location="cpu")


def released_form(network):
    """A network's tensors under the released code's names."""
    names = (("head.", "head.0."), ("hf_branch.", "hfb.0."), ("tail.", "tail.1."), ("tail_norm.", "tail.0."))
    names += (("upsample.", "upsample.0."),)
    inner = ((".rrb.", ".conv1."), (".expand.", ".expand_conv."), (".reduce.", ".reduce_conv."))
    tensors = {}
    for name, tensor in network.state_dict().items():
        for ours, theirs in names:
            name = theirs + name.removeprefix(ours) if name.startswith(ours) else name
        for part in ("hfb.0.", "tail.1.", ".rrb."):
            name = name.replace(part + "conv.", part + "fea_conv.")
        for ours, theirs in inner:
            name = name.replace(ours, theirs)
        tensors[f"module.{name}"] = tensor
    return {"epoch": 1, "state_dict": tensors}


@pytest.mark.parametrize(("scale", "blocks", "channels"), [(2, 4, 24), (3, 2, 8), (4, 6, 32)])
def test_sizes_are_read_from_the_tensors(scale, blocks, channels):
    network = RT4KSR(scale, channels, blocks)
    file = released_form(network)
    assert is_released(file)
    read = read_released(file, "x.pth")
    assert (read.scale, read.blocks, read.channels) == (scale, blocks, channels)
    lr = torch.rand(1, 3, 8, 8)
    assert torch.equal(read(lr), network(lr))


@pytest.mark.parametrize("change", ["missing", "unknown", "shape", "scale", "other"])
def test_what_differs_is_listed(change):
    file = released_form(RT4KSR(2, 8, 2))
    weights = file["state_dict"]
    if change == "missing":
        del weights["module.tail.0.weight"]
    if change == "unknown":
        weights["module.attention.weight"] = torch.zeros(1)
    if change == "shape":
        weights["module.head.0.bias"] = torch.zeros(7)
    if change == "scale":
        weights["module.upsample.0.weight"] = torch.zeros(13, 8, 3, 3)
    if change == "other":
        file["state_dict"] = nn.Sequential(nn.Conv2d(3, 8, 3)).state_dict()
    expected = {
        "missing": r"1 tensors missing \(tail_norm.weight\)$",
        "unknown": r"1 tensors unknown \(attention.weight\)$",
        "shape": r"head.bias has shape \(7,\), expected \(8,\)$",
        "scale": r"upsample.0.weight has 13 outputs, expected one of 48, 108, 192",
        "other": r"51 tensors missing \(.*\); 2 tensors unknown \(0.bias, 0.weight\)$",
    }
    with pytest.raises(ValueError, match=r"^INIT=x\.pth: .*" + expected[change]):
        read_released(file, "x.pth", "INIT")


@needs_weights
def test_the_branch_is_dropped_only_where_it_does_nothing(checkpoint):
    full = read_released(checkpoint, "x.pth")
    lr = torch.rand(1, 3, 16, 16)
    assert torch.equal(without_hf_branch(full)(lr), full(lr))
    nn.init.ones_(full.gamma)
    with pytest.raises(ValueError, match="expected a released network with gamma 0"):
        without_hf_branch(full)


@needs_weights
@pytest.mark.parametrize("name", ["baby", "bird", "butterfly", "head", "woman"])
@pytest.mark.parametrize("online", [True, False])
def test_outputs_are_the_released_codes(checkpoint, name, online):
    network = without_hf_branch(read_released(checkpoint, "x.pth"))
    for module in network.modules():
        if isinstance(module, RRB):
            module.online = online
    lr = to_tensor(Image.open(SHARED / "set5" / "LR_bicubic" / "X2" / f"{name}x2.png"))
    sr = network(lr[None])[0].detach()
    expected = to_tensor(Image.open(SHARED / "rt4ksr_ref" / "Set5_x2" / "train_form" / f"{name}.png"))
    difference = ((sr.clamp(0, 1) * 255).round() - (expected * 255).round()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 1e-3


@needs_weights
def test_raw_outputs_agree_to_1e_5(checkpoint):
    raw = torch.load(SHARED / "rt4ksr_ref" / "raw_Set5_butterfly_x2.pt", weights_only=True, map_location="cpu")
    network = without_hf_branch(read_released(checkpoint, "x.pth"))
    sr = network(raw["lr"].reshape(1, 3, *raw["lr"].shape[-2:]))
    assert (sr - raw["out_train_form"].reshape(sr.shape)).abs().max() < 1e-5
