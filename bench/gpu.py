"""Benchmarks on one NVIDIA GPU: training, time to a loss, generation, and windowed attention, each next to a peer.

    python -m bench.gpu --nanogpt ../nanoGPT --shakespeare input.txt
    python -m bench.gpu --only window training --json
    python -m bench.gpu --dry                  tiny shapes on any machine: checks that every part runs

training      GPT-2's 124M shape, context 1024, bfloat16, torch.compile: tokens/s and MFU of nanoGPT's model and ours,
              and the number of graphs, since each graph break costs time
shakespeare   seconds until the loss over the validation split of tiny Shakespeare is 1.4697, which nanoGPT reports
generation    GPT-2's 124M shape, a prompt of 32 tokens, 128 new tokens: eager, captured, compiled, and transformers
window        one layer of causal & window(256) through FlexAttention, and full causal attention through SDPA

Nothing is downloaded; torch, numpy, tokenizers and rich are enough. If a part or a row fails, the reason is reported
and the others continue.
"""

import argparse
import contextlib
import json
import math
import sys
import time
import typing
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch._dynamo.utils import counters

from anyformer.labs.benchmark import make_random_recipe, random_batches
from anyformer.recipe import Recipe
from anyformer.recipes import language
from anyformer.training import hardware, loop
from anyformer.training.device import resolve_device

if __package__ in (None, ""):  # python bench/gpu.py
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench import _nanogpt as nanogpt
from bench._common import make_parser
from bench.inference.gpu_generation import list_generation
from bench.model.gpu_long_context import list_windows

