"""anyformer train ... --processes N: start the processes on this machine, and start them again when one is killed. They
are torch's elastic agent's, as torchrun's are."""

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from ..processes import EXIT_FILE
from .terminal import print_status

if TYPE_CHECKING:
    from ..training.job import TrainingJob

MAX_RESTARTS = 100


def launch(words: Sequence[str], processes: int) -> int:
    """Run `anyformer train WORDS` in so many processes. Returns the exit code; they have said why it is not 0."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable(logging.CRITICAL)  # of the agent: what matters is said below, or by the processes
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=f"anyformer-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # any free port
        local_addr="127.0.0.1",
        max_restarts=MAX_RESTARTS,
    )
    with tempfile.TemporaryDirectory() as folder:
        exit_file = Path(folder) / "exit-code"
        set_environment(processes, exit_file)
        try:
            elastic_launch(config, sys.executable)("-m", "anyformer", "train", *words)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            print_status(f"anyformer: process {rank} ended with {describe_exit(failure.exitcode)}, for the last time")
            return 1
        except SignalException as stopped:
            return read_code(exit_file) or 128 + stopped.sigval
        return read_code(exit_file)


def set_environment(processes: int, exit_file: Path) -> None:
    """Set the variables that the processes get."""
    os.environ[EXIT_FILE] = str(exit_file)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))


def describe_exit(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def read_code(path: Path) -> int:
    """Return the exit code that a process has left; 0 if none has."""
    return int(path.read_text() or 0) if path.exists() else 0


def check_start(job: "TrainingJob", processes: int) -> None:
    """Raise InputError for what so many processes cannot do here, before they are started."""
    import torch

    from ..training.job import check_processes

    check_processes(job, processes)
    if torch.cuda.is_available() and torch.cuda.device_count() < processes:
        n_devices = torch.cuda.device_count()
        raise InputError(f"--processes {processes}: each needs a GPU of its own, and this machine has {n_devices}")
