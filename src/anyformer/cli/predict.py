"""anyformer predict RUN INPUT ...: ask a trained model of any recipe."""

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import tyro

from ..errors import InputError
from .parse import parse
from .terminal import busy

STARTS = (b"fLaC", b"OggS", b"\x89PNG\r\n", b"\xff\xd8\xff")  # what a file of sound or an image begins with


@dataclass(frozen=True)
class Command:
    """What the model makes of each input, one JSON object a line, in their order. An input is a text or the path of a
    file: the recipe says which."""

    run: tyro.conf.Positional[Path]
    """A run directory (its best checkpoint), a checkpoint, or a public checkpoint."""
    input: tyro.conf.Positional[tuple[str, ...]] = ()
    """What to ask about; - reads stdin: one input a line, or a sound or an image itself. None: the show-piece."""
    file: Path | None = None
    """A file with one input a line."""
    request: str = "{}"
    """More of the recipe's request, as JSON: '{"beam": 4}'."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
    weights: Literal["float32", "bfloat16", "int8"] = "float32"
    """Of the linear maps: fewer bits answer sooner, and nearly the same."""
    json: Annotated[bool, tyro.conf.arg(help="One JSON object on stdout, and nothing else there.")] = False

    def inputs(self, kept: Path) -> list[str]:
        """All inputs; `kept`: where a file goes that comes through stdin."""
        given = [line for text in self.input for line in (piped(kept) if text == "-" else [text])]
        return given + ([] if self.file is None else lines(self.file))


def stdin(head: bytes = b"") -> list[str]:
    """The lines of stdin, after what was read of it already."""
    try:
        return (head + sys.stdin.buffer.read()).decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"stdin is not UTF-8 at byte {error.start}: one input a line is expected") from None


def piped(kept: Path) -> list[str]:
    """The lines of stdin; or, where a sound or an image comes through it, the path that it is now kept under."""
    head = sys.stdin.buffer.read(16)
    if head[8:12] not in (b"WAVE", b"WEBP") and not head.startswith(STARTS):
        return stdin(head)
    with open(kept, "wb") as file:
        file.write(head)
        shutil.copyfileobj(sys.stdin.buffer, file)
    return [str(kept)]


def lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 at byte {error.start}: one input a line is expected") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None


def more(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise InputError(f"--request is not JSON ({error}): {text}") from None
    if not isinstance(found, dict):
        raise InputError(f"--request should be a JSON object, found {text}")
    return found


def run(arguments: list[str]) -> int:
    asked = parse(Command, arguments, "anyformer predict")
    request = more(asked.request)
    with TemporaryDirectory() as folder:
        kept = Path(folder) / "stdin"
        inputs = asked.inputs(kept)
        from .. import api

        with busy():
            model = api.load(asked.run, asked.device, weights=asked.weights)
            answer = model.predict(request | ({"input": inputs} if inputs else {}))
    for result in answer.get("results") or ():
        result |= {"input": "-"} if result.get("input") == str(kept) else {}
    if asked.json:
        print(json.dumps(answer | {"run": str(asked.run), "step": model.step}, ensure_ascii=False))
        return 0
    for result in answer.get("results") or answer.get("samples") or [answer]:
        print(json.dumps(result, ensure_ascii=False))
    return 0
