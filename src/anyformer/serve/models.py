"""The models of a server, by name, each with what computes its answers: a batch of completions, or a worker."""

import asyncio
import copy
import os
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..confinement import confine_files
from ..data.tokenizers.base import Tokenizer
from ..errors import InputError, suggest
from ..inference.batching import Batcher, Piece, QueueFullError, Ticket
from ..inference.completion import CompletionRequest
from ..recipe import SupportsCompletion, SupportsFileInput, SupportsForm, SupportsTablePredict
from ..trained_model import Model, load
from .errors import ApiError, refuse_busy, refuse_input
from .options import ServerOptions
from .uploads import hide_folder
from .worker import Worker

MEDIA = ("image", "sound")  # kinds of tasks that take a file
CUT_FLAG = "--request '{\"cut\": true}'"  # as messages name it, for the command line


class Completions:
    """The completions of a request while they grow."""

    def __init__(self, ticket: Ticket, items: asyncio.Queue[Any], decoder: Any):
        self.ticket, self.items = ticket, items
        self.tokenizer: Tokenizer = decoder.tokenizer
        self.context: int = decoder.body.config.context

    async def pieces(self) -> AsyncIterator[Piece]:
        """Yield the pieces of all completions as they come. Raises ApiError."""
        while isinstance(item := await self.items.get(), Piece):
            yield item
        if isinstance(item, InputError):
            raise refuse_input(item)
        if item is not None:
            raise item

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompts, as far as they are read."""
        return sum(min(len(ids), self.context) for ids in self.ticket.prompt_ids)

    def prompt_text(self, number: int) -> str:
        """Return a prompt as text; a chat has none."""
        request = self.ticket.request
        prompt = "" if request.messages else request.prompts[number]
        return prompt if isinstance(prompt, str) else self.tokenizer.decode(prompt)

    @property
    def n_dropped(self) -> int:
        """Tokens by which the longest prompt exceeds the context."""
        return max(0, max(map(len, self.ticket.prompt_ids)) - self.context)


class ServedModel:
    """A model, its name, and what computes its answers."""

    def __init__(self, name: str, model: Model, options: ServerOptions):
        self.name, self.model = name, model
        self.created = int(os.stat(model.path).st_mtime)
        self.batcher: Batcher | None = None
        if isinstance(model.recipe, SupportsCompletion):
            decoder = model.recipe.decoder(model.module)
            n_bytes = None if options.prefix_cache is None else options.prefix_cache << 20
            limits = {"max_rows": options.max_concurrent, "max_queue": options.max_queue}
            self.batcher = Batcher(decoder, **limits, prefix_bytes=n_bytes)
        self.worker = Worker(name, options.max_queue, None if self.batcher else model.module)

    @property
    def reads_files(self) -> bool:
        """Whether strings in the recipe's requests can name files."""
        recipe, model, config = self.model.recipe, self.model.module, self.model.config
        if isinstance(recipe, SupportsForm) and any(task.kind in MEDIA for task in recipe.form(model, config).tasks):
            return True
        if isinstance(recipe, SupportsFileInput):
            source = recipe.file_input(model, config)
            return source.is_path or source.read_row is not None
        return isinstance(recipe, SupportsTablePredict)

    async def call(self, function: Callable[[], Any], folder: Path, cut_field: str = "cut") -> Any:
        """Call a function of the model in its worker; it may read files of this folder only. Raises ApiError.

        `cut_field`: the field of the request that lets long texts be cut, for messages.
        """

        def run() -> Any:
            with confine_files(folder):
                if self.batcher is None:
                    return function()
                with self.batcher.pause():
                    return function()

        try:
            return await self.worker.call(run)
        except InputError as error:
            text = hide_folder(str(error), folder).replace(str(self.model.path), self.name)
            raise refuse_input(InputError(text.replace(CUT_FLAG, f'"{cut_field}": true'))) from None

    async def complete(self, request: CompletionRequest, streams: bool = False) -> Completions:
        """Let a request join the batch. The caller cancels its ticket. Raises ApiError.

        Without `streams`, nothing is delivered between the first piece and the end: the event loop, woken at every
        token, takes the processor from the thread of the batch.
        """
        if self.batcher is None:
            raise ApiError(
                400,
                f"the model '{self.name}' ({self.model.name}) completes no texts: use /v1/predict",
                "no_completions",
            )
        loop, items, pieces = asyncio.get_running_loop(), asyncio.Queue(), deque[Any]()
        has_begun = False

        def put(item: Any) -> None:
            nonlocal has_begun
            pieces.append(item)
            if streams or not has_begun or not isinstance(item, Piece):
                has_begun = True
                loop.call_soon_threadsafe(deliver)

        def deliver() -> None:
            while pieces:
                items.put_nowait(pieces.popleft())

        future = loop.run_in_executor(None, self.batcher.submit, request, put, put)
        try:
            ticket = await asyncio.shield(future)
        except asyncio.CancelledError:  # it may join nevertheless
            future.add_done_callback(cancel_ticket)
            raise
        except QueueFullError:
            raise refuse_busy(f"too many completions wait for the model '{self.name}': try again later") from None
        except InputError as error:
            raise refuse_input(error) from None
        return Completions(ticket, items, self.batcher.model)

    def gauges(self) -> dict[str, float]:
        """Return how many requests are waiting and running now."""
        if self.batcher is None:
            return {"waiting": max(0, self.worker.pending - 1), "running": min(1, self.worker.pending)}
        return {"waiting": len(self.batcher.waiting), "running": len(self.batcher.slots)}

    def measure_prefixes(self) -> dict[str, float]:
        """Return what the prefix cache holds, and how many prompts and tokens it has saved since the start."""
        if self.batcher is None or self.batcher.prefixes is None:
            return {}
        totals = {"hits_total": self.batcher.n_hits, "tokens_total": self.batcher.n_cached}
        return {f"prefix_cache_{name}": n for name, n in (totals | {"bytes": self.batcher.prefixes.n_bytes}).items()}

    def close(self) -> None:
        self.worker.close()
        if self.batcher is not None:
            self.batcher.close(drain=False)


