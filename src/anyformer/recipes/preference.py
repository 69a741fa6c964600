"""Preference: continue the training of a chat model on answers of which one was preferred to another.

raw    pairs: a prompt, a chosen answer and a rejected one; or the set instruction-pairs
nodes  tokens of both conversations as the model's chat template writes them, with a position
edges  causal
head   a logit for each token of the vocabulary
loss   DPO: how much likelier the chosen answer has become than the rejected one, since before training

    anyformer train preference --init RUN --data pairs.jsonl                     all weights
    anyformer train preference --init RUN --data pairs.jsonl --lora.rank 8       adapters

The reward of an answer is beta times the log of how much likelier it is than by the model before (2305.18290). What the
model before says of each pair is computed once, at the start, and stored with the run: it is not needed again.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.io.cache import cache_by_files, data_files
from ..data.io.checks import read_json
from ..data.sampling import count_rows, sample_indices, select_split
from ..data.text.batches import IGNORE_INDEX
from ..data.text.chat_batches import TrainedTokens, collate_conversations, encode_conversations, fit_context
from ..data.text.preferences import Pairs, read_pairs
from ..data.tokenizers.base import Tokenizer
from ..data.unusable import EmptyPolicy, LengthPolicy
from ..errors import InputError
from ..events import report_progress
from ..model import initialize
from ..model.kernels.cross_entropy import cross_entropy
from ..parsing import check_range, path_field
from ..recipe import BatchStream, Examples, Figure, MaskedExample, SizeOption, StreamState, advance_stream, init_stream
from ..training.config import TrainConfig
from ._shared.cached_graph import export_cached_graph  # noqa: F401
from ._shared.chat import (  # noqa: F401
    ChatModel,
    file_input,
    lens,
    load_chat_tokenizer,
    predict,
    predict_batch,
    prepare_request,
    stream,
)
from ._shared.language import DecoderConfig, decoder, export_graph  # noqa: F401
from ._shared.presets import TINY_TRAIN, make_model_config, make_modern_config
from ._shared.sizes import Size, offer_sizes
from ._shared.text import choose_examples, form  # noqa: F401
from ._shared.text_lenses import name_token

MAX_SHOWN = 2  # pairs of --show-mask
MAX_FIGURE_PAIRS = 512
NOTE = (
    "Of validation pairs, after training, in order. The loss asks only for a distance between the two rewards: often "
    "both fall, since probability that leaves the rejected answers goes to texts that are neither. A chosen reward "
    "that falls as far as the rejected one means that the model has learned little but to avoid both: train less, "
    "with a smaller rate, or with a larger beta."
)


@dataclass(frozen=True, kw_only=True)
class Config(DecoderConfig):
    """A chat model, its preferences and its training."""

    data: str = path_field("instruction-pairs")
    """A file of pairs (jsonl, json, parquet, csv), a folder with train.* and maybe val.*, or the set
    instruction-pairs."""
    loss: Literal["dpo", "dpo_normalized"] = "dpo"
    """DPO, or DPO by the mean over the tokens of an answer instead of their sum (Tulu 3, 2411.15124), so that no answer
    is preferred for its length."""
    beta: float = 0.1
    """How strongly the model is held to what it was before: rewards are beta times log-ratios. With dpo_normalized,
    5 is usual."""
    empty: EmptyPolicy = "few"
    """Pairs with an empty answer, or with two equal ones: skip, error, or few: skip where they are at most 1 %."""
    too_long: LengthPolicy = "few"
    """Pairs with a conversation longer than the context: cut, skip, error, or few: skip where they are at most 1 %."""
    val_fraction: float = 0.1
    """Share of the prompts that is kept for validation, where the data have no validation split."""
    reference: str = path_field("", [".json"])
    """What the model before says of each pair, reference.json of a run; empty: it is computed at the start."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "val_fraction", above=0, below=1)
        check_range(self, "beta", above=0, at_most=1e6)


