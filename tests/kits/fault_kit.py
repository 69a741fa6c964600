"""Faults of the machine, made to happen to a child process: little memory, a full disk, removed folders, odd clocks.

$ANYFORMER_FAULTS       faults of each class for every recipe; without it a slice of seconds, for one recipe
$ANYFORMER_FUZZ_SEED    of the random moments, 0 without it
$ANYFORMER_FUZZ_REPORT  the numbers are added to this JSON file: {class: {"held": ..., "broken": ...}}
"""

import errno
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

TRIES = int(os.environ.get("ANYFORMER_FAULTS") or 0)
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)  # files can still be removed


def make_rng(name: str) -> random.Random:
    """Return random numbers that depend on the name of a test and the seed alone."""
    return random.Random(f"{name} {os.environ.get('ANYFORMER_FUZZ_SEED', '0')}")


def report_faults(kind: str, failures: list[str], tried: int) -> None:
    """Add the numbers of a class to the report, and fail if one fault was not survived."""
    if report := os.environ.get("ANYFORMER_FUZZ_REPORT"):
        path = Path(report)
        numbers = json.loads(path.read_text()) if path.exists() else {}
        counts = Counter(numbers.get(kind, {})) + Counter(held=tried - len(failures), broken=len(failures))
        path.write_text(json.dumps(numbers | {kind: dict(counts)}, indent=1))
    assert not failures, f"{len(failures)} of {tried} broke:\n" + "\n".join(failures)


def limit_memory(n_bytes: int) -> None:
    """Let this process take only so many more bytes."""
    size = int(re.search(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (size + n_bytes, size + n_bytes))


class Child:
    """A function that runs in a child process and returns a text."""

    def __init__(self, function: Callable[[], str]):
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            text = ""
            try:
                os.close(reader)
                for number in (signal.SIGINT, signal.SIGTERM):
                    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
                text = function()
            except KeyboardInterrupt:  # before or after the command, which reports it
                text = f"ended with {-signal.SIGINT}"
            except BaseException as error:
                text = f"Traceback: {type(error).__name__}: {error}"
            finally:
                os.write(writer, text.encode()[-60_000:])
                os._exit(0)
        os.close(writer)
        self.reader = reader

    def kill(self, number: int, seconds: float) -> None:
        time.sleep(seconds)
        os.kill(self.pid, number)

    def wait(self) -> str:
        """Return the text, or by which signal the child ended."""
        with os.fdopen(self.reader) as file:
            text = file.read()
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return text if code == 0 else f"ended with {code}"


def on_disk_operation(folder: Path, number: int, act: Callable[[str, str], None]) -> None:
    """From the operation of this number on (counted from 0), call `act` before each one that changes something below a
    folder, with the operation and the path. Only for a child process: it cannot be undone."""
    count, is_acting = 0, False

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count, is_acting
        is_write = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if is_acting or not (is_write or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir")):
            return
        if isinstance(arguments[0], str | os.PathLike) and is_below(arguments[0], folder):
            count += 1
            if count > number:
                is_acting = True
                try:
                    act(event, str(arguments[0]))
                finally:
                    is_acting = False

    sys.addaudithook(watch)


def is_below(path: str | os.PathLike[str], folder: Path) -> bool:
    return os.path.abspath(path).startswith(str(folder))


def refuse_writes(folder: Path, number: int, code: int) -> None:
    """Let the disk below a folder refuse, from the operation of this number on."""

    def act(event: str, path: str) -> None:
        if code not in FULL_DISK or event in ("open", "os.mkdir"):
            raise OSError(code, os.strerror(code), path)

    on_disk_operation(folder, number, act)


def remove_while_writing(folder: Path, number: int, doomed: Path) -> None:
    """Remove `doomed` before the operation of this number below a folder, once."""
    is_done = False

    def act(event: str, path: str) -> None:
        nonlocal is_done
        if not is_done:
            is_done = True
            shutil.rmtree(doomed, ignore_errors=True)

    on_disk_operation(folder, number, act)


def let_clocks_jump(rng: random.Random) -> None:
    """Let the clocks of this process jump: that of the day in both directions, the others forward."""
    for name in ("time", "monotonic", "perf_counter"):
        patch_clock(name, getattr(time, name), rng)


def patch_clock(name: str, clock: Callable[[], float], rng: random.Random) -> None:
    offset = 0.0

    def read() -> float:
        nonlocal offset
        if rng.random() < 0.1:
            offset += rng.uniform(-1e6 if name == "time" else 0, 1e6)
        return clock() + offset

    setattr(time, name, read)
