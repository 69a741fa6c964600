"""anyformer ladder --data DATA --minutes M: compare the Transformer with what came before it."""

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from ..parsing import check_range
from ..training.config import MAX_MINUTES, MAX_SEED
from .flags import DeviceFlag, JsonFlag
from .terminal import print_status


@dataclass(frozen=True)
class Command:
    """Train what came before the Transformer, and a Transformer, on the same data
    for the same time, and write one report.

    pairs of texts  LSTM pair (2014), RNNsearch (2014), Transformer (2017)
    text            MLP over a window of words (2003), Transformer"""

    data: str = "multi30k"
    """Pairs (a set, .tsv, .jsonl, two files A,B, a folder with train.en and train.fr) or text."""
    minutes: Annotated[float, "Minutes of training for each model."] = 5.0
    out: Annotated[Path | None, "Where to write. Default: a new folder below runs/."] = None
    sentences: Annotated[int, "Validation sentences that are translated."] = 500
    seed: Annotated[int, "Seed of everything random."] = 1
    device: DeviceFlag = "auto"
    json: JsonFlag = False

    def __post_init__(self) -> None:
        check_range(self, "minutes", above=0, at_most=MAX_MINUTES)
        check_range(self, "sentences", at_least=1, at_most=1 << 31)
        check_range(self, "seed", at_least=0, at_most=MAX_SEED)


def run(options: Command) -> None:
    from ..labs import ladder
    from ..resolve_job import choose_run

    out = options.out or choose_run("ladder", options).path

    def start_rung(name: str, preset: str) -> Callable[[dict[str, Any]], None]:
        print_status(f"{name} ({preset}), {options.minutes:g} min")
        return print_record

    settings = {"sentences": options.sentences, "seed": options.seed, "device": options.device}
    facts = ladder.climb(options.data, options.minutes, out, on_rung=start_rung, **settings)
    if options.json:
        print(json.dumps({"out": str(out)} | facts, ensure_ascii=False))
        return
    for rung in facts["rungs"]:
        bleu = f"  BLEU {rung['scores']['bleu']:.1f}" if "scores" in rung else ""
        print(f"{rung['title']:<20} loss {rung['result']['val_loss']:.4f}{bleu}  {rung['steps']:,} steps")
    print_status(f"report  {shlex.quote(str(out / 'ladder.html'))}")


def print_record(record: dict[str, Any]) -> None:
    """Print the validation loss of a step, if it was measured."""
    if "val_loss" in record:
        step, seconds, loss = record["step"], record["seconds"], record["val_loss"]
        print_status(f"  step {step:,}  {seconds:.0f} s  validation loss {loss:.4f}")
