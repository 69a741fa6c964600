"""Read prompts whose answers a reward will judge.

    {"prompt": "12+7=", "answer": "19"}              a text, or a list of messages; maybe what is right
    {"question": "12+7=", "answer": "19"}
    {"messages": [{"role": "user", ...}]}            an answer of the assistant at the end is what is right

A prompt a line of .jsonl, or a row of .json, .parquet or .csv; "completion" is another name of "answer", and all other
fields reach the reward too. A folder has train.* and maybe val.*; if there is no validation split, a share of the
prompts is separated by their hash.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import InputError
from ..sampling import select_split
from ..unusable import EmptyPolicy, check_unusable
from .chats import (
    Message,
    UnusableError,
    check_order,
    find_splits,
    read_instructions,
    read_message_list,
    separate_validation,
)
from .instructions import INSTRUCTIONS
from .preferences import read_turns

KEYS = ("prompt", "question", "instruction")
EXPECTED = "prompt and maybe answer, or messages"


@dataclass(frozen=True)
class Prompt:
    """Messages of which the last is to be answered, and the row that they are from."""

    messages: list[Message]
    row: dict[str, Any]
    where: str


@dataclass(frozen=True, eq=False)
class Prompts:
    """The prompts of the splits "train" and "val", and a hash of their content."""

    splits: dict[str, list[Prompt]]
    sha256: str
    n_skipped: int

    def split(self, name: str) -> list[Prompt]:
        every = [prompt for part in self.splits.values() for prompt in part]
        return select_split(name, {**self.splits, "all": every})


def read_prompts(data: str, val_fraction: float, empty: EmptyPolicy) -> Prompts:
    """Read the prompts of a path or of a named set. Raises InputError.

    Args:
        empty: what becomes of prompts without a text, or whose roles are out of order.
    """
    splits: dict[str, list[Prompt]] = {}
    problems: list[str] = []
    for name, rows in find_splits(data, {INSTRUCTIONS: read_instructions}, EXPECTED).items():
        splits[name] = []
        for where, row in rows:
            try:
                splits[name].append(parse_prompt(row, where))
            except UnusableError as error:
                problems.append(f"{where}: {error}")
    total = len(problems) + sum(map(len, splits.values()))
    if problems:
        hint = "mend them, or leave them out: --empty skip"
        check_unusable(len(problems), total, empty, "--empty", f"prompts cannot be used ({problems[0]})", hint)
    if not total:
        raise InputError(f"data '{data}' holds no prompts: expected rows of {EXPECTED}")
    if "val" not in splits:
        every = splits["train"]
        parts = separate_validation([p.messages for p in every], [p.row for p in every], val_fraction)
        splits = {name: [every[i] for i in part] for name, part in parts.items()}
    if missing := [name for name, part in splits.items() if not part]:
        raise InputError(f"data '{data}': no prompt is left for {missing[0]}: bring more of them")
    content = [[name, [[p.messages, p.row] for p in part]] for name, part in splits.items()]
    return Prompts(splits, hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest(), len(problems))


def parse_prompt(row: Mapping[str, Any], where: str) -> Prompt:
    """Return the prompt of a row. Raises InputError; UnusableError without a place."""
    fields = dict(row)
    if "completion" in fields:
        fields.setdefault("answer", fields["completion"])
    key = next((key for key in (*KEYS, "messages") if row.get(key) is not None), None)
    if key is None:
        names = ", ".join(map(repr, list(row)[:5])) or "nothing"
        raise InputError(f"{where}: has {names}: expected {EXPECTED}")
    if key == "messages":
        messages = list(read_message_list(row[key], f"{where}: {key}"))
        if messages and messages[-1]["role"] == "assistant":
            fields.setdefault("answer", messages.pop()["content"])
    else:
        messages = read_turns(row[key], "user", f"{where}: {key}")
    if not messages or not messages[-1]["content"].strip():
        raise UnusableError("the prompt is empty")
    check_order([*messages, {"role": "assistant", "content": "."}])
    return Prompt(messages, fields, where)
