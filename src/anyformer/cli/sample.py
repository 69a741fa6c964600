"""anyformer sample RUN: a trained language model writes on."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ..errors import InputError
from .parse import parse, say

PROG = "anyformer sample"


@dataclass(frozen=True)
class Command:
    """Let a trained language model write on from a prompt: from a newline, unless you say otherwise."""

    run: tyro.conf.Positional[Path]
    """A run directory (its best checkpoint), or a checkpoint."""
    prompt: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """What to continue; - reads stdin. Given several times, all are continued in one batch."""
    prompt_file: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """A file to continue. May be given several times."""
    chat: str | None = None
    """Say this to a model that was trained to chat, by the template it came with, and show its answer."""
    tokens: int = 500
    """The most new tokens of each sample."""
    samples: int = 1
    """Samples of each prompt."""
    temperature: float = 0.8
    """0 always takes the likeliest token; above 1 is bolder than the model."""
    top_k: int | None = None
    """Only the k likeliest tokens."""
    top_p: float | None = None
    """Only the likeliest tokens that together reach probability p."""
    min_p: float | None = None
    """Only tokens at least this fraction as likely as the likeliest."""
    repetition_penalty: float = 1.0
    """Above 1: what was said becomes less likely."""
    stop: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A text that ends a sample. May be given several times."""
    keep: int | None = None
    """Tokens that stay when the context is full and the oldest are cropped. Default: half the context."""
    seed: int = 0
    """The same seed gives the same samples."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
    weights: Literal["float32", "bfloat16", "int8"] = "float32"
    """Of the linear maps: fewer bits answer sooner, and nearly the same."""
    json: Annotated[bool, tyro.conf.arg(help="One JSON object on stdout, and nothing else there.")] = False

    def request(self) -> dict[str, Any]:
        names = (
            "tokens",
            "samples",
            "temperature",
            "top_k",
            "top_p",
            "min_p",
            "repetition_penalty",
            "stop",
            "keep",
            "seed",
        )
        prompts = self.prompts()  # where there is none, the recipe knows how to begin
        if prompts and self.chat is not None:
            raise InputError("--chat and --prompt exclude each other: a message, or a text to continue")
        given: dict[str, Any] = {"prompt": prompts} if prompts else {}
        if self.chat is not None:
            given["messages"] = [{"role": "user", "content": self.chat}]
        return given | {name: getattr(self, name) for name in names}

    def prompts(self) -> list[str]:
        given = [stdin() if prompt == "-" else prompt for prompt in self.prompt]
        return given + [read(path) for path in self.prompt_file]


def read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 at byte {error.start}: a prompt is text") from None
    except OSError as error:
        raise InputError(f"cannot read the prompt {path}: {error.strerror or error}") from None


def stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"stdin is not UTF-8 at byte {error.start}: a prompt is text") from None


def run(arguments: list[str]) -> int:
    asked = parse(Command, arguments, PROG)
    request = asked.request()
    from .. import api

    model = api.load(asked.run, asked.device, weights=asked.weights)
    speak = getattr(model.recipe, "stream", None)
    if speak is None:
        raise InputError(f"{asked.run} is a run of a recipe that writes no text: sample needs one that does")
    if asked.json:
        answer = model.predict(request)
        print(json.dumps(answer | {"run": str(asked.run), "step": model.step, "seed": asked.seed}))
        return 0
    show(speak(model.module, request))
    return 0


def show(rounds: Any) -> None:
    """The first sample as it comes, the others after it, each behind its prompt."""
    voices: list[Any] = []
    for i, voices in enumerate(rounds):
        if i == 0:
            sys.stdout.write(voices[0].prompt)
        sys.stdout.write(voices[0].fresh())
        sys.stdout.flush()
    for voice in voices[1:]:
        sys.stdout.write(f"\n{'-' * 20}\n{voice.prompt}{voice.text}")
    sys.stdout.write("\n")
    sys.stdout.flush()
    reasons = {"stop": "the text ended", "length": "as many tokens as asked"}
    say(", ".join(f"{len(v.tokens)} tokens ({reasons[v.finish_reason]})" for v in voices))
