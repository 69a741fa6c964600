"""Look inside a forward: what every sublayer of every Transformer of a module reads, computes and passes on.

    with record(model) as trace:
        model(ids)
    trace["body.blocks.3.attn"].weights  # (B, H, Q, K)

Hooks do all of it: a module that nobody looks into runs as if this file did not exist.

Shapes: B batch, Q queries, K keys, C channels, H heads, D channels of a head.
"""

from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from .edges import Edges, as_edges, full
from .kernels.select import AttentionKernel
from .transformer import MLP, Attention, AttentionContext, Block, Transformer, prepare_edges

Tap = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(queries, keys, values, output of the heads) -> what the heads shall return."""
ATTENTION_ARGUMENTS = ("x", "edges", "memory", "cache", "need_weights")
STACK_ARGUMENTS = ("x", "edges", "memory", "memory_edges", "cache")


@dataclass(frozen=True)
class Call:
    """One call of a sublayer, a block or a stack. A block's output is the residual stream after it."""

    input: Tensor
    """(B, Q, C)"""
    output: Tensor
    """(B, Q, C)"""
    memory: Tensor | None = None
    """(B, K, C): the nodes of another stack that are read, by cross-attention or a stack."""
    queries: Tensor | None = None
    """(B, H, Q, D); of attention only, as the next four."""
    keys: Tensor | None = None
    """(B, H or fewer, K, D)"""
    values: Tensor | None = None
    """(B, H or fewer, K, D)"""
    head_outputs: Tensor | None = None
    """(B, H, Q, D): the weighted means of the values, before the output map."""
    kernel: AttentionKernel | None = None
    module: Any = None
    edges: tuple[Edges, ...] = ()
    """The rule of each layer; of a stack only, as the next one."""
    memory_edges: Edges | None = None

    @property
    def weights(self) -> Tensor:
        """The attention weights, (B, H, Q, K), computed when they are asked for. Raises ValueError for what is no
        attention."""
        if self.kernel is None or self.queries is None or self.keys is None or self.values is None:
            raise ValueError("only attention has weights: name a sublayer such as 'body.blocks.0.attn'")
        if self.queries.device.type == "cpu":
            return self.module.attention_weights(self.queries, self.keys, self.kernel)
        return read_weights(self.queries, self.keys, self.kernel, self.module.config.scale, self.values.shape[-1])

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor, by its name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tuple(value.shape) for name, value in values.items() if isinstance(value, Tensor)}


