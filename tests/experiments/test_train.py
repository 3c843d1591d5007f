"""What a training leaves for other experiments and programs, and how it starts: INIT=, RESUME=, precision, codecs."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel

from callbacks.ema import averaged_weights
from experiments.checkpoints import load_system, read_checkpoint
from experiments.inference import has_bf16
from experiments.options import load_options
from experiments.train import main, precision_of, train
from lightning_modules.networks.codec import load_codec
from lightning_modules.networks.flux import build_flux
from lightning_modules.networks.lora import load_encoder_lora
from lightning_modules.one_step_flux import OneStepFlux

SMALL = ["trainer.accelerator=cpu", "trainer.threads=1", "trainer.panel_images=0", "data.val_count=1"]


def checkpoint(run: Path) -> Path:
    return run / "checkpoints" / "last.ckpt"


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["train", *map(str, arguments)])
    main()


def loaded_student(run: Path) -> OneStepFlux:
    student, _ = load_system(checkpoint(run))
    assert isinstance(student, OneStepFlux)
    return student


def test_a_pretrained_transformer_is_written_with_its_averaged_weights(tiny_flow_run: Path) -> None:
    written = FluxTransformer2DModel.from_pretrained(tiny_flow_run / "transformer", local_files_only=True)
    average = averaged_weights(read_checkpoint(checkpoint(tiny_flow_run)))
    assert average is not None
    assert {f"transformer.{name}" for name, _ in written.named_parameters()} == set(average)
    assert all(torch.equal(value, average[f"transformer.{name}"]) for name, value in written.named_parameters())


def test_a_decoder_is_written_in_its_layout(tiny_decoder_run: Path) -> None:
    average = averaged_weights(read_checkpoint(checkpoint(tiny_decoder_run)))
    assert average is not None
    codec = dict(load_codec(tiny_decoder_run / "codec", "f16").named_parameters())
    assert all(torch.equal(codec[name.removeprefix("codec.")], value) for name, value in average.items())
    with pytest.raises(ValueError, match=r"codec\.layout=f8: .* trained in layout f16"):
        load_codec(tiny_decoder_run / "codec", "f8")


def flux_inputs(student: OneStepFlux) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.zeros(4, 3)
    ids[:, 1:] = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    return {
        "hidden_states": torch.randn(1, 4, student.transformer.config["in_channels"], generator=generator),
        "encoder_hidden_states": student.prompt[None],
        "pooled_projections": student.pooled_prompt[None],
        "timestep": torch.tensor([student.sigma]),
        "img_ids": ids,
        "txt_ids": torch.zeros(student.prompt.shape[0], 3),
        "return_dict": False,
    }


@torch.no_grad()
def test_plain_diffusers_runs_the_adapters(tiny_lora_run: Path, tiny_flow_run: Path) -> None:
    student = loaded_student(tiny_lora_run)
    inputs = flux_inputs(student)
    plain = FluxTransformer2DModel.from_pretrained(tiny_flow_run / "transformer", local_files_only=True)
    (base,) = plain(**inputs)
    plain.load_lora_adapter(tiny_lora_run / "lora", use_safetensors=True)
    (adapted,), (expected,) = plain(**inputs), student.transformer(**inputs)
    torch.testing.assert_close(adapted, expected, rtol=1e-4, atol=1e-6)
    assert (base - expected).abs().max() > 100 * (adapted - expected).abs().max()
    assert (base - expected).abs().max() > 1e-4


@torch.no_grad()
def test_the_encoders_adapters_are_read_back(tiny_lora_run: Path, tiny_codec_run: Path) -> None:
    student, image = loaded_student(tiny_lora_run), torch.rand(1, 3, 64, 64)
    codec = load_codec(tiny_codec_run / "codec", "f16")
    before = codec.encode(image)
    load_encoder_lora(codec.encoder, tiny_lora_run / "lora")
    torch.testing.assert_close(codec.encode(image), student.codec.encode(image))
    assert (codec.encode(image) - before).abs().max() > 1e-4


def test_auto_is_bf16_where_the_machine_computes_in_it(bases: Callable[[str], list[str]]) -> None:
    def precision(*overrides: str) -> str:
        given = [*bases("op4ksr/mini_lora"), "trainer.accelerator=cpu", *overrides]
        return precision_of(load_options("op4ksr/mini_lora", given, tiny=True))

    assert precision() == ("bf16-mixed" if has_bf16(torch.device("cpu")) else "32-true")
    assert precision("trainer.precision=32-true") == "32-true"
    assert precision("trainer.precision=bf16-mixed") == "bf16-mixed"
    assert precision("transformer.dtype=bfloat16") == "bf16-mixed", "a bf16 base runs under autocast alone"


def test_a_bf16_base_trains_its_adapters_in_fp32(bases: Callable[[str], list[str]], tmp_path: Path) -> None:
    shrink = ["transformer.dtype=bfloat16", "trainer.steps=1", "data.batch_size=1", "optimizer.warmup_steps=0"]
    options = load_options("op4ksr/mini_lora", [*bases("op4ksr/mini_lora"), *SMALL, *shrink, f"runs={tmp_path}"], True)
    contents = read_checkpoint(checkpoint(train(options)))
    assert {value.dtype for value in contents["state_dict"].values()} == {torch.float32}
    moved = [name for name, value in contents["state_dict"].items() if ".lora_B." in name and value.abs().sum() > 0]
    assert any(name.startswith("transformer.") for name in moved)
    student, _ = load_system(checkpoint(tmp_path / "op4ksr" / "mini_lora-tiny"))
    assert {p.dtype for n, p in student.named_parameters() if "transformer" in n} == {torch.float32, torch.bfloat16}


def test_an_adversary_starts_beside_weights_trained_without_one(
    tiny_lora_run: Path, bases: Callable[[str], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    still = ["optimizer.learning_rate=1e-12", "trainer.steps=1", "data.batch_size=1", f"runs={tmp_path}"]
    given = [*bases("op4ksr/mini_gan"), *SMALL, *still]
    command(monkeypatch, "op4ksr/mini_gan", *given, "--tiny", "--init", checkpoint(tiny_lora_run))
    started = read_checkpoint(checkpoint(tmp_path / "op4ksr" / "mini_gan-tiny"))["state_dict"]
    average = averaged_weights(read_checkpoint(checkpoint(tiny_lora_run)))
    assert average is not None
    for name, value in average.items():
        torch.testing.assert_close(started[name], value, rtol=0, atol=1e-9, msg=name)
    assert any(name.startswith("adversary.") for name in set(started) - set(average))


def test_both_optimisers_go_on_where_they_stopped(
    tiny_gan_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_gan_run, tmp_path / "run")
    before = read_checkpoint(checkpoint(tmp_path / "run"))
    command(monkeypatch, "--resume", checkpoint(tmp_path / "run"), "trainer.steps=3")
    after = read_checkpoint(checkpoint(tmp_path / "run"))
    assert (before["global_step"], after["global_step"]) == (2, 3)
    for old, new in zip(before["optimizer_states"], after["optimizer_states"], strict=True):
        assert {int(state["step"]) for state in new["state"].values()} == {3}
        assert old["state"].keys() == new["state"].keys()
    assert len(after["optimizer_states"]) == 2


def test_adapters_train_through_taef1(shared: Path, tmp_path: Path) -> None:
    """A codec with 8 px per cell and 16 channels, as published; a token covers 16 px."""
    transformer = build_flux(16, double_blocks=1, single_blocks=1, heads=1, prompt_width=64)
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.02, generator=torch.Generator().manual_seed(0))
    transformer.save_pretrained(tmp_path / "transformer")  # with its zeros no adapter before them would learn
    paths = [f"codec.path={shared / 'weights' / 'taef1'}", "codec.layout=f8"]
    paths += [f"transformer.path={tmp_path / 'transformer'}", f"runs={tmp_path}"]
    sizes = ["data.crop=96", "data.val_crop=96", "optimizer.warmup_steps=0"]
    run = train(load_options("op4ksr/mini_lora", [*SMALL, *paths, *sizes], tiny=True))
    state = read_checkpoint(checkpoint(run))["state_dict"]
    learnt = {name.split(".")[0] for name, value in state.items() if ".lora_B." in name and value.abs().sum() > 0}
    assert learnt == {"codec", "transformer"}
    written = {path.name for path in (run / "lora").iterdir()}
    assert {"encoder_lora.safetensors", "pytorch_lora_weights.safetensors"} <= written
    student = loaded_student(run)
    assert student.token_pitch == 16
    assert student.upscale(torch.rand(1, 3, 9, 17)).shape == (1, 3, 36, 68)
