"""The frequencies of rotary positions: those of the training, or others for a longer context (`RopeScaling`).

Shapes: D channels of a head.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .config import RopeScaling, TransformerConfig


def rotary_frequencies(
    config: TransformerConfig, length: int, device: torch.device, base: float | None = None
) -> tuple[Tensor, float]:
    """Return the frequency of each pair of channels, (D/2,), in radians a node, and the scale of queries and keys.

    Args:
        length: How many nodes will have been read, those of this forward included. In a stream beyond the context,
            frequencies are float64: angles stay exact at any position, for which float32 has too few digits.
        base: Of the layer; None for `rotary_base`. Only layers of that base have scaled frequencies.
    """
    base, scale = config.rotary_base if base is None else base, 1.0
    scaling = config.rope_scaling if base == config.rotary_base else None
    steps = torch.arange(0, config.head_channels, 2, device=device).float() / config.head_channels
    frequency = 1.0 / base**steps
    if scaling is not None and scaling.rope_type == "dynamic":
        frequency = 1.0 / scale_base(scaling, base, config.head_channels, length) ** steps
    elif scaling is not None and scaling.rope_type == "longrope":
        is_long = length > scaling.original_max_position_embeddings
        divisors = scaling.long_factor if is_long else scaling.short_factor
        frequency = 1.0 / (torch.tensor(divisors, device=device) * base**steps)
        scale = scaling.attention_factor or scale_longrope(scaling)
    elif scaling is not None:
        frequency = SCALE[scaling.rope_type](frequency, 1.0 / (scaling.factor * base**steps), base, scaling)
    if scaling is not None and scaling.rope_type == "yarn":
        scale = scaling.attention_factor or 0.1 * math.log(scaling.factor) + 1
    is_stream = length > config.context and device.type != "mps"  # which has no float64
    return frequency.double() if is_stream else frequency, scale


def depends_on_length(config: TransformerConfig) -> bool:
    """Whether frequencies change while nodes are read."""
    return config.rope_scaling is not None and config.rope_scaling.rope_type in ("dynamic", "longrope")


def scale_base(scaling: RopeScaling, base: float, channels: int, length: int) -> Tensor:
    """NTK-aware scaling by the length that is read: beyond the original context, the slowest pair of channels turns as
    little as within it. Keys in a cache keep the frequencies at which they were read. In float32, as transformers."""
    context = scaling.original_max_position_embeddings
    growth = scaling.factor * torch.tensor(max(length, context)) / context - (scaling.factor - 1)
    return base * growth ** (channels / max(channels - 2, 1))


def scale_longrope(scaling: RopeScaling) -> float:
    """LongRoPE (2402.13753): queries and keys grow with the context. Keys in a cache keep the frequencies at which they
    were read."""
    return math.sqrt(1 + math.log(scaling.factor) / math.log(max(scaling.original_max_position_embeddings, 2)))


def interpolate(fast: Tensor, slow: Tensor, base: float, scaling: RopeScaling) -> Tensor:
    """Position interpolation (2306.15595): the longer context is squeezed into the original one."""
    return slow


def scale_yarn(fast: Tensor, slow: Tensor, base: float, scaling: RopeScaling) -> Tensor:
    """YaRN (2309.00071, section 3.2): interpolate slow pairs of channels, keep fast ones, blend those between."""
    pairs, context = len(fast), scaling.original_max_position_embeddings

    def find_pair(turns: float) -> float:
        """The pair of channels, a fraction, that turns so many times in the original context."""
        return pairs * math.log(context / (turns * 2 * math.pi)) / math.log(base)

    low, high = max(math.floor(find_pair(scaling.beta_fast)), 0), math.ceil(find_pair(scaling.beta_slow))
    width = min(high, 2 * pairs - 1) - low or 0.001
    keep = 1 - ((torch.arange(pairs, device=fast.device).float() - low) / width).clamp(0, 1)
    return slow * (1 - keep) + fast * keep


def scale_llama3(fast: Tensor, slow: Tensor, base: float, scaling: RopeScaling) -> Tensor:
    """Llama 3.1: as YaRN, but blended by the turns in the original context."""
    turns = scaling.original_max_position_embeddings / (2 * math.pi / fast)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return slow * (1 - keep) + fast * keep


SCALE: dict[str, Callable[[Tensor, Tensor, float, RopeScaling], Tensor]] = {
    "linear": interpolate,
    "yarn": scale_yarn,
    "llama3": scale_llama3,
}
"""From the frequencies of the training and the interpolated ones, (D/2,) each, and the base: those between."""
