"""Shared by the benchmarks: flags, trainings and greedy generation. What is heavy is imported where it is used."""

import argparse
import json
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any


def make_parser(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser with the flag --json, described by the first line of a module's docstring."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    return parser


def train_to_end(recipe: str, preset: str, out: Path, steps: int, seed: int, **options: Any) -> Any:
    """Train on a CPU and return the last checkpoint: nothing is chosen on the validation split."""
    from anyformer import api
    from anyformer.training import checkpoints

    train = {"steps": steps, "seed": seed, "eval_every": steps, "save_every": steps, "device": "cpu"}
    api.train(recipe, preset, out=out, train=options.pop("train", {}) | train, **options)
    return api.load(checkpoints.list_checkpoints(out / "checkpoints")[-1], "cpu")


def train_for(cpu_minutes: float, recipe: str, preset: str | None, out: Path, seed: int, **options: Any) -> Any:
    """Train for so many CPU minutes, over all cores, and return the last checkpoint; where `out` holds a finished run,
    that one. The number of steps follows from the first ones of a trial, so that a busy machine changes little."""
    from anyformer import api
    from anyformer.training import checkpoints

    if (out / "result.json").exists():
        return api.load(checkpoints.list_checkpoints(out / "checkpoints")[-1], "cpu")
    seconds = time_steps(recipe, preset, **options)
    steps = max(1, round(60 * cpu_minutes / seconds))
    start = time.process_time()
    model = train_to_end(recipe, preset, out, steps, seed, **options)
    spent, result = (time.process_time() - start) / 60, json.loads((out / "result.json").read_text())
    print(f"{out.name}: {steps:,} steps, {spent:.1f} CPU minutes, loss {result['val_loss']:.4f}", file=sys.stderr)
    return model


def time_steps(recipe: str, preset: str | None, n: int = 25, **options: Any) -> float:
    """Return the CPU seconds of a training step, the median of a short trial."""
    from anyformer import api

    times: list[float] = []
    train = options.pop("train", {}) | {"steps": n, "eval_every": n, "eval_batches": 1, "final_every": 1 << 20}
    with TemporaryDirectory() as folder:
        api.train(
            recipe, preset, out=Path(folder) / "run", train=train | {"warmup": 0, "device": "cpu"}, yes=True,
            on_record=lambda _: times.append(time.process_time()), **options,
        )  # fmt: skip
    return statistics.median(end - start for start, end in pairwise(times[5:-1]))


def run_training(recipe: str, preset: str, out: Path, *flags: object) -> dict[str, float]:
    """Run `anyformer train` as a process; return its seconds, loss and steps."""
    command = [sys.executable, "-m", "anyformer", "train", recipe, "--preset", preset, "--json", "--out", out, *flags]
    start = time.perf_counter()
    process = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE)
    seconds, result = time.perf_counter() - start, json.loads(process.stdout)
    return {"seconds": seconds, "loss": result["val_loss"], "steps": result["step"]}


def generate_greedy(model: Any, prompts: list[list[int]], tokens: int, keep: int | None = None) -> list[list[int]]:
    """Return the tokens that the library's `generate` appends to each prompt."""
    from anyformer.inference.decode import generate
    from anyformer.inference.sampling import SamplingParams

    sampling = SamplingParams(temperature=0)
    steps = generate(model, prompts, tokens=tokens, sampling=sampling, seeds=[0] * len(prompts), keep=keep)
    return [list(row) for row in zip(*steps)]
