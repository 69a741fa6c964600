"""GRPO: continue the training of a chat model on its own answers, of which a reward says how good they are.

raw    prompts, maybe with the right answer; or the set instructions
nodes  tokens of a prompt as the model's chat template writes it, and of an answer that the model has just drawn
edges  causal
head   a logit for each token of the vocabulary
loss   of each token of an answer: how much better the answer is than the others to its prompt, times how much
       likelier the token has become since it was drawn

    anyformer train grpo --init RUN --data prompts.jsonl --reward exact
    anyformer train grpo --init RUN --data prompts.jsonl --reward my.py:score --lora.rank 8

Group relative policy optimization (2402.03300): before an update the model answers each prompt `group` times; rewards
are compared within the group, so that no model has to predict them. The ratio is clipped as in PPO (1707.06347).
"""

import copy
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..data.io.cache import cache_by_files, data_files
from ..data.io.checks import read_json
from ..data.sampling import count_rows, sample_indices, select_split
from ..data.text.batches import IGNORE_INDEX
from ..data.text.prompts import Prompts, read_prompts
from ..data.tokenizers.base import Tokenizer
from ..data.tokenizers.chat_template import Chat
from ..data.unusable import EmptyPolicy, check_unusable
from ..errors import InputError
from ..events import report_progress
from ..model import initialize
from ..model.kernels.cross_entropy import cross_entropy
from ..parsing import check_range, path_field
from ..recipe import BatchStream, Examples, Figure, SizeOption, StreamState, advance_stream, init_stream
from ..rewards import Sample, load_reward, read_answers
from ..training.config import TrainConfig
from ..training.device import evaluation_autocast
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
from ._shared.rollouts import average_facts, draw_answers, encode_content, score_answers, spread_seed
from ._shared.sizes import Size, offer_sizes
from ._shared.text import choose_examples, form  # noqa: F401

CLIP = 0.2  # a ratio further from 1 than this gives no more gradient
SMALL = 1e-4  # added to the deviation of a group
MAX_FIGURE_PROMPTS = 256
ROLLOUT_KEYS = {"ids", "labels", "old_logprobs", "advantages", "draws"}
NOTE = (
    "Mean reward of the samples of each validation prompt, after training, in order. A prompt at 0 or at 1 teaches "
    "nothing: where all answers of a group are alike, none is better than the others (the metric equal_groups), and "
    "the reward stalls; easier prompts, a larger group or a reward with steps in between help. A falling entropy means "
    "that answers become alike; at 0 nothing new is tried. A length that grows without more reward means that the "
    "reward is paid for length, and answers that do not end (finished) were cut at the limit of tokens. The divergence "
    "(kl) says how far the model has left the one before: a reward that rises with it while answers become strange is "
    "being gamed; a larger kl_weight or fewer steps hold the model back."
)


