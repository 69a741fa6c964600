"""Memory of a training step: estimated by `--dry-run` and measured, for a few models and settings.

    python -m bench.training.memory                        two minutes
    python -m bench.training.memory --only language masked
    python -m bench.training.memory --only "language, ch" --processes 2    each of two, with copies or a share

Measured is the largest total of what torch's CPU allocator has handed out (torch.profiler) in three updates of the
training loop, in a process of its own; beside it, by how much the resident size of that process has grown.
"""

import argparse
import bisect
import itertools
import json
import os
import resource
import subprocess
import sys
import time
import typing
from dataclasses import replace
from typing import Any

from bench._common import make_parser

STEPS = 3


def list_cases() -> dict[str, tuple[str, dict[str, Any], dict[str, Any]]]:
    """Return for each case the recipe, changes of the config, and those of its training."""
    base = {"vocab_size": 512, "padded_vocab": 512}
    large = {"vocab_size": 50_304, "padded_vocab": 50_304}
    return {
        "language": ("language", base, {}),
        "language, dropout": ("language", base | {"dropout": 0.1}, {}),
        "language, two batches": ("language", base, {"accumulate": 2}),
        "language, bfloat16": ("language", base, {"dtype": "bfloat16"}),
        "language, muon": ("language", base, {"optimizer": "muon"}),
        "language, checkpointed": ("language", base, {"activation_checkpointing": True}),
        "language, states in bfloat16": ("language", base, {"optimizer_dtype": "bfloat16"}),
        "language, 50,304 tokens": ("language", large, {"batch": 16}),
        "masked": ("masked", {"data": "plays"}, {}),
        "translation": ("translation", {}, {}),
        "speech": ("speech", {}, {}),
        "vision": ("vision", {}, {}),
        "multimodal": ("multimodal", {}, {}),
        "control": ("control", {}, {}),
    }


def make_case(name: str, processes: int = 1, shard: int = 1) -> tuple[Any, Any]:
    """Return the recipe and the config of a case; each process has as much work as one alone."""
    from anyformer.model.config import find_stacks
    from anyformer.recipe_loading import load_recipe

    recipe_name, changes, train = list_cases()[name]
    recipe = load_recipe(recipe_name)
    config: Any = recipe.PRESETS["tiny"]
    if recipe_name == "language":
        dropout = changes.get("dropout", 0.0)
        shape = {"dim": 256, "n_layer": 4, "n_head": 4, "context": 128, "dropout": dropout}
        model = replace(config.model, **shape)
        config = replace(
            config, data="plays", model=model, **{key: value for key, value in changes.items() if key != "dropout"}
        )
    else:
        stacks = {key: replace(stack, dim=128, n_layer=3) for key, stack in find_stacks(config).items()}
        config = replace(config, **changes, **stacks)
    settings = {"steps": STEPS + 1, "warmup": 0, "eval_every": STEPS + 1, "device": "cpu", "dtype": "float32"}
    train = settings | train | {"accumulate": processes * train.get("accumulate", 1), "shard": shard}
    return recipe, replace(config, train=replace(config.train, **train))


def current_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def measure(name: str, shard: int) -> dict[str, Any]:
    """Train in this process. Returns the largest total of allocated bytes, and by how much the process has grown."""
    from torch.profiler import ProfilerActivity, profile

    from anyformer import processes
    from anyformer.training import loop
    from anyformer.training.distributed import get_local, join_processes

    recipe, config = make_case(name, processes.get_world_size(), shard)
    next(recipe.batches(config, "train", None))  # the data are prepared
    before = current_bytes()
    with join_processes("cpu"), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        state, ends = loop.init_state(recipe, config), [0]
        for record in loop.train(recipe, config, state):
            ends.append(time.time_ns())
            if record["step"] == STEPS:
                break
        states = [
            value for part in state.optimizer.optimizers for kept in part.state.values() for value in kept.values()
        ]
        held = sum(get_local(tensor).nbytes for tensor in (*state.model.parameters(), *state.model.buffers(), *states))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    results = typing.cast(Any, profiler.profiler).kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in results if event.name() == "[memory]")
    totals = list(itertools.accumulate(change for _, change in changes))
    peak = max(totals)
    if shard > 1:  # what other threads free is not seen: of gathered weights, only the rise within an update counts
        times = [moment for moment, _ in changes]
        start, end = (bisect.bisect(times, moment) for moment in ends[-2:])
        peak = held + max(totals[start:end]) - totals[start - 1]
    return {"measured": peak, "resident": grown}


def compare(name: str, processes: int, shard: int) -> dict[str, Any]:
    """Return the estimate of a case beside what the first of the processes takes that train it."""
    from anyformer.training.estimate import estimate

    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "bench.training.memory", "--measure", name]
    command += ["--shard", str(shard)]
    process = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    measured = json.loads(next(line for line in process.stdout.splitlines() if line.startswith(b"{")))
    parts = estimate(*make_case(name, processes, shard), processes)["memory_bytes"]
    error = parts["total"] / measured["measured"] - 1
    return {"case": name, "shard": shard, "estimated": parts["total"], "parts": parts, "error": error} | measured


def main(options: argparse.Namespace) -> None:
    rows = []
    for name in list_cases():
        if options.only and not any(name.startswith(word) for word in options.only):
            continue
        for shard in sorted({1, options.processes}):
            row = compare(name, options.processes, shard)
            rows.append(row)
            if not options.json:
                sizes = [f"{key} {row[key] / 1e6:8.1f} MB" for key in ("estimated", "measured", "resident")]
                title = name if options.processes == 1 else f"{name}, shard {shard} of {options.processes}"
                print(f"{title:<40}", *sizes, f"{row['error']:+.1%}", sep="  ", flush=True)
    if options.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    parser = make_parser(__doc__)
    parser.add_argument("--only", nargs="+", help="cases that begin with this")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--shard", type=int, default=1, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        result = measure(arguments.measure, arguments.shard)
        if os.environ.get("RANK", "0") == "0":
            print(json.dumps(result), flush=True)
    else:
        main(arguments)
