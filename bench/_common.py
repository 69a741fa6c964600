"""Shared by the benchmarks: flags, trainings and greedy generation. What is heavy is imported where it is used."""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
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
    api.train(recipe, preset, out=out, train=train, **options)
    return api.load(checkpoints.list_checkpoints(out / "checkpoints")[-1], "cpu")


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
