from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lightning_modules.networks.prompt import read_prompt, write_prompt


def embeddings(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(5, 8, generator=generator).to(dtype), torch.randn(6, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_written_is_read(tmp_path: Path, dtype: torch.dtype) -> None:
    prompt, pooled = embeddings(dtype)
    write_prompt(tmp_path / "new" / "prompt.safetensors", prompt, pooled)
    found = read_prompt(tmp_path / "new" / "prompt.safetensors")
    assert torch.equal(found[0], prompt.float())
    assert torch.equal(found[1], pooled.float())
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["prompt.safetensors"]


def test_a_batch_axis_of_one_is_taken_off(tmp_path: Path) -> None:
    prompt, pooled = embeddings()
    save_file({"prompt_embeds": prompt[None], "pooled_prompt_embeds": pooled[None]}, tmp_path / "a.safetensors")
    found = read_prompt(tmp_path / "a.safetensors")
    assert torch.equal(found[0], prompt)
    assert torch.equal(found[1], pooled)


def test_a_prompt_of_one_token_keeps_its_axis(tmp_path: Path) -> None:
    prompt, pooled = embeddings()
    write_prompt(tmp_path / "a.safetensors", prompt[:1], pooled)
    assert read_prompt(tmp_path / "a.safetensors")[0].shape == (1, 8)


PROMPT, POOLED = embeddings()


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"prompt_embeds": PROMPT}, "it holds prompt_embeds, but no pooled_prompt_embeds"),
        ({"t5": PROMPT, "pooled_prompt_embeds": POOLED}, "it holds pooled_prompt_embeds, t5, but no prompt_embeds"),
        (
            {"prompt_embeds": PROMPT.expand(2, -1, -1).clone(), "pooled_prompt_embeds": POOLED},
            r"prompt_embeds is torch.float32 of shape \(2, 5, 8\); expected .* \(tokens, channels\), for one prompt",
        ),
        (
            {"prompt_embeds": PROMPT, "pooled_prompt_embeds": PROMPT + 1},
            r"pooled_prompt_embeds is .*\(5, 8\); expected .* \(channels,\)",
        ),
        ({"prompt_embeds": PROMPT.int(), "pooled_prompt_embeds": POOLED}, "is torch.int32 of shape"),
        ({"prompt_embeds": PROMPT[:0], "pooled_prompt_embeds": POOLED}, r"of shape \(0, 8\)"),
        ({"prompt_embeds": PROMPT / 0, "pooled_prompt_embeds": POOLED}, "values that are not finite"),
    ],
)
def test_a_wrong_file_says_what_it_holds(tmp_path: Path, tensors: dict[str, torch.Tensor], said: str) -> None:
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=said) as error:
        read_prompt(tmp_path / "a.safetensors")
    assert str(error.value).startswith("transformer.prompt=")


def test_no_file_and_no_safetensors_name_the_option(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"transformer\.prompt=.*no such file"):
        read_prompt(tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").write_text("no tensors")
    with pytest.raises(ValueError, match=r"transformer\.prompt=.*not a readable safetensors file"):
        read_prompt(tmp_path / "a.safetensors")
