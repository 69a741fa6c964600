"""What this machine reaches: how near training and answering come to what its products and its memory allow.

    found = measure()   # plain values, ready for --json; view/bench.py tells them to a person

Every figure is measured here and now. One that could not be measured is None, and its row's "problem" says why. The
models have random weights and read random ids: that changes what they say, not how long it takes them.
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
from torch import nn

from ..data.text.prepare import SUBWORD_BLOCK
from ..data.tokenizers.build import train_bpe
from ..events import report_progress
from ..inference.decode import generate
from ..inference.sampling import SamplingParams
from ..model.quantization.quantize import FloatLinear, Int8Linear, WeightFormat, quantize
from ..recipe import StreamState, Recipe
from ..recipes import language
from ..report.doctor import processor_name
from ..training import hardware as ceilings
from ..training.device import resolve_device as find_device
from ..training.estimate import estimate
from ..training.loop import train

DTYPES = ("float32", "bfloat16")
WEIGHTS: tuple[WeightFormat, ...] = typing.get_args(WeightFormat)
TRAINED = ("nanogpt-cpu", "nanogpt-gpu")  # presets of the language recipe
ANSWERING = "gpt2"  # the preset whose shape answers: 124 million weights
CHARACTERS = 65  # of tiny Shakespeare, which the two presets are for
CPU_TOKENS = 2048  # the most in a batch of training on a CPU, where that of the larger preset would take too long
BATCHES, PROMPT, NEW = (1, 8), 32, 128  # of answering: rows, and tokens of each
BPE = 4096  # entries of the vocabulary
SECONDS = 2.0  # that one figure may take, once it has warmed up


def measure(device: str = "auto", seconds: float = SECONDS) -> dict[str, Any]:
    """{"device", "threads", ..., "ceilings": [row], "training": [row], "generation": [row], "tokenizing": [row]}.

    Speeds are GFLOP/s, GB/s and MB/s (10^9 and 10^6) and tokens/s. A row of training has its "share" of the matrix
    products in its dtype; one of generation has "at_most", the tokens/s of a machine that does nothing but read all
    linear maps once a step, and its share of that. seconds: what one figure may take. Takes 1.5 GB of memory. Raises
    InputError for a device that is not here.
    """
    where, began = find_device(device), time.monotonic()
    model = cache(partial(answerer, where))
    parts: list[tuple[str, str, Callable[[], list[dict[str, Any]]]]] = []
    parts += [("ceilings", f"matrix products, {dtype}", partial(multiplies, where, dtype)) for dtype in DTYPES]
    parts += [("ceilings", "reading memory", partial(reads, where))]
    parts += [("training", f"training {name}", partial(trains, where, name, seconds)) for name in TRAINED]
    parts += [
        ("generation", f"answering, {weights} weights", partial(answers, model, weights, seconds))
        for weights in WEIGHTS
    ]
    parts += [("tokenizing", f"BPE of {BPE:,}", partial(tokenizes, seconds))]
    parts += [("ceilings", "reading memory", partial(reads, where))]  # again: neighbours may have been reading before
    rows: dict[str, list[dict[str, Any]]] = {}
    for done, (section, what, work) in enumerate(parts):
        report_progress(what, done, len(parts))
        rows.setdefault(section, []).extend({"what": what} | one for one in attempted(work))
    *products, early, late = rows["ceilings"]
    rows["ceilings"] = [*products, max(early, late, key=lambda one: one.get("gb_per_s", 0.0))]
    about = {"device": str(where), "name": name_of(where), "threads": torch.get_num_threads()}
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    return about | versions | shared(rows) | {"seconds": round(time.monotonic() - began, 1)}


def name_of(where: torch.device) -> str | None:
    return torch.cuda.get_device_name(where) if where.type == "cuda" else processor_name()


def attempted(work: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The rows of a part, or one that says why there is none."""
    try:
        return [one | {"problem": None} for one in work()]
    except (*ceilings.UNSUPPORTED_ERRORS, ImportError, MemoryError) as error:
        return [{"problem": ceilings.first_line(error)}]


