"""How much memory a training takes at its peak: an update is run on tensors that have shapes and no values, and every
storage that comes and goes is counted."""

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..model.heads import LMHead, MaskedHead
from ..model.transformer import Transformer
from ..recipe import Recipe
from .activation_checkpointing import checkpoint_activations
from .device import autocast, resolve_device, resolve_dtype
from .optimizers import Optimizer

MAX_ROWS = 256  # rows of the batch whose shapes are read; those of a larger one are scaled up from it
MAX_REAL_ROWS = 8  # the same for models that need values
PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "communication")


@dataclass(eq=False)
class Storage:
    """The memory of a tensor and of all its views."""

    size: int
    part: str
    in_block: bool = False
    is_owned: bool = False
    """The state of a matrix that Muon keeps in one process only."""


class MemoryRecorder(TorchDispatchMode):
    """Records when the storages of tensors on a device are allocated and freed."""

    def __init__(self, device: torch.device):
        super().__init__()
        self.device, self.vocab_sizes = device, set[int]()
        self.part = "activations"  # of what is allocated now
        self.live: dict[int, Storage] = {}
        self.events: list[tuple[Storage, int]] = []
        """(storage, 1 where it is allocated or -1 where it is freed), in order."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return 0.0 if args[0].is_floating_point() else 0  # what a value decides changes no size
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.device.type == self.device.type:
                self.find(tensor)
        return result

    def find(self, tensor: Tensor) -> Storage:
        """Return the storage of a tensor, recorded now if it is new."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.live:
            part = "logits" if tensor.ndim > 1 and tensor.shape[-1] in self.vocab_sizes else self.part
            self.live[key] = Storage(storage.nbytes(), part)
            self.events.append((self.live[key], 1))
            weakref.finalize(storage, self.free, key)
        return self.live[key]

    def free(self, key: int) -> None:
        self.events.append((self.live.pop(key), -1))

    def restart(self) -> None:
        """Forget what is past, except for what is still there."""
        self.events = [(storage, 1) for storage in self.live.values()]

    def measure_peak(self, weigh: Callable[[Storage], float]) -> dict[str, float]:
        """Return the size of each part when all of them together are largest."""
        total = peak = 0.0
        end = 0
        for i, (storage, sign) in enumerate(self.events):
            total += sign * weigh(storage)
            if total > peak:
                peak, end = total, i + 1
        parts = dict.fromkeys(PARTS, 0.0)
        for storage, sign in self.events[:end]:
            parts[storage.part] += sign * weigh(storage)
        return parts


def estimate_memory(
    recipe: Recipe, config: Any, read_batch: Callable[[int], tuple[dict[str, Tensor], int, float]], processes: int = 1
) -> dict[str, int]:
    """Return the bytes of each part at the peak of an update, for each of so many processes, and their total.

    Args:
        read_batch: returns a batch of at most so many rows, its tokens, and by how much the config's batch is larger.
    """
    batch, _, scale = read_batch(MAX_ROWS)
    try:
        full = {name: (round(value.shape[0] * scale), *value.shape[1:]) for name, value in batch.items()}
        with FakeTensorMode(allow_non_fake_inputs=True):
            fake = {name: torch.zeros(shape, dtype=batch[name].dtype) for name, shape in full.items()}
            parts = simulate(recipe, config, fake, processes)
    except (RuntimeError, TypeError):  # the loss depends on values, and not on shapes alone
        (small, _, small_scale), (large, _, large_scale) = read_batch(MAX_REAL_ROWS // 2), read_batch(MAX_REAL_ROWS)
        of_small, of_large = (simulate(recipe, config, batch, processes) for batch in (small, large))
        reach = 0.0 if small_scale == large_scale else (1 - 1 / large_scale) / (1 / large_scale - 1 / small_scale)
        parts = {part: max(0.0, of_large[part] + reach * (of_large[part] - of_small[part])) for part in PARTS}
    rounded = {part: round(size) for part, size in parts.items()}
    return rounded | {"total": sum(rounded.values())}


def simulate(recipe: Recipe, config: Any, batch: dict[str, Tensor], processes: int) -> dict[str, float]:
    """Run an update on a batch, as the training loop does, and return the size of each part at its peak."""
    c, device = config.train, resolve_device(config.train.device)
    with MemoryRecorder(device) as recorder:
        with device:  # fake tensors cannot be moved
            model = recipe.build(config)
        if next(model.parameters()).device.type != device.type:
            model = model.to(device)
        checkpoint_activations(model.train(), c)
        optimizer, trained = Optimizer(model, c), [p for p in model.parameters() if p.requires_grad]
        batch = {name: value.to(device) for name, value in batch.items()}
        recorder.vocab_sizes = {m.vocab_size for m in model.modules() if isinstance(m, LMHead | MaskedHead)}
        label_weights(recorder, model)
        allocate_states(recorder, optimizer, trained, processes)
        for _ in range(2 if c.accumulate > processes else 1):
            with autocast(device, resolve_dtype(c.dtype, device)):
                loss = recipe.loss(model, batch)
            loss.backward()
            label_gradients(recorder, trained)
        recorder.part = "optimizer"
        optimizer.step(c.lr)
    return share(recorder, model, c.shard, processes)


def allocate_states(
    recorder: MemoryRecorder, optimizer: Optimizer, parameters: list[nn.Parameter], processes: int
) -> None:
    """Let the optimizer allocate its states, as the first update does, and record from then on."""
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    recorder.part = "optimizer"
    optimizer.step(0.0)
    optimizer.zero_grad()
    for states in (states for muon in optimizer.optimizers[1:] for states in muon.state.values()):
        recorder.find(states["momentum_buffer"]).is_owned = processes > 1
    recorder.part = "activations"
    recorder.restart()


def label_weights(recorder: MemoryRecorder, model: nn.Module) -> None:
    in_blocks = {id(p) for stack in list_stacks(model) for p in stack.blocks.parameters()}
    for tensor in (*model.parameters(), *model.buffers()):
        storage = recorder.find(tensor)
        storage.part, storage.in_block = "weights", id(tensor) in in_blocks


def label_gradients(recorder: MemoryRecorder, parameters: list[nn.Parameter]) -> None:
    for parameter in parameters:
        if parameter.grad is not None:
            storage = recorder.find(parameter.grad)
            storage.part, storage.in_block = "gradients", recorder.find(parameter).in_block


def list_stacks(model: nn.Module) -> list[Transformer]:
    return [module for module in model.modules() if isinstance(module, Transformer)]


def share(recorder: MemoryRecorder, model: nn.Module, shard: int, processes: int) -> dict[str, float]:
    """Return the parts of one of several processes. Where `shard` of them share a copy, all weights outside of blocks
    are complete during an update, and of the blocks the current and the next one, with gradients on their way."""

    def weigh(storage: Storage) -> float:
        if storage.is_owned and shard == 1:
            return storage.size / processes
        is_shared = storage.part in ("weights", "optimizer") or storage.in_block
        return storage.size / shard if is_shared else storage.size

    parts = recorder.measure_peak(weigh)
    if shard > 1:
        blocks = [count_bytes(block.parameters()) for stack in list_stacks(model) for block in stack.blocks]
        parts["communication"] = count_bytes(model.parameters()) - sum(blocks) + 3 * max(blocks, default=0)
    elif processes > 1:  # the buckets of DistributedDataParallel
        parts["communication"] = count_bytes(p for p in model.parameters() if p.requires_grad)
    return parts


def count_bytes(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)
