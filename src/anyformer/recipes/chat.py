"""Chat: continue the training of a language model on conversations, so that it answers.

raw    conversations: messages, prompt and completion, ShareGPT's or Alpaca's layout; or the set instructions
nodes  tokens of the conversation as the model's chat template writes it, with a position
edges  causal, within a conversation: several share a row
head   a logit for each token of the vocabulary
loss   cross-entropy of the next token, of the assistant's answers only

    anyformer train chat --init RUN --data chats.jsonl                    all weights
    anyformer train chat --init RUN --data chats.jsonl --lora.rank 8      adapters
    anyformer train chat --init RUN --data chats.jsonl --show-mask        print what would be trained
    anyformer train chat                                    minutes on two cores: the set instructions, from nothing

InstructGPT's first step (2203.02155); loss on answers only as in 2210.11416 and most since.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.io.cache import cache_by_files, data_files
from ..data.sampling import count_rows, sample_indices, select_split
from ..data.text.batches import IGNORE_INDEX
from ..data.text.chat_batches import (
    LossOn,
    TrainedTokens,
    collate_conversations,
    encode_conversations,
    fit_context,
    list_answers,
    pack_rows,
)
from ..data.text.chats import Conversations, read_conversations
from ..data.tokenizers.base import Tokenizer
from ..data.tokenizers.chat_template import Chat
from ..data.unusable import EmptyPolicy, LengthPolicy
from ..errors import InputError
from ..inference.completion import CompletionRequest, generate_text
from ..model import initialize
from ..parsing import check_range, parse_dataclass, path_field
from ..recipe import (
    BatchStream,
    Examples,
    MaskedExample,
    SizeOption,
    StreamState,
    advance_stream,
    init_stream,
)
from ..training.config import TrainConfig
from ._shared import language
from ._shared.cached_graph import export_cached_graph  # noqa: F401
from ._shared.chat import (  # noqa: F401
    ChatModel,
    encode_chats,
    file_input,
    lens,
    load_chat_tokenizer,
    predict,
    predict_batch,
    prepare_request,
    stream,
)
from ._shared.language import DecoderConfig, decoder, evaluate, export_graph  # noqa: F401
from ._shared.presets import MUON, TINY_TRAIN, make_model_config, make_modern_config
from ._shared.sizes import Size, offer_sizes
from ._shared.text import choose_examples, form  # noqa: F401
from ._shared.text_lenses import name_token
from ._shared.trivial_baselines import Baselines, score_bigrams

MAX_SCORED = 256  # conversations that are answered together
MAX_SHOWN = 3  # of --show-mask


@dataclass(frozen=True, kw_only=True)
class Config(DecoderConfig):
    """A language model, its conversations and its training."""

    data: str = path_field("instructions")
    """A file of conversations (jsonl, json, parquet, csv), a folder with train.* and maybe val.*, or the set
    instructions."""
    loss_on: LossOn = "answers"
    """What is trained: all answers of the assistant, the last one of each conversation, or all tokens."""
    empty: EmptyPolicy = "few"
    """Conversations without an answer, or with roles out of order: skip, error, or few: skip where they are at most
    1 %."""
    too_long: LengthPolicy = "few"
    """Conversations longer than the context: cut, skip, error, or few: skip where they are at most 1 %."""
    val_fraction: float = 0.1
    """Share of the conversations that is kept for validation, where the data have no validation split."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "val_fraction", above=0, below=1)


KINDS = {"conversations": {"too_long": "cut"}}
SIZES = (Size(64, 2, 32, 0), Size(96, 4, 32, 400))  # of --minutes
PRESETS = {
    # seconds: for tests
    "tiny": Config(loss_on="last", model=make_model_config(32, 2, 2, 192), train=TINY_TRAIN),
    # minutes on two cores, from nothing or --init
    "small": Config(
        model=make_modern_config(128, 5, 4, 256),
        train=TrainConfig(steps=800, batch=64, lr=4e-3, weight_decay=0.01, eval_batches=10, **MUON),
    ),
    # adapters on a public chat model: bring --data, --init and --lora.rank 8
    "adapters": Config(
        data="chats.jsonl",
        val_fraction=0.05,
        model=make_modern_config(128, 5, 4, 256),
        train=TrainConfig(steps=200, batch=8, lr=1e-3, warmup=10, weight_decay=0.0, eval_every=50, save_every=50),
    ),
}


def sizes(config: Config) -> Iterator[SizeOption]:
    yield from offer_sizes(config, SIZES, steps=800)


def build(config: Config) -> ChatModel:
    model = ChatModel(config, load_tokenizer(config))
    initialize(model, config.model)
    return model


# --- data ---


def config_files(config: Config) -> list[Path]:
    return [path for name in (config.data, config.tokenizer) for path in data_files(name)]


@cache_by_files(config_files)
def load_conversations(config: Config) -> Conversations:
    return read_conversations(config.data, config.val_fraction, config.empty)


@cache_by_files(config_files)
def load_tokenizer(config: Config) -> Tokenizer:
    """Return the tokenizer of the model, with a chat template."""
    return load_chat_tokenizer(
        config, lambda: [text for c in load_conversations(config).split("all") for text in c.texts]
    )


Row = list[TrainedTokens]
"""The conversations that share a row of a batch."""


