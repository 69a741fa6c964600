"""How torch's threads on a CPU wait for each other. Imports no torch: it must be called before that is loaded."""

import os

SPIN_COUNT = "1000"  # some microseconds; GNU OpenMP's own is 300,000


def limit_spinning() -> None:
    """Let threads that wait for others sleep after a moment, unless the environment says how they wait.

    By default they spin for about a millisecond at the end of each operation. On a machine that is busy otherwise they
    thereby take the time of the very threads that they wait for: on two cores with eight other processes, steps of a
    small model took 20 times as long.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