KINDS = {"preferences": {"too_long": "cut"}}
PRESETS = {
    # seconds: for tests
    "tiny": Config(model=make_model_config(32, 2, 2, 192), train=TINY_TRAIN),
    # minutes on two cores: bring --init and --data
    "small": Config(
        model=make_modern_config(128, 5, 4, 256),
        train=TrainConfig(steps=300, batch=32, lr=3e-4, warmup=20, weight_decay=0.0, eval_every=50, save_every=50),
    ),
    # adapters on a public chat model: bring --data, --init and --lora.rank 8
    "adapters": Config(
        data="pairs.jsonl",
        loss="dpo_normalized",
        beta=5.0,
        val_fraction=0.05,
        model=make_modern_config(128, 5, 4, 256),
        train=TrainConfig(steps=200, batch=8, lr=1e-3, warmup=10, weight_decay=0.0, eval_every=50, save_every=50),
    ),
}


SIZES = (Size(64, 2, 32, 0), Size(96, 4, 32, 150))  # of --minutes


def sizes(config: Config) -> Iterator[SizeOption]:
    yield from offer_sizes(config, SIZES, steps=300)


class PreferenceModel(ChatModel):
    """ids (B, T) -> logits (B, T, V)"""

    reference: Tensor | None
    """The log-probabilities of chosen and rejected answer by the model before, of each pair: (N, 2)."""

    def __init__(self, config: Config, tokenizer: Tokenizer):
        super().__init__(config, tokenizer)
        self.beta, self.is_normalized, self.reference = float(config.beta), config.loss == "dpo_normalized", None

    def store_reference(self, values: Tensor, sha256: str) -> None:
        self.reference = values.float()
        self.files |= {"reference.json": json.dumps({"data": sha256, "logprobs": self.reference.tolist()})}


def build(config: Config) -> PreferenceModel:
    model = PreferenceModel(config, load_tokenizer(config))
    initialize(model, config.model)
    if config.reference:
        model.store_reference(*read_reference(config.reference))
    return model


def read_reference(path: str) -> tuple[Tensor, str]:
    """Return the log-probabilities (N, 2) of a file, and the hash of their data. Raises InputError."""
    values = read_json(Path(path))
    rows, sha256 = values.get("logprobs"), values.get("data")
    is_table = isinstance(rows, list) and all(isinstance(row, list) and len(row) == 2 for row in rows)
    if not is_table or not all(isinstance(x, int | float) for row in rows for x in row) or not isinstance(sha256, str):
        raise InputError(f'{path} is no reference of preferences: expected {{"data": ..., "logprobs": [[..., ...]]}}')
    return torch.tensor(rows, dtype=torch.float32).view(-1, 2), sha256


# --- data ---


def config_files(config: Config) -> list[Path]:
    return [path for name in (config.data, config.tokenizer) for path in data_files(name)]


@cache_by_files(config_files)
def load_pairs(config: Config) -> Pairs:
    return read_pairs(config.data, config.val_fraction, config.empty)


@cache_by_files(config_files)
def load_tokenizer(config: Config) -> Tokenizer:
    """Return the tokenizer of the model, with a chat template."""

    def read_texts() -> list[str]:
        return [
            text for pair in load_pairs(config).split("all") for c in (pair.chosen, pair.rejected) for text in c.texts
        ]

    return load_chat_tokenizer(config, read_texts)


@dataclass(frozen=True, eq=False)
class Rows:
    """The tokens of the pairs, of each its number, for the splits "train" and "val"."""

    splits: dict[str, list[tuple[int, TrainedTokens, TrainedTokens]]]
    width: int
    n_skipped: int
    n_cut: int

    def split(self, name: str) -> list[tuple[int, TrainedTokens, TrainedTokens]]:
        every = [row for part in self.splits.values() for row in part]
        return select_split(name, {**self.splits, "all": every})


