"""Conversations to rows of tokens, of which some are trained: which ones follows from the chat template alone.

A template is a program, and does not say which part of its text is the answer. But it also renders the messages before
an answer, with the start of one, and the messages up to it: the answer is what the second has more than the first.
Where these are not the beginning of the text of all messages, or of its tokens, nobody could tell what is trained.

Shapes: B batch, T tokens.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ...errors import InputError
from ...events import report_progress
from ..tokenizers.base import Tokenizer
from ..tokenizers.chat_template import Chat, RenderingError
from ..unusable import LengthPolicy, check_unusable
from .batches import IGNORE_INDEX
from .chats import Conversation

LossOn = Literal["answers", "last", "all"]
REPORT_ROWS = 2000  # conversations between two reports of progress


@dataclass(frozen=True, eq=False)
class TrainedTokens:
    """The tokens of a conversation, (N,), and which of them are trained, (N,) bool."""

    ids: np.ndarray
    is_trained: np.ndarray

    def __len__(self) -> int:
        """The number of nodes: of every token but the last, which is only predicted."""
        return len(self.ids) - 1


Spans = list[tuple[str, str]]
"""Of each answer, the text before it, and the text up to its end."""


# --- which tokens are trained ---


def encode_conversations(
    conversations: Sequence[Conversation], tokenizer: Tokenizer, loss_on: LossOn
) -> list[TrainedTokens]:
    """Return the tokens of conversations. Raises InputError where the template fails, or leaves open what is trained.

    Args:
        loss_on: trained are all answers of the assistant, the last one, or all tokens.
    """
    rows = []
    for start in range(0, len(conversations), REPORT_ROWS):
        part = conversations[start : start + REPORT_ROWS]
        for conversation, (text, spans) in zip(part, render_parts(part, tokenizer, loss_on), strict=True):
            try:
                rows.append(mark_tokens(tokenizer, text, spans if loss_on != "all" else None))
            except InputError as error:
                raise InputError(f"{conversation.where}: {error}") from None
        report_progress("encoding conversations", start + len(part), len(conversations))
    return rows


def render_parts(
    conversations: Sequence[Conversation], tokenizer: Tokenizer, loss_on: LossOn
) -> Iterator[tuple[str, Spans]]:
    """Yield the text of each conversation, and the spans of its answers."""
    chats: list[Chat] = []
    owners: list[str] = []
    for c in conversations:
        chats.append(Chat(c.messages, c.tools, add_generation_prompt=False))
        for i in select_answers(c, loss_on):
            chats.append(Chat(c.messages[:i], c.tools))
            if i + 1 < len(c.messages):
                chats.append(Chat(c.messages[: i + 1], c.tools, add_generation_prompt=False))
        owners += [c.where] * (len(chats) - len(owners))
    try:
        texts = iter(tokenizer.render_chats(chats))
    except RenderingError as error:
        raise InputError(f"{owners[error.index]}: {error}") from None
    for c in conversations:
        text, answers = next(texts), select_answers(c, loss_on)
        yield text, [(next(texts), next(texts) if i + 1 < len(c.messages) else text) for i in answers]


def select_answers(conversation: Conversation, loss_on: LossOn) -> list[int]:
    """Return the places of the messages that are trained; where everything is, of none."""
    return {"answers": conversation.answers, "last": conversation.answers[-1:], "all": []}[loss_on]


def mark_tokens(tokenizer: Tokenizer, text: str, spans: Spans | None) -> TrainedTokens:
    """Return the tokens of a text, of which those of the spans are trained; all without spans. Raises InputError where
    a span is not a part of the text, or begins or ends inside of a token."""
    ids = tokenizer.encode_parsing_special(text)
    is_trained = np.full(len(ids), spans is None)
    for number, (before, until) in enumerate(spans or (), 1):
        problem = f"it is ambiguous which part of answer {number} is trained"
        if not (text.startswith(until) and until.startswith(before)):
            reason = "the chat template writes it otherwise where messages follow"
            raise InputError(
                f"{problem}: {reason}: --loss-on last trains the last answer only, --loss-on all everything"
            )
        start, stop = (count_shared(tokenizer, part, ids) if part != text else len(ids) for part in (before, until))
        if start is None or stop is None:
            reason = "holds its start and what is before" if start is None else "holds its end and what is after"
            raise InputError(f"{problem}: a token {reason}: strip line breaks and spaces at its ends")
        is_trained[start:stop] = True
    return TrainedTokens(ids, is_trained)


def count_shared(tokenizer: Tokenizer, text: str, ids: np.ndarray) -> int | None:
    """Return how many tokens a text has, if `ids` begin with them."""
    own = tokenizer.encode_parsing_special(text)
    return len(own) if np.array_equal(own, ids[: len(own)]) else None


def fit_context(
    rows: Sequence[TrainedTokens], places: Sequence[str], context: int, too_long: LengthPolicy
) -> tuple[list[TrainedTokens | None], int]:
    """Return the rows as they fit into the context, None for each that is left out, and how many were cut at their end.
    A row of which nothing is trained is left out. Raises InputError where the policy refuses them."""
    long = [place for row, place in zip(rows, places) if len(row) > context]
    if long:
        problem = f"conversations are longer than the context of {context:,} tokens (the first: {long[0]})"
        hint = "--too-long cut or skip, or a larger --model.context"
        check_unusable(len(long), len(rows), too_long, "--too-long", problem, hint)
    fits: list[TrainedTokens | None] = []
    for row in rows:
        cut = TrainedTokens(row.ids[: context + 1], row.is_trained[: context + 1])
        is_used = cut.is_trained[1:].any() and (len(row) <= context or too_long == "cut")
        fits.append(cut if is_used else None)
    return fits, sum(len(row) > context for row, cut in zip(rows, fits) if cut is not None)


def list_answers(row: TrainedTokens) -> list[np.ndarray]:
    """Return each run of trained tokens, after the token before it."""
    edges = np.flatnonzero(np.diff(np.pad(row.is_trained[1:], 1)))
    return [row.ids[start : stop + 1] for start, stop in edges.reshape(-1, 2).tolist()]


# --- rows of a batch ---


def pack_rows(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Distribute conversations of these lengths over rows of a width, each in one row: best fit, the longest first.
    Returns the numbers of the conversations in each row."""
    rows: list[list[int]] = []
    spaces: list[tuple[int, int]] = []  # what is left in each row that is not full, ascending, and its number
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = bisect_left(spaces, (lengths[i], -1))
        space, row = spaces.pop(place) if place < len(spaces) else (width, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(i)
        if space > lengths[i]:
            insort(spaces, (space - lengths[i], row))
    return rows


def collate_conversations(rows: Sequence[Sequence[TrainedTokens]], width: int) -> dict[str, np.ndarray]:
    """Build a batch: ids and labels (B, T), the labels one token ahead, IGNORE_INDEX where nothing is trained.

    Where a row holds several conversations, also document (B, T), the number of the conversation within its row, and
    positions (B, T), from 0 in each: attention is kept within a document, and packed conversations are trained like
    separate ones. Padding is at the end, in the last document.
    """
    shape = (len(rows), width)
    ids, labels = np.zeros(shape, np.int64), np.full(shape, IGNORE_INDEX, np.int64)
    document, positions = np.zeros(shape, np.int64), np.tile(np.arange(width), (len(rows), 1))
    for i, row in enumerate(rows):
        start = 0
        for number, conversation in enumerate(row):
            stop = start + len(conversation)
            own = conversation.ids.astype(np.int64)
            ids[i, start:stop] = own[:-1]
            labels[i, start:stop] = np.where(conversation.is_trained, own, IGNORE_INDEX)[1:]
            document[i, start:], positions[i, start:] = number, np.arange(width - start)
            start = stop
    return {"ids": ids, "labels": labels} | ({"document": document, "positions": positions} if document.any() else {})