@dataclass(frozen=True, eq=False)
class Rows:
    """The conversations of the splits "train" and "val" as tokens."""

    conversations: dict[str, list[TrainedTokens]]
    width: int
    """Of a row of a batch: that of the longest conversation."""
    n_skipped: int
    n_cut: int


@cache_by_files(config_files)
def load_rows(config: Config) -> Rows:
    """Return the tokens of the conversations. Raises InputError."""
    data, tokenizer = load_conversations(config), load_tokenizer(config)
    every, context = data.split("all"), config.model.context
    rows = encode_conversations(every, tokenizer, config.loss_on)
    rows, n_cut = fit_context(rows, [conversation.where for conversation in every], context, config.too_long)
    parts, start = {}, 0
    for name, part in data.splits.items():
        parts[name] = [row for row in rows[start : start + len(part)] if row is not None]
        start += len(part)
    if missing := [name for name, part in parts.items() if not part]:
        raise InputError(f"no conversation fits into the context of {context:,} tokens for {missing[0]}: a larger one")
    width = max(len(row) for part in parts.values() for row in part)
    return Rows(parts, width, data.n_skipped + rows.count(None), n_cut)


@lru_cache(maxsize=8)
def pack_split(data: Rows, name: str) -> list[Row]:
    """Return the rows of "train", "val" or "all"."""
    every = [row for part in data.conversations.values() for row in part]
    conversations = select_split(name, {**data.conversations, "all": every})
    numbers = pack_rows([len(conversation) for conversation in conversations], data.width)
    return [[conversations[i] for i in row] for row in numbers]


def batches(config: Config, split: str, state: StreamState | None = None) -> BatchStream:
    """Yield batches; the keys are those of `collate_conversations`. "train" never ends; "val" and "all" yield every
    conversation once."""
    c, data = config.train, load_rows(config)
    sha256, counts = load_conversations(config).sha256, count_rows(split, lambda name: data.conversations[name])
    state = init_stream(state, config.data, sha256, rows=counts, skipped=data.n_skipped, cut=data.n_cut)
    rows = pack_split(data, split)
    if split != "train":
        for start in range(0, len(rows), c.batch):
            yield make_batch(rows[start : start + c.batch], data.width), state
    while split == "train":
        chosen = [rows[i] for i in sample_indices(np.arange(len(rows)), c.batch, c.seed, state["step"])]
        state = advance_stream(state, sum(len(conversation) for row in chosen for conversation in row))
        yield make_batch(chosen, data.width), state


def make_batch(rows: Sequence[Row], width: int) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value) for name, value in collate_conversations(rows, width).items()}


def loss(model: ChatModel, batch: dict[str, torch.Tensor], reduction: str = "mean") -> torch.Tensor:
    """Return the cross-entropy of the trained tokens; the mean over none is 0, since a batch may have none."""
    total = language.loss(model, batch, "sum")
    return total if reduction == "sum" else total / (batch["labels"] != IGNORE_INDEX).sum().clamp(min=1)


def mask_examples(config: Config) -> list[MaskedExample]:
    """Show the first conversations of the training split, and which tokens are trained."""
    tokenizer, part = load_tokenizer(config), load_conversations(config).split("train")[:MAX_SHOWN]
    rows = encode_conversations(part, tokenizer, config.loss_on)
    return [
        [(name_token(tokenizer, token), bool(trained)) for token, trained in zip(row.ids.tolist(), row.is_trained)]
        for row in rows
    ]


def baselines(config: Config) -> Baselines:
    parts = load_rows(config).conversations
    train, val = ([answer for row in parts[name] for answer in list_answers(row)] for name in ("train", "val"))
    return {"loss": score_bigrams(train, val, load_tokenizer(config).vocab_size)}


def examples(config: Config) -> Examples:
    """Take questions of the validation split that are a conversation's first."""
    chats = [c for c in load_conversations(config).split("val") if is_question(c.prompt) and not c.tools]
    chosen = [chats[i] for i in choose_examples([c.prompt[0]["content"] for c in chats])] if chats else []
    truths = [c.messages[c.answers[-1]]["content"] for c in chosen]
    return Examples({"input": [c.prompt[0]["content"] for c in chosen]}, truths) if chosen else Examples()


def is_question(messages: Sequence[dict[str, Any]]) -> bool:
    return [message["role"] for message in messages] == ["user"]


# --- answers ---


def score(model: ChatModel, config: Config, split: str = "val", **request: Any) -> dict[str, Any]:
    """Answer the last question of every conversation of a split, and return the share of answers that are exactly the
    conversation's own. `request` holds further fields of `CompletionRequest`."""
    conversations, n_right = load_conversations(config).split(split), 0
    for start in range(0, len(conversations), MAX_SCORED):
        part = conversations[start : start + MAX_SCORED]
        prompts = encode_chats(model, [Chat(c.prompt, c.tools) for c in part])
        settings = {"temperature": 0.0} | request | {"prompt": prompts, "samples": 1}
        fields = parse_dataclass(CompletionRequest, settings, "request")
        answers = list(generate_text(model, model.tokenizer, fields))[-1]
        truths = [c.messages[c.answers[-1]]["content"] for c in part]
        n_right += sum(answer.text.strip() == truth.strip() for answer, truth in zip(answers, truths, strict=True))
    return {"exact": n_right / len(conversations), "conversations": len(conversations)}