@dataclass(frozen=True, kw_only=True)
class Config(DecoderConfig):
    """A chat model, its prompts, the reward of its answers, and its training."""

    data: str = path_field("instructions")
    """A file of prompts (jsonl, json, parquet, csv), a folder with train.* and maybe val.*, or the set instructions."""
    reward: str = "exact"
    """exact (the answer is the row's), regex:PATTERN, classifier:RUN:LABEL, or FILE.py:FUNCTION, which is called with
    the prompt, the answer and the row, and returns a number."""
    group: int = 8
    """Answers to each prompt of a batch, whose rewards are compared."""
    tokens: int = 64
    """The most tokens of an answer."""
    updates: int = 1
    """Updates with the same answers, before new ones are drawn."""
    kl_weight: float = 0.0
    """How strongly the model is held to what it was before; 0 keeps no copy of that one."""
    variant: Literal["grpo", "dr_grpo"] = "grpo"
    """GRPO; or without the divisions by the length of an answer and by the deviation of its group (2503.20783), which
    favor short right answers, long wrong ones, and prompts that are nearly always or never solved."""
    empty: EmptyPolicy = "few"
    """Prompts without a text, or with roles out of order: skip, error, or few: skip where they are at most 1 %."""
    too_long: EmptyPolicy = "few"
    """Prompts that leave no room for an answer: skip, error, or few: skip where they are at most 1 %."""
    val_fraction: float = 0.1
    """Share of the prompts that is kept for validation, where the data have no validation split."""
    rollouts: str = path_field("", [".json"])
    """Answers of a run that was interrupted between two updates with them, rollouts.json."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "val_fraction", above=0, below=1)
        check_range(self, "group", at_least=2, at_most=4096)
        check_range(self, "tokens", at_least=1, at_most=1 << 20)
        check_range(self, "updates", at_least=1, at_most=1000)
        check_range(self, "kl_weight", at_least=0, at_most=1e6)


PRESETS = {
    # seconds: for tests
    "tiny": Config(reward="regex:[aeiou]", group=4, tokens=6, model=make_model_config(32, 2, 2, 64), train=TINY_TRAIN),
    # minutes on two cores: bring --init and --data
    "small": Config(
        tokens=32,
        updates=2,
        model=make_modern_config(128, 5, 4, 256),
        train=TrainConfig(
            steps=200, batch=32, lr=3e-4, warmup=10, weight_decay=0.0, eval_every=25, eval_batches=4, save_every=50
        ),
    ),
    # adapters on a public chat model: bring --data, --init and --lora.rank 8
    "adapters": Config(
        data="prompts.jsonl",
        kl_weight=0.01,
        variant="dr_grpo",
        val_fraction=0.05,
        model=make_modern_config(128, 5, 4, 256),
        train=TrainConfig(
            steps=100, batch=4, lr=3e-4, warmup=5, weight_decay=0.0, eval_every=25, eval_batches=4, save_every=25
        ),
    ),
}


SIZES = (Size(64, 2, 8, 0), Size(96, 4, 16, 150))  # of --minutes


def sizes(config: Config) -> Iterator[SizeOption]:
    yield from offer_sizes(config, SIZES, steps=200)


class GRPOModel(ChatModel):
    """ids (B, T) -> logits (B, T, V)"""

    def __init__(self, config: Config, tokenizer: Tokenizer):
        super().__init__(config, tokenizer)
        self.config = config
        self.reference: tuple[ChatModel, ...] = ()
        """The model before training, if it is needed; in a tuple, it is no part of the model."""
        self.rollouts: list[dict[str, Tensor]] = []
        """Answers that another update follows with."""

    def keep_rollouts(self, batches: list[dict[str, Tensor]]) -> None:
        self.rollouts = batches
        self.files = {name: text for name, text in self.files.items() if name != "rollouts.json"}
        if batches:
            values = [{name: batch[name].tolist() for name in batch} for batch in batches]
            self.files |= {"rollouts.json": json.dumps(values)}


def build(config: Config) -> GRPOModel:
    model = GRPOModel(config, load_tokenizer(config))
    initialize(model, config.model)
    if config.rollouts:
        model.keep_rollouts(read_rollouts(config.rollouts))
    return model


def read_rollouts(path: str) -> list[dict[str, Tensor]]:
    """Read the answers that a checkpoint holds. Raises InputError."""
    values: Any = read_json(Path(path), kind=list)
    try:
        batches = [{name: torch.tensor(value) for name, value in batch.items()} for batch in values]
        shapes = [batch["ids"].shape for batch in batches]
        is_valid = all(
            batch.keys() >= ROLLOUT_KEYS and batch["advantages"].shape == shape[:2] and len(shape) == 3
            for batch, shape in zip(batches, shapes)
        )
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError):
        is_valid = False
    if not is_valid:
        raise InputError(f"{path} holds no answers of a model: use another checkpoint")
    return batches


# --- data ---


def config_files(config: Config) -> list[Path]:
    return [path for name in (config.data, config.tokenizer) for path in data_files(name)]


@cache_by_files(config_files)
def load_prompts(config: Config) -> Prompts:
    prompts = read_prompts(config.data, config.val_fraction, config.empty)
    if config.reward == "exact":
        for prompt in prompts.split("all"):
            try:
                read_answers(prompt.row)
            except InputError as error:
                raise InputError(f"{prompt.where}: {error}") from None
    return prompts


@cache_by_files(config_files)
def load_tokenizer(config: Config) -> Tokenizer:
    """Return the tokenizer of the model, with a chat template."""

    def read_texts() -> list[str]:
        prompts = load_prompts(config).split("all")
        texts = [message["content"] for prompt in prompts for message in prompt.messages]
        return texts + [text for prompt in prompts for text in (prompt.row.get("answer"),) if isinstance(text, str)]

    return load_chat_tokenizer(config, read_texts)


@dataclass(frozen=True, eq=False)
class Row:
    """A prompt as tokens, and what a reward reads of it."""

    ids: list[int]
    content: bytes


@dataclass(frozen=True, eq=False)
class Rows:
    """The prompts of the splits "train" and "val"."""

    splits: dict[str, list[Row]]
    width: int
    """Of the longest prompt with an answer."""
    n_bytes: int
    """Of the longest content."""
    n_skipped: int

    def split(self, name: str) -> list[Row]:
        return select_split(name, {**self.splits, "all": [row for part in self.splits.values() for row in part]})


@lru_cache(maxsize=2)
def _encode_prompts(prompts: Prompts, tokenizer: Tokenizer, context: int, tokens: int, too_long: EmptyPolicy) -> Rows:
    if tokens >= context:
        raise InputError(
            f"tokens is {tokens:,}, and the context of the model is {context:,}: no prompt fits beside such an answer: "
            "a smaller --tokens"
        )
    splits: dict[str, list[Row]] = {}
    long: list[str] = []
    for name, part in prompts.splits.items():
        texts = tokenizer.render_chats([Chat(prompt.messages) for prompt in part])
        splits[name] = []
        for prompt, text in zip(part, texts, strict=True):
            ids = tokenizer.encode_parsing_special(text).tolist()
            if len(ids) + tokens > context + 1:  # the last token is not read
                long.append(prompt.where)
            else:
                content = encode_content(prompt.messages[-1]["content"], prompt.row, prompt.where)
                splits[name].append(Row(ids, content))
        report_progress("encoding prompts", len(part), len(part))
    if long:
        problem = f"prompts leave no room for {tokens:,} tokens in the context of {context:,} (the first: {long[0]})"
        hint = "a smaller --tokens, a larger --model.context, or --too-long skip"
        check_unusable(len(long), len(prompts.split("all")), too_long, "--too-long", problem, hint)
    if missing := [name for name, rows in splits.items() if not rows]:
        raise InputError(f"no prompt fits into the context of {context:,} tokens for {missing[0]}: a larger one")
    rows = [row for part in splits.values() for row in part]
    width = max(len(row.ids) for row in rows) + tokens - 1
    return Rows(splits, width, max(len(row.content) for row in rows), prompts.n_skipped + len(long))


def load_rows(config: Config) -> Rows:
    """Return the tokens of the prompts. Raises InputError."""
    prompts, tokenizer = load_prompts(config), load_tokenizer(config)
    return _encode_prompts(prompts, tokenizer, config.model.context, config.tokens, config.too_long)


def batches(config: Config, split: str, state: StreamState | None = None) -> BatchStream:
    """Yield prompts, to which `roll_out` adds answers, and `evaluate` others.

    ids and labels (B, G, T), the labels one token ahead, IGNORE_INDEX but for the answer; old_logprobs (B, G, T) of the
    answer when it was drawn; rewards and advantages (B, G); draws (B,), the numbers of the random streams; lengths (B,)
    of the prompts, and rows (B, bytes), what a reward reads of them. With `kl_weight`, reference_logprobs (B, G, T).
    """
    c, data = config.train, load_rows(config)
    load_reward(config.reward)
    counts = count_rows(split, data.split)
    state = init_stream(state, config.data, load_prompts(config).sha256, rows=counts, skipped=data.n_skipped)
    rows = data.split(split)
    if split != "train":
        for start in range(0, len(rows), c.batch):
            yield make_batch(config, rows[start : start + c.batch], data, (1, start)), state
    while split == "train":
        update, place = divmod(state["step"], c.accumulate)
        number = update // config.updates * c.accumulate + place
        indices = sample_indices(np.arange(len(rows)), c.batch, c.seed, number)
        state = advance_stream(state, c.batch * config.group * data.width)
        yield make_batch(config, [rows[i] for i in indices], data, (0, number * c.batch)), state


def make_batch(config: Config, rows: list[Row], data: Rows, draw: tuple[int, int]) -> dict[str, Tensor]:
    """Return a batch without answers. `draw`: the kind of random stream, and the number of the first."""
    shape = (len(rows), config.group, data.width)
    content = torch.full((len(rows), data.n_bytes), ord(" "), dtype=torch.uint8)
    ids = torch.zeros(shape, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, :, : len(row.ids)] = torch.tensor(row.ids)
        content[i, : len(row.content)] = torch.from_numpy(np.frombuffer(row.content, np.uint8).copy())
    kind, first = draw
    draws = torch.tensor([[config.train.seed, kind, first + i] for i in range(len(rows))])
    batch = {"ids": ids, "labels": torch.full(shape, IGNORE_INDEX), "old_logprobs": torch.zeros(shape)}
    batch |= {"advantages": torch.zeros(shape[:2]), "rewards": torch.zeros(shape[:2]), "draws": draws}
    batch |= {"reference_logprobs": torch.zeros(shape)} if config.kl_weight else {}
    return batch | {"lengths": torch.tensor([len(row.ids) for row in rows]), "rows": content}


def baselines(config: Config) -> dict[str, dict[str, float]]:
    """Return the mean reward of one answer to all prompts: the most frequent one of the training split."""
    prompts = load_prompts(config)
    counts = Counter(str(p.row["answer"]) for p in prompts.split("train") if isinstance(p.row.get("answer"), str | int))
    name, answer = ("the most frequent answer", max(counts, key=counts.__getitem__)) if counts else ("no answer", "")
    samples = [Sample(p.messages[-1]["content"], answer, p.row, p.where) for p in prompts.split("val")]
    return {"reward": {name: sum(load_reward(config.reward)(samples)) / len(samples)}}


def examples(config: Config) -> Examples:
    """Take prompts of the validation split that are a single message of a user."""
    prompts = [p for p in load_prompts(config).split("val") if [m["role"] for m in p.messages] == ["user"]]
    if not prompts:
        return Examples()
    chosen = [prompts[i] for i in choose_examples([p.messages[0]["content"] for p in prompts])]
    truths = [p.row["answer"] for p in chosen if isinstance(p.row.get("answer"), str)]
    return Examples({"input": [p.messages[0]["content"] for p in chosen]}, truths if len(truths) == len(chosen) else [])


# --- answers and their rewards ---


def sample_answers(model: GRPOModel, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Answer the prompts of a batch. Returns the batch with the answers, and figures of each answer, (B, G)."""
    config, shape = model.config, batch["ids"].shape[:2]
    lengths = batch["lengths"].repeat_interleave(shape[1]).tolist()
    prompts = [ids[:n] for ids, n in zip(batch["ids"].flatten(0, 1).tolist(), lengths)]
    seeds = [spread_seed(draw, i) for draw in batch["draws"].tolist() for i in range(shape[1])]
    with evaluation_autocast(model, config.train.dtype):
        answers = draw_answers(model, model.tokenizer, prompts, seeds, config.tokens)
    rewards = score_answers(config.reward, batch["rows"], answers.texts)
    filled = answers.collate(shape) | {"rewards": rewards, "advantages": compare_rewards(rewards, config.variant)}
    device = next(model.parameters()).device
    kept = {name: batch[name] for name in ("draws", "lengths", "rows")}
    return {k: v.to(device) for k, v in (kept | filled).items()}, {"rewards": rewards} | answers.describe(shape)


