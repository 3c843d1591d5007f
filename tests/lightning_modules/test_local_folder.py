import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from lightning_modules.networks.local_folder import load_whole
from lightning_modules.networks.small_codec import SmallF16Codec

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    SmallF16Codec(4, (4, 4, 4), 1).save_pretrained(tmp_path)
    return tmp_path


def test_missing_tensors_are_an_error_and_not_random_weights(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors.pop("decoder.conv_in.bias")
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(ValueError, match=r"codec\.path=.*1 tensors.*decoder\.conv_in\.bias"):
        load_whole(SmallF16Codec, folder, "codec.path")


def test_another_models_folder_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"_class_name": "AutoencoderTiny", "block_out_channels": [8, 8]}))
    with pytest.raises(ValueError, match=r"codec\.path="):
        load_whole(SmallF16Codec, folder, "codec.path")


@pytest.mark.parametrize("content", [None, b"not safetensors"])
def test_missing_or_broken_weights_are_named(folder: Path, content: bytes | None) -> None:
    (folder / WEIGHTS).unlink()
    if content is not None:
        (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(ValueError, match=r"codec\.path=.*can be read there"):
        load_whole(SmallF16Codec, folder, "codec.path")
