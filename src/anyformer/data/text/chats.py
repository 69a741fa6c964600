"""Read conversations, in the layouts that public data sets have.

    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
    {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}       ShareGPT
    {"prompt": "...", "completion": "..."}                        texts, or lists of messages
    {"instruction": "...", "input": "...", "output": "..."}       Alpaca; also context and response

A conversation a line of .jsonl, or a row of .json, .parquet or .csv; `system` and `tools` may stand beside. A folder
has train.* and maybe val.*; if there is no validation split, a share of the first questions is separated by their hash.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ...errors import InputError, suggest
from ...events import report_notice
from ...parsing import show_value
from ..io.archives import unpack_archive
from ..io.checks import parse_json
from ..io.manifest import is_table, read_rows
from ..sampling import select_split
from ..tokenizers.chat_tokens import ROLES
from ..unusable import EmptyPolicy, check_unusable
from .instructions import INSTRUCTIONS, load_instructions
from .tagged import VALIDATION_NAMES, find_split_files

Message = dict[str, Any]
T = TypeVar("T")
MESSAGE_KEYS = (("role", "content"), ("from", "value"))
ROLE_NAMES = {"human": "user", "prompter": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant"}
ROLE_NAMES |= {"model": "assistant", "function_call": "assistant", "developer": "system"}
ROLE_NAMES |= {"observation": "tool", "function": "tool", "function_response": "tool", "ipython": "tool"}
"""Roles of other layouts -> the name that chat templates know."""
BEFORE = {
    "system": {""},
    "user": {"", "system", "assistant"},
    "assistant": {"user", "tool"},
    "tool": {"assistant", "tool"},
}
"""Role -> the roles that may stand before it; "" is the start."""
LAYOUTS: dict[tuple[str, ...], str] = {
    ("messages",): "messages",
    ("conversations",): "ShareGPT",
    ("conversation",): "ShareGPT",
    ("prompt", "completion"): "prompt and completion",
    ("instruction", "output"): "Alpaca",
    ("instruction", "response"): "instruction and response",
}
"""Fields of a row -> the layout that has them."""
EXPECTED = "messages; conversations; prompt and completion; or instruction and output"


@dataclass(frozen=True)
class Conversation:
    """Messages in the order of their roles, at least one by the assistant."""

    messages: list[Message]
    tools: list[Any]
    """What the assistant may call, as JSON schemas."""
    where: str

    @property
    def prompt(self) -> list[Message]:
        """The messages before the last answer."""
        return self.messages[: self.answers[-1]]

    @property
    def answers(self) -> list[int]:
        """The places of the assistant's messages."""
        return [i for i, message in enumerate(self.messages) if message["role"] == "assistant"]

    @property
    def texts(self) -> Iterator[str]:
        """Every text in it, as far as a template may show it."""
        for message in self.messages:
            yield message["content"]
            yield from (json.dumps(message["tool_calls"], ensure_ascii=False) for _ in "1" if "tool_calls" in message)
        yield from (json.dumps(self.tools, ensure_ascii=False) for _ in "1" if self.tools)


@dataclass(frozen=True)
class Conversations:
    """The conversations of the splits "train" and "val", and a hash of their content."""

    splits: dict[str, list[Conversation]]
    sha256: str
    n_skipped: int
    """How many were left out because they cannot be used."""

    def split(self, name: str) -> list[Conversation]:
        every = [conversation for part in self.splits.values() for conversation in part]
        return select_split(name, {**self.splits, "all": every})


def read_conversations(data: str, val_fraction: float, empty: EmptyPolicy) -> Conversations:
    """Read the conversations of a path or of a named set. Raises InputError.

    Args:
        empty: what becomes of conversations without an answer, or whose roles are out of order.
    """
    layouts = Counter[str]()
    splits, n_skipped = read_splits(
        data,
        find_splits(data, {INSTRUCTIONS: read_instructions}, EXPECTED),
        lambda row, where: parse_conversation(row, where, layouts),
        lambda c: (c.messages[: c.answers[0]], c.messages),
        val_fraction,
        empty,
        "conversation",
    )
    if layouts:
        counts = ", ".join(f"{count:,} conversations as {name}" for name, count in layouts.items())
        report_notice(f"data '{data}': {counts}")
    content = [[name, [[c.messages, c.tools] for c in part]] for name, part in splits.items()]
    return Conversations(splits, hashlib.sha256(json.dumps(content).encode()).hexdigest(), n_skipped)


