"""Another context for a trained model, without training: a longer one, or a window that slides over a stream."""

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from .errors import InputError
from .model.config import LEARNED, RopeScaling, TransformerConfig, find_stacks
from .parsing import check_range

MAX_CONTEXT = 1 << 24
RopeChoice = Literal["linear", "ntk", "dynamic", "yarn", "llama3"]


@dataclass(frozen=True, kw_only=True)
class ContextChange:
    """What a trained model reads, other than in its training. Raises InputError for values out of range."""

    context: int | None = None
    """Nodes that it reads at most."""
    rope_scaling: RopeChoice | None = None
    """How rotary positions reach them: `RopeScaling`; ntk: a larger base, at any length that is read."""
    window: int | None = None
    """Nodes that every layer reads, the node itself included: the cache of a stream never fills."""
    sinks: int = 0
    """First nodes of the stream that every layer reads too."""

    def __post_init__(self) -> None:
        check_range(self, "context", "window", at_least=1, at_most=MAX_CONTEXT)
        check_range(self, "sinks", at_least=0, at_most=MAX_CONTEXT)
        if self.rope_scaling is not None and self.context is None:
            raise InputError(f"rope_scaling is {self.rope_scaling}, but context is missing: say how long it will be")
        if self.sinks and self.window is None:
            raise InputError(f"sinks is {self.sinks}, but window is missing: without one all nodes are read")


def change_context(config: Any, change: ContextChange) -> Any:
    """Return the config of a recipe with another context. Raises InputError if its model cannot have it."""
    stacks = find_stacks(config)
    if len(stacks) != 1:
        raise InputError(f"context: the model has {len(stacks)} Transformers; it can be changed where there is one")
    [(name, stack)] = stacks.items()
    if change.context is not None:
        stack = lengthen(stack, change.context, change.rope_scaling)
    local: dict[str, Any] = {}
    if change.window is not None:
        if not {"window", "sinks"} <= {field.name for field in fields(config)}:
            raise InputError("window is for models of text from left to right: this one has no local layers")
        if change.window + change.sinks >= stack.context:
            raise InputError(
                f"window and sinks are {change.window + change.sinks} together; "
                f"they must be below the context, {stack.context}"
            )
        local = {"window": change.window, "global_every": stack.n_layer + 1, "sinks": change.sinks}
    return replace(config, **{name: stack}, **local)


def lengthen(stack: TransformerConfig, context: int, choice: RopeChoice | None) -> TransformerConfig:
    """Return the config of a Transformer with a longer context."""
    if context <= stack.context:
        raise InputError(f"context is {context}; it must be above that of the training, {stack.context}")
    if stack.position in LEARNED:
        raise InputError("context: the model has learned a vector for each position, and none for more of them")
    if choice is None:
        return replace(stack, context=context)
    if stack.position != "rotary" or stack.rope_scaling is not None:
        has = f"{stack.position} positions" if stack.position != "rotary" else "scaled ones already"
        raise InputError(f"rope_scaling is for rotary positions as they were trained, and the model has {has}")
    factor, channels = context / stack.context, stack.head_channels
    if choice == "ntk":
        base = stack.rotary_base * factor ** (channels / max(channels - 2, 1))
        return replace(stack, context=context, rotary_base=base)
    scaling = RopeScaling(rope_type=choice, factor=factor, original_max_position_embeddings=stack.context)
    return replace(stack, context=context, rope_scaling=scaling)
