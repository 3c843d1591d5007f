"""What a search draws, and when it gives a trial up: options to Optuna's distributions, samplers and pruners."""

from collections.abc import Mapping
from typing import Any

import optuna
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

from experiments.study_options import ParameterOptions, SearchOptions


def sampler_of(search: SearchOptions, seed: int, trials: int) -> BaseSampler:
    """The sampler for the next trial, after so many: workers with the same seed must not draw the same values."""
    seed = seed * 1_000_003 + trials
    if search.sampler == "random":
        return RandomSampler(seed=seed)
    # constant_liar: what other workers are trying at the moment is taken for bad, so that they look elsewhere
    return TPESampler(seed=seed, n_startup_trials=search.startup, constant_liar=True, multivariate=True)


def pruner_of(search: SearchOptions | None, validate_every: int) -> BasePruner:
    """The pruner of a search, which validates each so many steps; none for arms, which are all finished."""
    if search is None or not search.space or search.pruner == "none":
        return NopPruner()
    if search.pruner == "halving":
        return SuccessiveHalvingPruner(min_resource=validate_every, reduction_factor=2)
    return MedianPruner(n_startup_trials=search.startup)


def draw(trial: optuna.trial.Trial, search: SearchOptions) -> dict[str, Any]:
    """A trial's values by option: drawn now, or those of its first attempt."""
    return {name: _suggest(trial, name, parameter) for name, parameter in search.space.items()}


def _suggest(trial: optuna.trial.Trial, name: str, parameter: ParameterOptions) -> Any:
    if parameter.choices:
        return trial.suggest_categorical(name, parameter.choices)
    if parameter.integer:
        return trial.suggest_int(name, int(parameter.low), int(parameter.high), log=parameter.log)
    return trial.suggest_float(name, parameter.low, parameter.high, log=parameter.log)


def overrides_of(params: Mapping[str, Any]) -> tuple[str, ...]:
    """Values of a trial as SET= takes them; numbers to their last digit.

    >>> overrides_of({"optimizer.learning_rate": 1e-05, "data.scale": 4})
    ('optimizer.learning_rate=1.0e-05', 'data.scale=4')
    """
    return tuple(f"{name}={_yaml(value)}" for name, value in params.items())


def _yaml(value: Any) -> str:
    text = repr(value) if isinstance(value, float) else str(value)
    mantissa, exponent, power = text.partition("e")
    # YAML takes 1e-05 for text, for want of a point
    return f"{mantissa}.0e{power}" if isinstance(value, float) and exponent and "." not in mantissa else text
