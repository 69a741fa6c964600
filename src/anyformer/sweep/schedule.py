"""Successive halving (1502.07943, 1603.06560): how many trials go on, and how long each is trained."""

from ..errors import InputError

FACTOR = 3  # one trial in so many goes on, and is trained so many times as long
SEARCH_SHARE = 0.5  # of everything, for the search; the rest trains the best config
MAX_TRIALS, MIN_TRIALS = 27, 4  # where their number is not given
GOOD_FIRST = {"seconds": 5.0, "steps": 50.0}  # of the first rung, where the number of trials is not given
MIN_FIRST = {"seconds": 0.5, "steps": 1.0}  # of the first rung, at least


def count_survivors(trials: int) -> list[int]:
    """Return how many trials each rung trains: a third of the rung before and the default config, which always goes
    on."""
    sizes, size = [trials], trials // FACTOR
    while size:
        sizes.append(size + 1)
        size //= FACTOR
    return sizes if len(sizes) > 1 else [trials, min(2, trials)]


def grow(rung: int) -> int:
    """Return for how long a rung trains each of its trials, as a multiple of the first one."""
    return FACTOR**rung - FACTOR ** (rung - 1) if rung else 1


def count_units(trials: int, first: int = 0) -> int:
    """Return the cost of the rungs from `first` on, as a multiple of one training of the first rung."""
    return sum(size * grow(rung) for rung, size in enumerate(count_survivors(trials)) if rung >= first)


def count_trainings(trials: int, first: int = 0) -> int:
    """Return how many trainings the rungs from `first` on are."""
    return sum(count_survivors(trials)[first:])


def choose_trials(total: float, least: float) -> int:
    """Return the most trials whose first training is at least so long."""
    counts = range(MAX_TRIALS, MIN_TRIALS, -1)
    return next((n for n in counts if total * SEARCH_SHARE / count_units(n) >= least), MIN_TRIALS)


def check_total(total: float, unit: str, trials: int) -> None:
    """Raise InputError if the trials would be too short."""
    if trials < 2:
        raise InputError(f"--trials is {trials}; it must be at least 2: the default config, and another")
    least = MIN_FIRST[unit] * count_units(trials) / SEARCH_SHARE
    if total >= least:
        return
    if unit == "seconds":
        problem, advice = f"--minutes {total / 60:g}", f"--minutes {least / 60:.2g}"
    else:
        problem, advice = f"--steps {total:g}", f"--steps {least:.0f}"
    raise InputError(f"{problem} is too little for {trials} trials: give {advice}, or fewer --trials")
