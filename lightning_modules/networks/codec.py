"""One face for every image codec: the small F16 one, diffusers' AutoencoderKL (F8 or F16 layout), AutoencoderTiny."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_modules.networks.f16_vae import decode_in_strips, is_f16, to_f16
from lightning_modules.networks.local_folder import load_whole, reason_of
from lightning_modules.networks.small_codec import PATCH, SmallF16Codec

LAYOUTS = ("f8", "f16")
"""Layouts in which the weights of an AutoencoderKL can be run; the other codecs have one of their own."""

_CLASSES = {kind.__name__: kind for kind in (SmallF16Codec, AutoencoderKL, AutoencoderTiny)}


class Codec(nn.Module):
    """Images to normalised latents and back: z = (mode - shift) * scale, image = decode(z / scale + shift).

    model: a SmallF16Codec, an AutoencoderKL in either layout or an AutoencoderTiny. cell: pixels per latent cell along
    each side. Scale and shift are those of the model's config; a missing shift is 0.
    """

    def __init__(self, model: SmallF16Codec | AutoencoderKL | AutoencoderTiny) -> None:
        super().__init__()
        self.model = model
        self.cell = _cell(type(model).__name__, model.config, f16=is_f16(model))
        self.latent_channels: int = model.config["latent_channels"]
        self._checkpoint_tiny_encoder = False

    @property
    def encoder(self) -> nn.Module:
        return self.model.encoder

    @property
    def decoder(self) -> nn.Module:
        return self.model.decoder

    def encode(self, image: Tensor, strip_rows: int = 0) -> Tensor:
        """Normalised latent (B,C,H/cell,W/cell) of an image (B,3,H,W) in [0,1]; ValueError for other sides.

        strip_rows: latent rows per strip, for the same latent in less memory but without a gradient, where the model
        can do so (SmallF16Codec); else, and with 0, in one piece.
        """
        if image.shape[-2] % self.cell or image.shape[-1] % self.cell:
            raise ValueError(
                f"found an image of {image.shape[-2]} x {image.shape[-1]} px; the codec takes sides that are a "
                f"multiple of its cell of {self.cell} px: change data.crop and data.val_crop, or pad the image"
            )
        latent = self._mode(image * 2 - 1, strip_rows)
        scale, shift = self._statistics()
        return (latent - shift) * scale

    def decode(self, latent: Tensor, strip_rows: int = 0) -> Tensor:
        """The inverse of `encode`: (B,C,h,w) -> image (B,3,h*cell,w*cell), unclamped.

        strip_rows: as in `encode`; SmallF16Codec and the F16 layout can do so, exactly.
        """
        scale, shift = self._statistics()
        latent = latent / scale + shift
        if strip_rows and isinstance(self.model, SmallF16Codec):
            image = self.model.decode_in_strips(latent, strip_rows)
        elif strip_rows and is_f16(self.model):
            image = decode_in_strips(self.model, latent, strip_rows)
        else:
            image = self.model.decode(latent).sample
        return image / 2 + 0.5

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass; a SmallF16Codec has few and keeps them."""
        if isinstance(self.model, SmallF16Codec):
            return
        self.model.enable_gradient_checkpointing()
        if isinstance(self.model, AutoencoderTiny):
            # diffusers 0.42's checkpointed EncoderTiny leaves out its map from [-1,1] to [0,1]
            self.model.encoder.gradient_checkpointing = False
            self._checkpoint_tiny_encoder = True

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and safetensors; `load_codec` reads them."""
        self.model.save_pretrained(folder)

    def _mode(self, image: Tensor, strip_rows: int) -> Tensor:
        """Latent of an image in [-1,1] as the model's own `decode` takes it."""
        if isinstance(self.model, AutoencoderTiny):
            if self._checkpoint_tiny_encoder and torch.is_grad_enabled():
                return checkpoint(self.model.encoder, image, use_reentrant=False)
            return self.model.encode(image).latents
        if strip_rows and isinstance(self.model, SmallF16Codec):
            return self.model.encode_in_strips(image, strip_rows)
        return self.model.encode(image).latent_dist.mode()

    def _statistics(self) -> tuple[float, float]:
        config = self.model.config
        return config["scaling_factor"], config["shift_factor"] or 0.0


