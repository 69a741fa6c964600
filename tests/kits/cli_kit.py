"""What the tests of the command line share: commands in this process, and their results."""

import contextlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyformer import cli

TINY = ("train", "language", "--preset", "tiny", "--device", "cpu", "--dtype", "float32")
SHORT = ("--steps", "4", "--train.eval-every", "2", "--train.save-every", "2")


@dataclass(frozen=True)
class CommandResult:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The only JSON object on stdout; anything else there fails."""
        assert self.out.count("\n") == 1 and self.out.endswith("\n"), self.out
        return json.loads(self.out)

    def ok(self) -> "CommandResult":
        """Return the result; fails if the command did."""
        assert self.code == 0, self.err
        return self


def call(*arguments: object) -> CommandResult:
    """Run `anyformer ARGUMENTS`; eval and sample run on the CPU unless a device is named."""
    if arguments and arguments[0] in ("eval", "sample") and "--device" not in arguments:
        arguments = (*arguments, "--device", "cpu")
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.run([str(argument) for argument in arguments])
        except SystemExit as error:  # --help
            code = int(error.code or 0)
    return CommandResult(code, out.getvalue(), err.getvalue())


def train(data: Path, out: Path, *flags: object) -> CommandResult:
    """Train a few steps of the tiny preset; `flags` override those given here."""
    return call(*TINY, "--data", data, "--out", out, *SHORT, *flags).ok()


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def assert_refused(result: CommandResult, *parts: str, code: int = 2) -> None:
    """Check for one line on stderr that begins with our name and contains these parts in order; nothing on stdout."""
    assert (result.code, result.out) == (code, ""), result
    assert result.err.startswith("anyformer: ") and result.err.count("\n") == 1, result.err
    remaining = result.err
    for part in parts:
        assert part in remaining, f"{part!r} is not (or not in this order) in: {result.err}"
        remaining = remaining.split(part, 1)[1]


def read_folder(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder below, hidden ones too: name -> content."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@contextlib.contextmanager
def nothing_changes(folder: Path, but: Callable[[str], bool] = lambda name: False) -> Iterator[None]:
    """Check that the folder is the same after the block, but for some names."""
    before = read_folder(folder)
    yield
    after = read_folder(folder)
    assert {name for name in before | after if before.get(name, 0) != after.get(name, 0) and not but(name)} == set()