@lru_cache(maxsize=2)
def _encode_pairs(pairs: Pairs, tokenizer: Tokenizer, context: int, too_long: LengthPolicy) -> Rows:
    every, columns, n_cut = pairs.split("all"), [], 0
    for name in ("chosen", "rejected"):
        conversations = [getattr(pair, name) for pair in every]
        tokens = encode_conversations(conversations, tokenizer, "last")
        tokens, n = fit_context(tokens, [c.where for c in conversations], context, too_long)
        columns.append(tokens)
        n_cut += n
    splits: dict[str, list[tuple[int, TrainedTokens, TrainedTokens]]] = {}
    start = 0
    for name, part in pairs.splits.items():
        numbers = range(start, start + len(part))
        rows = ((number, columns[0][number], columns[1][number]) for number in numbers)
        splits[name] = [(number, a, b) for number, a, b in rows if a is not None and b is not None]
        start += len(part)
    if missing := [name for name, rows in splits.items() if not rows]:
        raise InputError(f"no pair fits into the context of {context:,} tokens for {missing[0]}: a larger one")
    width = max(len(tokens) for rows in splits.values() for row in rows for tokens in row[1:])
    n_skipped = len(every) - sum(map(len, splits.values()))
    return Rows(splits, width, pairs.n_skipped + n_skipped, n_cut)


def load_rows(config: Config) -> Rows:
    """Return the tokens of the pairs. Raises InputError."""
    return _encode_pairs(load_pairs(config), load_tokenizer(config), config.model.context, config.too_long)


def batches(config: Config, split: str, state: StreamState | None = None) -> BatchStream:
    """Yield ids and labels (B, 2, T) of the chosen and the rejected conversation of each pair, the labels one token
    ahead, IGNORE_INDEX but for the answer; and the number of each pair, (B,), -1 for pairs without a reference.

    "train" never ends; "val" and "all" yield every pair once.
    """
    c, data, sha256 = config.train, load_rows(config), load_pairs(config).sha256
    state = init_stream(
        state, config.data, sha256, rows=count_rows(split, data.split), skipped=data.n_skipped, cut=data.n_cut
    )
    rows, is_own = data.split(split), not config.reference or read_reference(config.reference)[1] == sha256
    if split != "train":
        for start in range(0, len(rows), c.batch):
            yield make_batch(rows[start : start + c.batch], data.width, is_own), state
    while split == "train":
        chosen = [rows[i] for i in sample_indices(np.arange(len(rows)), c.batch, c.seed, state["step"])]
        state = advance_stream(state, sum(len(a) + len(b) for _, a, b in chosen))
        yield make_batch(chosen, data.width, is_own), state


def make_batch(rows: list[tuple[int, TrainedTokens, TrainedTokens]], width: int, is_own: bool) -> dict[str, Tensor]:
    arrays = collate_conversations([[tokens] for _, *pair in rows for tokens in pair], width)
    batch = {name: torch.from_numpy(arrays[name]).view(len(rows), 2, width) for name in ("ids", "labels")}
    return batch | {"pair": torch.tensor([number if is_own else -1 for number, _, _ in rows])}


def mask_examples(config: Config) -> list[MaskedExample]:
    """Show the first pairs of the training split, and which tokens are compared."""
    tokenizer, part = load_tokenizer(config), load_pairs(config).split("train")[:MAX_SHOWN]
    rows = encode_conversations([c for pair in part for c in (pair.chosen, pair.rejected)], tokenizer, "last")
    return [
        [(name_token(tokenizer, token), bool(trained)) for token, trained in zip(row.ids.tolist(), row.is_trained)]
        for row in rows
    ]


def baselines(config: Config) -> dict[str, dict[str, float]]:
    """Return the accuracy of preferring longer or shorter answers."""
    lengths = [[int(tokens.is_trained.sum()) for tokens in row[1:]] for row in load_rows(config).split("val")]
    longer = sum((a > b) + 0.5 * (a == b) for a, b in lengths) / len(lengths)
    return {"accuracy": {"the longer answer": longer, "the shorter answer": 1 - longer}}


def examples(config: Config) -> Examples:
    """Take prompts of the validation split that are a single message of a user."""
    pairs = [pair for pair in load_pairs(config).split("val") if [m["role"] for m in pair.chosen.prompt] == ["user"]]
    if not pairs:
        return Examples()
    chosen = [pairs[i] for i in choose_examples([pair.chosen.prompt[0]["content"] for pair in pairs])]
    truths = [pair.chosen.messages[-1]["content"] for pair in chosen]
    return Examples({"input": [pair.chosen.prompt[0]["content"] for pair in chosen]}, truths)