Rows = Iterable[tuple[str, dict[str, Any]]]
"""(place, row) pairs."""


def find_splits(data: str, sets: Mapping[str, Callable[[], dict[str, Rows]]], expected: str) -> dict[str, Rows]:
    """Return the rows of each split of a path, or of one of the named `sets`. `expected`: of a row, for messages."""
    path = unpack_archive(Path(data).expanduser())
    if data and path.is_dir():
        files = find_split_files(sorted(path.iterdir()))
        val = next((files[name] for name in VALIDATION_NAMES if name in files), None)
        if "train" not in files:
            raise InputError(f"data '{data}' has no file train.*, such as train.jsonl")
        return {"train": read_rows(files["train"])} | ({} if val is None else {"val": read_rows(val)})
    if data and path.is_file():
        if not is_table(path):
            raise InputError(f"data '{path}': cannot be read: expected .jsonl with {expected}")
        return {"train": read_rows(path)}
    if data in sets:
        return sets[data]()
    hint = suggest(data, [*sets]) if data and not path.suffix else f"expected .jsonl with {expected}"
    raise InputError(f"data '{data}': no such file, folder or set (looked in {Path.cwd()}): {hint}")


def read_instructions() -> dict[str, Rows]:
    """Return the conversations of the set `instructions`."""
    return {name: _name_rows(name, part) for name, part in load_instructions().items()}


