"""Measure how fast this machine trains, generates and tokenizes, and how near that is to the limits of its matrix
products and its memory.

    facts = measure()   # plain values, ready for --json
    describe(facts)     # rich tables and one line of advice

All figures are measured; one that could not be measured is None, and the "problem" of its row says why. Models have
random weights and read random ids, which does not change how long they take.
"""

import importlib
import platform
import time
import typing
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from itertools import pairwise
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import nn

from ..data.text.prepare import SUBWORD_BLOCK
from ..data.tokenizers.build import train_bpe
from ..events import report_progress
from ..inference.decode import generate
from ..inference.sampling import SamplingParams
from ..model.quantization.quantize import QUANTIZED, WeightFormat, quantize
from ..recipe import BatchStream, Recipe, StreamState
from ..recipes import language
from ..report.doctor import MIN_SPEEDUP, add_title, format_flops, processor_name
from ..training import hardware
from ..training.device import resolve_device
from ..training.estimate import estimate
from ..training.loop import train

DTYPES = ("float32", "bfloat16")
WEIGHT_FORMATS: tuple[WeightFormat, ...] = typing.get_args(WeightFormat)
TRAINING_PRESETS = ("nanogpt-cpu", "nanogpt-gpu")  # of the language recipe
GENERATION_PRESET = "gpt2"  # 124 million weights
TRAINING_VOCAB_SIZE = 65  # characters of tiny Shakespeare
MAX_CPU_TOKENS = 2048  # of a training batch
BATCH_SIZES, PROMPT_TOKENS, NEW_TOKENS = (1, 8), 32, 128  # of generation
BPE_VOCAB_SIZE = 4096
SECONDS = 2.0  # of measuring one figure, after a warm-up

Row = dict[str, Any]


def measure(device: str = "auto", seconds: float = SECONDS) -> dict[str, Any]:
    """Measure this machine, each figure for some seconds; takes 1.5 GB of memory.

    Returns:
        {"device", "threads", ..., "ceilings": [row], "training": [row], "generation": [row], "tokenizing": [row]}.
        Speeds are GFLOP/s, GB/s and MB/s (10^9 and 10^6) and tokens/s. A row of training has its "share" of the matrix
        products in its dtype. A row of generation has "at_most", the tokens/s if nothing but reading all linear layers
        once per step took time, and its share of that.

    Raises:
        InputError: If there is no such device.
    """
    target, started_at = resolve_device(device), time.monotonic()
    rows: dict[str, list[Row]] = {}
    parts = list(list_parts(target, seconds))
    for done, (section, name, work) in enumerate(parts):
        report_progress(name, done, len(parts))
        try:
            results = [row | {"problem": None} for row in work()]
        except (*hardware.UNSUPPORTED_ERRORS, ValueError, ImportError, MemoryError) as error:
            results = [{"problem": hardware.first_line(error)}]
        rows.setdefault(section, []).extend({"what": name} | row for row in results)
    *products, first, second = rows["ceilings"]
    rows["ceilings"] = [*products, max(first, second, key=lambda row: row.get("gb_per_s", 0.0))]
    name = torch.cuda.get_device_name(target) if target.type == "cuda" else processor_name()
    facts = {"device": str(target), "name": name, "threads": torch.get_num_threads()}
    facts |= {"torch": torch.__version__, "python": platform.python_version()}
    return facts | add_shares(rows) | {"seconds": round(time.monotonic() - started_at, 1)}


def list_parts(device: torch.device, seconds: float) -> Iterator[tuple[str, str, Callable[[], list[Row]]]]:
    """Yield (section, name, function that returns rows) of each part, in the order of measuring."""
    model, target = cache(partial(build_generator, device)), str(device)

    def multiply(dtype: str) -> list[Row]:
        return [{"dtype": dtype, "gflops": hardware.measure_matmul_gflops(target, dtype)}]

    def read_memory() -> list[Row]:
        return [{"gb_per_s": hardware.measure_read_bandwidth(target)}]

    for dtype in DTYPES:
        yield "ceilings", f"matrix products, {dtype}", partial(multiply, dtype)
    yield "ceilings", "reading memory", read_memory
    for name in TRAINING_PRESETS:
        yield "training", f"training {name}", partial(measure_training, device, name, seconds)
    for weights in WEIGHT_FORMATS:
        yield "generation", f"answering, {weights} weights", partial(measure_generation, model, weights, seconds)
    yield "tokenizing", f"BPE of {BPE_VOCAB_SIZE:,}", partial(measure_tokenizing, seconds)
    yield "ceilings", "reading memory", read_memory  # again: other processes may have used the memory before


def add_shares(rows: dict[str, list[Row]]) -> dict[str, Any]:
    """Add to each row its share of the ceiling, where both were measured."""
    products = {row["dtype"]: row["gflops"] for row in rows["ceilings"] if "gflops" in row}
    bandwidth = next((row["gb_per_s"] for row in rows["ceilings"] if "gb_per_s" in row), None)
    for row in rows["training"]:
        ceiling = products.get(row.get("dtype"))
        row["share"] = round(row["gflops"] / ceiling, 3) if ceiling else None
    for row in rows["generation"]:
        is_measured = bandwidth and row["problem"] is None
        row["at_most"] = round(row["batch"] * bandwidth * 1e9 / row["bytes_a_step"], 1) if is_measured else None
        row["share"] = round(row["tokens_per_second"] / row["at_most"], 3) if is_measured else None
    return rows


