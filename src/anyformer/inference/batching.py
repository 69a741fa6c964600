"""Continuous batching: requests join and leave a running batch between its steps (Orca, Yu et al. 2022).

A row reads its prompt in pieces, so that a long one does not stall the others; then it is one of the rows that get a
token at every step. Each has its own sampler: its tokens are those that `generate` gives it alone.

Shapes: n rows, C channels, V entries of the vocabulary.
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..memory import read_memory
from .completion import CONTEXT_TOKENS, Completion, CompletionRequest, check_echo, encode_prompts, sample_seed
from .logprobs import TokenLogprobs, list_logprobs, score_nodes
from .notes import choose_crop, find_notes
from .prefix_cache import BLOCK_NODES, PrefixCache
from .row_cache import SharedRows, build_rows
from .sampling import Sampler
from .structure import Constraint, compile_structure

MEMORY_SHARE = 0.25  # of the machine, for keys and values
PREFIX_SHARE, MAX_PREFIX_BYTES = 1 / 16, 1 << 30  # for those of the beginnings of texts that were read


class Piece(NamedTuple):
    """What a completion has grown by."""

    index: int
    """Of the completion: sample j of prompt i is i * samples + j."""
    text: str
    """Without the start of a stop text, or of a character whose other tokens are missing: those come later."""
    tokens: list[int]
    logprobs: list[TokenLogprobs]
    """Of the tokens, if the request asks for them."""
    finish_reason: str | None
    """"stop" or "length" with the last piece of the completion."""
    notes: list[str] | None = None
    """With the last piece, of a model that has notes: those that hold."""


class QueueFullError(Exception):
    """There are too many requests already."""


class Ticket:
    """A request that is being answered."""

    def __init__(
        self,
        request: CompletionRequest,
        prompts: list[tuple[str, list[int]]],
        on_piece: Callable[[Piece], None],
        on_end: Callable[[BaseException | None], None],
        constraint: Constraint | None = None,
    ):
        self.request, self.on_piece, self.on_end, self.constraint = request, on_piece, on_end, constraint
        self.prompt_ids = [ids for _, ids in prompts]
        self.prompt_logprobs: list[list[TokenLogprobs]] | None = None
        """Of each prompt, of all tokens but the first; complete when its first piece comes."""
        if request.echo and request.logprobs is not None:
            self.prompt_logprobs = [[] for _ in prompts]
        self.n_cached = 0
        """Tokens of the prompts that were not read, because an earlier text began with them."""
        self.n_live = len(prompts) * request.samples
        self.is_cancelled = False

    def cancel(self) -> None:
        """Leave the batch before its next step."""
        self.is_cancelled = True


class Row:
    """One completion of a ticket, and where it is in the batch."""

    def __init__(self, ticket: Ticket, index: int, model: Any):
        request, context = ticket.request, model.body.config.context
        self.ticket, self.index, self.request = ticket, index, request
        self.prompt, sample = divmod(index, request.samples)
        ids = ticket.prompt_ids[self.prompt]
        matcher = ticket.constraint.start(ids[-CONTEXT_TOKENS:]) if ticket.constraint is not None else None
        self.completion = Completion("", ids, model.tokenizer, request.stops, matcher, find_notes(model))
        seeds, matchers = [sample_seed(request.seed, sample)], [] if matcher is None else [matcher]
        self.sampler = Sampler(request, [ids], seeds, matchers)
        self.context, self.keep = context, min(request.keep or max(1, context // 2), context)
        self.crop = choose_crop(model)
        self.window = self.crop(ids, context)
        """What is read again when it exceeds the context."""
        self.unread, self.n_left = self.window, request.tokens
        self.size = min(context, len(self.window) + request.tokens)
        self.scores_prompt = ticket.prompt_logprobs is not None and sample == 0
        self.slot = -1  # not in the batch

    @property
    def has_begun(self) -> bool:
        """Whether some of the window is in the batch."""
        return len(self.unread) < len(self.window)

    @property
    def ids(self) -> list[int]:
        """Those of the window that have been read."""
        return self.window[: len(self.window) - len(self.unread)]


def find_memory(model: Any) -> int:
    """Return the bytes of memory where a model is: of its GPU, or of the machine."""
    device = next(model.body.parameters()).device if isinstance(model.body, nn.Module) else torch.device("cpu")
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return read_memory()[0] or 1 << 33


class Batcher:
    """Answers requests in a thread of its own, many at once.

    Args:
        model: A `Decoder` with an attribute `tokenizer`.
        max_rows: Completions that share a step.
        max_queue: Completions that may wait for it.
        prompt_tokens: Tokens of prompts that are read between two steps.
        max_bytes: For keys and values. None: a quarter of the memory of the GPU, or of the machine.
        prefix_bytes: For the beginnings of texts that were read, see `prefix_cache`. None: a part of the machine's
            memory; 0: none are kept.
    """

    def __init__(
        self,
        model: Any,
        max_rows: int = 32,
        max_queue: int = 1000,
        prompt_tokens: int = 256,
        max_bytes: int | None = None,
        prefix_bytes: int | None = 0,
    ):
        self.model, self.max_rows, self.max_queue, self.prompt_tokens = model, max_rows, max_queue, prompt_tokens
        memory = find_memory(model)
        self.max_bytes = int(MEMORY_SHARE * memory) if max_bytes is None else max_bytes
        default = min(int(PREFIX_SHARE * memory), MAX_PREFIX_BYTES)
        self.prefix_bytes = default if prefix_bytes is None else prefix_bytes
        self.waiting: deque[Row] = deque()
        self.reset()
        self.n_tokens, self.n_prompt_tokens, self.n_steps, self.n_hits, self.n_cached = 0, 0, 0, 0, 0
        self.condition, self.n_pauses, self.is_busy, self.is_closing = threading.Condition(), 0, False, False
        self.n_threads = torch.get_num_threads()  # a new thread would take as many as there are cores
        self.thread = threading.Thread(target=self.run, name="batcher", daemon=True)
        self.thread.start()

    def reset(self) -> None:
        self.rows, self.prefixes = build_rows(self.model, self.max_bytes), None
        if self.prefix_bytes and isinstance(self.rows, SharedRows):
            self.prefixes = PrefixCache(self.rows, self.prefix_bytes)
        self.slots: list[Row] = []
        """All rows of the batch; the first `n_writing` of them get a token at every step."""
        self.n_writing = 0
        self.reading: deque[Row] = deque()
        """The others, the oldest first."""

    def submit(
        self,
        request: CompletionRequest,
        on_piece: Callable[[Piece], None],
        on_end: Callable[[BaseException | None], None],
    ) -> Ticket:
        """Answer a request. `on_piece` is called for every token of every completion, and `on_end` once at the end,
        with the error if there was one; both in the thread of the batcher, which they must not hold.

        Raises:
            InputError: If the request cannot be answered.
            QueueFullError: If too many completions wait already, or the batcher is closed.
        """
        if request.notes:
            raise InputError("notes: a batch reads no text in pieces: use anyformer sample --notes, or split it")
        prompts = encode_prompts(request, self.model.tokenizer)
        if request.exact:
            raise InputError("exact: only Python and the command line draw from the exact distribution")
        if request.echo and request.logprobs is not None:
            for _, ids in prompts:
                check_echo(ids, self.model)
        constraint = compile_structure(request, self.model.tokenizer)
        ticket = Ticket(request, prompts, on_piece, on_end, constraint)
        if ticket.n_live > self.max_rows + self.max_queue:
            raise InputError(
                f"{ticket.n_live:,} completions; at most {self.max_rows + self.max_queue:,} fit in the queue"
            )
        rows = [Row(ticket, index, self.model) for index in range(ticket.n_live)]
        with self.condition:
            free = self.max_rows - len(self.slots)
            if self.is_closing or len(self.waiting) + ticket.n_live > self.max_queue + free:
                raise QueueFullError("the server is shutting down" if self.is_closing else "too many requests wait")
            self.waiting.extend(rows)
            self.condition.notify_all()
        return ticket

    def close(self, drain: bool = True) -> None:
        """End the thread: after the answers that have begun or wait, or before its next step."""
        with self.condition:
            self.is_closing = True
            if not drain:
                for row in [*self.waiting, *self.slots]:
                    row.ticket.cancel()
            self.condition.notify_all()
        self.thread.join()

    @contextmanager
    def pause(self) -> Generator[None]:
        """Hold the batch between two steps, while something else uses the model."""
        with self.condition:
            self.n_pauses += 1
            self.condition.wait_for(lambda: not self.is_busy)
        try:
            yield
        finally:
            with self.condition:
                self.n_pauses -= 1
                self.condition.notify_all()

    # --- the thread ---

    def run(self) -> None:
        torch.set_num_threads(self.n_threads)
        while self.wait_for_work():
            try:
                with torch.inference_mode():
                    self.drop_cancelled()
                    self.admit()
                    self.read_prompts()
                    self.write_tokens()
            except Exception as error:
                self.fail_all(error)

    def wait_for_work(self) -> bool:
        """Wait until there is something to do. Returns False after the last answer of a batcher that is closed."""
        with self.condition:
            self.is_busy = False
            self.condition.notify_all()
            while True:
                has_work = bool(self.waiting or self.slots)
                if self.is_closing and not has_work:
                    return False
                if has_work and not self.n_pauses:
                    self.is_busy = True
                    return True
                self.condition.wait()

    def drop_cancelled(self) -> None:
        with self.condition:  # others add to what waits
            rows = [*self.slots, *self.waiting]
        for ticket in dict.fromkeys(row.ticket for row in rows if row.ticket.is_cancelled):
            self.end(ticket)

    def admit(self) -> None:
        """Let rows that wait join, as long as there is room."""
        while self.waiting and len(self.slots) < self.max_rows and self.rows.can_add(self.waiting[0].size):
            with self.condition:
                row = self.waiting.popleft()
            row.slot = self.rows.add(row.size)
            self.slots.append(row)
            self.reading.append(row)

    def read_prompts(self) -> None:
        """Read the next tokens of prompts, the oldest first; short ones together. A row that has read all gets its
        first token."""
        budget = self.prompt_tokens
        while self.reading and budget > 0:
            rows = self.choose_prompts(budget)
            pieces = [row.unread[:budget] for row in rows]
            for i, row in enumerate(rows):
                self.move(row, self.n_writing + i)
            nodes = self.rows.read(self.n_writing, pieces)
            budget -= len(rows) * max(map(len, pieces))
            self.n_prompt_tokens += sum(map(len, pieces))
            for row, piece, row_nodes in zip(rows, pieces, nodes):
                row.unread = row.unread[len(piece) :]
                if row.slot >= 0:
                    self.save(row)
                if row.scores_prompt:
                    self.score_prompt(row, row_nodes)
                if row.slot >= 0 and not row.unread:  # another completion of its request has not failed
                    self.start_writing(row, row_nodes[-1:])

    def choose_prompts(self, budget: int) -> list[Row]:
        """Return the oldest row, or as many of the oldest as can read all of their prompts together."""
        rows: list[Row] = []
        starts: set[tuple[int, ...]] = set()
        longest = 0
        for row in self.reading:
            start = tuple(row.window[:BLOCK_NODES])
            if (
                self.prefixes is not None
                and len(row.window) > BLOCK_NODES
                and start in starts
                and not row.scores_prompt
            ):
                break  # once the other one is read, it need not read all
            starts.add(start)
            self.restore(row)
            longest = max(longest, len(row.unread))
            if row.has_begun or longest * (len(rows) + 1) > budget:
                break
            rows.append(row)
        return rows or [self.reading[0]]

    def restore(self, row: Row) -> None:
        """Let a row that has read nothing begin with what an earlier text began with."""
        if self.prefixes is None or row.scores_prompt or row.has_begun:
            return
        n = self.prefixes.restore(row.slot, row.window)
        if n:
            row.unread = row.window[n:]
            self.n_hits, self.n_cached = self.n_hits + 1, self.n_cached + n
            is_counted = row.index % row.request.samples == 0 and not row.completion.tokens
            row.ticket.n_cached += n if is_counted else 0

    def save(self, row: Row) -> None:
        """Keep what a row has read for texts that begin with it."""
        if self.prefixes is not None:
            self.prefixes.save(row.slot, row.ids)

    def start_writing(self, row: Row, last_node: Tensor) -> None:
        """Let a row that has read its prompt join those that get tokens. last_node: (1, C)"""
        self.reading.remove(row)
        self.move(row, self.n_writing)
        self.n_writing += 1
        if row.n_left:
            self.add_token(row, self.model.head(last_node))
        else:
            self.finish(row, "length", [], [])

    def score_prompt(self, row: Row, nodes: Tensor) -> None:
        """Add the log-probabilities of the tokens after those that were just read: nodes (T, C)."""
        stop = len(row.window) - len(row.unread)
        labels = torch.tensor(row.window[stop - len(nodes) + 1 : stop + 1], device=nodes.device)
        if len(labels) and row.ticket.prompt_logprobs is not None:
            scores = score_nodes(self.model, nodes[: len(labels)], labels, row.request.logprobs or 0)
            row.ticket.prompt_logprobs[row.prompt] += scores
        row.scores_prompt = bool(row.unread)

    def write_tokens(self) -> None:
        """One step: a token for every row that has read its prompt."""
        if not self.n_writing:
            return
        rows = self.slots[: self.n_writing]
        logits = self.model.head(self.rows.step([row.window[-1] for row in rows]))
        self.n_steps += 1
        for row, row_logits in zip(rows, logits.split(1)):
            if row.slot >= 0:  # another completion of its request has not failed
                self.add_token(row, row_logits)

    def add_token(self, row: Row, logits: Tensor) -> None:
        """Choose the next token of a row by its logits, (1, V)."""
        try:
            new = row.sampler(logits)
        except InputError as error:
            return self.end(row.ticket, error)
        (token,), completion, n_before = new.tolist(), row.completion, len(row.completion.tokens)
        row.n_left, self.n_tokens = row.n_left - 1, self.n_tokens + 1
        is_over = completion.add(token)
        tokens = completion.tokens[n_before:]  # not the end-of-text token
        logprobs = (
            [] if row.request.logprobs is None or not tokens else list_logprobs(logits, new, row.request.logprobs)
        )
        if is_over or not row.n_left:
            return self.finish(row, completion.finish_reason or "length", tokens, logprobs)
        self.call(row.ticket.on_piece, Piece(row.index, completion.new_text(), tokens, logprobs, None))
        row.window.append(token)
        if len(row.window) > row.context:
            self.crop(row)

    def crop(self, row: Row) -> None:
        """Let a row that is full begin again with its notes and the newest of its tokens."""
        if self.rows.is_unbounded(row.slot):  # nothing is ever read again
            row.window = row.window[-1:]
            return
        row.window = row.unread = row.crop(row.window, row.keep)
        self.n_writing -= 1
        self.move(row, self.n_writing)
        self.rows.reset(row.slot)
        self.reading.append(row)

    def move(self, row: Row, slot: int) -> None:
        """Let a row change its place with the one in another slot."""
        other = self.slots[slot]
        self.rows.swap(row.slot, slot)
        self.slots[row.slot], self.slots[slot] = other, row
        row.slot, other.slot = slot, row.slot

    def remove(self, row: Row) -> None:
        """Take a row out of the batch, or out of the queue."""
        if row.slot < 0:
            return
        if row.slot < self.n_writing:
            self.n_writing -= 1
            self.move(row, self.n_writing)
        else:
            self.reading.remove(row)
        self.move(row, len(self.slots) - 1)
        self.slots.pop()
        self.rows.pop()
        row.slot = -1

    def finish(self, row: Row, reason: str, tokens: list[int], logprobs: list[TokenLogprobs]) -> None:
        """End a completion with its last piece, and its request with the last of its completions."""
        row.completion.finish_reason = reason
        text, notes = row.completion.new_text(), row.completion.list_notes()
        self.call(row.ticket.on_piece, Piece(row.index, text, tokens, logprobs, reason, notes))
        self.save(row)
        self.remove(row)
        row.ticket.n_live -= 1
        if not row.ticket.n_live:
            self.call(row.ticket.on_end, None)

    def end(self, ticket: Ticket, error: BaseException | None = None) -> None:
        """End a request that was cancelled or has failed."""
        with self.condition:
            self.waiting = deque(row for row in self.waiting if row.ticket is not ticket)
        for row in [row for row in self.slots if row.ticket is ticket]:
            if error is not None:
                self.rows.erase(row.slot)
            self.remove(row)
        self.call(ticket.on_end, error)

    def fail_all(self, error: Exception) -> None:
        """End the requests in the batch: the model has failed, for example because there is no memory."""
        tickets = dict.fromkeys(row.ticket for row in self.slots)
        for row in self.slots:
            row.slot = -1
        self.reset()
        for ticket in tickets:
            self.end(ticket, error)

    def call(self, callback: Callable[[Any], None], value: Any) -> None:
        with suppress(Exception):  # of a caller that is gone
            callback(value)


def stream_text(batcher: Batcher, request: CompletionRequest) -> Iterator[str]:
    """Yield the text of one completion as it grows. If the caller leaves, it ends. Raises InputError."""
    items: SimpleQueue[Any] = SimpleQueue()
    ticket = batcher.submit(request, items.put, items.put)
    try:
        while isinstance(item := items.get(), Piece):
            yield item.text
        if item is not None:
            raise item
    finally:
        ticket.cancel()
