import os
import tempfile
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from omegaconf import OmegaConf

from experiments.build import build_system
from experiments.checkpoints import (
    OPTIONS_KEY,
    AtomicCheckpoints,
    load_system,
    load_weights,
    options_of,
    read_checkpoint,
)
from experiments.train import train


def checkpoint_of(run: Path) -> Path:
    return run / "checkpoints" / "last.ckpt"


def test_a_missing_checkpoint_names_variable_and_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"INIT=.*no\.ckpt: no such file; training writes"):
        read_checkpoint(tmp_path / "no.ckpt", "INIT")
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 no zip", b"\x80\x04N."])
def test_a_file_that_is_no_checkpoint_is_refused(content, tmp_path):
    path = tmp_path / "text.ckpt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"CKPT=.*text\.ckpt: not a "):
        read_checkpoint(path)


def test_a_truncated_checkpoint_is_refused(tiny_student_run, tmp_path):
    whole = checkpoint_of(tiny_student_run).read_bytes()
    path = tmp_path / "half.ckpt"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        read_checkpoint(path)


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_nothing_in_a_checkpoint_is_executed(tmp_path):
    torch.save({"options_yaml": Harmful(tmp_path / "executed")}, tmp_path / "harm.ckpt")
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        read_checkpoint(tmp_path / "harm.ckpt")
    assert not (tmp_path / "executed").exists()


def test_a_checkpoint_of_another_project_says_what_it_holds(tmp_path):
    torch.save({"params_ema": {}, "iter": 3}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="not a checkpoint of this project; it holds params_ema, iter"):
        read_checkpoint(tmp_path / "other.ckpt")


def test_a_checkpoint_of_another_system_is_refused(tiny_codec_run, tiny_student_run):
    student = read_checkpoint(checkpoint_of(tiny_student_run))
    codec_system = build_system(options_of(read_checkpoint(checkpoint_of(tiny_codec_run)), "codec"))
    with pytest.raises(ValueError, match=r"does not fit the model: \d+ trainable tensors are missing .*codec\..*INIT="):
        load_weights(codec_system, student, averaged=True)


def test_other_shapes_are_refused(tiny_student_run):
    path = checkpoint_of(tiny_student_run)
    with pytest.raises(ValueError, match=r"tensor transformer\.\S+ has shape .* in the checkpoint and .* in the model"):
        load_system(path, ["transformer.prompt_width=32"])


def test_resuming_with_other_shapes_is_refused_with_a_sentence(tiny_student_run):
    path = checkpoint_of(tiny_student_run)
    options = options_of(read_checkpoint(path), path, ["transformer.prompt_width=32", "trainer.steps=3"])
    with pytest.raises(ValueError, match=r"has shape .* in the checkpoint and .* in the model"):
        train(options, resume=str(path))


def test_another_codec_below_the_student_is_refused(tiny_student_run, tmp_path):
    path = checkpoint_of(tiny_student_run)
    system, _ = load_system(path)
    with torch.no_grad():
        system.codec.decoder.linear.bias += 0.01
    system.codec.save_pretrained(tmp_path / "codec")
    with pytest.raises(ValueError, match=r"frozen base .* is not the one .* point codec\.path"):
        load_system(path, [f"codec.path={tmp_path / 'codec'}"])


def test_a_loaded_system_has_the_averaged_weights_and_no_gradient(tiny_student_run):
    path = checkpoint_of(tiny_student_run)
    system, options = load_system(path)
    checkpoint = torch.load(path, weights_only=True)
    shadow = checkpoint["callbacks"]["Ema"]["shadow"]
    parameters = dict(system.named_parameters())
    assert all(torch.equal(parameters[name], value) for name, value in shadow.items())
    assert any(not torch.equal(checkpoint["state_dict"][name], value) for name, value in shadow.items())
    assert not system.training
    assert not any(p.requires_grad for p in system.parameters())
    assert options.name == checkpoint_options(tiny_student_run).name


def test_inference_needs_neither_the_adversary_nor_its_backbone(tiny_gan_run, tmp_path):
    """Nor any other file that only a loss read."""
    checkpoint = read_checkpoint(checkpoint_of(tiny_gan_run))
    options = OmegaConf.create(checkpoint[OPTIONS_KEY])
    options.adversary.weights, options.dists.weights, options.losses.dists.weight = "/gone/dino", "/gone/dino", 1.0
    checkpoint[OPTIONS_KEY] = OmegaConf.to_yaml(options)
    torch.save(checkpoint, tmp_path / "last.ckpt")
    system, _ = load_system(tmp_path / "last.ckpt")
    assert system.adversary is None
    assert any(name.startswith("adversary.") for name in checkpoint["state_dict"])
    shadow, parameters = checkpoint["callbacks"]["Ema"]["shadow"], dict(system.named_parameters())
    assert all(torch.equal(parameters[name], value) for name, value in shadow.items())


def test_another_transformer_below_the_adapters_is_refused(tiny_lora_run, tiny_flow_run, tmp_path):
    other = FluxTransformer2DModel.from_pretrained(tiny_flow_run / "transformer", local_files_only=True)
    with torch.no_grad():
        other.proj_out.bias += 0.01
    other.save_pretrained(tmp_path / "transformer")
    with pytest.raises(ValueError, match=r"frozen base .* is not the one .* transformer\.path"):
        load_system(checkpoint_of(tiny_lora_run), [f"transformer.path={tmp_path / 'transformer'}"])


def checkpoint_options(run):
    return options_of(read_checkpoint(checkpoint_of(run)), run)


def test_the_codec_folder_is_the_averaged_codec(tiny_codec_run):
    system, _ = load_system(checkpoint_of(tiny_codec_run))
    saved = type(system.codec).from_pretrained(tiny_codec_run / "codec", local_files_only=True)
    loaded = system.codec.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in saved.state_dict().items())


def test_an_interrupted_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path, writer = tmp_path / "run" / "last.ckpt", AtomicCheckpoints()
    writer.save_checkpoint({"step": 1, "weights": torch.zeros(1000)}, path)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        writer.save_checkpoint({"step": 2, "weights": torch.zeros(1000)}, path)
    monkeypatch.undo()
    assert torch.load(path)["step"] == 1
    writer.save_checkpoint({"step": 3}, path)
    assert torch.load(path)["step"] == 3
    assert [entry.name for entry in path.parent.iterdir()] == ["last.ckpt"]


def test_a_checkpoint_never_passes_through_another_file_system(tmp_path, monkeypatch):
    """Lightning's writer uses the temporary folder, from which a move can be a copy; here there is none."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    AtomicCheckpoints().save_checkpoint({"step": 1}, tmp_path / "last.ckpt")
    assert torch.load(tmp_path / "last.ckpt") == {"step": 1}
