"""Answers that a model draws to prompts, with their log-probabilities and rewards, as rows of a batch.

Shapes: B prompts, G answers to each, T tokens, V entries of the vocabulary.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...data.text.batches import IGNORE_INDEX
from ...inference.completion import Completion
from ...inference.decode import Decoder, generate
from ...inference.sampling import SamplingParams
from ...rewards import Sample, load_reward


@dataclass(frozen=True)
class Answers:
    """Answers to prompts, G to each in turn."""

    prompts: list[list[int]]
    tokens: list[list[int]]
    """Of each answer, with the one that ends it."""
    texts: list[str]
    finished: list[bool]
    """Whether each ends by itself."""
    logprobs: Tensor
    """Of the tokens, (B G, tokens)."""
    entropies: Tensor
    """Of the distributions that they were drawn from, in nats: (B G, tokens)."""

    def collate(self, shape: Sequence[int]) -> dict[str, Tensor]:
        """Return ids, labels (one token ahead, IGNORE_INDEX but for the answer) and old_logprobs, (B, G, T) each.
        `shape` is (B, G)."""
        n, width = len(self.prompts), max(len(a) + len(b) for a, b in zip(self.prompts, self.tokens)) - 1
        values = {"ids": torch.zeros(n, width, dtype=torch.long), "labels": torch.full((n, width), IGNORE_INDEX)}
        values["old_logprobs"] = torch.zeros(n, width)
        for i, (prompt, answer) in enumerate(zip(self.prompts, self.tokens)):
            start, stop = len(prompt) - 1, len(prompt) - 1 + len(answer)
            values["ids"][i, :stop] = torch.tensor([*prompt, *answer[:-1]])
            values["labels"][i, start:stop] = torch.tensor(answer)
            values["old_logprobs"][i, start:stop] = self.logprobs[i, : len(answer)]
        return {name: value.view(*shape, width) for name, value in values.items()}

    def describe(self, shape: Sequence[int]) -> dict[str, Tensor]:
        """Return the "length" of each answer in tokens, whether it is "finished", and the mean "entropy" of its tokens:
        (B, G)"""
        entropies = [row[: len(answer)].mean() for row, answer in zip(self.entropies, self.tokens)]
        columns = {"length": [float(len(answer)) for answer in self.tokens], "finished": map(float, self.finished)}
        return {k: torch.tensor([*v]).view(*shape) for k, v in (columns | {"entropy": entropies}).items()}


def draw_answers(model: Decoder, tokenizer: Any, prompts: list[list[int]], seeds: list[int], tokens: int) -> Answers:
    """Continue prompts at temperature 1, by at most so many tokens."""
    completions = [Completion("", ids, tokenizer, ()) for ids in prompts]
    answers: list[list[int]] = [[] for _ in prompts]
    logprobs, entropies = [], []

    def watch(logits: Tensor, new: Tensor) -> None:
        scores = logits.float().log_softmax(-1)
        logprobs.append(scores.gather(1, new[:, None])[:, 0].cpu())
        entropies.append(-(scores.exp() * scores).nan_to_num(0.0).sum(-1).cpu())

    def stop(row: int, token: int) -> bool:
        answers[row].append(token)
        return completions[row].add(token)

    for _ in generate(model, prompts, tokens=tokens, sampling=SamplingParams(), seeds=seeds, stop=stop, watch=watch):
        pass
    texts, finished = [c.text for c in completions], [c.finish_reason == "stop" for c in completions]
    return Answers(prompts, answers, texts, finished, torch.stack(logprobs, 1), torch.stack(entropies, 1))


def spread_seed(draw: list[int], index: int) -> int:
    """Return the seed of an answer, whatever else is in the batch."""
    return int(np.random.SeedSequence([*draw, index]).generate_state(1, np.uint64)[0] >> 1)


def encode_content(prompt: str, row: Mapping[str, Any], where: str) -> bytes:
    """Return what a reward reads of a prompt."""
    return json.dumps({"prompt": prompt, "row": row, "where": where}, default=str).encode()


def score_answers(reward: str, rows: Tensor, texts: list[str]) -> Tensor:
    """Return the rewards of answers: (B, G). rows: (B, bytes), see `encode_content`. Raises InputError."""
    prompts = [json.loads(bytes(row.tolist())) for row in rows.cpu()]
    repeated = (prompt for prompt in prompts for _ in range(len(texts) // len(prompts)))
    samples = [Sample(p["prompt"], text, p["row"], p["where"]) for p, text in zip(repeated, texts, strict=True)]
    return torch.tensor(load_reward(reward)(samples), dtype=torch.float32).view(len(prompts), -1)


def average_facts(facts: list[dict[str, Tensor]]) -> dict[str, float]:
    """Return the mean reward and the other figures of answers: of each batch "rewards" and others, (B, G)."""
    columns = {name: torch.cat([part[name] for part in facts]).double() for name in facts[0]}
    rewards = columns.pop("rewards")
    figures = {"reward": rewards.mean().item(), "correct": (rewards >= 1).double().mean().item()}
    figures |= {"best_of_group": rewards.amax(1).mean().item()}
    figures |= {"equal_groups": (rewards == rewards[:, :1]).all(1).double().mean().item()}
    return figures | {name: column.mean().item() for name, column in columns.items()}
