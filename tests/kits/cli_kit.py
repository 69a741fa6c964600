"""What the tests of the command line share: a command in this process, and what it said."""

import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyformer import cli

TINY = ("train", "language", "--preset", "tiny", "--device", "cpu", "--dtype", "float32")
SHORT = ("--steps", "4", "--train.eval-every", "2", "--train.save-every", "2")


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON object on stdout; anything else there fails."""
        assert self.out.count("\n") == 1 and self.out.endswith("\n"), self.out
        return json.loads(self.out)

    def well(self) -> "Said":
        assert self.code == 0, self.err
        return self


def call(*arguments: object) -> Said:
    """Run `anyformer ARGUMENTS`, on the CPU unless they say otherwise."""
    if arguments and arguments[0] in ("eval", "sample") and "--device" not in arguments:
        arguments = (*arguments, "--device", "cpu")
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.run([str(argument) for argument in arguments])
    return Said(code, out.getvalue(), err.getvalue())


def train(data: Path, out: Path, *more: object) -> Said:
    """A few steps of the tiny preset; `more` wins over the flags given here."""
    return call(*TINY, "--data", data, "--out", out, *SHORT, *more).well()


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def refused(said: Said, *parts: str, code: int = 2) -> None:
    """One line on stderr that begins with our name and holds these parts in this order; nothing on stdout."""
    assert (said.code, said.out) == (code, ""), said
    assert said.err.startswith("anyformer: ") and said.err.count("\n") == 1, said.err
    rest = said.err
    for part in parts:
        assert part in rest, f"{part!r} is not (or not in this order) in: {said.err}"
        rest = rest.split(part, 1)[1]


def content(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder below, hidden ones too: what must not change."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@contextlib.contextmanager
def nothing_changes(folder: Path, but: Callable[[str], bool] = lambda name: False):
    """Whatever happens inside, the folder holds what it held."""
    before = content(folder)
    yield
    after = content(folder)
    assert {name for name in before | after if before.get(name, 0) != after.get(name, 0) and not but(name)} == set()
