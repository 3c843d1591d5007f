import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from PIL import Image
from safetensors.torch import load_file, save_file

from lightning_modules.networks.codec import Codec, codec_cell, load_codec
from lightning_modules.networks.f16_vae import build_flux_vae, is_f16, to_f16
from lightning_modules.networks.small_codec import SmallF16Codec

WEIGHTS = "diffusion_pytorch_model.safetensors"


def small_f16() -> SmallF16Codec:
    model = SmallF16Codec(4, (8, 8, 8), 1, scaling_factor=0.5, shift_factor=0.25)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def kl_f8() -> AutoencoderKL:
    return build_flux_vae((8, 8, 8, 16), layers_per_block=1, norm_groups=4, latent_channels=4)


def kl_f16() -> AutoencoderKL:
    return to_f16(kl_f8())


def tiny() -> AutoencoderTiny:
    widths = (8, 8, 8, 8)
    return AutoencoderTiny(encoder_block_out_channels=widths, decoder_block_out_channels=widths, latent_channels=4)


MODELS: list[tuple[Callable[[], torch.nn.Module], int, str]] = [
    (small_f16, 16, "f16"),
    (kl_f8, 8, "f8"),
    (kl_f16, 16, "f16"),
    (tiny, 8, "f8"),
]
every_model = pytest.mark.parametrize(
    ("build", "cell", "layout"), MODELS, ids=lambda value: getattr(value, "__name__", "")
)


def build_codec(build: Callable[[], torch.nn.Module]) -> Codec:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Codec(build())


def photo(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(seed))


def encode_by_hand(model: torch.nn.Module, image: torch.Tensor) -> torch.Tensor:
    if isinstance(model, AutoencoderTiny):
        return model.encoder.layers(image)
    latent = model.encode(2 * image - 1).latent_dist.mode()
    return (latent - model.config["shift_factor"]) * model.config["scaling_factor"]


def decode_by_hand(model: torch.nn.Module, latent: torch.Tensor) -> torch.Tensor:
    if isinstance(model, AutoencoderTiny):
        return model.decoder.layers(3 * torch.tanh(latent / 3))
    raw = latent / model.config["scaling_factor"] + model.config["shift_factor"]
    return (model.decode(raw).sample + 1) / 2


