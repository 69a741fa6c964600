"""The batches of each update, dealt out to the processes that train together.

`accumulate` batches make an update, however many processes there are: process r of N takes those with the numbers r,
r + N, ... What is random in a batch depends on the seed and its number alone.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..data.text.batches import IGNORE_INDEX
from ..errors import InputError
from ..recipe import BatchStream, Recipe, StreamState, SupportsLossWeight, SupportsRollouts
from ..recipe_loading import recipe_name
from .config import TrainConfig
from .distributed import get_rank, get_size, report_place, total
from .prefetch import prefetch

if TYPE_CHECKING:
    from .loop import TrainState


@dataclass(frozen=True)
class Update:
    """This process's batches of one update."""

    batches: list[dict[str, Any]]
    shares: list[Tensor | None]
    """The weight of each batch in the mean over all of the update: (), or (k,) for a loss of k terms; None is 1."""
    seeds: list[int] = field(default_factory=list)
    """Of the random numbers in the loss of each batch; if there are none, the generators go on as they are."""
    stream_state: StreamState | None = None
    """Where the next update continues, on any number of processes."""
    is_stopping: bool = False
    """One of several processes was asked to stop: this update is the last one."""
    figures: dict[str, float] = field(default_factory=dict)
    """Of the model's own samples in the batches, for the record of the step."""


def read_updates(
    recipe: Recipe, config: Any, train_state: "TrainState", must_stop: Callable[[], bool]
) -> Iterator[Update]:
    """Yield this process's part of each update, from where a training is. Raises InputError if the batches of an update
    cannot be dealt out to the processes."""
    c: TrainConfig = config.train
    rank, size, spare = get_rank(), get_size(), None
    n_own, numbers = count_own(c.accumulate, size), range(rank, c.accumulate, size)
    stream, start = open_stream(recipe, config, train_state.stream_state)
    clock = train_state.clock
    stream = clock.time_data(prefetch(stream, clock.device))
    tokens = start.get("tokens", 0)  # of this process
    for number in count(train_state.step):
        report_place(number, "data")
        pairs = [next(stream) for _ in range(n_own)]
        batches, state, figures = [batch for batch, _ in pairs], pairs[-1][1], dict[str, float]()
        if isinstance(recipe, SupportsRollouts):
            batches, figures = recipe.roll_out(train_state.model, batches, number)
        seeds = [c.seed * 1_000_003 + number * c.accumulate + i for i in numbers]
        if size == 1:
            yield Update(batches, compute_shares(recipe, batches)[0], seeds, state, figures=figures)
            continue
        sums = [state.get("tokens", 0) - tokens, float(must_stop())]
        with clock.communicate():
            shares, (n_tokens, n_stopping) = compute_shares(recipe, batches, sums)
        tokens = state.get("tokens", 0)
        start = state | {"step": start["step"] + c.accumulate, "tokens": start["tokens"] + round(n_tokens)}
        spare = next((batch for batch, share in zip(batches, shares) if share.any()), spare)
        spare = spare or find_spare(recipe, config)
        batches = [batch if share.any() else spare for batch, share in zip(batches, shares)]
        report_place(number, "update")
        stream_state = {k: v for k, v in start.items() if k != "stride"}
        yield Update(batches, shares, seeds, stream_state, n_stopping > 0, figures)


def make_update(recipe: Recipe, batches: list[dict[str, Any]]) -> Update:
    """Return an update of these batches alone."""
    return Update(batches, compute_shares(recipe, batches)[0])


def count_own(accumulate: int, size: int) -> int:
    """Return how many batches of an update are for each of so many processes. Raises InputError if they cannot be dealt
    out evenly."""
    if accumulate % size:
        lower, upper = accumulate // size * size, -(-accumulate // size) * size
        valid = f"{lower} or {upper}" if lower else f"{upper}, with a smaller --train.batch,"
        raise InputError(
            f"--train.accumulate {accumulate}: an update of so many batches cannot be dealt out to {size} processes; "
            f"{valid} could"
        )
    return accumulate // size


def open_stream(recipe: Recipe, config: Any, state: StreamState | None) -> tuple[BatchStream, StreamState]:
    """Open this process's stream of training batches. Returns it and the state where all continue. Raises InputError
    if the recipe does not pass over the batches of the others."""
    size, rank = get_size(), get_rank()
    if size == 1:
        return recipe.batches(config, "train", state), state or {}
    if state is None:
        _, after_first = next(recipe.batches(config, "train", None))
        state = after_first | {"step": 0, "tokens": 0}
    start = state["step"] + rank
    own = state | {"step": start, "stride": size}
    if next(recipe.batches(config, "train", own))[1]["step"] != start + size:
        name = recipe_name(recipe)
        raise InputError(f"recipe '{name}' trains in one process: its `batches` must use recipe.advance_stream")
    return recipe.batches(config, "train", own), state


def find_spare(recipe: Recipe, config: Any) -> dict[str, Any]:
    """Return a batch that predicts something, for a process that has none yet: all must run the model."""
    batches = (batch for batch, _ in recipe.batches(config, "val", None))
    return next(batch for batch in batches if count_predictions(recipe, batch).any())


def compute_shares(recipe: Recipe, batches: Sequence[dict[str, Any]], sums: Sequence[float] = ()) -> tuple[Any, Any]:
    """Return the weight of each batch in the mean over those of all processes, and the sums of other numbers over the
    processes, which travel with them."""
    if len(batches) == 1 and get_size() == 1:
        return [None], list(sums)
    weights = torch.stack([count_predictions(recipe, batch) for batch in batches]).double()
    own = weights.sum(0)
    totals = total(torch.cat([own.reshape(-1), torch.tensor(sums, dtype=torch.float64)]))
    counted = totals[: own.numel()].reshape(own.shape)
    return list((weights / counted.clamp(min=1)).float()), totals[own.numel() :].tolist()


def count_predictions(recipe: Recipe, batch: dict[str, Any]) -> Tensor:
    """Return how many predictions the loss of a batch is the mean of."""
    if isinstance(recipe, SupportsLossWeight):
        return torch.as_tensor(recipe.loss_weight(batch))
    labels = [value for name, value in batch.items() if name.split("/")[0] == "labels"]
    if not labels:
        return torch.tensor(len(next(iter(batch.values()))))
    return torch.stack([(value != IGNORE_INDEX).sum() for value in labels]).sum()
