"""A datastore: the states of a model at every token of a text, with the token that followed each (kNN-LM, 1911.00172).

    STORE/store.json      which model and vocabulary it belongs to, and how it is read: `StoreInfo`
    STORE/keys.npy        the states, (N, C) float16, those near the same centroid together
    STORE/tokens.npy      what followed each, (N,) int32
    STORE/centroids.npy   (L, C) float32
    STORE/starts.npy      where the states of each centroid start, (L + 1,) int64

Only the states near the nearest centroids of a query are read (an inverted file, Sivic and Zisserman 2003), straight
from the disk's cache: memory does not grow with the store.

Shapes: N states, C channels, L centroids, Q queries, P centroids that are probed, K neighbors.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.io.arrays import map_npy
from ..data.io.checks import read_json
from ..data.io.seal import find_damage, write_seal
from ..errors import InputError
from ..events import report_progress
from ..parsing import check_range, check_types, parse_dataclass

FORMAT = 1
MAX_NEIGHBORS, MAX_CENTROIDS = 4096, 1 << 16
QUERIES = 512  # that are searched together
BLOCK_STATES = 1 << 14  # that are assigned to centroids, and moved, at once
SAMPLE_STATES, ROUNDS = 64, 8  # of k-means: states for each centroid, and rounds


@dataclass(frozen=True, kw_only=True)
class StoreInfo:
    """store.json. Raises InputError on values that make no sense."""

    format: int = FORMAT
    model: str
    """SHA-256 of the weights."""
    vocabulary: str
    """SHA-256 of the tokenizer."""
    data: str = ""
    """The text, as it was named."""
    sha256: str
    """Of the text."""
    neighbors: int
    probes: int
    weight: float = 0.0
    """Of the neighbors in the mixture."""
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_types(self)
        check_range(self, "format", at_least=FORMAT, at_most=FORMAT)
        check_range(self, "neighbors", at_least=1, at_most=MAX_NEIGHBORS)
        check_range(self, "probes", at_least=1, at_most=MAX_CENTROIDS)
        check_range(self, "weight", at_least=0, below=1)
        check_range(self, "temperature", above=0, at_most=1e30)


class Datastore:
    """A store that is open for search.

    Args:
        keys, tokens, centroids, starts: The arrays of the store.
        neighbors: K.
        probes: P; with all of the centroids the search is exact.
    """

    def __init__(self, keys: Tensor, tokens: Tensor, centroids: Tensor, starts: Tensor, neighbors: int, probes: int):
        self.keys, self.tokens, self.centroids, self.starts = keys, tokens, centroids, starts.tolist()
        self.neighbors, self.probes = min(neighbors, len(keys)), min(probes, len(centroids))

    @torch.no_grad()
    def search(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Find the nearest states of queries, (Q, C). Returns the tokens that followed them and their squared
        distances, (Q, K) each, the nearest first; inf where fewer were found."""
        with torch.autocast("cpu", enabled=False):
            parts = [self._search_block(rows) for rows in states.float().cpu().split(QUERIES)]
        index, distances = (torch.cat(part) for part in zip(*parts))
        return self.tokens[index].long(), distances

    def _search_block(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Return the places of the neighbors in the store and their squared distances, (Q, K) each."""
        Q, P, K = len(queries), self.probes, self.neighbors
        probed = rank_distances(queries, self.centroids).topk(P, largest=False).indices.flatten()  # (Q * P,)
        order = probed.argsort(stable=True)
        distances, index = torch.full((Q * P, K), math.inf), torch.zeros(Q * P, K, dtype=torch.long)
        names, counts = probed[order].unique_consecutive(return_counts=True)
        for name, slots in zip(names.tolist(), order.split(counts.tolist())):
            start, end = self.starts[name], self.starts[name + 1]
            n = min(K, end - start)
            near = rank_distances(queries[slots // P], self.keys[start:end].float()).topk(n, largest=False)
            distances[slots, :n], index[slots, :n] = near.values, near.indices + start
        distances, best = distances.view(Q, -1).topk(K, largest=False)
        distances += queries.square().sum(1, keepdim=True)
        return index.view(Q, -1).gather(1, best), distances.clamp(min=0)


def rank_distances(queries: Tensor, keys: Tensor) -> Tensor:
    """Return the squared distances of queries (Q, C) to keys (N, C), less the square of the query: (Q, N)"""
    return torch.addmm(keys.square().sum(1), queries, keys.T, alpha=-2)


# --- on disk ---


def open_store(folder: Path, model: str, vocabulary: str, dim: int, vocab_size: int) -> tuple[StoreInfo, Datastore]:
    """Open a store for a model with these hashes, channels and entries of the vocabulary; its states are not read.
    Raises InputError if it belongs to another one, or is damaged."""
    if not (folder / "store.json").is_file():
        raise InputError(f"there is no store at {folder}: `anyformer index RUN --data FILE --out {folder}` makes one")
    info = parse_dataclass(StoreInfo, read_json(folder / "store.json"), str(folder / "store.json"))
    for name, ours, own in (("vocabulary", vocabulary, info.vocabulary), ("model", model, info.model)):
        if ours != own:
            about = f"the store {folder} belongs to another {name}"
            raise InputError(f"{about}: make one of the same text for this model, with `anyformer index`")
    if damage := find_damage(folder):
        raise InputError(f"the store {folder} is damaged ({damage}): make it again with `anyformer index`")
    arrays = {name: map_npy(folder / f"{name}.npy") for name in ("keys", "tokens", "centroids", "starts")}
    check_arrays(folder, dim, vocab_size, **arrays)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return info, Datastore(**tensors, neighbors=info.neighbors, probes=info.probes)


def check_arrays(folder: Path, dim: int, vocab_size: int, keys: Any, tokens: Any, centroids: Any, starts: Any) -> None:
    """Raise InputError unless the arrays are consistent."""
    shapes = {"keys": (len(tokens), dim), "centroids": (len(starts) - 1, dim)}
    is_shaped = keys.shape == shapes["keys"] and centroids.shape == shapes["centroids"] and starts.ndim == 1
    is_typed = [str(array.dtype) for array in (keys, tokens, centroids, starts)] == [
        "float16", "int32", "float32", "int64",
    ]  # fmt: skip
    is_sound = is_shaped and is_typed and tokens.ndim == 1 and 0 < len(centroids) <= min(MAX_CENTROIDS, len(keys))
    if is_sound:
        is_ordered = starts[0] == 0 and starts[-1] == len(keys) and bool((np.diff(starts) >= 0).all())
        is_sound = is_ordered and tokens.min() >= 0 and tokens.max() < vocab_size
    if not is_sound:
        raise InputError(f"the arrays of the store {folder} do not fit together: make it again with `anyformer index`")


def write_store(folder: Path, blocks: Iterable[tuple[Tensor, Tensor]], info: StoreInfo) -> Datastore:
    """Write a store into an empty folder, all but store.json, and open it. `blocks` are states (n, C) and the tokens
    that followed them (n,), in parts of any size."""
    spool, followers, dim = folder / "states.bin", [], 0
    with spool.open("wb") as file:
        for states, next_tokens in blocks:
            dim = states.shape[1]
            file.write(states.clamp(-65504, 65504).to(torch.float16).cpu().numpy().tobytes())
            followers.append(next_tokens.to(torch.int32).cpu().numpy())
    tokens = np.concatenate(followers)
    source = np.memmap(spool, np.float16, "r", shape=(len(tokens), dim))
    centroids = find_centroids(source)
    starts = [*range(0, len(tokens), BLOCK_STATES)]
    owners = np.empty(len(tokens), np.int64)
    for start in starts:
        block = read_block(source, slice(start, start + BLOCK_STATES))
        owners[start : start + BLOCK_STATES] = rank_distances(block, centroids).argmin(1).numpy()
        report_progress("sorting states", start, 2 * len(tokens))
    order = np.argsort(owners, kind="stable")
    keys = np.lib.format.open_memmap(folder / "keys.npy", "w+", np.float16, source.shape)
    for start in starts:
        keys[start : start + BLOCK_STATES] = source[order[start : start + BLOCK_STATES]]
        report_progress("sorting states", len(tokens) + start, 2 * len(tokens))
    keys.flush()
    ends = np.cumsum(np.bincount(owners, minlength=len(centroids)))
    arrays = {"tokens": tokens[order], "centroids": centroids.numpy(), "starts": np.concatenate([[0], ends])}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=False)
    del source
    spool.unlink()
    tensors = {name: torch.from_numpy(array) for name, array in (arrays | {"keys": keys}).items()}
    return Datastore(**tensors, neighbors=info.neighbors, probes=info.probes)


def write_info(folder: Path, info: StoreInfo) -> None:
    (folder / "store.json").write_text(json.dumps(asdict(info), indent=2) + "\n", encoding="utf-8")
    write_seal(folder)


def read_block(source: np.ndarray, rows: Any) -> Tensor:
    return torch.from_numpy(source[rows].astype(np.float32))


def find_centroids(source: np.ndarray) -> Tensor:
    """Return the centroids of about as many groups of the states (N, C) as each has states, by k-means on a sample: one
    for less than a block of them."""
    N = len(source)
    L = 1 if N <= BLOCK_STATES else min(MAX_CENTROIDS, round(math.sqrt(N)))
    sample = read_block(source, np.linspace(0, N - 1, min(N, SAMPLE_STATES * L)).astype(np.int64))
    centroids = sample[torch.linspace(0, len(sample) - 1, L).long()]
    for _ in range(ROUNDS):
        owners = torch.cat([rank_distances(block, centroids).argmin(1) for block in sample.split(BLOCK_STATES)])
        counts = torch.bincount(owners, minlength=L)[:, None]
        sums = torch.zeros_like(centroids).index_add_(0, owners, sample)
        centroids = torch.where(counts > 0, sums / counts.clamp(min=1), centroids)
    return centroids
