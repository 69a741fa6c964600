"""Several processes that train one model: all that knows of torch.distributed.

torchrun, or whoever sets RANK and WORLD_SIZE, starts the processes. The batches of an update are dealt out to them
(`updates.py`), so that their number changes how long a training takes, and not what it computes. The model is copied
to each of them (DDP), or shared by some of them (FSDP2).
"""

import json
import os
import re
import socket
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .. import processes
from ..errors import HangError, InputError, Stopped, TrainingError
from ..processes import get_local_rank, get_world_size, name_process
from ..recipe import Recipe, SupportsRollouts
from .device import resolve_device
from .hardware import first_line

T = TypeVar("T")
TIMEOUT, JOIN_TIMEOUT = "ANYFORMER_TIMEOUT", "ANYFORMER_JOIN_TIMEOUT"  # in seconds
DEFAULT_TIMEOUT, DEFAULT_JOIN_TIMEOUT = 1800.0, 300.0
END_SECONDS = 10.0  # that the first process waits for the others to notice the end
MAX_NAMES = 16  # in a message
KINDS: dict[str, type[Exception]] = {kind.__name__: kind for kind in (InputError, HangError, TrainingError, Stopped)}
"""Errors that end all processes alike; any other one is reported by the process where it happened."""


def get_size() -> int:
    """Return how many processes have joined; 1 if this one is alone."""
    return dist.get_world_size() if dist.is_initialized() else 1


