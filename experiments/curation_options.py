"""Options of `make curate`: a YAML file and overrides over the dataclasses of curation, checked."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from datamodules.curation.clip_scores import skipped_models
from datamodules.curation.pyiqa_scores import METRICS
from datamodules.curation.settings import Curation
from datamodules.curation.vision_judge import check_judge
from experiments.checks import OptionError
from experiments.options import FOLDER, explain, merge, override, with_bases

SHIPPED = FOLDER / "curation"
ABOVE_ZERO = ("preliminary.max_pixels", "preliminary.short_side", "preliminary.pixels")
SHARES = (
    "preliminary.chroma",
    "preliminary.flat_share",
    "quality.noise",
    "quality.dark_share",
    "quality.bright_share",
    "quality.saturated_share",
    "quality.clip_quality",
)


def load_curation(config: str, overrides: Sequence[str] = ()) -> Curation:
    """Options of `config`: a name such as "photos4k" below experiments/curation/, or a path to a YAML file.

    Raises OptionError with key, value and expectation; FileNotFoundError and ValueError for model files not there.
    """
    path = find_config(config)
    raw, _ = with_bases(path, ())
    raw = merge(str(path), raw, *map(override, overrides))
    schema = OmegaConf.structured(Curation)
    try:
        options = OmegaConf.to_object(OmegaConf.merge(schema, raw))
    except OmegaConfBaseException as error:
        raise OptionError(explain(error, raw, schema, str(path))) from error
    assert isinstance(options, Curation)
    for wrong in _impossible(options):
        raise OptionError(wrong)
    check_judge(options.judge)
    skipped_models(options.models)
    return options


def find_config(config: str) -> Path:
    """Path of a curation's YAML; OptionError lists what exists and names CONFIG= otherwise."""
    for path in (Path(config), SHIPPED / f"{config}.yaml"):
        if path.suffix == ".yaml" and path.is_file():
            return path
    names = ", ".join(sorted(path.stem for path in SHIPPED.glob("*.yaml")))
    raise OptionError(f"CONFIG={config}: no such curation; found {names}, or give a .yaml file")


def options_yaml(options: Curation, raw: Path) -> str:
    """The resolved options, and where the images lie, as saved beside the table."""
    return OmegaConf.to_yaml(OmegaConf.create({"raw": str(raw.resolve()), **asdict(options)}))


def _impossible(options: Curation) -> Iterator[str]:
    """One sentence for each value that no curation can use."""
    values = dict(_leaves(asdict(options)))
    for key, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            yield f"option {key}={value}: expected a finite number"
    for key in ABOVE_ZERO:
        if values[key] < 1:
            yield f"option {key}={values[key]}: expected a value above 0"
    for key in SHARES:
        if not 0 <= values[key] <= 1:
            yield f"option {key}={values[key]:g}: expected a value from 0 to 1"
    if options.preliminary.aspect < 1:
        yield f"option preliminary.aspect={options.preliminary.aspect:g}: expected 1 or more"
    if options.preliminary.bit_depth not in (8, 16):
        yield f"option preliminary.bit_depth={options.preliminary.bit_depth}: expected 8 or 16"
    if not -1 <= options.preliminary.near_duplicate_bits <= 256:
        yield f"option preliminary.near_duplicate_bits={options.preliminary.near_duplicate_bits}: expected -1 to 256"
    if options.workers < 0:
        yield f"option workers={options.workers}: expected 0 (one per core) or more"
    for name in options.quality.pyiqa:
        if name not in METRICS:
            yield f"option quality.pyiqa.{name}: unknown metric; known: {', '.join(METRICS)}"


def _leaves(group: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in group.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
