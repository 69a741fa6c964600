"""A run directory: everything about one training, readable by a person, safe to kill at any moment.

config.json              recipe, preset, resolved config, versions, seed, command
metrics.jsonl            one line per step: the same for the same seed, data and machine
timings.jsonl            tokens per second, seconds of data, communication and compute, memory: never the same
examples.json            rows of the validation split that the model is shown with
samples.txt              its predictions for them at each validation
checkpoints/step-N/      the best and the last
result.json              the final evaluation
figures.json             the recipe's figures of the model, as plain values
report.html              the report
tensorboard/, wandb/     files of trackers, if there are any; tracking.json: its ids there
.lock                    process and host that are training it now
"""

import io
import json
import os
import platform
import re
import shutil
import socket
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

from ..data.io.checks import read_json
from ..data.io.regular_file import check_regular, open_regular
from ..errors import InputError
from ..parsing import parse_dataclass, to_json
from ..recipe import Examples

try:
    import fcntl
except ImportError:  # Windows: runs are not locked there
    fcntl = None

LOG_FILES = ("metrics.jsonl", "timings.jsonl", "samples.txt")
EXAMPLES = "examples.json"
TRACKER_IDS, TRACKER_FOLDERS = "tracking.json", ("tensorboard", "wandb")
MAX_HOLDER_CHARS = 300  # of a lock file


class RemovedError(InputError):
    """A run directory was removed or moved while it was trained."""

    def __init__(self, path: Path):
        super().__init__(f"{path} was removed or moved while it was trained: restore it and go on with --resume")


@dataclass(frozen=True)
class RunDirectory:
    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def exists(self) -> bool:
        return (self.path / "config.json").is_file()

    def read_config(self) -> dict[str, Any]:
        """Return the content of config.json. Raises InputError if it is not that of a run."""
        path = self.path / "config.json"
        content = read_json(path)
        for name in ("recipe", "preset", "config"):
            if name not in content:
                raise InputError(f"{path} has no '{name}': it is not the config of a run")
        return content

    def write_config(self, content: dict[str, Any]) -> None:
        atomic_write(self.path / "config.json", json.dumps(content, indent=2) + "\n")

    def read_examples(self) -> Examples:
        """Return the examples that the model is shown with; none if there is no such file. Raises InputError."""
        path = self.path / EXAMPLES
        return parse_dataclass(Examples, read_json(path), str(path)) if path.is_file() else Examples()

    def write_examples(self, examples: Examples) -> None:
        if examples.request:
            atomic_write(self.path / EXAMPLES, json.dumps(to_json(examples), ensure_ascii=False, indent=2) + "\n")

    def require_unused(self) -> None:
        """Raise InputError if the directory holds anything: nothing is ever overwritten."""
        if self.exists:
            raise InputError(f"{self.path} already holds a run: continue it with --resume, or choose another --out")
        if self.path.is_dir() and any(path for path in self.path.iterdir() if not path.name.startswith(".")):
            raise InputError(f"{self.path} is not empty and holds no run: choose another --out")

    def create(self, config: dict[str, Any]) -> None:
        """Begin a run in the locked directory. Raises InputError if something else is there."""
        self.require_unused()
        with report_write_errors(f"a run to {self.path}"):
            self.write_config(config)

    @contextmanager
    def lock(self) -> Generator[None]:
        """Reserve the directory for this process, and create it if needed; on exit, remove it if it is empty. Raises
        InputError if another process trains in it, or it cannot be written."""
        path = self.path / ".lock"
        with report_write_errors(f"a run to {self.path}"):
            self.path.mkdir(parents=True, exist_ok=True)
            file = acquire_lock(path)
        try:
            yield
        finally:
            if is_same_file(file, path):  # not if the directory was removed, and another process has made a new one
                with suppress(OSError):  # Windows removes no open file
                    path.unlink()
            file.close()
            with suppress(OSError):
                self.path.rmdir()  # fails if it holds anything

    def find_holder(self) -> "LockHolder | None":
        """Return the process that trains in the directory now, or None."""
        return find_lock_holder(self.path / ".lock")

    @contextmanager
    def report_removal(self) -> Generator[None]:
        """Raise RemovedError where the block fails because the run is no longer there."""
        try:
            yield
        except (OSError, InputError) as error:
            if self.exists:
                raise
            raise RemovedError(self.path) from error

    def remove(self) -> None:
        """Remove the run's files."""
        for name in (*LOG_FILES, EXAMPLES, "config.json", "result.json", "figures.json", "report.html", TRACKER_IDS):
            (self.path / name).unlink(missing_ok=True)
        for folder in (self.checkpoints, *(self.path / name for name in TRACKER_FOLDERS)):
            shutil.rmtree(folder, ignore_errors=True)

    def open_logs(self) -> AbstractContextManager[Callable[[str, str], None]]:
        """Open the logs: yields a function that appends a text to one of them, by its name."""
        return open_logs(self.path)

    def rewind(self, step: int) -> None:
        """Remove what was logged after a step, the final figures, and what a full disk has left half-written."""
        (self.path / "figures.json").unlink(missing_ok=True)
        for path in self.path.glob(".*.*.[0-9]*"):  # of `atomic_write`
            path.unlink(missing_ok=True)
        for name, read in zip(LOG_FILES, (read_records, read_records, read_samples)):
            path = self.path / name
            if path.exists():
                atomic_write(path, "".join([text for logged, text in read(path) if logged <= step]))