# --- training ---


def measure_training(device: torch.device, name: str, seconds: float) -> list[Row]:
    """Train a preset for some steps with the loop of `anyformer train`; the median step after the first counts."""
    config, recipe = make_config(name, device), make_random_recipe()
    facts = estimate(recipe, config)
    times: list[float] = []
    for _ in train(recipe, config):
        times.append(time.perf_counter())
        if len(times) > 1 and times[-1] - times[0] > seconds * (1 if len(times) > 3 else 4):
            break
    step = median(end - start for start, end in pairwise(times))
    row = {"preset": name, "parameters": facts["parameters"], "dtype": facts["dtype"]}
    row |= {"batch": config.train.batch, "context": config.model.context, "steps": len(times)}
    row |= {"tokens_per_second": round(facts["tokens_per_step"] / step, 1)}
    return [row | {"gflops": round(facts["flops_per_step"] / step / 1e9, 1)}]


def make_config(name: str, device: torch.device) -> language.Config:
    """Return a preset without data; on a CPU its batch is limited."""
    config = language.PRESETS[name]
    batch = config.train.batch
    if device.type == "cpu":
        batch = max(1, min(batch, MAX_CPU_TOKENS // config.model.context))
    train = {"batch": batch, "accumulate": 1, "device": str(device), "steps": 1 << 30, "eval_every": 1 << 30}
    text = {"data": "", "tokenizer": "ids", "vocab_size": TRAINING_VOCAB_SIZE}
    return replace(config, **text, train=replace(config.train, **train))


def make_random_recipe(loss: Callable[..., Any] = language.loss) -> Recipe:
    """Return the language recipe on random ids."""
    return typing.cast(Recipe, SimpleNamespace(build=language.build, loss=loss, batches=random_batches))


def random_batches(config: language.Config, split: str, state: StreamState | None = None) -> BatchStream:
    """Yield batches of random ids in the form of the language recipe."""
    shape = (config.train.batch, config.model.context)
    while True:
        ids, labels = torch.randint(config.padded_vocab or config.vocab_size, (2, *shape))
        yield {"ids": ids, "labels": labels}, {"tokens": ids.numel()}


# --- generation ---


def build_generator(device: torch.device) -> language.LanguageModel:
    torch.manual_seed(0)
    config = replace(language.PRESETS[GENERATION_PRESET], data="", tokenizer="ids")
    return language.build(config).to(device).eval()


def measure_generation(model: Callable[[], language.LanguageModel], weights: WeightFormat, seconds: float) -> list[Row]:
    """Measure tokens per second with weights in a format, for each batch size; the prompt does not count."""
    with use_weight_format(model(), weights) as generator:
        row = {"weights": weights, "bytes_a_step": count_linear_bytes(generator)}
        seconds /= len(BATCH_SIZES)
        return [row | {"batch": n, "tokens_per_second": measure_speed(generator, n, seconds)} for n in BATCH_SIZES]


@contextmanager
def use_weight_format(model: language.LanguageModel, weights: WeightFormat) -> Generator[language.LanguageModel]:
    """Convert the linear layers of the model to a format; restore them afterwards."""
    layers = [(parent, *item) for parent in model.modules() for item in parent.named_children()]
    quantize(model, weights)
    try:
        yield model
    finally:
        for parent, name, child in layers:
            setattr(parent, name, child)


def count_linear_bytes(model: nn.Module) -> int:
    """Return the bytes of the linear layers, which are most of what a step reads."""
    plain = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    quantized = [module.weight_bytes for module in model.modules() if isinstance(module, QUANTIZED)]
    return sum(quantized) + sum(weight.numel() * weight.element_size() for weight in plain)


def measure_speed(model: language.LanguageModel, batch: int, seconds: float) -> float:
    """Return the tokens per second of greedy decoding, all rows together."""
    prompt = min(PROMPT_TOKENS, model.body.config.context // 2)
    new = min(NEW_TOKENS, model.body.config.context - prompt)
    prompts = torch.randint(model.nodes.token.num_embeddings, (batch, prompt)).tolist()
    steps = generate(model, prompts, tokens=new, sampling=SamplingParams(temperature=0), seeds=[0] * batch)
    next(steps), next(steps)  # the prompt, and a step to warm up
    started_at, done = time.perf_counter(), 0
    for done, _ in enumerate(steps, 1):  # noqa: B007 (counts the steps)
        if time.perf_counter() - started_at > seconds:
            break
    return round(batch * done / (time.perf_counter() - started_at), 1)


# --- tokenizing ---


def measure_tokenizing(seconds: float) -> list[Row]:
    """Encode the text that a byte-level BPE was trained on, in the blocks in which training data are read."""
    text = load_documentation()
    blocks = [text[start : start + SUBWORD_BLOCK] for start in range(0, len(text), SUBWORD_BLOCK)]
    tokenizer, times = train_bpe(blocks, BPE_VOCAB_SIZE), []
    while len(times) < 2 or sum(times) < seconds:
        started_at = time.perf_counter()
        tokenizer.encode_batch(blocks)
        times.append(time.perf_counter() - started_at)
    size = len(text.encode())
    row = {"vocab_size": tokenizer.vocab_size, "text": "Python's own documentation", "bytes": size}
    return [row | {"mb_per_s": round(size / median(times) / 1e6, 1)}]


def load_documentation() -> str:
    """Return about 700 kB of English that come with Python. Raises ImportError if its packager left them out."""
    return "\n".join(importlib.import_module("pydoc_data.topics").topics.values())


# --- the result for a terminal ---


def describe(facts: dict[str, Any]) -> Group:
    """Format the result of `measure`."""
    name = " · ".join(filter(None, [facts["device"], facts["name"], f"torch {facts['torch']}"]))
    threads = f" · {facts['threads']} threads" if facts["device"] == "cpu" else ""
    return Group(
        Text(f"{name}{threads} · measured in {facts['seconds']:.0f} s\n", style="dim"),
        *(add_title(title, build_table(facts[key], names, cells)) for key, (title, names, cells) in SECTIONS.items()),
        Text.assemble(("→ ", "bold green"), (advise(facts), "bold")),
    )


def build_table(rows: list[Row], columns: tuple[str, ...], format_cells: Callable[[Row], list[str]]) -> Table:
    """Return a table whose first column is text and the others numbers, and one for problems if there are any."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", show_header=any(columns))
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    if any(row["problem"] for row in rows):
        table.add_column("")
    for row in rows:
        if row["problem"]:
            table.add_row(row["what"], *["–"] * (len(columns) - 1), Text(row["problem"], style="red"))
        else:
            table.add_row(*format_cells(row))
    return table


def format_ceiling(row: Row) -> list[str]:
    return [row["what"], f"{row['gb_per_s']:,.1f} GB/s" if "gb_per_s" in row else format_flops(row["gflops"])]


def format_training(row: Row) -> list[str]:
    size, batch = f"{row['parameters'] / 1e6:.2f} M", f"{row['batch']} × {row['context']}"
    speeds = [f"{row['tokens_per_second']:,.0f}", format_flops(row["gflops"]), format_share(row["share"])]
    return [row["preset"], size, batch, row["dtype"], *speeds]


def format_generation(row: Row) -> list[str]:
    limit = "–" if row["at_most"] is None else f"{row['at_most']:,.1f}"
    speeds = [f"{row['tokens_per_second']:,.1f}", limit, format_share(row["share"])]
    return [row["weights"], f"{row['bytes_a_step'] / 1e6:,.0f} MB", str(row["batch"]), *speeds]


def format_tokenizing(row: Row) -> list[str]:
    return [f"{row['what']}, {row['text']}", f"{row['mb_per_s']:,.1f} MB/s"]


def format_share(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}"


SECTIONS: dict[str, tuple[str, tuple[str, ...], Callable[[Row], list[str]]]] = {  # title, columns, cells of a row
    "ceilings": ("Ceilings", ("", ""), format_ceiling),
    "training": (
        "Training: presets of language, and their share of the products",
        ("preset", "parameters", "batch", "dtype", "tokens/s", "", "share"),
        format_training,
    ),
    "generation": (
        "Answering: GPT-2's shape, at most as fast as its weights are read",
        ("weights", "read a step", "batch", "tokens/s", "at most", "share"),
        format_generation,
    ),
    "tokenizing": ("Tokenizing", ("", ""), format_tokenizing),
}


def advise(facts: dict[str, Any]) -> str:
    """Say in one line in which formats to train and to generate here."""
    advice = []
    products = {row["dtype"]: row["gflops"] for row in facts["ceilings"] if row.get("gflops")}
    default = next((row["dtype"] for row in facts["training"] if not row["problem"]), "")
    if default in products:
        best, ratio = find_fastest(products, default)
        keep = f"train as it is: --dtype auto takes {default}"
        change = f"train with --dtype {best}: matrices multiply {ratio:.1f} × as fast as in {default}, which auto takes"
        advice.append(change if ratio >= MIN_SPEEDUP else keep)
    answers = {row["weights"]: row["tokens_per_second"] for row in facts["generation"] if row.get("batch") == 1}
    if "float32" in answers:
        best, ratio = find_fastest(answers, "float32")
        keep = "answer with float32 weights: fewer bits are no faster here"
        change = f"answer with --weights {best}: {ratio:.1f} × as many tokens a second as float32"
        advice.append(change if ratio >= MIN_SPEEDUP else keep)
    return "; ".join(advice) or "nothing could be measured: see anyformer doctor"


def find_fastest(speeds: dict[str, float], default: str) -> tuple[str, float]:
    """Return the fastest format, and how many times as fast as the default it is."""
    best = max(speeds, key=lambda name: speeds[name])
    return best, speeds[best] / speeds[default]
