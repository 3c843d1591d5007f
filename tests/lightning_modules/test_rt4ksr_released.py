import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms.functional import to_tensor

from lightning_modules.networks.rt4ksr import RRB, RT4KSR
from lightning_modules.networks.rt4ksr_released import is_released, read_released, without_hf_branch


@pytest.fixture(scope="module")
def checkpoint(shared):
    return torch.load(shared / "weights" / "rt4ksr" / "rt4ksr_x2.pth", weights_only=True, map_location="cpu")


@pytest.mark.parametrize(("scale", "blocks", "channels"), [(2, 4, 24), (3, 2, 8), (4, 6, 32)])
def test_sizes_are_read_from_the_tensors(scale, blocks, channels, released_form):
    network = RT4KSR(scale, channels, blocks)
    file = released_form(network)
    assert is_released(file)
    read = read_released(file, "x.pth")
    assert (read.scale, read.blocks, read.channels) == (scale, blocks, channels)
    lr = torch.rand(1, 3, 8, 8)
    assert torch.equal(read(lr), network(lr))


@pytest.mark.parametrize("key", ["params_ema", "params", "model", None])
def test_other_usual_forms_of_a_file_are_read(key, released_form):
    tensors = released_form(RT4KSR(2, 8, 2))["state_dict"]
    file = tensors if key is None else {key: tensors, "epoch": 3}
    assert is_released(file)
    assert read_released(file, "x.pth").channels == 8


@pytest.mark.parametrize("change", ["missing", "unknown", "shape", "scale", "other"])
def test_what_differs_is_listed(change, released_form):
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
        file = {"params": nn.Sequential(nn.Conv2d(3, 8, 3)).state_dict()}
    expected = {
        "missing": r"1 tensors missing \(tail_norm.weight\)$",
        "unknown": r"1 tensors unknown \(attention.weight\)$",
        "shape": r"head.bias has shape \(7,\), expected \(8,\)$",
        "scale": r"upsample.0.weight has 13 outputs, expected one of 48, 108, 192",
        "other": r"51 tensors missing \(.*\); 2 tensors unknown \(0.bias, 0.weight\)$",
    }
    with pytest.raises(ValueError, match=r"^INIT=x\.pth: .*" + expected[change]):
        read_released(file, "x.pth", "INIT")


def test_the_branch_is_dropped_only_where_it_does_nothing(checkpoint):
    full = read_released(checkpoint, "x.pth")
    lr = torch.rand(1, 3, 16, 16)
    assert torch.equal(without_hf_branch(full)(lr), full(lr))
    nn.init.ones_(full.gamma)
    with pytest.raises(ValueError, match="expected a released network with gamma 0"):
        without_hf_branch(full)


@pytest.mark.parametrize("name", ["baby", "bird", "butterfly", "head", "woman"])
@pytest.mark.parametrize("online", [True, False])
def test_outputs_are_the_released_codes(checkpoint, shared, name, online):
    network = without_hf_branch(read_released(checkpoint, "x.pth"))
    for module in network.modules():
        if isinstance(module, RRB):
            module.online = online
    lr = to_tensor(Image.open(shared / "set5" / "LR_bicubic" / "X2" / f"{name}x2.png"))
    sr = network(lr[None])[0].detach()
    expected = to_tensor(Image.open(shared / "rt4ksr_ref" / "Set5_x2" / "train_form" / f"{name}.png"))
    difference = ((sr.clamp(0, 1) * 255).round() - (expected * 255).round()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 1e-3


def test_raw_outputs_agree_to_1e_5(checkpoint, shared):
    raw = torch.load(shared / "rt4ksr_ref" / "raw_Set5_butterfly_x2.pt", weights_only=True, map_location="cpu")
    network = without_hf_branch(read_released(checkpoint, "x.pth"))
    sr = network(raw["lr"].reshape(1, 3, *raw["lr"].shape[-2:]))
    assert (sr - raw["out_train_form"].reshape(sr.shape)).abs().max() < 1e-5