class ReadOnlyRun(RunDirectory):
    """The directory of a run that another process writes."""

    def write_config(self, content: dict[str, Any]) -> None:
        pass

    def write_examples(self, examples: Examples) -> None:
        pass

    def create(self, config: dict[str, Any]) -> None:
        pass

    @contextmanager
    def lock(self) -> Generator[None]:
        yield

    def remove(self) -> None:
        pass

    def rewind(self, step: int) -> None:
        pass

    def open_logs(self) -> AbstractContextManager[Callable[[str, str], None]]:
        return nullcontext(lambda name, text: None)


@contextmanager
def report_write_errors(what: str, advice: str = "") -> Generator[None]:
    """Turn an OSError into an InputError that says what cannot be written."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write {what}: {error.strerror or error}{advice}") from None


def acquire_lock(path: Path) -> IO[str]:
    """Lock a file until it is closed, and write into it which process holds it. Raises InputError if another one does.

    The kernel releases the lock when the process ends, however it ends; a lock file left by a dead process is reused.
    """
    while True:
        if path.exists():
            check_regular(path)
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 (closed by the caller)
        if not try_lock(file):
            file.seek(0)
            holder = LockHolder.parse(file.read(MAX_HOLDER_CHARS))
            file.close()
            raise InputError(f"{path.parent} is being trained by {holder}")
        if is_same_file(file, path):
            break
        file.close()  # its previous holder removed it between our opening and locking it
    file.truncate(0)
    file.write(f"process {os.getpid()} on host {socket.gethostname()}\n")
    file.flush()
    return file


def is_same_file(file: IO[str], path: Path) -> bool:
    """Whether a path still names an open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def try_lock(file: IO[str], is_exclusive: bool = True) -> bool:
    """Lock an open file until it is closed. Returns False if another process holds it, also a moment later: whoever
    only asks for the holder locks it for microseconds."""
    if fcntl is None:
        return True
    for _ in range(3):
        try:
            fcntl.flock(file, (fcntl.LOCK_EX if is_exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.02)
        except OSError:
            return True  # a file system without locks
    return False


@dataclass(frozen=True)
class LockHolder:
    """The process that trains in a run directory, as far as its lock file tells."""

    pid: int | None = None
    host: str | None = None

    @classmethod
    def parse(cls, text: str) -> "LockHolder":
        match = re.match(r"process (\d{1,10}) on host (\S+)", text)
        return cls(int(match[1]), match[2]) if match else cls()

    def __str__(self) -> str:
        return "another process" if self.pid is None else f"process {self.pid} on host {self.host}"


def find_lock_holder(path: Path) -> LockHolder | None:
    """Return the live process that holds a lock file, or None: there is no file, or a dead process left it."""
    try:
        with io.TextIOWrapper(open_regular(path), "utf-8", "replace") as file:
            return None if try_lock(file, is_exclusive=False) else LockHolder.parse(file.read(MAX_HOLDER_CHARS))
    except (OSError, InputError):
        return None


# --- reading and writing its files ---


def read_lines(path: Path) -> Iterator[str]:
    """Yield the complete lines of a log; one cut off by a kill is left out."""
    if path.exists():
        with io.TextIOWrapper(open_regular(path), "utf-8", "replace") as file:
            yield from (line for line in file if line.endswith("\n"))


def read_records(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (step, line) for each record of a log. Raises InputError for a line that is not a record."""
    for number, line in enumerate(read_lines(path), 1):
        try:
            step = int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            words = f"{line[:40].strip()!r} is not a record of a step"
            raise InputError(f"{path}, line {number}: {words}: remove it") from None
        yield step, line


def read_samples(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (step, text with its headline) for each sample."""
    parts = re.split(r"^(--- step ([0-9]{1,18}) ---\n)", "".join(read_lines(path)), flags=re.MULTILINE)
    for head, step, body in zip(parts[1::3], parts[2::3], parts[3::3]):
        yield int(step), head + body


def require_unused_folder(out: Path) -> None:
    """Raise InputError unless a folder that is to be written is new, or empty."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and is not empty: choose another --out")


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write a file such that it is either complete or not there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_file(path: Path) -> Generator[IO[str]]:
    """Open a text file for writing that replaces `path` when the block ends, and is removed if it raises. Half of a
    surrogate pair is written as its escape."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            yield file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def describe_versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "anyformer": "unknown"}
    for package in ("anyformer", "torch", "numpy"):
        with suppress(PackageNotFoundError):  # it runs without being installed
            versions[package] = version(package)
    return versions


def describe_run(name: str, preset: str, config: Any, command: str) -> dict[str, Any]:
    """Return the content of config.json."""
    return {
        "recipe": name,
        "preset": preset,
        "config": to_json(config),
        "seed": config.train.seed,
        "versions": describe_versions(),
        "command": command,
    }


@contextmanager
def open_logs(path: Path) -> Generator[Callable[[str, str], None]]:
    """Yield a function that appends a text and a newline to a log, by its name; nothing stays in a buffer. It raises
    RemovedError if the log is no longer there."""
    with report_write_errors(f"to {path}"):
        files = {name: open(path / name, "a", 1, "utf-8") for name in LOG_FILES}  # noqa: SIM115 (closed below)

    def append(name: str, text: str) -> None:
        if not is_same_file(files[name], path / name):
            raise RemovedError(path)
        with report_write_errors(str(path / name), "; free some space and go on with --resume"):
            files[name].write(f"{text}\n")

    try:
        yield append
    finally:
        for file in files.values():
            with suppress(OSError):  # a full disk was reported where it was noticed
                file.close()
