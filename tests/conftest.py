"""What tests of several folders share."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_modules.networks.rt4ksr import RT4KSR

ROOT = Path(__file__).resolve().parents[1]

_OUTER = (
    ("head.", "head.0."),
    ("hf_branch.", "hfb.0."),
    ("tail.", "tail.1."),
    ("tail_norm.", "tail.0."),
    ("upsample.", "upsample.0."),
)
_INNER = ((".rrb.", ".conv1."), (".expand.", ".expand_conv."), (".reduce.", ".reduce_conv."))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real test data named by SR_SHARED; tests that need it skip where it is missing."""
    folder = ROOT / os.environ.get("SR_SHARED", "../shared") / "data"
    if not folder.is_dir():
        pytest.skip(f"real test data not found at {folder}; set SR_SHARED to the folder that holds data/")
    return folder


@pytest.fixture(scope="session")
def released_form() -> Callable[[RT4KSR], dict[str, Any]]:
    """A network as the released code saves it: its tensors under other names."""
    return lambda network: {
        "epoch": 1,
        "state_dict": {f"module.{_released(name)}": tensor for name, tensor in network.state_dict().items()},
    }


def _released(name: str) -> str:
    for ours, theirs in _OUTER:
        if name.startswith(ours):
            name = theirs + name.removeprefix(ours)
            break
    for part in ("hfb.0.", "tail.1.", ".rrb."):
        name = name.replace(f"{part}conv.", f"{part}fea_conv.")
    for ours, theirs in _INNER:
        name = name.replace(ours, theirs)
    return name
