from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from losses.backbone import FrozenBackbone


def images(height: int = 48, width: int = 64, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


def random(name: str = "test_convnext", stages: tuple[int, ...] = (0, 1, 2), seed: int = 0) -> FrozenBackbone:
    return FrozenBackbone(name, stages, None, torch.Generator().manual_seed(seed), "perceptual")


def network(name: str, **arguments: object) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return timm.create_model(name, **arguments).eval()


def saved(model: nn.Module, folder: Path, suffix: str = "safetensors") -> Path:
    path = folder / f"model.{suffix}"
    save_file(model.state_dict(), path) if suffix == "safetensors" else torch.save(model.state_dict(), path)
    return path


def recorded(modules: list[nn.Module]) -> list[Tensor]:
    """A list that fills with the modules' outputs when their network runs."""
    outputs: list[Tensor] = []
    for module in modules:
        module.register_forward_hook(lambda *arguments: outputs.append(arguments[-1]))
    return outputs


@pytest.mark.parametrize(
    ("name", "modules", "suffix"),
    [
        ("test_convnext", ["stages.1", "stages.2", "stages.3"], "safetensors"),
        ("test_resnet", ["layer1", "layer2", "layer3"], "pth"),
    ],
)
def test_convolutional_features_are_the_stages_outputs(
    tmp_path: Path, name: str, modules: list[str], suffix: str
) -> None:
    """The file holds the classifier too; these models normalise the input by 0.5 and 0.5."""
    model = network(name)
    outputs = recorded([model.get_submodule(module) for module in modules])
    backbone = FrozenBackbone(name, (1, 2, 3), saved(model, tmp_path, suffix), None, "perceptual")
    features = backbone(images())
    model(2 * images() - 1)
    assert [level.shape[1] for level in features] == backbone.channels
    for found, expected in zip(features, outputs, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_vit_features_are_the_blocks_outputs_at_any_size(tmp_path: Path) -> None:
    model = network("test_vit2", dynamic_img_size=True)
    outputs = recorded([model.blocks[1], model.blocks[4]])
    backbone = FrozenBackbone("test_vit2", (1, 4), saved(model, tmp_path), None, "perceptual")
    # 50 x 70 px: 4 x 5 patches of 16 after padding
    features = backbone(images(50, 70))
    model(2 * F.pad(images(50, 70), (0, 10, 0, 14), mode="replicate") - 1)
    for found, tokens in zip(features, outputs, strict=True):
        expected = tokens[:, model.num_prefix_tokens :].transpose(1, 2).unflatten(-1, (4, 5))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_normalisation_is_the_models_own() -> None:
    backbone = random("test_efficientnet.r160_in1k", (0,))
    assert backbone.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert backbone.std.flatten().tolist() == pytest.approx([0.229, 0.224, 0.225])


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_resnet", "test_efficientnet", "test_nfnet"])
def test_declared_channels_hold_for_each_family(name: str) -> None:
    backbone = random(name, (0, 1, 3))
    assert [level.shape[1] for level in backbone(images())] == backbone.channels


def test_backbone_is_frozen_in_evaluation_mode_and_in_no_checkpoint() -> None:
    module = nn.ModuleDict({"backbone": random("test_resnet")}).train()
    assert list(module.parameters()) == []
    assert module.state_dict() == {}
    assert not any(part.training for part in module["backbone"].modules())
    image = images().requires_grad_(True)
    before = module["backbone"](image)
    sum(level.square().mean() for level in before).backward()
    assert image.grad is not None
    assert image.grad.abs().sum() > 0
    for first, second in zip(before, module["backbone"](image), strict=True):
        assert torch.equal(first, second)


def test_weights_without_a_file_come_from_the_generator_alone() -> None:
    state = torch.random.get_rng_state()
    first, same, other = (random(seed=seed)(images())[-1] for seed in (5, 5, 6))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.random.get_rng_state())


def test_stages_that_are_not_read_are_not_kept() -> None:
    counts = [sum(buffer.numel() for buffer in random("test_vit", (0, last)).buffers()) for last in (1, 5)]
    assert counts[0] < counts[1] / 2


def test_errors_name_option_and_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"perceptual\.model='resnet_of_nobody'"):
        random("resnet_of_nobody", (0,))
    with pytest.raises(ValueError, match="images of one size only"):
        random("test_vit_relpos", (0,))
    for stages in ((), (2, 1), (0, 4)):
        with pytest.raises(ValueError, match=r"adversary\.stages=.* from 0 to 3"):
            FrozenBackbone("test_convnext", stages, None, torch.Generator(), "adversary")
    for weights, generator in ((None, None), (Path("a.pth"), torch.Generator())):
        with pytest.raises(ValueError, match="adversary: expected weights or a generator"):
            FrozenBackbone("test_convnext", (0,), weights, generator, "adversary")


def test_missing_and_foreign_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.safetensors; set perceptual\.weights.*huggingface\.co"):
        FrozenBackbone("test_convnext", (0,), tmp_path / "nowhere.safetensors", None, "perceptual")
    path = saved(network("test_vit"), tmp_path)
    with pytest.raises(
        ValueError, match=r"model\.safetensors does not fit perceptual\.model=test_convnext: \d+ tensor"
    ):
        FrozenBackbone("test_convnext", (0,), path, None, "perceptual")
    weights = network("test_convnext").state_dict()
    del weights["stem.0.weight"]
    torch.save(weights, tmp_path / "short.pth")
    with pytest.raises(ValueError, match=r"1 tensors are missing.*stem\.0\.weight"):
        FrozenBackbone("test_convnext", (0,), tmp_path / "short.pth", None, "perceptual")
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(ValueError, match="not a readable file"):
        FrozenBackbone("test_convnext", (0,), tmp_path / "text.safetensors", None, "perceptual")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="found a list"):
        FrozenBackbone("test_convnext", (0,), tmp_path / "list.pth", None, "perceptual")
