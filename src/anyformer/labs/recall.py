"""Lab recall: what a language model gains from a text that it can look things up in, without training.

The model is trained on one text and has never seen the other. A store of the other's states (`anyformer.indexing`),
n-gram counts of the same tokens, and both are mixed with the model's own predictions.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import api
from ..data.text.batches import IGNORE_INDEX
from ..data.text.ngrams import count_ngrams
from ..data.text.prepare import BLOCK, TextFiles
from ..data.text.read import ROW_OPTIONS
from ..errors import InputError
from ..indexing import WEIGHTS, find_decoder, read_batches, read_states, score_neighbors, score_own
from ..inference.datastore import MAX_PROBES, Datastore
from ..inference.decode import generate
from ..inference.sampling import SamplingParams
from ..model.neighbor_mixture import NeighborMixture
from ..parsing import check_range
from .lab import LabResult, LabSettings, LabTable, Log

MAX_TEST_TOKENS = 20_000  # that are predicted: half of them choose the weight of the counts, the others are scored
COUNT_BLOCK = 256  # tokens whose n-grams are looked up at once
PROBES = (1, 4, 8, 16, 64, MAX_PROBES)
QUERIES, ALONE = 1000, 100  # that measure the search, together and one by one
TIMED_TOKENS = 100


@dataclass(frozen=True, kw_only=True)
class Settings(LabSettings):
    """Let a language model predict a text that it has never seen: alone, with
    n-gram counts of that text, and with a store of its states. Nothing is trained
    but the model, unless --run brings one."""

    run: str | None = None
    """A run of a language model. Default: one is trained on --train-data."""
    train_data: str = "plays"
    """What the model is trained on."""
    steps: int = 600
    """Of that training."""
    data: str = "eltec"
    """The text that the model has not seen."""
    megabytes: float = 1.0
    """How much of its beginning is used."""
    neighbors: int = 256
    """How many of the most similar states are looked up."""
    probes: int = 8
    """Groups of states in which they are sought."""
    counts: int = 3
    """The longest n-gram that is counted, in tokens before the one that follows."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "steps", at_least=1, at_most=10**9)
        check_range(self, "megabytes", above=0, at_most=1000)
        check_range(self, "neighbors", at_least=1, at_most=1024)
        check_range(self, "probes", at_least=1, at_most=4096)
        check_range(self, "counts", at_least=1, at_most=16)


def run(settings: Settings, log: Log) -> LabResult:
    with TemporaryDirectory() as name:
        folder = Path(name)
        text = write_text(settings, folder / "text.txt")
        run = settings.run or train_model(settings, folder / "run")
        model = api.load(run, settings.device)
        start = time.process_time()
        facts = model.index(str(text), folder / "store", settings.neighbors, settings.probes)
        facts["index_seconds"] = time.process_time() - start
        log({"store_tokens": facts["tokens"], "megabytes": facts["bytes"] / 1e6, "seconds": facts["index_seconds"]})
        piece = read_piece(model, str(text), facts["tokens"])
        log({"test_tokens": len(piece.tokens) - piece.half})
        milliseconds = {"alone": time_token(model)}
        model: Any = api.load(run, settings.device, store=folder / "store")
        milliseconds["store"] = time_token(model)
        mixture = find_decoder(model.recipe, model.module, "").head
        rows = compare_predictors(piece, mixture, settings.counts, log)
        searches = measure_search(piece.states[:QUERIES, : mixture.dim], model.store, log)
    facts |= {"bits_per_byte": rows, "milliseconds_a_token": milliseconds, "searches": searches}
    return describe(settings, facts)


def write_text(settings: Settings, path: Path) -> Path:
    """Write the beginning of the text into a file."""
    remaining = int(settings.megabytes * 1e6)
    with path.open("w", encoding="utf-8") as file:
        for text in TextFiles(settings.data, ROW_OPTIONS).read_texts(BLOCK):
            file.write(text[:remaining])
            remaining -= len(text)
            if remaining <= 0:
                break
    return path


def train_model(settings: Settings, out: Path) -> Path:
    train = {"steps": settings.steps, "seed": settings.seed, "device": settings.device}
    fields: dict[str, Any] = {"data": settings.train_data, "tokenizer": "bpe", "vocab_size": 2048, "train": train}
    api.train("language", "fast", out=out, progress=False, **fields)
    return out


@dataclass(frozen=True)
class Piece:
    """The part of the validation split that is predicted, (N,), and what the head reads before each of its tokens."""

    states: Tensor
    tokens: Tensor
    half: int
    """Where the tokens begin that are scored."""
    stored: np.ndarray
    """The tokens that are in the store."""
    own: Tensor
    """The probabilities of the tokens by the model alone."""
    count_bytes: Callable[[np.ndarray], int]
    vocab_size: int

    def bits_per_byte(self, probabilities: Tensor) -> float:
        """Of the second half."""
        n_bytes = max(1, self.count_bytes(self.tokens[self.half :].numpy()))
        return -probabilities[self.half :].log2().sum().item() / n_bytes

    def mix(self, probabilities: Tensor, other: Tensor) -> Tensor:
        """Mix two predictions, with the weight that is best on the first half."""
        mixtures = [weight * other + (1 - weight) * probabilities for weight in (*WEIGHTS, 1.0)]
        return min(mixtures, key=lambda mixture: -mixture[: self.half].log().sum().item())


