"""How often the generators of tests/fuzz/ try, and the counts that docs/reliability.md is made of.

$ANYFORMER_FUZZ         tries of each class of attack; without it a slice of seconds (`make test`), 20 in `make fuzz`
$ANYFORMER_FUZZ_SEED    of the random numbers, 0 without it
$ANYFORMER_FUZZ_REPORT  a file that gets one line for each class and test: {"class", "tried", "held"}
"""

import json
import os
import random

TRIES = int(os.environ.get("ANYFORMER_FUZZ", "0"))


def make_rng(name: str) -> random.Random:
    """Return random numbers that depend on the name of a test and the seed alone."""
    return random.Random(f"{name} {os.environ.get('ANYFORMER_FUZZ_SEED', '0')}")


def report_attacks(kind: str, failures: list[str], tried: int) -> None:
    """Count the attacks of a class that were tried and held, and fail if one did not."""
    if path := os.environ.get("ANYFORMER_FUZZ_REPORT"):
        line = json.dumps({"class": kind, "tried": tried, "held": tried - len(failures)})
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"{line}\n")
    assert not failures, f"{len(failures)} of {tried} did not hold:\n" + "\n".join(failures)