def _name_rows(split: str, pairs: list[tuple[str, str]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for i, (prompt, completion) in enumerate(pairs):
        yield f"{INSTRUCTIONS}, {split} {i + 1}", {"prompt": prompt, "completion": completion}


def read_splits(
    data: str,
    rows: Mapping[str, Rows],
    parse: Callable[[dict[str, Any], str], T],
    get_keys: Callable[[T], tuple[list[Message], Any]],
    val_fraction: float,
    empty: EmptyPolicy,
    noun: str,
) -> tuple[dict[str, list[T]], int]:
    """Parse the rows of each split, and separate a validation split if there is none.

    Args:
        parse: makes an example of a row and its place; rows of which it raises UnusableError are what `empty` is about.
        get_keys: returns the question and the answer of an example, by which the splits are separated.
        noun: of an example, for messages.

    Returns:
        The examples of "train" and "val", and how many rows cannot be used.
    """
    splits: dict[str, list[T]] = {name: [] for name in rows}
    problems: list[str] = []
    for name, part in rows.items():
        for where, row in part:
            try:
                splits[name].append(parse(row, where))
            except UnusableError as error:
                problems.append(f"{where}: {error}")
    if problems:
        total = len(problems) + sum(map(len, splits.values()))
        hint = "mend them, or leave them out: --empty skip"
        check_unusable(len(problems), total, empty, "--empty", f"{noun}s cannot be used ({problems[0]})", hint)
    if "val" not in splits:
        every = splits["train"]
        questions, answers = [list(keys) for keys in zip(*map(get_keys, every))] or ([], [])
        parts = separate_validation(questions, answers, val_fraction)
        splits = {name: [every[i] for i in indices] for name, indices in parts.items()}
    if missing := [name for name, examples in splits.items() if not examples]:
        raise InputError(f"data '{data}': no {noun} is left for {missing[0]}: bring more of them")
    return splits, len(problems)


def separate_validation(
    questions: Sequence[list[Message]], answers: Sequence[Any], fraction: float
) -> dict[str, list[int]]:
    """Select questions by their hash, so that none is in both splits; where all are the same, answers. Returns the
    indices of each split."""
    keys = [json.dumps(question) for question in questions]
    keys = keys if len(set(keys)) > 1 else [json.dumps(answer) for answer in answers]
    hashes = [hashlib.sha256(key.encode()).digest() for key in keys]
    ranked = sorted(set(hashes))
    selected = set(ranked[: max(1, round(fraction * len(ranked)))])
    parts: dict[str, list[int]] = {"train": [], "val": []}
    for index, digest in enumerate(hashes):
        parts["val" if digest in selected else "train"].append(index)
    return parts


# --- one conversation ---


class UnusableError(InputError):
    """A conversation that has the right form, and from which nothing can be learned as it is."""


def parse_conversation(row: Mapping[str, Any], where: str, layouts: Counter[str]) -> Conversation:
    """Return the conversation of a row, and count its layout. Raises InputError; UnusableError without a place."""
    keys = next((keys for keys in LAYOUTS if set(keys) <= row.keys()), None)
    if keys is None:
        names = ", ".join(map(repr, list(row)[:5])) or "nothing"
        raise InputError(f"{where}: has {names}: expected {EXPECTED}")
    messages = list(_read_messages(row, keys, where))
    if isinstance(row.get("system"), str) and row["system"] and messages[:1] and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": row["system"]})
    tools = row.get("tools") or []
    tools = parse_json(tools, f"{where}: tools", list) if isinstance(tools, str) else tools
    if not isinstance(tools, list):
        raise InputError(f"{where}: tools is {show_value(tools)}; expected a list of JSON schemas")
    check_order(messages)
    layouts[LAYOUTS[keys]] += 1
    return Conversation(messages, tools, where)


def _read_messages(row: Mapping[str, Any], keys: tuple[str, ...], where: str) -> Iterator[Message]:
    if len(keys) == 1:
        yield from read_message_list(row[keys[0]], f"{where}: {keys[0]}")
        return
    for key, role in zip(keys, ("user", "assistant")):
        context = row.get("input") or row.get("context") if role == "user" and key == "instruction" else None
        if isinstance(row[key], list):
            yield from read_message_list(row[key], f"{where}: {key}")
        else:
            text = read_content(row[key], f"{where}: {key}")
            yield {"role": role, "content": f"{text}\n\n{context}" if isinstance(context, str) else text}


def read_message_list(values: Any, where: str) -> Iterator[Message]:
    values = parse_json(values, where, list) if isinstance(values, str) else values  # of a csv file
    if not isinstance(values, list):
        raise InputError(f"{where} is {show_value(values)}; expected a list of messages")
    for i, value in enumerate(values):
        place = f"{where}, message {i + 1}"
        keys = next((keys for keys in MESSAGE_KEYS if isinstance(value, dict) and set(keys) & value.keys()), None)
        if keys is None or not isinstance(role := value.get(keys[0]), str):
            raise InputError(f'{place} is {show_value(value)}; expected {{"role": ..., "content": ...}}')
        role = ROLE_NAMES.get(role.lower(), role.lower())
        if role not in ROLES:
            raise InputError(f"{place}: role is {role!r}: {suggest(role, (*ROLES, *ROLE_NAMES))}")
        calls = value.get("tool_calls")
        content = read_content("" if calls and value.get(keys[1]) is None else value.get(keys[1]), place)
        others = {name: value[name] for name in ("name", "tool_call_id", "tool_calls") if value.get(name)}
        yield {"role": role, "content": content} | others


def read_content(value: Any, place: str) -> str:
    """Return a text, or the texts of a list of parts, as multimodal messages have them."""
    if isinstance(value, list) and all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in value):
        return "".join(part["text"] for part in value)
    if not isinstance(value, str):
        raise InputError(f"{place}: the content is {show_value(value)}; expected a text")
    return value


def check_order(messages: list[Message]) -> None:
    """Raise UnusableError unless a user begins, after a system message at most, and the assistant answers."""
    role = ""
    for i, message in enumerate(messages):
        if role not in BEFORE[message["role"]]:
            before = f"follows one of {role}" if role else "is the first"
            raise UnusableError(f"roles out of order: message {i + 1}, of {message['role']}, {before}")
        role = message["role"]
    answers = [message for message in messages if message["role"] == "assistant"]
    if not any(message["content"].strip() or "tool_calls" in message for message in answers):
        raise UnusableError("no assistant turn with a text")
