import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import AttnProcessor2_0
from safetensors.torch import load_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_modules.networks.f16_vae import (
    build_f16_vae,
    build_flux_vae,
    decode_in_strips,
    is_f16,
    last_features,
    to_f16,
)

WIDTHS = (8, 8, 12, 16)


def small_vae(seed: int = 0, latent_channels: int = 4) -> AutoencoderKL:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_flux_vae(WIDTHS, layers_per_block=1, norm_groups=4, latent_channels=latent_channels)


def in_f16(vae: AutoencoderKL) -> AutoencoderKL:
    other = to_f16(small_vae(1))
    other.load_state_dict(vae.state_dict())
    return other


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_factory_builds_the_public_layout() -> None:
    """Names, shapes and count of FLUX.1's published VAE: 244 tensors, 83,819,683 parameters."""
    with torch.device("meta"):
        full = build_flux_vae((128, 256, 512, 512), layers_per_block=2, norm_groups=32)
        f16 = build_f16_vae((128, 256, 512, 512), layers_per_block=2, norm_groups=32)
    shapes = {name: tuple(value.shape) for name, value in full.state_dict().items()}
    assert len(shapes) == 244
    assert sum(p.numel() for p in full.parameters()) == 83_819_683
    assert shapes["decoder.conv_in.weight"] == (512, 16, 3, 3)
    assert shapes["encoder.conv_out.weight"] == (32, 512, 3, 3)
    assert not any("quant_conv" in name for name in shapes)
    assert (full.config["scaling_factor"], full.config["shift_factor"]) == (0.3611, 0.1159)
    assert {name: tuple(value.shape) for name, value in f16.state_dict().items()} == shapes


@torch.no_grad()
def test_the_encoder_sees_every_second_pixel_of_the_first_convolution() -> None:
    vae = small_vae()
    image, encoder = noise(2, 3, 64, 96), vae.encoder
    h = encoder.conv_in(image)[..., ::2, ::2]
    for block in (*encoder.down_blocks, encoder.mid_block):
        h = block(h)
    moments = encoder.conv_out(nn.functional.silu(encoder.conv_norm_out(h)))
    latent = in_f16(vae).encode(image).latent_dist.mode()
    assert latent.shape == (2, 4, 4, 6)
    torch.testing.assert_close(latent, moments[:, :4])


@torch.no_grad()
def test_the_decoder_repeats_each_pixel_before_the_last_convolution() -> None:
    vae, latent = small_vae(), noise(2, 4, 4, 6)
    seen: list[torch.Tensor] = []
    handle = vae.decoder.conv_out.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    vae.decode(latent)
    handle.remove()
    doubled = torch.from_numpy(seen[0].numpy().repeat(2, axis=-2).repeat(2, axis=-1))
    f16 = in_f16(vae)
    torch.testing.assert_close(last_features(vae, latent), seen[0])
    torch.testing.assert_close(last_features(f16, latent), doubled)
    torch.testing.assert_close(f16.decode(latent).sample, vae.decoder.conv_out(doubled))
    assert f16.decode(latent).sample.shape == (2, 3, 64, 96)


@pytest.mark.parametrize("written", ["f8", "f16"])
def test_either_folder_loads_tensor_for_tensor(written: str, tmp_path) -> None:
    vae = small_vae()
    (in_f16(vae) if written == "f16" else vae).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    loaded = to_f16(AutoencoderKL.from_pretrained(tmp_path, local_files_only=True))
    assert is_f16(loaded)
    assert not is_f16(vae)
    assert tensors.keys() == loaded.state_dict().keys()
    assert all(torch.equal(value, tensors[name]) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize("size", [(1, 3), (5, 2), (7, 3)])
@pytest.mark.parametrize("rows", [1, 2, 3, 9])
def test_strips_equal_the_whole(rows: int, size: tuple[int, int]) -> None:
    vae, latent = to_f16(small_vae()), noise(1, 4, *size)
    with torch.no_grad():
        whole = vae.decode(latent).sample
    strips = decode_in_strips(vae, latent, rows)
    assert strips.shape == whole.shape == (1, 3, 16 * size[0], 16 * size[1])
    assert (strips - whole).abs().max() <= 1e-5 * whole.abs().max()


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation gives."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, torch.Tensor):
                self.numel = max(self.numel, value.numel())
        return result


def test_strips_hold_a_smaller_largest_tensor() -> None:
    vae, latent = to_f16(small_vae()), noise(1, 4, 16, 4)
    with LargestTensor() as strips:
        decode_in_strips(vae, latent, 1)
    with LargestTensor() as whole, torch.no_grad():
        vae.decode(latent)
    assert whole.numel == 8 * 256 * 64
    assert strips.numel <= whole.numel // 4 * 1.5  # the feature map at half the size, and its halo


def test_the_mid_block_never_holds_its_scores() -> None:
    vae = to_f16(small_vae())
    kinds = {type(processor) for processor in vae.attn_processors.values()}
    assert kinds == {AttnProcessor2_0}
    x = noise(1, 16, 40, 40)
    for part in (vae.encoder, vae.decoder):
        with LargestTensor() as largest, torch.no_grad():
            part.mid_block(x)
        assert x.numel() <= largest.numel <= 4 * x.numel() < 1600**2


def test_a_plain_attention_would_be_noticed() -> None:
    """The counterpart of the test above: with the scores written out it fails."""
    vae = to_f16(small_vae())
    vae.set_default_attn_processor()
    with LargestTensor() as largest, torch.no_grad():
        vae.decoder.mid_block(noise(1, 16, 40, 40))
    assert largest.numel == 1600**2


def test_checkpointed_features_have_the_same_gradients() -> None:
    gradients = []
    for checkpointed in (False, True):
        vae = to_f16(small_vae())
        if checkpointed:
            vae.enable_gradient_checkpointing()
        last_features(vae, noise(1, 4, 2, 2)).square().mean().backward()
        gradients.append([p.grad for p in vae.decoder.up_blocks.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        np.testing.assert_allclose(recomputed.numpy(), plain.numpy(), atol=1e-7)


def test_widths_that_the_norm_cannot_split_are_refused() -> None:
    with pytest.raises(ValueError, match=r"blocks of \[10\] channels.*norm_groups=4"):
        build_f16_vae((8, 10), layers_per_block=1, norm_groups=4)