def load_codec(folder: str | Path, layout: str) -> Codec:
    """The codec of a local folder, float32: config.json and safetensors, or the two files of TAEF1 as published.

    layout: "f8" or "f16", how an AutoencoderKL is run, so that FLUX's F8 weights can be used at F16; ignored for other
    codecs. Raises FileNotFoundError or ValueError that name codec.path or codec.layout.
    """
    name, config = _describe(Path(folder), layout)
    if not config:
        return Codec(_load_taesd(Path(folder)))
    model = load_whole(_CLASSES[name], folder, "codec.path")
    return Codec(to_f16(model) if isinstance(model, AutoencoderKL) and layout == "f16" else model)


def codec_cell(folder: str | Path, layout: str) -> int:
    """Pixels per latent cell of the codec in a local folder, without reading its weights; errors as `load_codec`'s."""
    name, config = _describe(Path(folder), layout)
    return _cell(name, config, f16=layout == "f16")


def _cell(name: str, config: Mapping[str, Any], f16: bool) -> int:
    if name == "SmallF16Codec":
        return PATCH
    if name == "AutoencoderTiny":
        return 2 ** (len(config.get("encoder_block_out_channels", (64,) * 4)) - 1)
    return 2 ** (len(config["block_out_channels"]) - 1 + f16)


def _describe(folder: Path, layout: str) -> tuple[str, dict[str, Any]]:
    """Class name and config of the codec in a folder; the config is empty for TAEF1 as published."""
    if layout not in LAYOUTS:
        raise ValueError(f"codec.layout={layout!r}: expected one of {', '.join(LAYOUTS)}")
    if not (folder / "config.json").is_file():
        _taesd_files(folder)
        return "AutoencoderTiny", {}
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        name = config["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"codec.path={folder}: its config.json names no class, so it describes no model") from error
    if name not in _CLASSES:
        raise ValueError(f"codec.path={folder}: found a {name}; expected one of {', '.join(_CLASSES)}")
    if layout != config.get("layout", layout):
        raise ValueError(
            f"codec.layout={layout}: the weights at codec.path={folder} were trained in layout {config['layout']}; "
            f"set codec.layout={config['layout']}, or, where f16_decoder wants them as its F8 teacher, "
            "decoder_training.scale_consistency=0"
        )
    return name, config


def _taesd_files(folder: Path) -> tuple[Path, Path]:
    """The encoder's and the decoder's file, as TAESD's author publishes them (taef1_encoder.safetensors, ...)."""
    found = [sorted(folder.glob(f"*{part}.safetensors")) for part in ("encoder", "decoder")]
    if any(len(files) != 1 for files in found):
        raise FileNotFoundError(
            f"codec.path={folder}: no config.json there; expected the folder of a codec "
            "(`make train EXP=f16_vae/small` writes one to runs/f16_vae/small/codec) or of TAEF1 "
            "(taef1_encoder.safetensors and taef1_decoder.safetensors)"
        )
    return found[0][0], found[1][0]


def _load_taesd(folder: Path) -> AutoencoderTiny:
    """TAESD's own two files as diffusers' AutoencoderTiny, float32, scaling 1 and shift 0.

    Both number the layers; the decoder's numbers start at the clamp, which diffusers writes as a formula.
    """
    try:
        encoder, decoder = (load_file(file) for file in _taesd_files(folder))
        tensors = {f"encoder.layers.{name}": value.float() for name, value in encoder.items()}
        for name, value in decoder.items():
            layer, rest = name.split(".", 1)
            tensors[f"decoder.layers.{int(layer) - 1}.{rest}"] = value.float()
        with torch.device("meta"):  # draws no random weights
            model = AutoencoderTiny(latent_channels=decoder["1.weight"].shape[1])
        model.load_state_dict(tensors, assign=True)
    except (SafetensorError, RuntimeError, ValueError, KeyError) as error:
        raise ValueError(f"codec.path={folder}: no weights of a TAEF1 can be read there: {reason_of(error)}") from error
    return model.eval()
