"""Give a language model a text to look things up in, without training: `anyformer index RUN --data FILE --out STORE`.

The states of the model at every token of the training split of the text are stored (`inference.datastore`). The end of
that split is left out, and chooses how much the neighbors weigh, and the temperature of their distances. The validation
split is not used, so that `eval` on the same text says what is won.

Shapes: N tokens, C channels, K neighbors.
"""

import hashlib
import math
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoints.hf_folder import find_gguf
from .data.io.sources import split_sources
from .data.text.batches import IGNORE_INDEX
from .errors import InputError
from .events import report_progress
from .inference.datastore import Datastore, StoreInfo, open_store, write_info, write_store
from .model.neighbor_mixture import NeighborMixture, weigh_neighbors
from .recipe import Recipe, SupportsCompletion
from .training.checkpoints import atomic_directory, hash_weights
from .training.device import evaluation_autocast, move_batch
from .training.run_directory import require_unused_folder

MAX_TUNING_TOKENS = 10_000  # that choose the weight and the temperature, and at most a tenth of the text
HEAD_BLOCK = 256  # states that the head reads at once
WEIGHTS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
TEMPERATURES = (0.05, 0.1, 0.2, 0.3, 0.45, 0.65, 1.0, 1.5, 2.5)  # times the mean distance of the nearest neighbor


def find_decoder(recipe: Recipe, module: Any, where: str) -> Any:
    """Return the causal model that a store serves. Raises InputError."""
    if not isinstance(recipe, SupportsCompletion):
        raise InputError(f"{where} continues no texts: a store serves a language model (`anyformer train language`)")
    return recipe.decoder(module)


def attach_store(recipe: Recipe, module: Any, path: Path, folder: Path) -> Datastore:
    """Let the model of the checkpoint `path` predict with the store in `folder`. Raises InputError."""
    decoder = find_decoder(recipe, module, str(path))
    dim = decoder.body.config.dim
    store = open_store(folder, *identify(decoder, path), dim, decoder.head.vocab_size)
    decoder.head = NeighborMixture(decoder.head, dim, store.search, store.info.weight, store.info.temperature)
    return store


@contextmanager
def leave_out_store(recipe: Recipe, module: Any) -> Generator[None]:
    """Let a model with a store predict alone inside a `with`."""
    mixture = find_decoder(recipe, module, "").head
    weight, mixture.weight = mixture.weight, 0.0
    try:
        yield
    finally:
        mixture.weight = weight


def identify(decoder: Any, path: Path) -> tuple[str, str]:
    """Return the hashes of a model's weights and of its tokenizer."""
    return hash_weights(find_gguf(path) or path), hashlib.sha256(decoder.tokenizer.to_json().encode()).hexdigest()