# --- training ---


def score_answers(model: PreferenceModel, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities of the answers, and how many tokens they have: (B, 2) each."""
    labels = batch["labels"]
    nats = cross_entropy(model.head, model.hidden(batch["ids"].flatten(0, 1)), labels.flatten(0, 1), reduction="none")
    return -nats.view(labels.shape).sum(-1), (labels != IGNORE_INDEX).sum(-1)


def compute_rewards(model: PreferenceModel, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the rewards and the log-probabilities of the answers, (B, 2) each. Of pairs without a reference, those are
    taken from 0."""
    logprobs, sizes = score_answers(model, batch)
    ratios = logprobs
    if model.reference is not None and (batch["pair"] >= 0).all():
        ratios = logprobs - model.reference.to(logprobs.device)[batch["pair"]]
    return model.beta * (ratios / sizes if model.is_normalized else ratios), logprobs


def loss(model: PreferenceModel, batch: dict[str, Tensor]) -> Tensor:
    rewards, _ = compute_rewards(model, batch)
    return -F.logsigmoid(rewards[:, 0] - rewards[:, 1]).mean()


def loss_weight(batch: dict[str, Tensor]) -> Tensor:
    """The number of pairs."""
    return torch.tensor(len(batch["pair"]), device=batch["pair"].device)


@torch.no_grad()
def store_reference(model: PreferenceModel, config: Config) -> None:
    """Compute the log-probabilities of all pairs by the model as it is before training."""
    if model.reference is not None:
        return
    data, pairs = load_rows(config), load_pairs(config)
    rows, device = data.split("all"), next(model.parameters()).device
    values = torch.zeros(len(pairs.split("all")), 2)
    is_training = model.training
    model.eval()
    for start in range(0, len(rows), config.train.batch):
        batch = make_batch(rows[start : start + config.train.batch], data.width, is_own=True)
        logprobs, _ = score_answers(model, {name: value.to(device) for name, value in batch.items()})
        values[batch["pair"]] = logprobs.float().cpu()
        report_progress("the model before training", start + len(batch["pair"]), len(rows))
    model.train(is_training)
    model.store_reference(values, pairs.sha256)


def evaluate(model: PreferenceModel, batches: Iterator[dict[str, Tensor]]) -> dict[str, float]:
    """Return the loss, the share of pairs whose chosen answer has the higher reward, the mean rewards and their
    distance, and the log-probabilities. Of other pairs than the run's own, whose reference is not stored, the reward is
    beta times the log-probability itself."""
    columns: dict[str, list[Tensor]] = {}
    for batch in batches:
        rewards, logprobs = compute_rewards(model, batch)
        chosen, rejected = rewards.double().cpu().unbind(1)
        values = {"loss": -F.logsigmoid(chosen - rejected), "accuracy": (chosen > rejected).double()}
        values |= {"chosen_reward": chosen, "rejected_reward": rejected, "margin": chosen - rejected}
        values |= dict(zip(("chosen_logprob", "rejected_logprob"), logprobs.double().cpu().unbind(1)))
        for name, column in values.items():
            columns.setdefault(name, []).append(column)
    return {name: torch.cat(parts).mean().item() for name, parts in columns.items()}


def figures(model: PreferenceModel, config: Config) -> list[Figure]:
    """Draw the rewards of both answers of validation pairs."""
    few = replace(config, train=replace(config.train, batch=min(config.train.batch, 32)))
    rows, n = [], 0
    with torch.no_grad():
        for batch, _ in batches(few, "val"):
            device = next(model.parameters()).device
            rewards, _ = compute_rewards(model, {name: value.to(device) for name, value in batch.items()})
            rows.append(rewards.float().cpu())
            if (n := n + len(rewards)) >= MAX_FIGURE_PAIRS:
                break
    ordered = torch.cat(rows).sort(0).values
    lines = [
        {"name": name, "x": list(range(len(ordered))), "y": values.tolist()}
        for name, values in zip(("chosen", "rejected"), ordered.unbind(1))
    ]
    return [{"kind": "lines", "title": "Rewards", "note": NOTE, "x_label": "validation pairs", "lines": lines}]
