"""Functions that run in several processes which train together, as torchrun would start them."""

import json
import os
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any

import torch

from anyformer.training.distributed import join_processes


def find_free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def start_process(rank: int, size: int, port: int, function: Callable[[], Any]) -> tuple[int, int]:
    """Fork a process of a group. Returns its id, and what it writes its result to."""
    reader, writer = os.pipe()
    if pid := os.fork():
        os.close(writer)
        return pid, reader
    code = 1
    try:
        os.close(reader)
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        torch.set_num_threads(1)
        text = json.dumps(function())
        with os.fdopen(writer, "w") as file:
            file.write(text)
        code = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def run_processes(size: int, function: Callable[[], Any], has_joined: bool = True) -> list[Any]:
    """Return the results of a function, plain values, in so many processes; None where one failed. `has_joined`: they
    train together in it."""

    def work() -> Any:
        if not has_joined:
            return function()
        with join_processes("cpu"):
            return function()

    port = find_free_port()
    sys.stdout.flush(), sys.stderr.flush()
    started, results = [start_process(rank, size, port, work) for rank in range(size)], []
    for pid, reader in started:
        with os.fdopen(reader) as file:
            text = file.read()
        os.waitpid(pid, 0)
        results.append(json.loads(text) if text else None)
    return results