def cancel_ticket(future: asyncio.Future[Ticket]) -> None:
    if not future.cancelled() and future.exception() is None:
        future.result().cancel()


class ModelSet:
    """The models of a server by their names."""

    def __init__(self, models: Sequence[ServedModel]):
        self.models = {model.name: model for model in models}

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self.models.values())

    def find(self, name: Any) -> ServedModel:
        """Return the model of a request; without a name, the only one. Raises ApiError."""
        if name in ("", None) and len(self.models) == 1:
            return next(iter(self))
        if name in ("", None):
            raise ApiError(400, f"model is missing: {suggest('', self.models)}", "missing_model", "model")
        if not isinstance(name, str):
            raise ApiError(400, f"model is {str(name)[:40]}; it must be a text", "invalid_value", "model")
        if name not in self.models:
            message = f"there is no model '{name[:80]}': {suggest(name[:200], self.models)}"
            raise ApiError(404, message, "model_not_found", "model")
        return self.models[name]


def load_models(runs: Sequence[str], options: ServerOptions, **settings: Any) -> ModelSet:
    """Load models, given as RUN or NAME=RUN; `settings` are those of `load`. Of a model of several tasks each is served
    as NAME:TASK. Raises InputError."""
    names = [split_name(run) for run in runs]
    models: list[ServedModel] = []
    for name, run in names:
        model = load(run, **settings)
        name = name or (run if not Path(run).exists() else model.run_path.resolve().name)
        if any(other.name.partition(":")[0] == name for other in models):
            raise InputError(f"two models have the name '{name}': name one of them, for example {name}-2={run}")
        for task, part in model.tasks.items():
            part.module = copy.deepcopy(part.module)  # the lens of one must not see what another computes meanwhile
            models.append(ServedModel(f"{name}:{task}", part, options))
        if not model.tasks:
            models.append(ServedModel(name, model, options))
    return ModelSet(models)


def split_name(run: str) -> tuple[str, str]:
    """NAME=RUN -> (name, run); a path with an = in it is a path."""
    name, sign, path = run.partition("=")
    return (name, path) if sign and name and path and not Path(run).exists() else ("", run)
