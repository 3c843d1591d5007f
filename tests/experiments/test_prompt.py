"""The command on tiny CLIP and T5 models with real tokenizers, against FluxPipeline's own encoding."""

import json
import shutil
import string
import sys
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from experiments.prompt import TEXT, encode_text, main
from lightning_modules.networks.prompt import read_prompt

TOKENS = 24


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A FLUX.1 folder with text encoders alone, as small as they can be; CLIP's tokenizer in FLUX.1-dev's own files."""
    folder = tmp_path_factory.mktemp("flux")
    torch.manual_seed(0)
    clip_vocabulary(folder / "tokenizer")
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    ids = {"vocab_size": 200, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    CLIPTextModel(CLIPTextConfig(**sizes, **ids)).save_pretrained(folder / "text_encoder")
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -3.0) for letter in string.ascii_letters + string.digits + ".,-"]
    T5Tokenizer(vocab=pieces, extra_ids=0).save_pretrained(folder / "tokenizer_2")
    t5 = T5Config(vocab_size=200, d_model=12, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    T5EncoderModel(t5).save_pretrained(folder / "text_encoder_2")
    return folder


def clip_vocabulary(folder: Path) -> None:
    letters = string.ascii_lowercase + string.digits + ".,-"
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters), "sh", "ar"]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\ns h\na r\n")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize("text", [TEXT, "lawn"])
def test_embeddings_are_those_of_the_flux_pipeline(flux: Path, text: str) -> None:
    pipeline = FluxPipeline(
        scheduler=None,
        vae=None,
        text_encoder=CLIPTextModel.from_pretrained(flux / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(flux / "tokenizer"),
        text_encoder_2=T5EncoderModel.from_pretrained(flux / "text_encoder_2"),
        tokenizer_2=T5Tokenizer.from_pretrained(flux / "tokenizer_2"),
        transformer=None,
    )
    with torch.no_grad():
        prompt, pooled, _ = pipeline.encode_prompt(text, max_sequence_length=TOKENS, device="cpu")
    found = encode_text(flux, text, TOKENS)
    torch.testing.assert_close(found[0], prompt[0])
    torch.testing.assert_close(found[1], pooled[0])
    assert (found[0].shape, found[1].shape) == ((TOKENS, 12), (8,))


def test_another_text_gives_other_embeddings(flux: Path) -> None:
    first, second = encode_text(flux, "lawn", TOKENS), encode_text(flux, "water", TOKENS)
    assert not torch.allclose(first[0], second[0])
    assert not torch.allclose(first[1], second[1])


def test_the_command_writes_the_default_text_for_the_option(
    flux: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "prompt.safetensors"
    monkeypatch.setattr(sys, "argv", ["prompt", str(flux), str(out), "--tokens", str(TOKENS)])
    main()
    expected = encode_text(flux, TEXT, TOKENS)
    assert all(map(torch.equal, read_prompt(out), expected))
    assert f'SET="transformer.prompt={out}"' in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere", "a.safetensors"], "FLUX=nowhere: no text_encoder, tokenizer, text_encoder_2, tokenizer_2 there"),
        (["{flux}", "a.pt"], "OUT=a.pt: expected a file ending in .safetensors"),
        (["{flux}", "a.safetensors", "--text", " "], "TEXT= is empty"),
        (["{flux}", "a.safetensors", "--tokens", "0"], "--tokens=0: expected at least 1"),
    ],
)
def test_wrong_input_ends_in_one_sentence(
    arguments: list[str],
    said: str,
    flux: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("SR_TRACEBACK", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["prompt", *(argument.format(flux=flux) for argument in arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {said}")
    assert not list(tmp_path.iterdir())


def test_encoders_and_tokenizers_that_are_none_are_refused(flux: Path, tmp_path: Path) -> None:
    broken = tmp_path / "flux"
    shutil.copytree(flux, broken)
    weights = broken / "text_encoder_2" / "model.safetensors"
    tensors = load_file(weights)
    missing = next(name for name in tensors if "SelfAttention.q" in name)
    save_file({name: value for name, value in tensors.items() if name != missing}, weights, {"format": "pt"})
    with pytest.raises(ValueError, match=rf"FLUX=.*: 1 tensors of a T5EncoderModel are missing.*{missing}"):
        encode_text(broken, "lawn", TOKENS)
    weights.unlink()
    with pytest.raises(ValueError, match=r"FLUX=.*: no weights of a T5EncoderModel can be read from text_encoder_2"):
        encode_text(broken, "lawn", TOKENS)
    shutil.rmtree(broken / "tokenizer")
    (broken / "tokenizer").mkdir()
    with pytest.raises(ValueError, match=r"FLUX=.*: no tokenizer can be read from tokenizer"):
        encode_text(broken, "lawn", TOKENS)
