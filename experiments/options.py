"""From a YAML file and overrides to typed, checked, read-only options.

`base:` files and the file itself are merged over the dataclasses of `schema.py`, then the overrides `key=value`;
interpolations `${a.b}` are resolved, values checked. Whatever is wrong ends in `OptionError`, whose message names key,
value and expectation.
"""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)
from yaml import YAMLError

from experiments.checks import OptionError, check
from experiments.schema import SYSTEMS, Experiment

FOLDER = Path(__file__).parent
OTHERS = ("studies", "curation")
"""Folders of YAML that is no experiment."""


def load_options(experiment: str | Path, overrides: Sequence[str] = (), tiny: bool = False) -> Experiment:
    """Options of `experiment`: a name such as "op4ksr/mini" below experiments/, or a path to a YAML file.

    `tiny` also applies the file's own list `tiny:` of overrides, which shrink the experiment to a few seconds.
    Raises OptionError for everything a user can get wrong.
    """
    path = find_experiment(experiment)
    merged, shrink = with_bases(path, ())
    given = list(shrink if tiny else ()) + list(overrides)
    named = OmegaConf.create({"name": _default_name(path) + ("-tiny" if tiny else "")})
    return typed_options(merge(str(path), named, merged, *map(override, given)), str(path))


def typed_options(raw: DictConfig, origin: str) -> Experiment:
    """Merge untyped options over their schema and check them; `origin` names the source in messages."""
    system = raw.get("system")
    if system not in SYSTEMS:
        raise OptionError(f"option system={system!r} in {origin}: expected one of {', '.join(SYSTEMS)}")
    schema = OmegaConf.structured(SYSTEMS[system])
    try:
        options = OmegaConf.to_object(OmegaConf.merge(schema, raw))
    except OmegaConfBaseException as error:
        raise OptionError(explain(error, raw, schema, origin)) from error
    if not isinstance(options, Experiment):
        raise OptionError(f"{origin}: expected a mapping of options, found {type(options).__name__}")
    check(options)
    return options


def find_experiment(experiment: str | Path) -> Path:
    """Path of an experiment's YAML; OptionError lists what exists and names EXP= otherwise."""
    candidates = [Path(experiment), FOLDER / f"{experiment}.yaml", FOLDER / str(experiment)]
    for path in candidates:
        if path.suffix == ".yaml" and path.is_file():
            return path
    raise OptionError(
        f"EXP={experiment}: no such experiment; found {', '.join(shipped_experiments())}, or give a .yaml file"
    )


def system_of(experiment: str | Path) -> str:
    """The system that an experiment's file or its base names, before any override; "" where none does."""
    raw, _ = with_bases(find_experiment(experiment), ())
    return str(raw.get("system", ""))


def shipped_experiments() -> list[str]:
    """Names of the experiments in this folder, as `EXP=` takes them."""
    paths = (path for path in FOLDER.glob("*/*.yaml") if path.parent.name not in OTHERS)
    return sorted(str(path.relative_to(FOLDER).with_suffix("")) for path in paths)


def to_yaml(options: Experiment) -> str:
    """The resolved options as YAML, as saved in the run folder and in the checkpoint."""
    return OmegaConf.to_yaml(OmegaConf.structured(options))


def from_yaml(text: str, overrides: Sequence[str] = (), origin: str = "the checkpoint") -> Experiment:
    """Options saved by `to_yaml`, with overrides, checked again."""
    return typed_options(merge(origin, OmegaConf.create(text), *map(override, overrides)), origin)


def merge(origin: str, *parts: DictConfig | ListConfig) -> DictConfig:
    """Options of which the later win; `origin` names them in OptionError."""
    merged = OmegaConf.merge(*parts)
    if not isinstance(merged, DictConfig):
        raise OptionError(f"{origin}: expected a mapping of options")
    return merged


