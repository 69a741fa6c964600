"""A datastore: the states of a model at every token of a text, with the token that followed each (kNN-LM, 1911.00172).

    STORE/store.json      which model and vocabulary it belongs to, and how it is read: `StoreInfo`
    STORE/keys.npy        the states, (N, C) float16, those near the same centroid together
    STORE/squares.npy     the sum of squares of each, (N,) float32
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
ARRAYS = {"keys": "float16", "squares": "float32", "tokens": "int32", "centroids": "float32", "starts": "int64"}
MAX_NEIGHBORS, MAX_PROBES, MAX_CENTROIDS = 1024, 4096, 1 << 16
QUERIES, MAX_CANDIDATES = 512, 1 << 22  # that are searched together: queries, and states that may be their neighbors
BLOCK_STATES = 1 << 14  # that are assigned to centroids, and moved, at once
MAX_HALF = 65504.0  # the largest float16
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
        check_range(self, "probes", at_least=1, at_most=MAX_PROBES)
        check_range(self, "weight", at_least=0, below=1)
        check_range(self, "temperature", above=0, at_most=1e30)


class Datastore:
    """A store that is open for search.

    Args:
        keys, squares, tokens, centroids, starts: The arrays of the store.
        info: With as many `probes` as there are centroids the search is exact.
    """

    def __init__(
        self, keys: Tensor, squares: Tensor, tokens: Tensor, centroids: Tensor, starts: Tensor, info: StoreInfo
    ):
        self.keys, self.squares, self.tokens, self.centroids = keys, squares, tokens, centroids
        self.starts, self.info, self.centroid_squares = starts.tolist(), info, centroids.square().sum(1)
        self.neighbors, self.probes = min(info.neighbors, len(keys)), min(info.probes, len(centroids))

    @torch.no_grad()
    def search(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Find the nearest states of queries, (Q, C). Returns the tokens that followed them and their squared
        distances, (Q, K) each, the nearest first; inf where fewer were found."""
        size = max(1, min(QUERIES, MAX_CANDIDATES // (self.probes * self.neighbors)))
        with torch.autocast("cpu", enabled=False):
            parts = [self._search_block(rows) for rows in states.float().cpu().split(size)]
        index, distances = (torch.cat(part) for part in zip(*parts))
        return self.tokens[index].long(), distances

    def _search_block(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Return the places of the neighbors in the store and their squared distances, (Q, K) each."""
        Q, P, K = len(queries), self.probes, self.neighbors
        near = rank_distances(queries, self.centroids, self.centroid_squares).topk(P, largest=False)
        probed = near.indices.flatten()  # (Q * P,)
        order = probed.argsort(stable=True)
        distances, index = torch.full((Q * P, K), math.inf), torch.zeros(Q * P, K, dtype=torch.long)
        names, counts = probed[order].unique_consecutive(return_counts=True)
        for name, slots in zip(names.tolist(), order.split(counts.tolist())):
            start, end = self.starts[name], self.starts[name + 1]
            n = min(K, end - start)
            ranks = rank_distances(queries[slots // P], self.keys[start:end].float(), self.squares[start:end])
            near = ranks.topk(n, largest=False, sorted=False)
            distances[slots, :n], index[slots, :n] = near.values, near.indices + start
        distances, best = distances.view(Q, -1).topk(K, largest=False)
        distances += queries.square().sum(1, keepdim=True)
        return index.view(Q, -1).gather(1, best), distances.clamp(min=0)


def rank_distances(queries: Tensor, keys: Tensor, squares: Tensor) -> Tensor:
    """Return the squared distances of queries (Q, C) to keys (N, C) of these sums of squares (N,), less the sum of the
    query: (Q, N)"""
    return torch.addmm(squares, queries, keys.T, alpha=-2)


# --- on disk ---


def open_store(folder: Path, model: str, vocabulary: str, dim: int, vocab_size: int) -> Datastore:
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
    arrays = {name: map_npy(folder / f"{name}.npy") for name in ARRAYS}
    check_arrays(folder, arrays, dim, vocab_size)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return Datastore(**tensors, info=info)


def check_arrays(folder: Path, arrays: dict[str, np.ndarray], dim: int, vocab_size: int) -> None:
    """Raise InputError unless the arrays are consistent."""
    N, L = arrays["tokens"].size, arrays["starts"].size - 1
    shapes = {"keys": (N, dim), "squares": (N,), "tokens": (N,), "centroids": (L, dim), "starts": (L + 1,)}
    is_sound = all(arrays[name].shape == shape for name, shape in shapes.items()) and 0 < L <= min(MAX_CENTROIDS, N)
    if is_sound and all(arrays[name].dtype == dtype for name, dtype in ARRAYS.items()):
        starts, tokens = arrays["starts"], arrays["tokens"]
        is_ordered = starts[0] == 0 and starts[-1] == N and bool((np.diff(starts) > 0).all())
        if is_ordered and tokens.min() >= 0 and tokens.max() < vocab_size:
            return
    raise InputError(f"the arrays of the store {folder} do not fit together: make it again with `anyformer index`")


def write_store(folder: Path, blocks: Iterable[tuple[Tensor, Tensor]], info: StoreInfo) -> Datastore:
    """Write a store into an empty folder, all but store.json, and open it. `blocks` are states (n, C) and the tokens
    that followed them (n,), in parts of any size."""
    tokens = spool_states(spool := folder / "states.bin", blocks)
    source = np.memmap(spool, np.float16, "r").reshape(len(tokens), -1)
    centroids = find_centroids(source)
    parts = [slice(start, start + BLOCK_STATES) for start in range(0, len(tokens), BLOCK_STATES)]
    owners = np.empty(len(tokens), np.int64)
    for rows in parts:
        owners[rows] = find_nearest(read_block(source, rows), centroids).numpy()
        report_progress("sorting states", rows.start, 2 * len(tokens))
    names, owners, counts = np.unique(owners, return_inverse=True, return_counts=True)  # some may have no state
    order = np.argsort(owners, kind="stable")
    keys = np.lib.format.open_memmap(folder / "keys.npy", "w+", np.float16, source.shape)
    squares = np.empty(len(tokens), np.float32)
    for rows in parts:
        keys[rows] = source[order[rows]]
        squares[rows] = np.square(keys[rows], dtype=np.float32).sum(1)
        report_progress("sorting states", len(tokens) + rows.start, 2 * len(tokens))
    keys.flush()
    starts = np.concatenate([[0], np.cumsum(counts)])
    arrays = {"tokens": tokens[order], "squares": squares, "centroids": centroids.numpy()[names], "starts": starts}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=False)
    del source
    spool.unlink()
    tensors = {name: torch.from_numpy(array) for name, array in (arrays | {"keys": keys}).items()}
    return Datastore(**tensors, info=info)


def spool_states(path: Path, blocks: Iterable[tuple[Tensor, Tensor]]) -> np.ndarray:
    """Write the states to a file as they come. Returns the tokens that followed them: (N,)"""
    followers = []
    with path.open("wb") as file:
        for states, next_tokens in blocks:
            file.write(states.clamp(-MAX_HALF, MAX_HALF).to(torch.float16).cpu().numpy().tobytes())
            followers.append(next_tokens.to(torch.int32).cpu().numpy())
    return np.concatenate(followers)


def find_nearest(states: Tensor, centroids: Tensor) -> Tensor:
    """Return the index of the nearest centroid of each state: (N,)"""
    return rank_distances(states, centroids, centroids.square().sum(1)).argmin(1)


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
        owners = torch.cat([find_nearest(block, centroids) for block in sample.split(BLOCK_STATES)])
        counts = torch.bincount(owners, minlength=L)[:, None]
        sums = torch.zeros_like(centroids).index_add_(0, owners, sample)
        centroids = torch.where(counts > 0, sums / counts.clamp(min=1), centroids)
    return centroids
