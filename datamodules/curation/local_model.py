"""Loading transformers models from local folders, all tensors or none."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

TOKENIZERS = ("tokenizer.json", "vocab.json", "tokenizer.model", "spiece.model", "tekken.json")


def load_whole(kind: Any, folder: str, key: str, dtype: torch.dtype | str = torch.float32) -> Any:
    """A transformers model of class `kind` in eval mode from a folder's config.json and safetensors; no code of the
    folder is executed and the network is not reached.

    FileNotFoundError or ValueError name the YAML's `key`, the folder and what is wrong. transformers alone only warns
    of missing tensors and goes on with random ones.
    """
    checked_folder(folder, key)
    try:
        with _no_progress_bar():
            model, info = kind.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                dtype=dtype,
            )
    except Exception as error:  # transformers and its parts raise a dozen kinds for broken folders
        raise ValueError(f"{key}={folder}: no {kind.__name__} can be loaded from there: {first_line(error)}") from error
    missing = sorted([*info["missing_keys"], *(str(entry) for entry in info["mismatched_keys"])])
    if missing:
        raise ValueError(
            f"{key}={folder}: these are no whole weights of a {kind.__name__}: {len(missing)} tensors are missing or "
            f"of another size, {missing[0]} among them"
        )
    return model.eval()


@contextlib.contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Keeps transformers' bar out of curation's own, once for each worker."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def load_part(kind: Any, folder: str, key: str) -> Any:
    """A tokenizer or processor of class `kind` from a local folder with a tokenizer; ValueError names key, folder and
    what is wrong."""
    if not any(Path(folder, name).is_file() for name in TOKENIZERS):  # transformers would make up a vocabulary
        raise ValueError(f"{key}={folder}: no tokenizer there; expected one of {', '.join(TOKENIZERS)}")
    try:
        return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # as above
        raise ValueError(f"{key}={folder}: no {kind.__name__} can be loaded from there: {first_line(error)}") from error


def checked_folder(folder: str, key: str) -> None:
    """FileNotFoundError unless the folder is there with a config.json."""
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{key}={folder}: no such folder; expected a local model in transformers format")
    if not Path(folder, "config.json").is_file():
        raise FileNotFoundError(f"{key}={folder}: no config.json there; expected a local model in transformers format")


def first_line(error: Exception) -> str:
    """An error's first line, cut at 300 characters, its class where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
