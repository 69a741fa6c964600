"""anyformer eval RUN: how good a trained model is, over the whole validation split."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from .parse import parse
from .terminal import busy


@dataclass(frozen=True)
class Command:
    """A fixed pass over the whole validation split: every token predicted once, the same figures every time."""

    run: tyro.conf.Positional[Path]
    """A run directory (its best checkpoint), or a checkpoint."""
    data: str | None = None
    """Other data than the run's own: all of it is used, since none of it was trained on."""
    scores: bool = False
    """Also what takes longer: BLEU and chrF of translations, the returns that an agent achieves."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
    weights: Literal["float32", "bfloat16", "int8"] | None = None
    """Of the linear maps, as it would answer with them. None: as it was trained."""
    json: Annotated[bool, tyro.conf.arg(help="One JSON object on stdout, and nothing else there.")] = False


def run(arguments: list[str]) -> int:
    asked = parse(Command, arguments, "anyformer eval")
    from .. import api

    with busy():
        model = api.load(asked.run, asked.device, weights=asked.weights)
        found = model.evaluate(asked.data) | (model.judge(asked.data) if asked.scores else {})
    if asked.json:
        print(json.dumps(found | {"run": str(asked.run), "step": model.step, "data": asked.data or model.config.data}))
        return 0
    print(f"{asked.run} at step {model.step}, on {asked.data or model.config.data}")
    for name, value in found.items():
        shown = f"{value:,.4f}" if isinstance(value, float) else value if isinstance(value, str) else f"{value:,}"
        print(f"  {name.replace('_', ' '):<14} {shown}")
    return 0