def with_bases(path: Path, seen: tuple[Path, ...]) -> tuple[DictConfig, Sequence[str]]:
    """A file's options over those of its bases, and the list `tiny:`; seen: the files that led here."""
    if path.resolve() in seen:
        raise OptionError(f"{path}: base files name each other in a circle")
    try:
        raw = OmegaConf.load(path)
    except (YAMLError, OmegaConfBaseException) as error:
        raise OptionError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    except OSError as error:
        raise OptionError(f"{path}: expected a mapping of options, found {error}") from error
    if not isinstance(raw, DictConfig):
        raise OptionError(f"{path}: expected a mapping of options")
    base, tiny = raw.pop("base", None), raw.pop("tiny", None)
    if not isinstance(base, str | None):
        raise OptionError(f"{path}: base: {base}: expected the path of one YAML file")
    if not isinstance(tiny, ListConfig | None):
        raise OptionError(f"{path}: tiny: {tiny}: expected a list of overrides key=value")
    if base is None:
        return raw, tiny or ()
    parent, parent_tiny = with_bases(_find_base(path, base), (*seen, path.resolve()))
    return merge(str(path), parent, raw), tiny if tiny is not None else parent_tiny


def _find_base(path: Path, base: str) -> Path:
    for candidate in (path.parent / base, FOLDER / base):
        if candidate.is_file():
            return candidate
    raise OptionError(f"{path}: base: {base} not found beside it or below {FOLDER.name}/")


def override(item: str) -> DictConfig:
    """Options from `key=value`."""
    key, equals, value = item.partition("=")
    if not equals or not key.strip():
        raise OptionError(f'SET="{item}": expected key=value, for example SET="data.crop=128 seed=1"')
    try:
        return OmegaConf.from_dotlist([item if value else f"{item}''"])  # OmegaConf reads "a.b=" as None
    except (YAMLError, OmegaConfBaseException) as error:
        raise OptionError(f'SET="{item}": the value is not valid YAML: {" ".join(str(error).split())}') from error


def _default_name(path: Path) -> str:
    try:
        return str(path.resolve().relative_to(FOLDER.resolve()).with_suffix(""))
    except ValueError:
        return path.stem


def explain(error: OmegaConfBaseException, raw: DictConfig, schema: DictConfig, origin: str) -> str:
    """One sentence, with key, value and expectation, for what OmegaConf refused."""
    key = error.full_key or ""
    if isinstance(error, MissingMandatoryValue):
        return f"option {key} in {origin} has no value, and none is assumed: set it"
    if isinstance(error, InterpolationKeyError | InterpolationResolutionError):
        return f"option {key} in {origin}: {str(error).splitlines()[0]}"
    if isinstance(error, ConfigKeyError | ConfigAttributeError):
        return _explain_unknown(key, schema, origin)
    for group, value in _values_for_groups(OmegaConf.to_container(raw), OmegaConf.to_container(schema)):
        return f"option {group}={value!r} in {origin}: expected a group of options, {group}.<name>=..."
    found = OmegaConf.select(raw, key)
    return f"option {key}={found!r} in {origin}: expected {_expected_type(key, schema)}"


def _explain_unknown(key: str, schema: DictConfig, origin: str) -> str:
    parent, _, leaf = key.rpartition(".")
    node: Any = OmegaConf.select(schema, parent) if parent else schema
    known = [str(name) for name in node] if isinstance(node, DictConfig) else []
    close = difflib.get_close_matches(leaf, known, n=1)
    place = f"below {parent}" if parent else "at the top"
    hint = f"did you mean {close[0]}? " if close else ""
    return f"unknown option {key} in {origin}: {hint}known {place}: {', '.join(known)}"


def _expected_type(key: str, schema: DictConfig) -> str:
    node: Any = OmegaConf.get_type(schema)
    for part in key.split("["):
        for name in part.rstrip("]").split("."):
            types = {item.name: item.type for item in fields(node)} if is_dataclass(node) else {}
            node = types.get(name, node)
    return node.__name__ if isinstance(node, type) and not get_args(node) else str(node)


def _values_for_groups(raw: Any, schema: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Keys that hold a value where the schema has a group of options, for which OmegaConf names no key."""
    for key, value in raw.items():
        if isinstance(schema.get(key), dict):
            if isinstance(value, dict):
                yield from _values_for_groups(value, schema[key], f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value
