import copy

import pytest
import torch
from torch.nn import functional as F

from lightning_modules.networks.rt4ksr import RT4KSR
from lightning_modules.networks.rt4ksr_folded import FoldedRT4KSR
from lightning_modules.real_time_cnn import RealTimeCnn
from lightning_modules.super_resolution import AdamWSchedule
from losses.fidelity import L1, PsnrY
from losses.weighted_sum import WeightedSum

SCHEDULE = AdamWSchedule(1e-3, (0.9, 0.999), 0.0, warmup_steps=0, decay_share=0.0, final_factor=1.0, steps=10)


@pytest.fixture
def system():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = RT4KSR(2, channels=8, blocks=2)
    return RealTimeCnn(network, 2, WeightedSum({"l1": (1.0, L1())}), {"psnr_y": PsnrY()}, SCHEDULE)


@pytest.mark.parametrize("size", [(16, 12), (15, 11), (4, 4), (5, 8)])
def test_any_size_becomes_twice_as_large(system, size):
    assert system.restore(torch.rand(1, 3, *size)).shape == (1, 3, 2 * size[0], 2 * size[1])


def test_an_odd_side_is_padded_by_its_last_row_and_column(system):
    lr = torch.rand(1, 3, 7, 9)
    padded = F.pad(lr, (0, 1, 0, 1), mode="replicate")
    assert torch.equal(system.restore(lr), system.network(padded)[..., :14, :18])


def test_deployment_gives_the_same_images_by_another_network(system):
    lr, trained = torch.rand(2, 3, 10, 14), system.network
    before, tensors = system.restore(lr), copy.deepcopy(trained.state_dict())
    system.deploy()
    assert isinstance(system.network, FoldedRT4KSR)
    torch.testing.assert_close(system.restore(lr), before, rtol=0, atol=1e-5)
    assert all(torch.equal(trained.state_dict()[name], tensor) for name, tensor in tensors.items())
    system.deploy()  # once more changes nothing
    torch.testing.assert_close(system.restore(lr), before, rtol=0, atol=1e-5)


def test_the_panel_has_images_of_one_size(system):
    panel = system.panel({"lr": torch.rand(1, 3, 8, 8), "hr": torch.rand(1, 3, 16, 16)})
    assert list(panel) == ["lr", "sr", "hr"]
    assert {image.shape for image in panel.values()} == {(1, 3, 16, 16)}


def test_the_last_layer_is_the_last_convolution(system):
    assert system.last_layer() is system.network.upsample.weight


def test_all_of_it_is_trained_and_saved(system):
    assert set(system.generator_parameters()) == {f"network.{name}" for name in system.network.state_dict()}
