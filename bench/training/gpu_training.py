"""Training on a GPU, for bench/gpu.py: GPT-2's shape beside nanoGPT, and tiny Shakespeare to a loss.
(On a CPU: bench/training/nanogpt_recipe.py, bench/training/time_to_loss.py.)
"""

import math
import time
import typing
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch._dynamo.utils import counters

from anyformer.labs.benchmark import make_random_recipe, random_batches
from anyformer.recipe import Recipe
from anyformer.recipes import language
from anyformer.training import hardware, loop
from bench import _nanogpt as nanogpt

NEVER = 1 << 30
WARMUP_STEPS = 5  # not measured
Row = dict[str, Any]
Measurement = tuple[str, Callable[[], Row]]  # name of a row, and the function that measures it


# --- training ---


def list_training(setup: Any) -> Iterator[Measurement]:
    batch = 2 if setup.dry else setup.options.batch
    config = make_config(setup, batch)
    context, flops = config.model.context, nanogpt.count_flops(config)
    contenders: dict[str, Callable[[], Iterator[Any]]] = {
        "anyformer": partial(train_on_random, config, torch.compile(language.loss, backend=setup.backend)),
        "nanoGPT": partial(step_nanogpt, setup, config),
        "anyformer, not compiled": partial(train_on_random, config, language.loss),
    }
    for name, run in contenders.items():
        if name not in setup.options.contenders:
            continue

        def measure(run: Callable[[], Iterator[Any]] = run) -> Row:
            counters.clear()
            speed = batch * context / time_step(setup, run())
            peak = setup.peak_flops()
            row = {"batch": batch, "context": context, "graphs": counters["stats"]["unique_graphs"]}
            return row | {"tokens_per_second": speed} | ({"mfu": speed * flops / peak} if peak else {})

        yield f"training, {name}", measure
    yield "best product of two matrices", partial(measure_best_product, str(setup.device))


def train_on_random(config: language.Config, loss: Callable[..., Any]) -> Iterator[Any]:
    """Yield after each update of our loop."""
    yield from loop.train(make_random_recipe(loss), config)


def measure_best_product(device: str) -> Row:
    return {"tflops": hardware.measure_matmul_gflops(device, "bfloat16") / 1e3}


def make_config(setup: Any, batch: int) -> language.Config:
    settings: Row = {"steps": NEVER, "eval_every": NEVER, "accumulate": 1, "batch": batch}
    device = {"device": str(setup.device), "dtype": "bfloat16", "compile": False}
    return replace(setup.gpt2, train=replace(setup.gpt2.train, **settings, **device))


def compile_modules(model: Any, what: str, backend: str) -> None:
    """Compile the model, or each of its blocks, which share one graph; "eager": nothing."""
    for module in {"blocks": model.body.blocks, "model": [model], "eager": []}[what]:
        module.compile(backend=backend)


def step_nanogpt(setup: Any, config: language.Config) -> Iterator[Any]:
    """Yield after each update of nanoGPT's loop, which reads the loss only when it prints it."""
    if setup.options.nanogpt is None:
        raise SystemExit("there is no --nanogpt, a checkout of github.com/karpathy/nanoGPT")
    module, batches = nanogpt.import_nanogpt(setup.options.nanogpt), random_batches(config, "train", None)
    return nanogpt.step_nanogpt(module, config, config.padded_vocab or config.vocab_size, batches, setup.backend)


def time_step(setup: Any, updates: Iterator[Any]) -> float:
    """Return the mean seconds of an update."""
    for _ in range(WARMUP_STEPS):
        next(updates)
    setup.synchronize()
    start, done = time.perf_counter(), 0
    while done < 5 or time.perf_counter() - start < setup.options.patience:
        next(updates)
        done += 1
    setup.synchronize()
    return (time.perf_counter() - start) / done


# --- shakespeare ---


def list_shakespeare(setup: Any) -> Iterator[Measurement]:
    with TemporaryDirectory() as folder:
        data = setup.options.shakespeare or ("shakespeare" if not setup.dry else write_text(Path(folder) / "text.txt"))
        for name, config in make_candidates(setup, str(data)).items():
            language.load_corpus(config)  # prepared before the time starts
            for compiled in ("eager", "blocks", "model"):
                title = f"shakespeare, {name}, compiled: {compiled}".replace("compiled: eager", "eager")
                yield title, lambda c=config, compiled=compiled: train_to_target(setup, c, compiled)


def write_text(path: Path) -> Path:
    path.write_text("the cat sat on the mat. the dog sat on the log.\n" * 60)
    return path


def make_candidates(setup: Any, data: str) -> dict[str, language.Config]:
    """Return presets of the language recipe with their own steps, and "modern": nanoGPT's shape with the settings of
    the preset `small`, whose steps (--steps) and learning rate (--lr) are not tuned.
    """
    options, presets = setup.options, language.PRESETS
    base, small = (presets["tiny" if setup.dry else name] for name in ("nanogpt-gpu", "small"))
    sizes = {name: getattr(base.model, name) for name in ("dim", "n_layer", "n_head", "context", "dropout")}
    steps = 4 if setup.dry else options.steps
    train = {"steps": steps, "lr": options.lr, "batch": base.train.batch, "warmup": steps // 20}
    modern = replace(small, model=replace(small.model, **sizes), train=replace(small.train, **train))
    configs = presets | {"modern": modern} | ({"nanogpt-gpu": base} if setup.dry else {})
    if unknown := [name for name in options.presets if name not in configs]:
        raise SystemExit(f"there is no preset {unknown[0]}: {', '.join(configs)}")
    settings: Row = {"eval_every": 2 if setup.dry else options.every, "eval_batches": NEVER}
    settings |= {"dtype": "bfloat16", "device": str(setup.device)}
    return {n: replace(configs[n], data=data, train=replace(configs[n].train, **settings)) for n in options.presets}


def train_to_target(setup: Any, config: language.Config, compiled: str) -> Row:
    """Return the seconds from building the model to the target loss, validation and compilation included."""
    target, best, record = 99.0 if setup.dry else setup.options.target, math.inf, {}
    start = time.perf_counter()
    state = loop.init_state(typing.cast(Recipe, language), config)
    compile_modules(state.model, compiled, setup.backend)
    for record in loop.train(typing.cast(Recipe, language), config, state):
        best = min(best, record.get("val_loss", math.inf))
        if best <= target or time.monotonic() > setup.ends_at - 5:
            break
    row = {"reached": best <= target, "seconds": time.perf_counter() - start, "steps": record["step"]}
    return row | {"best_loss": best, "target": target}
