"""Values of the next trial from those of earlier ones: the tree-structured Parzen estimator of Optuna (1907.10902)."""

import importlib
from collections.abc import Sequence
from typing import Any

from ..errors import InputError
from ..search_space import SearchRange, SearchSpace
from .state import Trial

MIN_STARTUP = 3  # trials that are drawn at random before the estimator has enough of them


def import_optuna() -> Any:
    """Raises InputError if Optuna is not installed."""
    try:
        optuna = importlib.import_module("optuna")
    except ImportError:
        raise InputError("--sampler tpe needs Optuna: pip install 'anyformer[sweep]', or --sampler random") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def suggest_values(space: SearchSpace, trials: Sequence[Trial], n_trials: int, seed: int) -> dict[str, Any]:
    """Return the values of the trial after these, judged by their first rung. The same for the same arguments."""
    optuna = import_optuna()
    distributions = {}
    for name, values in space.items():
        if isinstance(values, SearchRange):
            distributions[name] = optuna.distributions.FloatDistribution(values.low, values.high, log=True)
        else:
            distributions[name] = optuna.distributions.CategoricalDistribution(values.values)
    startup = max(MIN_STARTUP, n_trials // 3)
    sampler = optuna.samplers.TPESampler(seed=(seed + len(trials)) % 2**32, n_startup_trials=startup)
    study = optuna.create_study(sampler=sampler)
    for trial in trials:
        params = {name: clamp(space[name], value) for name, value in trial.values.items()}
        is_usable = bool(trial.results) and not trial.error
        outcome = {"value": trial.results[0].loss} if is_usable else {"state": optuna.trial.TrialState.FAIL}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, **outcome))
    params = study.ask(distributions).params
    return {name: round_value(values, params[name]) for name, values in space.items()}


def clamp(values: Any, value: Any) -> Any:
    """Return the nearest value that lies in the space: the default config may lie outside."""
    if isinstance(values, SearchRange):
        return min(max(value, values.low), values.high)
    return value if value in values.values else values.values[0]


def round_value(values: Any, value: Any) -> Any:
    return float(f"{value:.3g}") if isinstance(values, SearchRange) else value
