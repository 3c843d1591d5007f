"""What a study's file must say, beyond the types of its keys."""

import re
from collections.abc import Iterator
from pathlib import Path

from omegaconf import OmegaConf

from datamodules.benchmarks import EMBEDDED
from experiments.build import CNN_METRICS, metric_names
from experiments.measure import REAL_TIME, STUDENT
from experiments.options import OptionError, load_options
from experiments.schema import Experiment, RealTimeCnn
from experiments.study_options import DIRECTIONS, PRUNERS, SAMPLERS, SearchOptions, StudyOptions
from experiments.study_search import overrides_of

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def check_study(origin: str, study: StudyOptions, tiny: bool = False) -> None:
    """OptionError with one sentence for the first thing that is wrong; `origin` names the study's file."""
    for sentence in _wrong(study):
        raise OptionError(f"{origin}: {sentence}")
    for arm, overrides in study.arms.items():
        _load(f"{origin}, arm {arm}", study, overrides, tiny)
    for name, parameter in study.search.space.items():
        for value in parameter.choices or (parameter.low, parameter.high):
            given = int(value) if parameter.integer else value
            _load(f"{origin}, search.space.{name}", study, list(overrides_of({name: given})), tiny)
    for sentence in _wrong_measures(study, _load(origin, study, next(iter(study.arms.values()), []), tiny)):
        raise OptionError(f"{origin}: {sentence}")


def _wrong_measures(study: StudyOptions, experiment: Experiment) -> Iterator[str]:
    """Rows and metrics that the evaluation does not have, and tags that the validation does not log."""
    method = REAL_TIME if isinstance(experiment, RealTimeCnn) else STUDENT
    if study.method != method:
        yield f"method={study.method}: expected {method} for {experiment.system}"
    names = list(dict.fromkeys([*metric_names(experiment), *CNN_METRICS]))
    for name in study.metrics:
        if name not in names:
            yield f"metrics: {name}: expected {', '.join(names)}"
    tags = [f"val/{name}" for name in metric_names(experiment)]
    for tag in study.search.objective:
        if tag not in tags:
            yield f"search.objective: {tag}: expected {', '.join(tags)}"


def _load(origin: str, study: StudyOptions, overrides: list[str], tiny: bool) -> Experiment:
    try:
        return load_options(study.base, [*study.overrides, *overrides], tiny)
    except OptionError as error:
        raise OptionError(f"{origin}: {error}") from error


def _wrong(study: StudyOptions) -> Iterator[str]:
    if OmegaConf.is_missing(OmegaConf.structured(study), "base"):
        yield "base: expected the name of an experiment"
    if bool(study.arms) == bool(study.search.space):
        yield "expected either arms or search.space"
    if len(study.arms) == 1:
        yield "expected at least two arms"
    for name in [*study.arms, *study.tests]:
        if not NAME.fullmatch(name):
            yield f"{name!r}: expected a name of letters, digits, '_', '.' and '-', as folders have it"
    if not study.seeds or len(set(study.seeds)) < len(study.seeds):
        yield f"seeds={study.seeds}: expected at least one seed, each once"
    for name, direction in study.metrics.items():
        if direction not in DIRECTIONS:
            yield f"metrics.{name}={direction}: expected {' or '.join(DIRECTIONS)}"
    for name, test in study.tests.items():
        if test.crop < 0:
            yield f"tests.{name}.crop={test.crop}: expected a number of pixels, or 0 for whole images"
        if test.data not in EMBEDDED and not Path(test.data).is_dir():
            yield f"tests.{name}.data={test.data}: no such folder; expected a test set as DATA= takes it"
    if study.budget.trials < 1:
        yield f"budget.trials={study.budget.trials}: expected 1 or more"
    if study.search.space:
        yield from _wrong_search(study.search)


def _wrong_search(search: SearchOptions) -> Iterator[str]:
    if not search.objective:
        yield "search.objective: expected validation tags with their weights, such as {val/perceptual: 1}"
    if search.direction not in DIRECTIONS:
        yield f"search.direction={search.direction}: expected {' or '.join(DIRECTIONS)}"
    if search.sampler not in SAMPLERS:
        yield f"search.sampler={search.sampler}: expected {' or '.join(SAMPLERS)}"
    if search.pruner not in PRUNERS:
        yield f"search.pruner={search.pruner}: expected {' or '.join(PRUNERS)}"
    if search.startup < 1:
        yield f"search.startup={search.startup}: expected 1 or more"
    for name, parameter in search.space.items():
        span = f"search.space.{name}: low {parameter.low:g} and high {parameter.high:g}"
        if not parameter.choices and not parameter.low < parameter.high:
            yield f"{span}: expected low below high, or choices"
        if parameter.log and parameter.low <= 0:
            yield f"{span}: expected low above 0 with log"
        if parameter.choices and (parameter.low or parameter.high):
            yield f"search.space.{name}: expected either choices or low and high"
