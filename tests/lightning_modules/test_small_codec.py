import numpy as np
import pytest
import torch
from skimage import data

from lightning_modules.networks.small_codec import SmallF16Codec


def photo_patches(crop=320):
    """(N,3,16,16) in [-1,1] of a photograph, by numpy alone."""
    photo = data.astronaut()[:crop, :crop].astype(np.float64) / 127.5 - 1
    side = crop // 16
    patches = photo.reshape(side, 16, side, 16, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, 16, 16)
    return patches, photo.transpose(2, 0, 1)


def reconstruct(codec, image):
    with torch.no_grad():
        return codec.decode(codec.encode(image).latent_dist.mode()).sample


@pytest.mark.parametrize("size", [(16, 16), (48, 80)])
def test_latent_is_sixteen_times_smaller(codec, size):
    latent = codec.encode(torch.zeros(2, 3, *size)).latent_dist
    assert latent.mode().shape == (2, 4, size[0] // 16, size[1] // 16)
    assert torch.equal(latent.sample(), latent.mode())
    assert codec.decode(latent.mode()).sample.shape == (2, 3, *size)


def test_pca_start_reconstructs_as_an_svd_does():
    patches, photo = photo_patches()
    codec = SmallF16Codec(latent_channels=24, widths=(8, 8, 8), blocks=1)
    codec.initialise_by_pca(torch.from_numpy(patches).float())
    image = torch.from_numpy(photo).float()[None]

    flat = patches.reshape(len(patches), -1)
    mean = flat.mean(0)
    _, _, vectors = np.linalg.svd(flat - mean, full_matrices=False)
    # the decoder's bias is one value per colour: of the mean patch its colour averages alone
    bias = np.repeat(mean.reshape(3, 256).mean(1), 256)
    expected = (flat - mean) @ vectors[:24].T @ vectors[:24] + bias
    found = reconstruct(codec, image)[0].reshape(3, 20, 16, 20, 16).permute(1, 3, 0, 2, 4).reshape(400, -1)
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-3)

    mse = ((reconstruct(codec, image) - image) / 2).square().mean().item()
    assert -10 * np.log10(mse) > 22, "24 of 768 components of a photograph's own PCA"

    latent = codec.encode(image).latent_dist.mode()[0].flatten(1)
    assert torch.allclose(latent.mean(1), torch.zeros(24), atol=1e-2)
    assert torch.allclose(latent @ latent.T / (latent.shape[1] - 1), torch.eye(24), atol=2e-2), "whitened"


def test_pca_needs_more_patches_than_components():
    with pytest.raises(ValueError, match="4 components needs more patches than that, found 4"):
        SmallF16Codec(4, (8, 8, 8), 1).initialise_by_pca(torch.zeros(4, 3, 16, 16))


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("height", [1, 5, 13])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 20])
def test_strips_equal_the_whole(blocks, height, rows):
    torch.manual_seed(0)
    codec = SmallF16Codec(4, (8, 12, 16), blocks)
    for parameter in codec.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    latent = torch.randn(1, 4, height, 3)
    with torch.no_grad():
        whole = codec.decode(latent).sample
        linear = codec.decoder.linear(latent)
    assert (whole - linear).abs().max() > 0.1, "the convolutions contribute, or their halo is not tested"
    strips = codec.decode_in_strips(latent, rows)
    assert strips.shape == whole.shape
    assert (strips - whole).abs().max() <= 1e-4


def test_the_halo_is_needed(codec):
    latent = torch.randn(1, 4, 9, 2, generator=torch.Generator().manual_seed(0))
    whole = codec.decode_in_strips(latent, 9)
    codec.decoder.fine_halo = 0
    assert (codec.decode_in_strips(latent, 3) - whole).abs().max() > 1e-3


def test_saved_codec_loads_from_its_folder(codec, tmp_path):
    codec.register_to_config(scaling_factor=0.5, shift_factor=0.25)
    codec.save_pretrained(tmp_path / "codec")
    loaded = SmallF16Codec.from_pretrained(tmp_path / "codec", local_files_only=True)
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(reconstruct(loaded, image), reconstruct(codec, image))
    assert dict(loaded.config)["scaling_factor"] == 0.5
    assert dict(loaded.config)["shift_factor"] == 0.25
    names = {path.name for path in (tmp_path / "codec").iterdir()}
    assert names == {"config.json", "diffusion_pytorch_model.safetensors"}
