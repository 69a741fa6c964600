"""Several processes that train together, as torchrun (or SLURM with its variables) describes them to each. Imports no
torch: progress, notices and errors are shown by the first process alone."""

import os
import socket

EXIT_FILE = "ANYFORMER_EXIT_FILE"  # where `--processes` wants the exit code of an end that no restart would mend
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def get_world_size() -> int:
    """Return how many processes were started to train together; 1 if this one is alone."""
    return read_number("WORLD_SIZE", 1) if all(name in os.environ for name in VARIABLES) else 1


def get_rank() -> int:
    """Return the number of this process among all, from 0."""
    return read_number("RANK", 0) if get_world_size() > 1 else 0


def get_local_rank() -> int:
    """Return the number of this process among those of its machine, from 0: that of its GPU."""
    return read_number("LOCAL_RANK", 0) if get_world_size() > 1 else 0


def is_first() -> bool:
    """Whether this process writes and shows what all have done."""
    return get_rank() == 0


def is_restarted() -> bool:
    """Whether torchrun started the processes again because one of them had failed."""
    return get_world_size() > 1 and read_number("TORCHELASTIC_RESTART_COUNT", 0) > 0


def name_process(rank: int | None = None, host: str | None = None) -> str:
    """Name a process in a message; without arguments, this one."""
    return f"process {get_rank() if rank is None else rank} on {host or socket.gethostname()}"


def read_number(name: str, default: int) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() and len(value) < 10 else default
