"""CPU seconds of one process, of two with copies of the model (DDP), and of two that share one (FSDP2), in turns.

    python -m bench.scale.processes [--updates 4] [--turns 3] [--json]

The shape of the preset `nanogpt-gpu` (6 layers of 384 channels, context 256), two batches of 8 rows an update, one
thread a process. What a process does before the first update and after the last one is not counted.
"""

import argparse
import json
import resource
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parent.parent.parent)
sys.path.insert(1, str(Path(__file__).resolve().parent.parent.parent / "tests" / "kits"))

from anyformer.recipe import BatchStream, StreamState, advance_stream
from anyformer.recipes import language
from anyformer.training import loop
from bench._common import make_parser
from process_kit import run_processes

LAYOUTS = {"one process": (1, 1), "two, copies (DDP)": (2, 1), "two, shards (FSDP2)": (2, 2)}


def read_cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def random_batches(config: language.Config, split: str, state: StreamState | None = None) -> BatchStream:
    state = state or {"step": 0, "tokens": 0}
    while True:
        generator = torch.Generator().manual_seed(state["step"])
        shape = (2, config.train.batch, config.model.context)
        ids, labels = torch.randint(config.padded_vocab or config.vocab_size, shape, generator=generator)
        state = advance_stream(state, ids.numel())
        yield {"ids": ids, "labels": labels}, state


def train(shard: int, updates: int) -> float:
    """Return the CPU seconds of this process for so many updates."""
    preset = language.PRESETS["nanogpt-gpu"]
    settings: dict[str, Any] = {"steps": updates + 2, "batch": 8, "accumulate": 2, "shard": shard, "eval_every": 10**6}
    config: Any = replace(
        preset, data="", tokenizer="ids", train=replace(preset.train, device="cpu", dtype="float32", **settings)
    )
    recipe: Any = SimpleNamespace(build=language.build, loss=language.loss, batches=random_batches)
    state = loop.init_state(recipe, config)
    records = loop.train(recipe, config, state)
    next(records)
    started_at = read_cpu_seconds()
    for _ in range(updates):
        next(records)
    return read_cpu_seconds() - started_at


def main() -> None:
    parser: argparse.ArgumentParser = make_parser(__doc__)
    parser.add_argument("--updates", type=int, default=4)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = {name: [] for name in LAYOUTS}
    for _ in range(options.turns):
        for name, (size, shard) in LAYOUTS.items():
            results = run_processes(size, lambda shard=shard: train(shard, options.updates), has_joined=size > 1)
            seconds[name].append(sum(results) / options.updates)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rows = [
        {"layout": name, "cpu_seconds": value, "ratio": value / medians["one process"]}
        for name, value in medians.items()
    ]
    if options.json:
        print(json.dumps(rows))
        return
    for row in rows:
        print(f"{row['layout']:<22}{row['cpu_seconds']:8.2f} CPU seconds an update{row['ratio']:8.3f} of one process")


if __name__ == "__main__":
    main()