def get_rank() -> int:
    """Return the number of this process among those that have joined, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


# --- joining ---


@contextmanager
def join_processes(device_name: str) -> Generator[None]:
    """Train together with the other processes in the block, if there are any. Raises InputError if one never joins."""
    if get_world_size() == 1 or dist.is_initialized():
        yield
        return
    device = resolve_device(device_name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")  # NCCL's flight recorder, written out after a timeout
        os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
    timeout = timedelta(seconds=read_seconds(TIMEOUT, DEFAULT_TIMEOUT))
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    rank, size = processes.get_rank(), get_world_size()
    warnings.filterwarnings("ignore", "Grad strides do not match", UserWarning)  # of DDP, where a size is 1
    dist.init_process_group(backend, store=open_store(rank, size), rank=rank, world_size=size, timeout=timeout)
    yield
    dist.destroy_process_group()  # not after an error, whose frames hold DDP: without its group it can wait for ever


_store: list[dist.Store] = []  # of the processes that have joined; it outlives the group


def claim_failure(is_consequence: bool) -> bool:
    """Whether this process is the one that says why all end. The first one says it at once, the others if it does not;
    what only follows from the end of another process is said last, if at all."""
    time.sleep(3.0 if is_consequence else 0.0 if processes.get_rank() == 0 else 1.0)
    try:
        store = _store[0] if _store else connect(is_master=False, seconds=3.0)
        return store.add("failures", 1) == 1
    except (RuntimeError, OSError):  # there is no store yet, or the process that holds it has ended
        return processes.get_rank() == 0


def announce_end() -> None:
    """Tell the others that everything is written. The store ends with this process: they must have heard it."""
    if not _store:
        return
    _store[0].set("has_ended", "1")
    deadline = time.monotonic() + END_SECONDS
    while _store[0].add("left", 0) < get_world_size() - 1 and time.monotonic() < deadline:
        time.sleep(0.02)


def wait_for_end() -> None:
    """Wait until the first process has written everything, or is gone."""
    with suppress(RuntimeError):
        while _store and not _store[0].check(["has_ended"]):  # `wait` would not notice that the store is gone
            time.sleep(0.1)
        if _store:
            _store[0].add("left", 1)


def read_seconds(name: str, default: float) -> float:
    try:
        seconds = float(os.environ.get(name) or default)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e7:
        raise InputError(f"${name} is {os.environ[name]!r}; it must be a number of seconds")
    return seconds


def open_store(rank: int, size: int) -> dist.Store:
    """Return the store that the processes share, once all have joined. Raises InputError that names others."""
    host, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    seconds = read_seconds(JOIN_TIMEOUT, DEFAULT_JOIN_TIMEOUT)
    is_master = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        store = connect(is_master, seconds)
    except (RuntimeError, OSError) as error:
        if is_master and re.search("EADDRINUSE|address already in use", str(error), re.I):
            raise InputError(f"port {port} of {host} is in use: set MASTER_PORT to a free one") from None
        reason = first_line(error)[:200]
        raise InputError(f"{name_process()} does not reach process 0 at {host}:{port}: {reason}") from None
    store.set(f"joined/{rank}", socket.gethostname())
    store.add("joined", 1)
    if rank == 0:
        wait_for_all(store, size, seconds)
        store.set("is_complete", "1")
    else:
        wait_for_first(store, seconds)
    _store[:] = [store]
    return store


def connect(is_master: bool, seconds: float) -> dist.Store:
    """Return the store, with keys of their own for each start of the processes. Raises RuntimeError."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(host, port, None, is_master, timedelta(seconds=seconds), wait_for_workers=False)
    return dist.PrefixStore(f"anyformer/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def wait_for_all(store: dist.Store, size: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while store.add("joined", 0) < size:
        if time.monotonic() > deadline:
            missing = [str(rank) for rank in range(size) if not store.check([f"joined/{rank}"])]
            others = f" and {len(missing) - MAX_NAMES} more" if len(missing) > MAX_NAMES else ""
            names = f"{', '.join(missing[:MAX_NAMES])}{others}"
            raise InputError(f"{len(missing)} of {size} processes did not join in {seconds:.0f} s: number {names}")
        time.sleep(0.02)


def wait_for_first(store: dist.Store, seconds: float) -> None:
    try:
        store.wait(["is_complete"], timedelta(seconds=seconds + 10))
    except (RuntimeError, OSError):
        raise InputError(f"{name_process()}: not all processes joined in {seconds:.0f} s") from None


# --- speaking ---


def agree(value: T) -> T:
    """Return what the first process has."""
    if get_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather(value: T) -> list[T]:
    """Return what each process has."""
    if get_size() == 1:
        return [value]
    box: list[Any] = [None] * get_size()
    dist.all_gather_object(box, value)
    return box


def total(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor over the processes."""
    if get_size() > 1:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


@contextmanager
def fail_together() -> Generator[None]:
    """Let an error that ends the block on one process end it on all, with the same message."""
    error: Exception | None = None
    try:
        yield
    except Exception as caught:
        error = caught
    if get_size() > 1:
        kind = next((name for name, base in KINDS.items() if isinstance(error, base)), HangError.__name__)
        failures = gather(None if error is None else (kind, first_line(error), socket.gethostname()))
        for rank, failure in enumerate(failures):
            if failure is not None and error is None:
                kind, text, host = failure
                raise KINDS[kind](f"{name_process(rank, host)}: {text}")
    if error is not None:
        raise error


def take_turns() -> list[bool]:
    """Return whether it is this process's turn: first that of one process of each machine, then that of the others."""
    return [True] if get_size() == 1 else [get_local_rank() == 0, get_local_rank() > 0]


def check_agreement(facts: Mapping[str, Any]) -> None:
    """Raise InputError if the processes differ in a fact: "the data", "torch's version"."""
    everyone = gather((socket.gethostname(), dict(facts)))
    for rank, (host, others) in enumerate(everyone):
        for name in facts:
            if others[name] != everyone[0][1][name]:
                first = f"{name_process(0, everyone[0][0])} {everyone[0][1][name]}"
                raise InputError(f"{name} must be the same: {name_process(rank, host)} has {others[name]}, {first}")


# --- who hangs ---


def report_place(step: int, work: str) -> None:
    """Tell the others what this process does now, so that they can name it if it hangs."""
    if get_size() > 1 and _store:
        _store[0].set(f"place/{get_rank()}", json.dumps([step, work, socket.gethostname()]))


@contextmanager
def name_hanging() -> Generator[None]:
    """Raise HangError that names the process which was waited for in vain, where the block fails for that."""
    try:
        yield
    except RuntimeError as error:
        if get_size() == 1 or not any(word in str(error).lower() for word in ("timed out", "timeout")):
            raise
        raise HangError(describe_places(first_line(error))) from error


def describe_places(reason: str) -> str:
    """Say which processes are behind the others."""
    places: dict[int, Any] = {}
    for rank in range(get_size() if _store else 0):
        with suppress(RuntimeError, ValueError):
            if _store[0].check([key := f"place/{rank}"]):
                places[rank] = json.loads(_store[0].get(key))
    if not places:
        return f"a process does not answer: {reason}"
    order = ("data", "update", "checkpoint")
    rank = min(places, key=lambda rank: (places[rank][0], order.index(places[rank][1])))
    step, work, host = places[rank]
    return f"{name_process(rank, host)} hangs: it is at the {work} of step {step}, the others wait for it (${TIMEOUT})"


# --- the model ---


class Step(nn.Module):
    """What DDP and FSDP2 wrap, so that neither recipe nor model knows of them: a batch in, its loss out."""

    def __init__(self, recipe: Recipe, model: nn.Module, loss_function: Callable[[nn.Module, dict[str, Any]], Tensor]):
        super().__init__()
        self.recipe, self.model, self.loss_function = recipe, model, loss_function

    def forward(self, batch: dict[str, Any]) -> Tensor:
        return self.loss_function(self.model, batch)

    def evaluate(self, model: nn.Module, batches: Iterable[dict[str, Any]]) -> dict[str, float]:
        return self.recipe.evaluate(self.model, iter(batches))

    def predict(self, model: nn.Module, request: dict[str, Any]) -> dict[str, Any]:
        return self.recipe.predict(self.model, request)


@contextmanager
def gather_parameters(recipe: Recipe, model: nn.Module, step: Any) -> Generator[Any]:
    """Yield what evaluates and predicts like a recipe: itself, or of a model that processes share, their step."""
    if not is_shared(model):
        yield recipe
        return
    from .sharding import release

    try:
        yield step
    finally:
        release(step)


def check_shard(shard: int, size: int) -> None:
    """Raise InputError if groups of `shard` processes cannot share a copy of the model."""
    if size % shard:
        choices = ", ".join(str(k) for k in range(1, size + 1) if size % k == 0)
        raise InputError(f"--train.shard {shard} does not divide the number of processes, {size}: it can be {choices}")


def distribute(step: Step, shard: int, device: torch.device) -> nn.Module:
    """Let all processes train the model of a step, with a copy of it for each group of `shard` processes."""
    size = get_size()
    if size == 1:
        return step
    if shard > 1 and isinstance(step.recipe, SupportsRollouts):
        what = "it is trained on its own answers, whose lengths differ between the processes"
        raise InputError(f"--train.shard {shard}: processes cannot share a copy of this model: {what}; it can be 1")
    if shard > 1:
        from .sharding import shard_step

        return shard_step(step, size, shard, device)
    # Gradients are summed in the same order in a resumed run only if the buckets are not rebuilt after the first step.
    settings: dict[str, Any] = {"broadcast_buffers": False, "find_unused_parameters": True}
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # torch 2.13 has another name for the first
        return DistributedDataParallel(step, device_ids=[device] if device.type == "cuda" else None, **settings)


@contextmanager
def sync_gradients(module: nn.Module, is_last: bool) -> Generator[float]:
    """Sum the gradients over all processes in the last backward pass of an update. Yields by what the loss must be
    multiplied for that."""
    size = get_size()
    if isinstance(module, DistributedDataParallel):
        with nullcontext() if is_last else module.no_sync():
            yield float(size)  # DDP and FSDP2 take the mean over the processes
    else:
        if size > 1:
            from .sharding import sync_copies

            sync_copies(module, is_last)
        yield float(size)


# --- tensors that processes share (`sharding.py`; DTensor takes a second to import) ---


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor, of which each process holds a part."""
    return hasattr(tensor, "device_mesh")


def is_shared(model: nn.Module) -> bool:
    """Whether processes share a model: then all must take part in what it does."""
    return any(is_sharded(parameter) for parameter in model.parameters())


def get_local(tensor: Any) -> Tensor:
    """Return the part of a tensor that this process holds."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def get_full(tensor: Any) -> Tensor:
    """Return all of a tensor. Where it is shared, all processes must call this."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def collect(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return whole tensors, in the memory of the first process's CPU where they are shared; the others get none."""
    collected = {}
    for name, tensor in tensors.items():
        full = get_full(tensor.detach())
        if get_rank() == 0:
            collected[name] = full.cpu().clone() if is_sharded(tensor) else full
    return collected


def share_like(value: Tensor, target: Tensor) -> Tensor:
    """Return the part of a whole tensor that this process holds of `target`, as a tensor like it."""
    if not is_sharded(target):
        return value
    from .sharding import share

    return share(value, target)


def get_full_model(model: nn.Module, build: Callable[[], nn.Module]) -> nn.Module:
    """Return a model that the first process has alone: itself, unless processes share it. All must call this."""
    if not is_shared(model):
        return model
    from .sharding import gather_model

    return gather_model(model, build)


@torch.no_grad()
def fill(target: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into one that may be shared."""
    get_local(target).copy_(get_local(share_like(value, target)))
