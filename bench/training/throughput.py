"""Training throughput at equal architecture: nanoGPT's model and loop, and ours, on the same machine.

    python -m bench.training.throughput --nanogpt ../nanoGPT
    python -m bench.training.throughput --nanogpt ../nanoGPT --shapes nanogpt-cpu --compile

Complete updates: batch, forward, backward, clipping, AdamW. nanoGPT's CPU recipe trains in float32; bfloat16 is
measured too. FLOPs per token are counted as by nanoGPT: 6 for each weight, and 12 for each layer, channel and position
of the context. The ceiling is the fastest matrix product on this machine in the same dtype.
"""

import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from anyformer import recipe_loading
from anyformer.recipes import language
from anyformer.training import loop
from anyformer.training.hardware import measure_matmul_gflops
from bench import _nanogpt as nanogpt

BATCH = {"nanogpt-cpu": 12, "nanogpt-gpu": 16}  # small enough for a small machine
WARMUP_STEPS = 4  # not measured


def make_config(preset: str, batch: int, dtype: str, compile_model: bool) -> language.Config:
    config = language.PRESETS[preset]
    train = {"steps": 1 << 30, "eval_every": 1 << 30, "batch": batch, "device": "cpu"}
    return replace(config, train=replace(config.train, dtype=dtype, compile=compile_model, **train))


def step_anyformer(config: Any) -> Iterator[float]:
    """Yield the time at which each update ends."""
    for _ in loop.train(recipe_loading.load_recipe("language"), config):
        yield time.perf_counter()


def step_nanogpt(module: Any, config: Any) -> Iterator[float]:
    """Yield the same of nanoGPT's loop on the same batches: each step of its train.py, except for loading the batch."""
    vocab_size, batches = language.load_corpus(config).tokenizer.vocab_size, language.batches(config, "train")
    backend = "inductor" if config.train.compile else None
    for loss in nanogpt.step_nanogpt(module, config, vocab_size, batches, backend):
        loss.item()
        yield time.perf_counter()


def time_step(ends: Iterator[float], min_seconds: float) -> float:
    """Return the median seconds of an update."""
    times: list[float] = []
    for end in ends:
        times.append(end)
        if len(times) > WARMUP_STEPS + 5 and times[-1] - times[WARMUP_STEPS] > min_seconds:
            break
    return statistics.median(b - a for a, b in zip(times[WARMUP_STEPS:], times[WARMUP_STEPS + 1 :]))


def measure_waiting(config: Any) -> float:
    """Return the seconds that an update waits for its batch."""
    stream = language.batches(config, "train")
    next(stream)
    start = time.perf_counter()
    for _ in range(200):
        next(stream)
    return (time.perf_counter() - start) / 200


def measure(
    module: Any, preset: str, compile_model: bool, min_seconds: float, ceilings: dict[str, float]
) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for dtype in ceilings:
        config = make_config(preset, BATCH[preset], dtype, compile_model)
        tokens = config.train.batch * config.model.context
        for name, steps in (("nanoGPT", step_nanogpt(module, config)), ("anyformer", step_anyformer(config))):
            speed = tokens / time_step(steps, min_seconds)
            share = speed * nanogpt.count_flops(config) / 1e9 / ceilings[dtype]
            results[f"{name} {dtype}"] = {"tokens_per_second": speed, "share_of_ceiling": share}
            setting = f"{preset}, batch {config.train.batch}: {name:<9} {dtype:<8}"
            print(f"{setting} {speed:>9,.0f} tokens/s, {share:.0%} of ceiling")
    results["waiting_for_data"] = measure_waiting(config) * speed / tokens
    print(f"{preset}: {results['waiting_for_data']:.2%} of an update is waiting for data")
    fastest = max(results[f"anyformer {dtype}"]["tokens_per_second"] for dtype in ceilings)
    results["ratios"] = {f"to nanoGPT {d}": fastest / results[f"nanoGPT {d}"]["tokens_per_second"] for d in ceilings}
    ratios = ", ".join(f"{ratio:.2f} times {label[3:]}" for label, ratio in results["ratios"].items())
    print(f"{preset}: {ratios}", flush=True)
    return results


if __name__ == "__main__":
    parser = nanogpt.make_nanogpt_parser(__doc__)
    parser.add_argument("--shapes", nargs="+", choices=BATCH, default=list(BATCH))
    parser.add_argument("--compile", action="store_true", help="torch.compile both")
    parser.add_argument("--patience", type=float, default=10.0, help="seconds of each measurement")
    options = parser.parse_args()
    ceilings = {dtype: measure_matmul_gflops("cpu", dtype) for dtype in ("float32", "bfloat16")}
    speeds = ", ".join(f"{dtype} {gflops:,.0f} GFLOP/s" for dtype, gflops in ceilings.items())
    print(f"{torch.get_num_threads()} threads, ceilings: {speeds}")
    module = nanogpt.import_nanogpt(options.nanogpt)
    results = {shape: measure(module, shape, options.compile, options.patience, ceilings) for shape in options.shapes}
    if options.json:
        print(json.dumps({"ceilings": ceilings, "threads": torch.get_num_threads(), **results}))