def build_store(
    recipe: Recipe, module: Any, config: Any, path: Path, out: Path, neighbors: int, probes: int
) -> dict[str, Any]:
    """Write the store of the text `config.data` for the model of the checkpoint `path` into a new folder. Returns how
    many tokens it holds, its bytes, the weight and the temperature, and the bits per byte of the tokens that have
    chosen them, before and after. Raises InputError."""
    decoder = find_decoder(recipe, module, str(path))
    dim = decoder.body.config.dim
    if isinstance(decoder.head, NeighborMixture):
        raise InputError(f"{path} was loaded with a store: load it without one to write another")
    require_unused_folder(out)
    if len(split_sources(config.data)) != 1:
        raise InputError(f"data '{config.data}': a store is made of one text")
    n_val, n_all = (sum(map(count_labels, read_batches(recipe, config, split))) for split in ("val", "all"))
    n_train = n_all - n_val - 1  # the last label of the training split is not part of it
    n_tuning = min(MAX_TUNING_TOKENS, n_train // 10)
    if n_tuning < 1:
        raise InputError(f"data '{config.data}': {max(0, n_train)} tokens to train on are too few for a store")
    sha256 = next(recipe.batches(config, "all", None))[1].get("data", "")
    model_hash, vocabulary = identify(decoder, path)
    hashes: dict[str, Any] = {"model": model_hash, "vocabulary": vocabulary, "sha256": sha256}
    info = StoreInfo(data=config.data, neighbors=neighbors, probes=probes, **hashes)
    states = read_states(recipe, module, config, decoder)
    tuning: list[tuple[Tensor, Tensor]] = []
    with atomic_directory(out) as folder:
        parts = divide(states, n_train - n_tuning, n_tuning, tuning)
        store = write_store(folder, ((rows[:, :dim], tokens) for rows, tokens in parts), info)
        result = choose_mixture(decoder, store, *(torch.cat(parts) for parts in zip(*tuning)))
        info = replace(info, **{name: result[name] for name in ("weight", "temperature")})
        write_info(folder, info)
    n_bytes = sum(file.stat().st_size for file in out.iterdir())
    return {"tokens": n_train - n_tuning, "bytes": n_bytes, **result, "neighbors": store.neighbors}


def read_batches(recipe: Recipe, config: Any, split: str) -> Iterator[dict[str, Any]]:
    return (batch for batch, _ in recipe.batches(config, split, None))


def count_labels(batch: dict[str, Any]) -> int:
    return int((batch["labels"] != IGNORE_INDEX).sum())


@torch.no_grad()
def read_states(
    recipe: Recipe, module: Any, config: Any, decoder: Any, split: str = "all"
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield what the head reads at each token of a text in order, (n, at least C), and the next tokens, (n,)."""
    device, parts = next(module.parameters()).device, list[Tensor]()
    handle = decoder.head.register_forward_pre_hook(lambda head, inputs: parts.append(inputs[0].flatten(0, -2)))
    try:
        for batch in read_batches(recipe, config, split):
            parts.clear()
            with evaluation_autocast(module, config.train.dtype):
                recipe.loss(module, move_batch(batch, device))
            states, labels = torch.cat(parts), batch["labels"].flatten()
            if len(states) != len(labels):
                raise InputError("the head of this recipe does not read one state for each label: it has no store")
            is_label = labels != IGNORE_INDEX
            yield states[is_label.to(device)].float(), labels[is_label]
    finally:
        handle.remove()


def divide(
    blocks: Iterable[tuple[Tensor, Tensor]], n_first: int, n_next: int, taken: list[tuple[Tensor, Tensor]]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the first rows of blocks, and put the next ones into a list."""
    n_rows = 0
    for block in blocks:
        stored, tuned = (max(0, n - n_rows) for n in (n_first, n_first + n_next))
        if stored:
            yield block[0][:stored], block[1][:stored]
        if tuned > stored and len(block[1]) > stored:
            taken.append((block[0][stored:tuned], block[1][stored:tuned]))
        n_rows += len(block[1])
        report_progress("reading states", min(n_rows, n_first), n_first)
        if n_rows >= n_first + n_next:
            return


@torch.no_grad()
def choose_mixture(decoder: Any, store: Datastore, states: Tensor, tokens: Tensor) -> dict[str, Any]:
    """Return the weight and the temperature of the lowest loss, for what the head reads (N, at least C) and the tokens
    that followed, and the bits per byte with the model alone and with the neighbors."""
    own, neighbors = score_own(decoder, states, tokens), store.search(states[:, : decoder.body.config.dim])
    mean = neighbors[1][:, 0].mean().clamp(min=1e-6).item()
    best = (-own.log().sum().item(), 0.0, mean)
    for factor in TEMPERATURES:
        shares = score_neighbors(*neighbors, tokens, factor * mean)
        for weight in WEIGHTS[1:]:
            nats = -(weight * shares + (1 - weight) * own).log().sum().item()
            best = min(best, (nats, weight, factor * mean))
    bits = math.log(2) * max(1, decoder.tokenizer.count_bytes(tokens.numpy()))
    values = {"weight": best[1], "temperature": best[2], "tuning_tokens": len(tokens)}
    return values | {"bits_per_byte_alone": -own.log().sum().item() / bits, "bits_per_byte": best[0] / bits}


def score_own(decoder: Any, states: Tensor, tokens: Tensor) -> Tensor:
    """Return the probabilities of tokens (N,) by the head that reads `states` (N, at least C): (N,) float64"""
    blocks = zip(states.split(HEAD_BLOCK), tokens.to(states.device)[:, None].split(HEAD_BLOCK))  # logits are large
    log_probs = [decoder.head(x).float().log_softmax(-1).gather(1, y)[:, 0] for x, y in blocks]
    return torch.cat(log_probs).double().cpu().exp().clamp(min=1e-300)


def score_neighbors(next_tokens: Tensor, distances: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    """Return the probabilities of tokens (N,) by those that followed their neighbors, (N, K): (N,) float64"""
    return (weigh_neighbors(distances, temperature).double() * (next_tokens == tokens[:, None])).sum(1)
