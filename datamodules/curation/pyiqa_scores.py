"""Scores of stage 2 by pyiqa, an extra under a non-commercial licence, from local weights alone."""

import contextlib
import functools
import importlib.util
import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datamodules.curation.contact_sheet import to_8_bits
from datamodules.curation.local_model import first_line
from datamodules.curation.settings import ScoreModels

METRICS = {
    "brisque": False,
    "cnniqa": True,
    "musiq": True,
    "musiq-paq2piq": True,
    "musiq-spaq": True,
    "piqe": False,
}
"""Metrics of pyiqa that were seen to work without a network, on one file of weights or none, and whether higher is
better (pyiqa 0.1.16); most others fetch a backbone even where a file is given."""

WITHOUT_WEIGHTS = {"piqe"}
NO_FILE = "none"
PIECE = 512
ROWS, COLUMNS = 2, 3


def pyiqa_scores(pixels: Tensor, models: ScoreModels) -> dict[str, float]:
    """`pyiqa_<name>` of each metric that has its file, of an image (3,H,W) uint8 or uint16, in the metric's own units.

    A score is the mean over six pieces at full size, 512 px a side, evenly spread (ours): the metrics were made for
    images of that size, and a whole 4K image takes them minutes and gigabytes. Raises as `check_pyiqa`.
    """
    wanted = {name: path for name, path in models.pyiqa.items() if path}
    if not wanted:
        return {}
    check_pyiqa(wanted)
    shown = [piece.to(torch.float32)[None] / 255.0 for piece in pieces(to_8_bits(pixels))]
    with torch.inference_mode():
        return {
            f"pyiqa_{name}": sum(float(_metric(name, path)(piece)) for piece in shown) / len(shown)
            for name, path in wanted.items()
        }


def pieces(pixels: Tensor) -> list[Tensor]:
    """Six pieces (3,h,w) of an image (3,H,W), 512 px a side or what there is, their centres evenly spread."""
    _, height, width = pixels.shape
    tops, lefts = _starts(height, ROWS), _starts(width, COLUMNS)
    return [pixels[:, top : top + PIECE, left : left + PIECE] for top in tops for left in lefts]


def _starts(length: int, count: int) -> list[int]:
    centres = [(2 * number + 1) * length // (2 * count) for number in range(count)]
    return [min(max(centre - PIECE // 2, 0), max(length - PIECE, 0)) for centre in centres]


def higher_is_better(name: str) -> bool:
    """Whether a larger value of the metric means better quality; ValueError for a metric that is not supported."""
    if name not in METRICS:
        raise ValueError(
            f"models.pyiqa.{name}: found an unknown metric, expected one of {', '.join(METRICS)}, which need no network"
        )
    return METRICS[name]


def check_pyiqa(wanted: dict[str, str]) -> list[str]:
    """One line for each metric that is skipped for want of a file; ValueError or FileNotFoundError for impossible ones,
    and ValueError where the extra is not installed."""
    for name, path in wanted.items():
        higher_is_better(name)
        _check_path(name, path)
    if any(wanted.values()) and importlib.util.find_spec("pyiqa") is None:
        raise ValueError(
            'models.pyiqa needs the extra pyiqa (non-commercial licence): pip install -e ".[pyiqa]", or empty it'
        )
    if not wanted:
        return ["pyiqa's scores are skipped: set models.pyiqa.<name> to a metric's file of weights"]
    return [_skipped(name) for name, path in wanted.items() if not path]


def _skipped(name: str) -> str:
    what = f'"{NO_FILE}", it has no weights' if name in WITHOUT_WEIGHTS else "its local file of weights"
    return f"pyiqa_{name} is skipped: set models.pyiqa.{name} to {what}"


def _check_path(name: str, path: str) -> None:
    if not path:
        return
    if name in WITHOUT_WEIGHTS:
        if path != NO_FILE:
            raise ValueError(f'models.pyiqa.{name}={path}: the metric has no weights, expected "{NO_FILE}"')
    elif not Path(path).is_file():
        raise FileNotFoundError(f"models.pyiqa.{name}={path}: no such file; expected the metric's weights")


@functools.lru_cache(maxsize=len(METRICS))
def _metric(name: str, path: str) -> Any:
    import pyiqa

    cpu = torch.device("cpu")
    if name in WITHOUT_WEIGHTS:
        return pyiqa.create_metric(name, device=cpu)
    _check_only_tensors(name, path)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints while it loads
            return pyiqa.create_metric(name, device=cpu, pretrained_model_path=path)
    except Exception as error:  # whatever pyiqa's loaders raise for a foreign file
        raise ValueError(
            f"models.pyiqa.{name}={path}: no weights of {name} can be read there: {first_line(error)}"
        ) from error


def _check_only_tensors(name: str, path: str) -> None:
    """pyiqa unpickles whatever the file says; what loads under torch's restriction holds nothing that is executed."""
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise ValueError(
            f"models.pyiqa.{name}={path}: expected a file that torch.load(..., weights_only=True) reads, found another"
        ) from error
