"""Change a forward while it runs: leave out heads, sublayers or edges; put activations of another run in their place.

    with ablate(model, "body.blocks.3.attn", heads=[1]):
        model(ids)
    with patch(model, trace, "body.blocks.3", nodes=[5]):
        model(ids)

Interventions come before recordings: inside both, a trace holds the changed values.

Shapes: B batch, T nodes, C channels, H heads, Q queries, D channels of a head.
"""

import difflib
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .edges import Edges, MaskMod, as_edges, full
from .kernels.select import AttentionKernel
from .trace import STACK_ARGUMENTS, Call, Tap, Trace, list_edges, name_arguments, tap_heads
from .transformer import MLP, Attention, Block, Transformer

Rule = Edges | MaskMod


@contextmanager
def ablate(
    module: nn.Module,
    *names: str,
    heads: Sequence[int] | None = None,
    edges: Rule | None = None,
    memory_edges: Rule | None = None,
) -> Generator[None, None, None]:
    """Leave something out while the block runs: what a name stands for adds nothing to the residual stream.

    Args:
        names: of sublayers ("body.blocks.3.mlp") or blocks ("body.blocks.3"); of stacks ("body") with edges only.
        heads: leave out these heads of an attention, and not all of it.
        edges: remove the edges of this rule, from the attention or from all layers of the stack.
        memory_edges: remove these edges to the memory, from all layers of the stack.

    Raises ValueError for a name that the module does not have, or that has no such part.
    """
    handles: list[Any] = []
    try:
        for name in names:
            part = find_part(module, name)
            if edges is not None or memory_edges is not None:
                handles += remove_edges(module, name, edges, memory_edges)
            elif heads is not None:
                handles.append(change_heads(part, name, heads, None, None))
            elif isinstance(part, Transformer):
                raise ValueError(f"'{name}' is a stack: name a block or a sublayer, or edges to remove from all layers")
            else:
                handles.append(part.register_forward_hook(drop_output, with_kwargs=True, prepend=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def drop_output(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
    """A sublayer adds nothing, and a block passes the stream on as it is."""
    if isinstance(module, Block):
        return args[0] if args else kwargs["x"]
    if isinstance(output, tuple):
        return torch.zeros_like(output[0]), *output[1:]
    return torch.zeros_like(output)


@contextmanager
def patch(
    module: nn.Module,
    source: Trace,
    *names: str,
    nodes: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    side: Literal["input", "output"] = "output",
) -> Generator[None, None, None]:
    """Put activations of a recorded run in the place of those of the runs in this block.

    Args:
        source: what `record` has recorded; the n-th call of a sublayer is replaced by its n-th recorded call.
        names: of stacks, blocks or sublayers. None: all that were recorded.
        nodes: replace these nodes only.
        heads: replace these heads of an attention only, before its output map.
        side: what is replaced, the input or the output.

    Raises ValueError for names that were not recorded, and, when the module runs, for shapes that differ.
    """
    handles: list[Any] = []
    try:
        for name in names or tuple(source):
            if name not in source.calls:
                raise ValueError(f"'{name}' was not recorded: {suggest_name(name, source)}")
            part, calls = find_part(module, name), iter(source.calls[name])
            if heads is not None:
                handles.append(change_heads(part, name, heads, nodes, calls))
            elif side == "input":
                handles.append(change_input(part, name, nodes, calls))
            else:
                handles.append(change_output(part, name, nodes, calls))
        yield
    finally:
        for handle in handles:
            handle.remove()


def change_output(part: nn.Module, name: str, nodes: Sequence[int] | None, calls: Iterator[Call]) -> Any:
    def replace(module: nn.Module, args: tuple, output: Any) -> Any:
        if (call := next(calls, None)) is None:
            return output
        is_tuple = isinstance(output, tuple)
        y = replace_nodes(output[0] if is_tuple else output, call.output, nodes, name)
        return (y, *output[1:]) if is_tuple else y

    return part.register_forward_hook(replace, prepend=True)


def change_input(part: nn.Module, name: str, nodes: Sequence[int] | None, calls: Iterator[Call]) -> Any:
    def replace(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        if (call := next(calls, None)) is None:
            return args, kwargs
        x = replace_nodes(args[0] if args else kwargs["x"], call.input, nodes, name)
        return (x, *args[1:]), {key: value for key, value in kwargs.items() if key != "x"}

    return part.register_forward_pre_hook(replace, with_kwargs=True, prepend=True)


def change_heads(
    part: nn.Module, name: str, heads: Sequence[int], nodes: Sequence[int] | None, calls: Iterator[Call] | None
) -> Any:
    """Replace the output of some heads by that of recorded calls; by zero without them."""
    if not isinstance(part, Attention):
        raise ValueError(f"'{name}' is no attention: it has no heads")
    if not all(0 <= head < part.config.n_head for head in heads):
        raise ValueError(f"heads are {list(heads)}; '{name}' has heads 0 to {part.config.n_head - 1}")

    def make_tap(kernel: AttentionKernel, has_cache: bool) -> Tap | None:
        call = None if calls is None else next(calls, None)
        if calls is not None and call is None:
            return None

        def tap(q: Tensor, k: Tensor, v: Tensor, y: Tensor) -> Tensor:
            y = y.clone()
            for head in heads:
                if call is None or call.head_outputs is None:
                    y[:, head] = 0
                else:
                    y[:, head] = replace_nodes(y[:, head], call.head_outputs[:, head], nodes, name)
            return y

        return tap

    return tap_heads(part, make_tap, prepend=True)


def replace_nodes(x: Tensor, source: Tensor, nodes: Sequence[int] | None, name: str) -> Tensor:
    """x with the nodes of the source, (B, T, ...) both."""
    is_equal = x.shape == source.shape
    longest = min(x.shape[1], source.shape[1])
    if nodes is None and is_equal:
        return source
    if nodes is None or (x.shape[0], x.shape[2:]) != (source.shape[0], source.shape[2:]):
        shapes = f"{tuple(source.shape)} was recorded and {tuple(x.shape)} runs"
        raise ValueError(f"'{name}': {shapes}; patch between inputs of equal length, or name `nodes`")
    if not all(0 <= node < longest for node in nodes):
        raise ValueError(f"nodes are {list(nodes)}; both runs have nodes 0 to {longest - 1} in '{name}'")
    x, index = x.clone(), torch.tensor(list(nodes), dtype=torch.long, device=x.device)
    x[:, index] = source[:, index]
    return x


def remove_edges(module: nn.Module, name: str, edges: Rule | None, memory_edges: Rule | None) -> list[Any]:
    """Take edges out of the rules of a stack, of one layer if `name` is an attention."""
    stack_name, layers, part = name, None, find_part(module, name)
    if not isinstance(part, Transformer):
        if not isinstance(part, Attention) or not name.endswith(".attn") or memory_edges is not None:
            raise ValueError(f"'{name}': edges are removed from a stack, or from the sublayer 'attn' of a block")
        stack_name, layers = name.rpartition("blocks.")[0].removesuffix("."), {part.layer}

    def change_rules(stack: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        values = name_arguments(STACK_ARGUMENTS, args, kwargs)
        if edges is not None:
            rules = list_edges(stack, values.get("edges", full))
            without = {rule: rule & ~as_edges(edges) for rule in rules}  # layers that share a rule go on sharing it
            is_changed = [layers is None or layer in layers for layer in range(len(rules))]
            values["edges"] = [without[rule] if changed else rule for rule, changed in zip(rules, is_changed)]
        if memory_edges is not None:
            values["memory_edges"] = as_edges(values.get("memory_edges", full)) & ~as_edges(memory_edges)
        return (values.pop("x"),), values

    stack = find_part(module, stack_name)
    return [stack.register_forward_pre_hook(change_rules, with_kwargs=True, prepend=True)]


@contextmanager
def replace_stacks(module: nn.Module, outputs: Mapping[str, Tensor]) -> Generator[None, None, None]:
    """Run a module on nodes that its stacks have not computed: each of these returns its tensor, at once."""
    stacks = [(find_part(module, name), output) for name, output in outputs.items()]
    try:
        for stack, output in stacks:
            stack.forward = lambda *args, output=output, **kwargs: output
        yield
    finally:
        for stack, _ in stacks:
            vars(stack).pop("forward", None)


def find_part(module: nn.Module, name: str) -> nn.Module:
    """The stack, block or sublayer of this name. Raises ValueError that names the nearest."""
    parts = {n: part for n, part in module.named_modules() if isinstance(part, Transformer | Block | Attention | MLP)}
    if name not in parts:
        raise ValueError(f"the module has no '{name}': {suggest_name(name, parts)}")
    return parts[name]


def suggest_name(name: str, names: Any) -> str:
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0)
    return f"did you mean '{near[0]}'?" if near else "there is nothing"