# dense bfloat16, by name
PEAK_TFLOPS = {"H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "H200": 989, "A100": 312}
NEVER = 1 << 30
TARGET_LOSS = 1.4697
BATCH_SIZES = (64, 32, 16, 8, 4)  # tried in training, from the largest
WARMUP_STEPS = 5  # not measured
Row = dict[str, Any]
Measurement = tuple[str, Callable[[], Row]]  # name of a row, and the function that measures it


class Setup:
    """The device, the options and the shapes."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.dry = options, options.dry
        self.device = resolve_device(options.device)
        self.backend = "eager" if self.dry else "inductor"  # eager: traced, not compiled
        gpt2 = language.PRESETS["gpt2"]
        small = replace(gpt2.model, dim=64, n_layer=2, n_head=2, context=64)
        text = {"data": "", "tokenizer": "ids", "padded_vocab": 512 if self.dry else gpt2.padded_vocab}
        self.gpt2 = replace(gpt2, **text, model=small if self.dry else gpt2.model)

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def peak_flops(self) -> float | None:
        """Return the peak FLOP/s in bfloat16: --peak, or known for this GPU."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else ""
        tflops = self.options.peak or next((peak for kind, peak in PEAK_TFLOPS.items() if kind in name), None)
        return None if tflops is None else 1e12 * tflops


def attempt(name: str, work: Callable[[], Row]) -> Row:
    """Measure and print a row; if it fails, the row has the problem."""
    try:
        row = {"what": name} | work()
    except (Exception, SystemExit) as error:
        row = {"what": name, "problem": describe_error(error)}
    figures = (f"{key} {value:,.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items())
    print("  ".join(figures).removeprefix("what "), flush=True)
    torch._dynamo.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return row


def describe_error(error: BaseException) -> str:
    return f"{type(error).__name__}: {hardware.first_line(error)}"


# --- training ---


def list_training(setup: Setup) -> Iterator[Measurement]:
    batch = find_largest_batch(setup) if setup.options.batch is None else setup.options.batch
    config = make_config(setup, batch)
    context, flops = config.model.context, nanogpt.count_flops(config)
    contenders: dict[str, Callable[[], Iterator[Any]]] = {
        "anyformer": lambda: step_anyformer(setup, config),
        "anyformer, the loss compiled too": lambda: step_anyformer(setup, config, compile_loss=True),
        "nanoGPT": lambda: step_nanogpt(setup, config),
    }
    for name, run in contenders.items():

        def measure(run: Callable[[], Iterator[Any]] = run) -> Row:
            counters.clear()
            speed = batch * context / time_step(setup, run())
            mfu = speed * flops / peak if (peak := setup.peak_flops()) else None
            row = {"batch": batch, "context": context, "graphs": counters["stats"]["unique_graphs"]}
            return row | {"tokens_per_second": speed, "mfu": mfu}

        yield f"training, {name}", measure
    best = lambda: {"tflops": hardware.measure_matmul_gflops(str(setup.device), "bfloat16") / 1e3}  # noqa: E731
    yield "best product of two matrices", best


def make_config(setup: Setup, batch: int) -> language.Config:
    settings = {"steps": NEVER, "eval_every": NEVER, "accumulate": 1, "batch": batch}
    device = {"device": str(setup.device), "dtype": "bfloat16", "compile": False}
    return replace(setup.gpt2, train=replace(setup.gpt2.train, **settings, **device))


def find_largest_batch(setup: Setup) -> int:
    """Return the largest batch that fits into memory without compilation, which stores more activations."""
    for batch in (2,) if setup.dry else BATCH_SIZES:
        with contextlib.suppress(torch.OutOfMemoryError):
            next(loop.train(make_random_recipe(), make_config(setup, batch)))
            return batch
        torch.cuda.empty_cache()
    raise RuntimeError(f"a batch of {BATCH_SIZES[-1]} is too large for this GPU")


def step_anyformer(setup: Setup, config: language.Config, compile_loss: bool = False) -> Iterator[Any]:
    """Yield after each update of our loop, with the model compiled as by `--train.compile`, or the loss with it."""
    if compile_loss:
        yield from loop.train(make_random_recipe(torch.compile(language.loss, backend=setup.backend)), config)
        return
    state = loop.init_state(make_random_recipe(), config)
    state.model.body.compile(backend=setup.backend)
    yield from loop.train(make_random_recipe(), config, state)


def step_nanogpt(setup: Setup, config: language.Config) -> Iterator[Any]:
    """Yield after each update of nanoGPT's loop, which reads the loss only when it prints it."""
    if setup.options.nanogpt is None:
        raise SystemExit("no --nanogpt: a checkout of github.com/karpathy/nanoGPT")
    module, batches = nanogpt.import_nanogpt(setup.options.nanogpt), random_batches(config, "train", None)
    return nanogpt.step_nanogpt(module, config, config.padded_vocab or config.vocab_size, batches, setup.backend)


def time_step(setup: Setup, updates: Iterator[Any]) -> float:
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


def list_shakespeare(setup: Setup) -> Iterator[Measurement]:
    with TemporaryDirectory() as folder:
        data = setup.options.shakespeare or ("shakespeare" if not setup.dry else write_text(Path(folder) / "text.txt"))
        for name, config in make_candidates(setup, str(data)).items():
            language.load_corpus(config)  # prepared before the time starts
            for compile_model in (False, True):
                mode = "compiled" if compile_model else "eager"
                yield (
                    f"shakespeare, {name}, {mode}",
                    lambda c=config, compile_model=compile_model: train_to_target(setup, c, compile_model),
                )


def write_text(path: Path) -> Path:
    path.write_text("the cat sat on the mat. the dog sat on the log.\n" * 60)
    return path


def make_candidates(setup: Setup, data: str) -> dict[str, language.Config]:
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


def train_to_target(setup: Setup, config: language.Config, compile_model: bool) -> Row:
    """Return the seconds from building the model to the target loss, validation and compilation included."""
    target, best, record = 99.0 if setup.dry else setup.options.target, math.inf, {}
    start = time.perf_counter()
    state = loop.init_state(typing.cast(Recipe, language), config)
    if compile_model:
        state.model.body.compile(backend=setup.backend)
    for record in loop.train(typing.cast(Recipe, language), config, state):
        seconds = time.perf_counter() - start
        best = min(best, record.get("val_loss", math.inf))
        if best <= target or seconds > 60 * setup.options.minutes:
            break
    row = {"reached": best <= target, "seconds": time.perf_counter() - start, "steps": record["step"]}
    return row | {"best_loss": best, "target": target}


PARTS: dict[str, Callable[[Any], Iterator[Measurement]]] = {
    "training": list_training,
    "shakespeare": list_shakespeare,
    "generation": list_generation,
    "window": list_windows,
}


def measure_part(name: str, setup: Setup) -> Iterator[Row]:
    """Yield all rows of a part; if it ends early, the last row has the problem."""
    try:
        for title, work in PARTS[name](setup):
            yield attempt(title, work)
    except (Exception, SystemExit) as error:
        yield {"what": name, "problem": describe_error(error)}
        print(name, describe_error(error), flush=True)


def main(options: argparse.Namespace) -> None:
    setup = Setup(options)
    if setup.device.type != "cuda" and not setup.dry:
        sys.exit("there is no NVIDIA GPU here: --dry runs the script without one")
    name = torch.cuda.get_device_name(setup.device) if setup.device.type == "cuda" else str(setup.device)
    results: Row = {"device": name, "torch": torch.__version__, "peak": setup.peak_flops(), "dry": setup.dry}
    with contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext():
        print(f"{name}, torch {torch.__version__}", flush=True)
        for part in options.only:
            results[part] = list(measure_part(part, setup))
    if options.json:
        print(json.dumps(results))


if __name__ == "__main__":
    parser = make_parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dry", action="store_true", help="tiny shapes, nothing compiled, on a CPU too")
    parser.add_argument("--nanogpt", type=Path, help="a checkout of github.com/karpathy/nanoGPT")
    parser.add_argument("--peak", type=float, help="dense bfloat16 TFLOP/s of this GPU; by default from a table")
    parser.add_argument("--batch", type=int, help="of training; by default the largest that fits")
    parser.add_argument("--patience", type=float, default=10.0, help="seconds of measuring each contender in training")
    parser.add_argument("--shakespeare", type=Path, help="input.txt; by default the set by name")
    parser.add_argument("--presets", nargs="+", default=["nanogpt-gpu", "modern"], help="of language, for shakespeare")
    parser.add_argument("--target", type=float, default=TARGET_LOSS, help="loss over the whole validation split")
    parser.add_argument("--minutes", type=float, default=2.0, help="time limit of each run of shakespeare")
    parser.add_argument("--every", type=int, default=100, help="steps between validations")
    parser.add_argument("--steps", type=int, default=1000, help="of the preset modern")
    parser.add_argument("--lr", type=float, default=2e-3, help="of the preset modern")
    parser.add_argument("--rounds", type=int, default=3, help="of generation")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1 << i for i in range(10, 17)])
    parser.add_argument("--width", type=int, default=256, help="of the window")
    main(parser.parse_args())
