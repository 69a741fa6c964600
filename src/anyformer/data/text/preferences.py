"""Read preferences: two answers to the same messages, of which one was preferred.

    {"prompt": "...", "chosen": "...", "rejected": "..."}                     texts, or lists of messages
    {"chosen": [{"role": "user", ...}, {"role": "assistant", ...}], "rejected": [...]}     whole conversations

A pair a line of .jsonl, or a row of .json, .parquet or .csv. A folder has train.* and maybe val.*; if there is no
validation split, a share of the prompts is separated by their hash.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import InputError
from ..io.checks import parse_json
from ..sampling import select_split
from ..unusable import EmptyPolicy
from .chats import (
    Conversation,
    Message,
    Rows,
    UnusableError,
    check_order,
    find_splits,
    read_content,
    read_message_list,
    read_splits,
)
from .instructions import TASKS, load_instructions

INSTRUCTION_PAIRS = "instruction-pairs"
EXPECTED = "prompt, chosen and rejected"
N_WORDS = {"train": 200, "val": 20}  # of the named set


@dataclass(frozen=True)
class Pair:
    """Two conversations that differ in their last answer."""

    chosen: Conversation
    rejected: Conversation


@dataclass(frozen=True, eq=False)
class Pairs:
    """The pairs of the splits "train" and "val", and a hash of their content."""

    splits: dict[str, list[Pair]]
    sha256: str
    n_skipped: int

    def split(self, name: str) -> list[Pair]:
        every = [pair for part in self.splits.values() for pair in part]
        return select_split(name, {**self.splits, "all": every})


def read_pairs(data: str, val_fraction: float, empty: EmptyPolicy) -> Pairs:
    """Read the pairs of a path or of a named set. Raises InputError.

    Args:
        empty: what becomes of pairs with an empty answer, or with two equal ones.
    """
    splits, n_skipped = read_splits(
        data,
        find_splits(data, {INSTRUCTION_PAIRS: read_instruction_pairs}, EXPECTED),
        parse_pair,
        lambda pair: (pair.chosen.prompt, [pair.chosen.messages, pair.rejected.messages]),
        val_fraction,
        empty,
        "pair",
    )
    content = [[name, [[p.chosen.messages, p.rejected.messages] for p in part]] for name, part in splits.items()]
    return Pairs(splits, hashlib.sha256(json.dumps(content).encode()).hexdigest(), n_skipped)


def parse_pair(row: Mapping[str, Any], where: str) -> Pair:
    """Return the pair of a row. Raises InputError; UnusableError without a place."""
    if not {"chosen", "rejected"} <= row.keys():
        names = ", ".join(map(repr, list(row)[:5])) or "nothing"
        raise InputError(f"{where}: has {names}: expected {EXPECTED}")
    prompt = read_turns(row["prompt"], "user", f"{where}: prompt") if row.get("prompt") else []
    conversations = []
    for name in ("chosen", "rejected"):
        answer = read_turns(row[name], "assistant", f"{where}: {name}")
        if not any(message["content"].strip() or "tool_calls" in message for message in answer[-1:]):
            raise UnusableError(f"{name} is empty")
        is_conversation = answer[0]["role"] in ("system", "user")
        messages = answer if is_conversation else [*prompt, *answer]
        check_order(messages)
        if messages[-1]["role"] != "assistant":
            raise UnusableError(f"{name} does not end with an answer of the assistant")
        conversations.append(Conversation(messages, [], where))
    chosen, rejected = conversations
    if chosen.messages == rejected.messages:
        raise UnusableError("chosen and rejected are the same")
    if chosen.prompt != rejected.prompt:
        raise UnusableError("chosen and rejected answer different messages")
    return Pair(chosen, rejected)


def read_turns(value: Any, role: str, where: str) -> list[Message]:
    """Return messages that are given as a list, or as the text of one. Raises InputError."""
    if isinstance(value, str) and value.lstrip().startswith('[{"'):  # of a csv file
        value = parse_json(value, where, list)
    if isinstance(value, list) and value:
        return list(read_message_list(value, where))
    return [{"role": role, "content": "" if value == [] else read_content(value, where)}]


def read_instruction_pairs() -> dict[str, Rows]:
    """Return the set `instruction-pairs`: requests of the set `instructions`; rejected is the answer to the next
    request about the same word that has another answer."""
    return {name: list(pair_instructions(name, part)) for name, part in load_instructions().items()}


def pair_instructions(split: str, pairs: list[tuple[str, str]]) -> Rows:
    n = len(TASKS)
    for i, (prompt, answer) in enumerate(pairs[: N_WORDS[split] * n]):
        others = (pairs[i // n * n + (i + k) % n][1] for k in range(1, n))
        rejected = next(other for other in others if other != answer)
        yield f"{INSTRUCTION_PAIRS}, {split} {i + 1}", {"prompt": prompt, "chosen": answer, "rejected": rejected}