@torch.no_grad()
def read_piece(model: Any, data: str, n_stored: int) -> Piece:
    recipe, config = model.recipe, replace(model.config, data=data)
    decoder = find_decoder(recipe, model.module, str(model.path))
    states, tokens = map(torch.cat, zip(*read_states(recipe, model.module, config, decoder, "val")))
    states, tokens = states[:MAX_TEST_TOKENS], tokens[:MAX_TEST_TOKENS]
    if len(tokens) < 2:
        raise InputError(f"data '{data}' has too few tokens to test on: more --megabytes")
    labels = np.concatenate([batch["labels"].numpy().flatten() for batch in read_batches(recipe, config, "all")])
    stored, vocab_size = labels[labels != IGNORE_INDEX][:n_stored], decoder.head.vocab_size
    own = score_own(decoder, states, tokens)
    return Piece(states, tokens, len(tokens) // 2, stored, own, decoder.tokenizer.count_bytes, vocab_size)


def score_counts(piece: Piece, max_order: int) -> Tensor:
    """Return the probabilities of the tokens by n-gram counts of what is in the store: (N,)"""
    counts, tokens = count_ngrams(piece.stored, max_order, piece.vocab_size), piece.tokens.numpy()
    ids, parts = np.concatenate([piece.stored[-1:], tokens]), []
    for start in range(0, len(tokens), COUNT_BLOCK):
        labels = tokens[start : start + COUNT_BLOCK]
        rows = ids[max(0, start - max_order) : start + len(labels)]
        parts.append(counts.probabilities(rows[None])[0, -len(labels) :][np.arange(len(labels)), labels])
    return torch.from_numpy(np.concatenate(parts)).double()


def compare_predictors(piece: Piece, mixture: NeighborMixture, max_order: int, log: Log) -> dict[str, float]:
    """Return the bits per byte of the scored tokens by each predictor."""
    counted = score_counts(piece, max_order)
    shares = score_neighbors(*mixture.search(piece.states[:, : mixture.dim]), piece.tokens, mixture.temperature)
    with_store = mixture.weight * shares + (1 - mixture.weight) * piece.own
    predictors = {
        "the model alone": piece.own,
        "n-gram counts alone": counted,
        "the model and counts": piece.mix(piece.own, counted),
        "the model and the store": with_store,
        "the model, the store and counts": piece.mix(with_store, counted),
    }
    rows = {name: piece.bits_per_byte(probabilities) for name, probabilities in predictors.items()}
    for name, value in rows.items():
        log({"predictor": name, "bits_per_byte": value})
    return rows


def measure_search(queries: Tensor, store: Datastore, log: Log) -> list[dict[str, float]]:
    """Return for each number of probes how many of the nearest states are found, and the milliseconds of a query in a
    batch and alone."""
    own_probes, results = store.probes, list[dict[str, float]]()
    store.probes = len(store.centroids)
    farthest = store.search(queries)[1][:, -1:] * (1 + 1e-5)
    for probes in sorted({min(n, len(store.centroids)) for n in PROBES}):
        store.probes, times = probes, [time.process_time()]
        distances = store.search(queries)[1]
        times.append(time.process_time())
        for query in queries[:ALONE]:
            store.search(query[None])
        times.append(time.process_time())
        share = (distances <= farthest).double().mean().item()
        together, alone = 1e3 * (times[1] - times[0]) / len(queries), 1e3 * (times[2] - times[1]) / len(queries[:ALONE])
        results.append({"probes": probes, "found": share, "ms_together": together, "ms_alone": alone})
        log(results[-1])
    store.probes = own_probes
    return results


def time_token(model: Any) -> float:
    """Return the milliseconds of the process for a token that is generated alone."""
    decoder = find_decoder(model.recipe, model.module, "")
    sampling = SamplingParams(temperature=0)
    start = time.process_time()
    for _ in generate(decoder, [[0]], tokens=TIMED_TOKENS, sampling=sampling, seeds=[0]):
        pass
    return 1e3 * (time.process_time() - start) / TIMED_TOKENS


def describe(settings: Settings, facts: dict[str, Any]) -> LabResult:
    bits, times = facts["bits_per_byte"], facts["milliseconds_a_token"]
    before, after = bits["the model alone"], bits["the model and the store"]
    summary = [
        f"A text that the model was not trained on: {before:.3f} bits a byte alone, {after:.3f} with a store of "
        f"{facts['tokens']:,} tokens, {bits['the model and counts']:.3f} with n-gram counts of the same tokens.",
        f"The store weighs {facts['weight']:g}; it was written in {facts['index_seconds']:.0f} s of the processor and "
        f"has {facts['bytes'] / 1e6:.0f} MB. A token takes {times['alone']:.1f} ms alone and {times['store']:.1f} ms.",
    ]
    rows = [[name, f"{value:.4f}"] for name, value in bits.items()]
    predictors = LabTable("Bits a byte", ["", "bits a byte"], rows, f"{settings.data}, the end of the validation split")
    lines = [
        [f"{row['probes']:,}", f"{row['found']:.1%}", f"{row['ms_together']:.3f}", f"{row['ms_alone']:.3f}"]
        for row in facts["searches"]
    ]
    columns = ["groups", "found", "ms a query, of 1,000", "ms a query, alone"]
    note = f"How many of the nearest {facts['neighbors']} states are found, by the groups that are searched."
    return LabResult(
        "Looking things up", summary, [predictors, LabTable("The search", columns, lines, note)], facts=facts
    )