def compare_rewards(rewards: Tensor, variant: str) -> Tensor:
    """Return how much better each answer is than the others of its group: (B, G) -> (B, G)"""
    advantages = rewards - rewards.mean(1, keepdim=True)
    return advantages if variant == "dr_grpo" else advantages / (rewards.std(1, keepdim=True) + SMALL)


def roll_out(model: GRPOModel, batches: list[dict[str, Tensor]], step: int) -> tuple[list[dict[str, Tensor]], dict]:
    """Answer the prompts of an update, unless another update with the same answers is due."""
    updates, draws = model.config.updates, [batch["draws"].tolist() for batch in batches]
    if step % updates and [batch["draws"].tolist() for batch in model.rollouts] == draws:
        filled, figures = model.rollouts, dict[str, float]()
    else:
        is_training = model.training
        model.eval()
        with torch.no_grad():
            pairs = [answer_batch(model, batch) for batch in batches]
        model.train(is_training)
        filled, figures = [batch for batch, _ in pairs], average_facts([facts for _, facts in pairs])
    model.keep_rollouts(filled if (step + 1) % updates else [])
    return filled, figures


def answer_batch(model: GRPOModel, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Draw answers, and see what the model before says of them. Returns as `sample_answers`, maybe with "kl" (B, G)."""
    filled, facts = sample_answers(model, batch)
    if model.reference:
        with evaluation_autocast(model, model.config.train.dtype):
            reference = score_tokens(model.reference[0], filled).float()
        mask = filled["labels"] != IGNORE_INDEX
        kl = estimate_divergence(filled["old_logprobs"], reference) * mask
        facts |= {"kl": (kl.sum(-1) / mask.sum(-1).clamp(min=1)).cpu()}
        filled |= {"reference_logprobs": reference} if model.config.kl_weight else {}
    return filled, facts


# --- training ---


def needs_reference(config: Config) -> bool:
    return config.kl_weight > 0


def keep_reference(model: GRPOModel, config: Config) -> None:
    model.reference = (copy.deepcopy(model).requires_grad_(False).eval(),)


def score_tokens(model: ChatModel, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the log-probabilities of the tokens of the answers, 0 elsewhere: (B, G, T)"""
    labels = batch["labels"]
    nats = cross_entropy(model.head, model.hidden(batch["ids"].flatten(0, 1)), labels.flatten(0, 1), reduction="none")
    return -nats.view(labels.shape)


def estimate_divergence(logprobs: Tensor, reference: Tensor) -> Tensor:
    """Return an estimate of the divergence from the model before at each token, never negative (Schulman 2020, k3)."""
    ratio = reference - logprobs
    return ratio.exp() - ratio - 1


def compute_loss(logprobs: Tensor, batch: Mapping[str, Tensor], config: Config) -> Tensor:
    """Return the loss of answers with these log-probabilities, (B, G, T)."""
    mask, advantages = batch["labels"] != IGNORE_INDEX, batch["advantages"][..., None]
    ratio = (logprobs - batch["old_logprobs"]).exp()
    losses = -torch.min(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages)
    if config.kl_weight:  # times the ratio, since the answers are drawn from an older model (2512.02556)
        losses = losses + config.kl_weight * ratio * estimate_divergence(logprobs, batch["reference_logprobs"])
    sums = (losses * mask).sum(-1)
    return (sums / (config.tokens if config.variant == "dr_grpo" else mask.sum(-1).clamp(min=1))).mean()


def loss(model: GRPOModel, batch: dict[str, Tensor]) -> Tensor:
    return compute_loss(score_tokens(model, batch), batch, model.config)


def loss_weight(batch: dict[str, Tensor]) -> Tensor:
    """The number of prompts."""
    return torch.tensor(len(batch["ids"]), device=batch["ids"].device)


def evaluate(model: GRPOModel, batches: Iterator[dict[str, Tensor]]) -> dict[str, float]:
    """Answer the prompts anew, and return the mean reward, which is minus the "loss"; the share of answers with a
    reward of 1 or more (correct); the mean of the best of each group; the share of groups whose answers all have the
    same reward; the tokens of an answer, the share that ends by itself, the entropy of a token in nats, and in training
    with a `kl_weight` the divergence from the model before, in nats a token."""
    figures = average_facts([answer_batch(model, batch)[1] for batch in batches])
    return {"loss": -figures["reward"]} | figures


def figures(model: GRPOModel, config: Config) -> list[Figure]:
    """Draw the mean reward of validation prompts."""
    few = replace(config, train=replace(config.train, batch=min(config.train.batch, 32)))
    rewards, n = [], 0
    with torch.no_grad():
        for batch, _ in batches(few, "val"):
            rewards.append(sample_answers(model, batch)[1]["rewards"].mean(1))
            if (n := n + len(rewards[-1])) >= MAX_FIGURE_PROMPTS:
                break
    ordered = torch.cat(rewards).sort().values.tolist()
    line = {"name": "reward", "x": list(range(len(ordered))), "y": ordered}
    return [{"kind": "lines", "title": "Rewards", "note": NOTE, "x_label": "validation prompts", "lines": [line]}]


def score(model: GRPOModel, config: Config, split: str = "val", **request: Any) -> dict[str, Any]:
    """Answer every prompt of a split once, with the likeliest tokens, and return the mean reward and the share of
    answers with a reward of 1 or more. `request` holds further fields of `CompletionRequest`."""
    prompts = load_prompts(config).split(split)
    reward, settings, values = load_reward(config.reward), {"temperature": 0.0, "tokens": config.tokens} | request, []
    for start in range(0, len(prompts), MAX_FIGURE_PROMPTS):
        part = prompts[start : start + MAX_FIGURE_PROMPTS]
        texts = model.tokenizer.render_chats([Chat(prompt.messages) for prompt in part])
        ids = [model.tokenizer.encode_parsing_special(text).tolist() for text in texts]
        answers = [sample["text"] for sample in predict(model, settings | {"prompt": ids})["samples"]]
        values += reward([Sample(p.messages[-1]["content"], a, p.row, p.where) for p, a in zip(part, answers)])
    n = len(values)
    return {"greedy_reward": sum(values) / n, "greedy_correct": sum(v >= 1 for v in values) / n, "prompts": n}