def shared(rows: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The rows with their share of the ceiling, where both were measured."""
    products = {one["dtype"]: one["gflops"] for one in rows["ceilings"] if "gflops" in one}
    memory = next((one["gb_per_s"] for one in rows["ceilings"] if "gb_per_s" in one), None)
    for one in rows["training"]:
        top = products.get(one.get("dtype"))
        one["share"] = round(one["gflops"] / top, 3) if top else None
    for one in rows["generation"]:
        known = memory and one["problem"] is None
        one["at_most"] = round(one["batch"] * memory * 1e9 / one["bytes_a_step"], 1) if known else None
        one["share"] = round(one["tokens_per_second"] / one["at_most"], 3) if known else None
    return rows


def multiplies(where: torch.device, dtype: str) -> list[dict[str, Any]]:
    return [{"dtype": dtype, "gflops": ceilings.measure_matmul_gflops(str(where), dtype)}]


def reads(where: torch.device) -> list[dict[str, Any]]:
    return [{"gb_per_s": ceilings.measure_read_bandwidth(str(where))}]


# --- training ---


def trains(where: torch.device, name: str, seconds: float) -> list[dict[str, Any]]:
    """Some steps of a preset by the loop that `anyformer train` runs: the median step after the first."""
    config = brief(name, where)
    # the recipe's own model and loss, and nothing to read from a disk
    recipe = typing.cast(Recipe, SimpleNamespace(build=language.build, loss=language.loss, batches=random_ids))
    facts = estimate(recipe, config)
    times: list[float] = []
    for _ in train(recipe, config):
        times.append(time.perf_counter())
        if len(times) > 1 and times[-1] - times[0] > seconds * (1 if len(times) > 3 else 4):
            break
    step = median(late - early for early, late in pairwise(times))
    about = {"preset": name, "parameters": facts["parameters"], "dtype": facts["dtype"]}
    about |= {"batch": config.train.batch, "context": config.model.context, "steps": len(times)}
    speeds = {"tokens_per_second": round(facts["tokens_per_step"] / step, 1)}
    return [about | speeds | {"gflops": round(facts["flops_per_step"] / step / 1e9, 1)}]


def brief(name: str, where: torch.device) -> language.Config:
    """A preset without data, its batch on a CPU no larger than that stands."""
    config = language.PRESETS[name]
    batch = config.train.batch
    if where.type == "cpu":
        batch = max(1, min(batch, CPU_TOKENS // config.model.context))
    shown = {"batch": batch, "accumulate": 1, "device": str(where), "steps": 1 << 30, "eval_every": 1 << 30}
    words = {"data": "", "tokenizer": "ids", "vocab_size": CHARACTERS}
    return replace(config, **words, train=replace(config.train, **shown))


def random_ids(
    config: language.Config, split: str, state: StreamState | None
) -> Iterator[tuple[dict[str, torch.Tensor], StreamState]]:
    """Batches as the language recipe makes them, of ids that mean nothing."""
    shape = (config.train.batch, config.model.context)
    while True:
        ids, nexts = torch.randint(config.padded_vocab or config.vocab_size, (2, *shape))
        yield {"ids": ids, "labels": nexts}, {"tokens": ids.numel()}


# --- answering ---


def answerer(where: torch.device) -> language.LanguageModel:
    torch.manual_seed(0)
    config = replace(language.PRESETS[ANSWERING], data="", tokenizer="ids")
    return language.build(config).to(where).eval()


def answers(model: Callable[[], language.LanguageModel], weights: WeightFormat, seconds: float) -> list[dict[str, Any]]:
    """Tokens a second in this format of the weights, for each batch; the prompt is not part of the time."""
    with narrowed(model(), weights) as made:
        about = {"weights": weights, "bytes_a_step": bytes_a_step(made)}
        return [about | {"batch": n, "tokens_per_second": speed(made, n, seconds / len(BATCHES))} for n in BATCHES]


@contextmanager
def narrowed(model: language.LanguageModel, weights: WeightFormat) -> Generator[language.LanguageModel]:
    """The model with its linear maps in this format, for a while."""
    maps = [(parent, *named) for parent in model.modules() for named in parent.named_children()]
    quantize(model, weights)
    try:
        yield model
    finally:
        for parent, name, child in maps:
            setattr(parent, name, child)


def bytes_a_step(model: nn.Module) -> int:
    """What the linear maps hold: of everything else, a step reads little."""
    maps = [module.weight for module in model.modules() if isinstance(module, nn.Linear | FloatLinear | Int8Linear)]
    return sum(weight.numel() * weight.element_size() for weight in maps)


def speed(model: language.LanguageModel, batch: int, seconds: float) -> float:
    """Tokens a second, all rows together, of the likeliest tokens."""
    prompt = min(PROMPT, model.body.config.context // 2)
    new = min(NEW, model.body.config.context - prompt)
    prompts = torch.randint(model.nodes.token.num_embeddings, (batch, prompt)).tolist()
    steps = generate(model, prompts, tokens=new, sampling=SamplingParams(temperature=0), seeds=[0] * batch)
    next(steps), next(steps)  # the prompt, and a step to warm up
    began, done = time.perf_counter(), 0
    for done, _ in enumerate(steps, 1):  # noqa: B007 (how many there were)
        if time.perf_counter() - began > seconds:
            break
    return round(batch * done / (time.perf_counter() - began), 1)


# --- tokenizing ---


def tokenizes(seconds: float) -> list[dict[str, Any]]:
    """A byte-level BPE reads the text that it learned from, again and again, in pieces as training data come in."""
    text = documentation()
    parts = [text[start : start + SUBWORD_BLOCK] for start in range(0, len(text), SUBWORD_BLOCK)]
    tokenizer, times = train_bpe(parts, BPE), []
    while len(times) < 2 or sum(times) < seconds:
        began = time.perf_counter()
        tokenizer.encode_batch(parts)
        times.append(time.perf_counter() - began)
    size = len(text.encode())
    about = {"vocab_size": tokenizer.vocab_size, "text": "Python's own documentation", "bytes": size}
    return [about | {"mb_per_s": round(size / median(times) / 1e6, 1)}]


def documentation() -> str:
    """Some 700 kB of English that come with Python. Raises ImportError where its packager left them out."""
    return "\n".join(importlib.import_module("pydoc_data.topics").topics.values())