def read_weights(q: Tensor, k: Tensor, kernel: AttentionKernel, scale: float | None, width: int) -> Tensor:
    """The weights as what arrives of unit vectors, `width` channels at a time: kernels of a GPU take no wider values
    than those that they have run with. (B, H, Q, K)"""
    keys = k.shape[2]
    units = torch.zeros(keys, -(-keys // width) * width, dtype=q.dtype, device=q.device).fill_diagonal_(1)
    parts = [kernel(q, k, part.expand(*k.shape[:2], -1, -1), 0.0, scale) for part in units.split(width, dim=1)]
    return torch.cat(parts, dim=-1)[..., :keys]


class Trace(Mapping[str, Call]):
    """The first call of each stack, block and sublayer by its name ("body.blocks.3.mlp"), in the order in which they
    ended. `calls` holds all that were recorded."""

    def __init__(self) -> None:
        self.calls: dict[str, list[Call]] = {}

    def __getitem__(self, name: str) -> Call:
        return self.calls[name][0]

    def __iter__(self) -> Iterator[str]:
        return iter(self.calls)

    def __len__(self) -> int:
        return len(self.calls)

    def shapes(self) -> dict[str, dict[str, tuple[int, ...]]]:
        return {name: call.shapes() for name, call in self.items()}


@contextmanager
def record(
    module: nn.Module, max_calls: int | None = 1, names: Collection[str] | None = None
) -> Generator[Trace, None, None]:
    """Record what the Transformers of a module do while the block runs.

    Args:
        max_calls: of each sublayer; a model that generates calls each once a token. None: all.
        names: of what is recorded; None: every stack, block and sublayer.

    Raises ValueError if the module holds no Transformer, block or attention.
    """
    trace, handles = Trace(), []
    parts = [(n, part) for n, part in module.named_modules() if isinstance(part, Transformer | Block | Attention | MLP)]
    if not parts:
        raise ValueError(f"{type(module).__name__} holds no Transformer: there is nothing to record")
    try:
        for name, part in parts:
            if names is None or name in names:
                handles += watch(part, trace.calls, name, max_calls)
        yield trace
    finally:
        for handle in handles:
            handle.remove()


def watch(part: nn.Module, calls: dict[str, list[Call]], name: str, max_calls: int | None) -> list[Any]:
    """Record the calls of one module; returns the handles of its hooks."""
    heads: dict[str, Any] = {}

    def is_full() -> bool:
        return max_calls is not None and len(calls.get(name, ())) >= max_calls

    def keep_heads(kernel: AttentionKernel, has_cache: bool) -> Tap | None:
        if is_full():
            return None

        def tap(q: Tensor, k: Tensor, v: Tensor, y: Tensor) -> Tensor:
            k, v = (k.clone(), v.clone()) if has_cache else (k, v)  # later steps write into the same memory
            heads.update(queries=q, keys=k, values=v, head_outputs=y, kernel=kernel, module=part)
            return y

        return tap

    def keep_call(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        if is_full():
            return
        output = output[0] if isinstance(output, tuple) else output
        extra: dict[str, Any] = dict(heads)
        if isinstance(module, Attention):
            extra["memory"] = name_arguments(ATTENTION_ARGUMENTS, args, kwargs).get("memory")
        if isinstance(module, Transformer):
            values = name_arguments(STACK_ARGUMENTS, args, kwargs)
            extra = {"memory": values.get("memory"), "edges": list_edges(module, values.get("edges", full))}
            extra["memory_edges"] = as_edges(values.get("memory_edges", full))
        calls.setdefault(name, []).append(Call(args[0] if args else kwargs["x"], output, **extra))
        heads.clear()

    handles = [tap_heads(part, keep_heads)] if isinstance(part, Attention) else []
    return [*handles, part.register_forward_hook(keep_call, with_kwargs=True)]


def tap_heads(
    attention: nn.Module, make_tap: Callable[[AttentionKernel, bool], Tap | None], prepend: bool = False
) -> Any:
    """Pass the heads of an attention to a function whenever it runs.

    Args:
        make_tap: (kernel, whether there is a cache) -> the function, or None to leave this call alone.
        prepend: before what other hooks do.

    Returns the handle of the hook.
    """

    def wrap_kernel(module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        values = name_arguments(ATTENTION_ARGUMENTS, args, kwargs)
        context, cache = values.get("edges", full), values.get("cache")
        if not isinstance(context, AttentionContext):
            context = prepare_edges(module, values["x"], [context], values.get("memory"), cache)[0]
        if (tap := make_tap(context.kernel, cache is not None)) is not None:
            values["edges"] = context._replace(kernel=TappedKernel(context.kernel, tap))
        return (values.pop("x"),), values

    return attention.register_forward_pre_hook(wrap_kernel, with_kwargs=True, prepend=prepend)


class TappedKernel:
    """A kernel whose first call is passed to a tap. Later ones compute the weights that `need_weights` asks for."""

    def __init__(self, kernel: AttentionKernel, tap: Tap):
        self.kernel, self.tap = kernel, tap
        self.has_run = False

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, scale: float | None = None) -> Tensor:
        y = self.kernel(q, k, v, dropout_p, scale)
        if self.has_run:
            return y
        self.has_run = True
        return self.tap(q, k, v, y)


def name_arguments(names: tuple[str, ...], args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by their names."""
    return dict(zip(names, args)) | kwargs


def list_edges(stack: Transformer, edges: Any) -> tuple[Edges, ...]:
    """The rule of each layer."""
    rules = edges if isinstance(edges, list | tuple) else [edges] * stack.config.n_layer
    return tuple(map(as_edges, rules))