@every_model
@torch.no_grad()
def test_latents_and_images_are_the_models_own(build, cell: int, layout: str) -> None:
    codec, image = build_codec(build), photo(64, 96)
    assert (codec.cell, codec.latent_channels) == (cell, 4)
    assert codec.encoder is codec.model.encoder
    assert codec.decoder is codec.model.decoder
    latent = codec.encode(image)
    assert latent.shape == (1, 4, 64 // cell, 96 // cell)
    torch.testing.assert_close(latent, encode_by_hand(codec.model, image))
    torch.testing.assert_close(codec.decode(latent), decode_by_hand(codec.model, latent))
    assert codec.decode(latent).shape == image.shape


@every_model
@torch.no_grad()
def test_strips_change_nothing(build, cell: int, layout: str) -> None:
    codec, image = build_codec(build), photo(80, 48)
    latent = codec.encode(image)
    torch.testing.assert_close(codec.encode(image, strip_rows=2), latent, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(codec.decode(latent, strip_rows=2), codec.decode(latent), atol=1e-5, rtol=1e-4)


@every_model
def test_checkpointing_keeps_values_and_gradients(build, cell: int, layout: str) -> None:
    results = []
    for checkpointed in (False, True):
        codec, image = build_codec(build), photo(32, 32).requires_grad_(True)
        if checkpointed:
            codec.enable_gradient_checkpointing()
        out = codec.decode(codec.encode(image))
        out.square().mean().backward()
        results.append([out.detach(), image.grad, *[p.grad for p in codec.parameters() if p.grad is not None]])
    assert len(results[0]) == len(results[1]) > 10
    for plain, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(recomputed, plain, atol=1e-7, rtol=1e-5)


@every_model
def test_a_saved_codec_comes_back(build, cell: int, layout: str, tmp_path: Path) -> None:
    codec, image = build_codec(build), photo(32, 48)
    codec.save_pretrained(tmp_path)
    assert codec_cell(tmp_path, layout) == cell
    loaded = load_codec(tmp_path, layout)
    assert is_f16(loaded.model) == is_f16(codec.model)
    with torch.no_grad():
        assert torch.equal(loaded.encode(image), codec.encode(image))
        assert torch.equal(loaded.decode(loaded.encode(image)), codec.decode(codec.encode(image)))


@every_model
def test_other_sides_are_refused(build, cell: int, layout: str) -> None:
    with pytest.raises(ValueError, match=rf"{cell} x {cell + 4} px.*multiple of its cell of {cell} px.*data\.crop"):
        build_codec(build).encode(photo(cell, cell + 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_f8_weights_run_in_either_layout_in_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    build_codec(kl_f8).model.to(dtype).save_pretrained(tmp_path)
    f8, f16 = load_codec(tmp_path, "f8"), load_codec(tmp_path, "f16")
    assert (f8.cell, f16.cell) == (8, 16) == (codec_cell(tmp_path, "f8"), codec_cell(tmp_path, "f16"))
    assert {p.dtype for p in f16.parameters()} == {torch.float32}
    assert all(torch.equal(a, b) for a, b in zip(f8.parameters(), f16.parameters(), strict=True))


def test_weights_trained_at_f16_do_not_run_at_f8(tmp_path: Path) -> None:
    build_codec(kl_f16).save_pretrained(tmp_path)
    for read in (load_codec, codec_cell):
        with pytest.raises(
            ValueError, match=r"codec\.layout=f8: the weights at codec\.path=.* in layout f16.*=f16"
        ) as told:
            read(tmp_path, "f8")
        assert "decoder_training.scale_consistency=0" in str(told.value), "the way out of an f16_decoder's teacher"


def test_a_missing_shift_is_zero() -> None:
    codec = build_codec(kl_f8)
    codec.model.register_to_config(shift_factor=None)
    with torch.no_grad():
        latent = codec.model.encode(photo(16, 16) * 2 - 1).latent_dist.mode() * 0.3611
        torch.testing.assert_close(codec.encode(photo(16, 16)), latent)


def drop_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors.pop("decoder.conv_in.bias")
    save_file(tensors, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (drop_a_tensor, r"codec\.path=.*decoder\.conv_in\.bias"),
        (lambda folder: (folder / "config.json").unlink(), r"codec\.path=.*no config\.json there; expected the folder"),
        (lambda folder: (folder / "config.json").write_text("{"), r"codec\.path=.*names no class"),
        (lambda folder: (folder / "config.json").write_text("[]"), r"codec\.path=.*names no class"),
        (
            lambda folder: (folder / "config.json").write_text(json.dumps({"_class_name": "VQModel"})),
            r"codec\.path=.*found a VQModel; expected one of SmallF16Codec, AutoencoderKL",
        ),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(spoil, message: str, tmp_path: Path) -> None:
    build_codec(kl_f8).save_pretrained(tmp_path)
    spoil(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_codec(tmp_path, "f8")


def test_an_unknown_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"codec\.layout='f32': expected one of f8, f16"):
        codec_cell(tmp_path, "f32")


def write_as_taesd(model: AutoencoderTiny, folder: Path) -> None:
    """The two files as TAESD's author names and numbers them."""
    for part, first in (("encoder", 0), ("decoder", 1)):
        state = getattr(model, part).layers.state_dict()
        renumbered = {f"{int(name.split('.')[0]) + first}.{name.split('.', 1)[1]}": v for name, v in state.items()}
        save_file(renumbered, folder / f"taef1_{part}.safetensors")


def test_files_in_taesds_own_naming_load(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoencoderTiny(latent_channels=6)
    write_as_taesd(model, tmp_path)
    state = torch.get_rng_state()
    codec = load_codec(tmp_path, "f16")
    assert torch.equal(torch.get_rng_state(), state), "loading draws nothing"
    assert (codec.cell, codec.latent_channels) == (8, 6)
    assert codec_cell(tmp_path, "f16") == 8
    assert all(torch.equal(value, codec.model.state_dict()[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad and p.device.type == "cpu" for p in codec.parameters())


def test_a_tensor_missing_in_taesds_files_is_named(tmp_path: Path) -> None:
    write_as_taesd(tiny_of_public_widths(), tmp_path)
    tensors = load_file(tmp_path / "taef1_encoder.safetensors")
    tensors.pop("0.bias")
    save_file(tensors, tmp_path / "taef1_encoder.safetensors")
    with pytest.raises(ValueError, match=r"codec\.path=.*no weights of a TAEF1.*encoder\.layers\.0\.bias"):
        load_codec(tmp_path, "f8")
    (tmp_path / "taef1_encoder.safetensors").write_bytes(b"no safetensors")
    with pytest.raises(ValueError, match=r"codec\.path=.*no weights of a TAEF1"):
        load_codec(tmp_path, "f8")


def tiny_of_public_widths() -> AutoencoderTiny:
    with torch.random.fork_rng():
        return AutoencoderTiny(latent_channels=4)


@torch.no_grad()
def test_the_real_taef1_reconstructs_set5(shared: Path, tmp_path: Path) -> None:
    """24-31 dB (RGB) is what this autoencoder gives on photographs; wrong numbering or scaling gives far less."""
    codec = load_codec(shared / "weights" / "taef1", "f8")
    assert (codec.cell, codec.latent_channels) == (8, 16)
    images = np.stack([centre(path, 192) for path in sorted((shared / "set5" / "HR").glob("*.png"))])
    latent = codec.encode(torch.from_numpy(images).permute(0, 3, 1, 2))
    found = codec.decode(latent).permute(0, 2, 3, 1).clamp(0, 1).numpy()
    values = -10 * np.log10(np.square(found - images).mean(axis=(1, 2, 3)))
    assert len(values) == 5
    assert values.mean() >= 24, values
    assert values.min() >= 22, values
    assert 0.5 < latent.std() < 1.5, "FLUX's normalised latents"

    codec.save_pretrained(tmp_path)
    image = photo(32, 32)
    torch.testing.assert_close(load_codec(tmp_path, "f8").encode(image), codec.encode(image))


def centre(path: Path, side: int) -> np.ndarray:
    pixels = np.asarray(Image.open(path).convert("RGB"), dtype=np.float32) / 255
    top, left = ((length - side) // 2 for length in pixels.shape[:2])
    return pixels[top : top + side, left : left + side]


def test_a_folder_with_two_decoders_is_ambiguous(tmp_path: Path) -> None:
    write_as_taesd(tiny_of_public_widths(), tmp_path)
    shutil.copy(tmp_path / "taef1_decoder.safetensors", tmp_path / "other_decoder.safetensors")
    with pytest.raises(FileNotFoundError, match=r"codec\.path=.*taef1_encoder\.safetensors"):
        codec_cell(tmp_path, "f8")
