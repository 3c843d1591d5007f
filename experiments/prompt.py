"""Encode the fixed prompt with FLUX's text encoders: `python -m experiments.prompt FLUX OUT` (make prompt FLUX= OUT=).

The file that it writes is the option transformer.prompt; neither encoder is needed after that.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.command_line import quiet, user_errors
from lightning_modules.networks.prompt import write_prompt

TEXT = "A high-resolution, 8K, ultra-realistic image with sharp focus, vibrant colors, and natural lighting."
"""S3Diff's positive prompt (arXiv 2409.17058), which OMGSR takes over."""

TOKENS = 512
"""Length to which FLUX.1-dev pads T5's tokens."""

PARTS = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")


def encode_text(folder: str | Path, text: str, tokens: int = TOKENS) -> tuple[Tensor, Tensor]:
    """T5's embeddings (tokens, D) and CLIP's pooled one (P,) of a text, float32, as FluxPipeline.encode_prompt's.

    folder: local FLUX.1 in diffusers format with the four folders of PARTS; the encoders are loaded one after the
    other in their stored precision. Longer texts are cut. FileNotFoundError or ValueError name FLUX=, TEXT= or tokens.
    """
    from transformers import CLIPTextModel, T5EncoderModel

    check_folder(Path(folder))
    if not text.strip():
        raise ValueError("TEXT= is empty; expected a prompt, or leave it out for the default")
    if tokens < 1:
        raise ValueError(f"--tokens={tokens}: expected at least 1")
    with torch.no_grad():
        clip_ids = token_ids(folder, "tokenizer", text)
        pooled = load_encoder(CLIPTextModel, folder, "text_encoder")(clip_ids).pooler_output[0].float()
        t5_ids = token_ids(folder, "tokenizer_2", text, tokens)
        # no attention mask: Flux was trained with the padding's embeddings in place
        prompt = load_encoder(T5EncoderModel, folder, "text_encoder_2")(t5_ids).last_hidden_state[0].float()
    return prompt, pooled


def check_folder(folder: Path) -> None:
    """FileNotFoundError naming FLUX= where one of the four parts is not there."""
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if missing:
        raise FileNotFoundError(
            f"FLUX={folder}: no {', '.join(missing)} there; expected a local folder of FLUX.1 in diffusers format with "
            f"{', '.join(PARTS)}"
        )


def token_ids(folder: str | Path, part: str, text: str, length: int | None = None) -> Tensor:
    """Ids (1, length) of a text, padded or cut; `length` None is the tokenizer's own."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(Path(folder) / part, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"FLUX={folder}: no tokenizer can be read from {part}: {_first_line(error)}") from error
    ids: Tensor = tokenizer(
        text, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids
    return ids


def load_encoder(kind: Any, folder: str | Path, part: str) -> Any:
    """A text encoder of the class `kind`, all of its tensors or none; transformers alone only warns of missing ones."""
    try:
        model, info = kind.from_pretrained(
            Path(folder) / part, local_files_only=True, use_safetensors=True, dtype="auto", output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"FLUX={folder}: no weights of a {kind.__name__} can be read from {part}: {_first_line(error)}"
        ) from error
    if info["missing_keys"]:
        raise ValueError(
            f"FLUX={folder}: {len(info['missing_keys'])} tensors of a {kind.__name__} are missing from {part}, "
            f"{sorted(info['missing_keys'])[0]} among them"
        )
    return model.eval()


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the embeddings of a fixed prompt.")
    parser.add_argument("flux", help="local folder of FLUX.1 in diffusers format (FLUX=)")
    parser.add_argument("output", type=Path, help="safetensors file to write (OUT=)")
    parser.add_argument("--text", default=TEXT, help="the prompt; S3Diff's positive one unless given (TEXT=)")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="length to which the text is padded or cut")
    given = parser.parse_args()
    quiet()
    with user_errors():
        if given.output.suffix != ".safetensors":
            raise ValueError(f"OUT={given.output}: expected a file ending in .safetensors")
        prompt, pooled = encode_text(given.flux, given.text, given.tokens)
        write_prompt(given.output, prompt, pooled)
        print(f"{given.output}  prompt {tuple(prompt.shape)}, pooled {tuple(pooled.shape)}")
        print(f'\nSET="transformer.prompt={given.output}"')


if __name__ == "__main__":
    main()
