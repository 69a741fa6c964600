"""anyformer ladder --data DATA --minutes M: the rungs of history, trained alike and compared."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from ..errors import InputError
from .parse import parse, say


@dataclass(frozen=True)
class Command:
    """What came before the Transformer, and it, on the same data for the same time: one report. Pairs of texts: LSTM
    pair, RNNsearch, Transformer. Text alone: the window of 2003, Transformer."""

    data: str = "multi30k"
    """Pairs (a set, .tsv, .jsonl, two files A,B, a folder with train.en and train.fr) or text."""
    minutes: float = 5.0
    """Of training, for each rung."""
    out: Path | None = None
    """Where to write. Default: a new folder below runs/."""
    sentences: int = 500
    """How many of the validation part are translated."""
    seed: int = 1
    """Of everything random."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
    json: Annotated[bool, tyro.conf.arg(help="One JSON object on stdout, and nothing else there.")] = False


def run(arguments: list[str]) -> int:
    asked = parse(Command, arguments, "anyformer ladder")
    if asked.sentences < 1:
        raise InputError(f"--sentences is {asked.sentences}; it must be at least 1")
    from ..labs import ladder

    out = asked.out or next_folder(asked.data)

    def rung(name: str, preset: str) -> Any:
        say(f"{name} ({preset}), {asked.minutes:g} min")

        def hear(record: dict[str, Any]) -> None:
            if "val_loss" in record:
                say(f"  step {record['step']:,}  {record['seconds']:.0f} s  validation loss {record['val_loss']:.4f}")

        return hear

    more = {"sentences": asked.sentences, "seed": asked.seed, "device": asked.device}
    found = ladder.climb(asked.data, asked.minutes, out, on_rung=rung, **more)
    if asked.json:
        print(json.dumps({"out": str(out)} | found, ensure_ascii=False))
        return 0
    for one in found["rungs"]:
        bleu = f"  BLEU {one['scores']['bleu']:.1f}" if "scores" in one else ""
        print(f"{one['title']:<20} loss {one['result']['val_loss']:.4f}{bleu}  {one['steps']:,} steps")
    say(f"report  {shlex.quote(str(out / 'ladder.html'))}")
    return 0


def next_folder(data: str) -> Path:
    stem = f"ladder-{Path(data).name.split('.')[0] or 'data'}"
    return next(path for i in range(1, 1 << 30) if not (path := Path("runs") / f"{stem}-{i}").exists())
