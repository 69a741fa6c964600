"""The shape of a Transformer, in one frozen record. Every field is set by some preset of some recipe."""

from dataclasses import dataclass
from typing import Literal

Position = Literal["none", "learned", "sinusoidal", "rotary", "relative", "alibi"]
Activation = Literal["gelu", "gelu_tanh", "relu", "relu2", "swiglu", "geglu"]


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """What the body is made of. Raises ValueError, naming both numbers, where they do not fit together."""

    dim: int = 128
    """Channels of the residual stream."""
    n_layer: int = 4
    """Blocks in a row."""
    n_head: int = 4
    """Attention heads: message passing in parallel."""
    n_kv_head: int | None = None
    """Heads of keys and values: None as many as n_head, 1 MQA (1911.02150), between GQA (2305.13245)."""
    head_dim: int | None = None
    """Channels of a head. None: dim / n_head."""
    mlp_dim: int | None = None
    """Hidden channels of the MLP. None: 4 * dim."""
    context: int = 64
    """The most nodes the model is trained to take."""
    position: Position = "learned"
    """What tells nodes apart: none, learned or sinusoidal vectors (1706.03762), rotary (2104.09864),
    relative buckets (T5, 1910.10683), ALiBi (2108.12409)."""
    rotary_base: float = 10_000.0
    """Longest wavelength of the rotary position, in nodes / 2 pi."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """LayerNorm (1607.06450) or RMSNorm (1910.07467)."""
    norm_eps: float = 1e-5
    """Added to the variance."""
    norm_place: Literal["pre", "post"] = "pre"
    """Before each sublayer (GPT-2 and later) or after its residual sum (2017, BERT)."""
    activation: Activation = "gelu"
    """Of the MLP; swiglu and geglu are gated (2002.05202), relu2 is squared ReLU (2109.08668)."""
    bias: bool = True
    """Biases in every linear map and LayerNorm."""
    scale: float | None = None
    """Of the scores, query times key. None: 1 / sqrt(channels of a head); T5 has 1 (1910.10683)."""
    qk_norm: bool = False
    """RMSNorm on each head's queries and keys (2302.05442)."""
    dropout: float = 0.0
    """On the nodes, the attention weights and what each sublayer writes."""
    init: Literal["gpt2", "zero"] = "gpt2"
    """What writes to the residual stream starts small (GPT-2) or at zero, so that each block begins as the identity."""

    def __post_init__(self) -> None:
        for name in ("dim", "n_layer", "n_head", "n_kv_head", "head_dim", "mlp_dim", "context"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if self.head_dim is None and self.dim % self.n_head:
            raise ValueError(f"n_head {self.n_head} does not divide dim {self.dim}: {_divisors(self.dim)} would")
        if self.n_head % self.kv_heads:
            near = _divisors(self.n_head)
            raise ValueError(f"n_kv_head {self.n_kv_head} does not divide n_head {self.n_head}: {near} would")
        if self.position == "rotary" and self.head_channels % 2:
            raise ValueError(
                f"rotary positions turn pairs of channels, but a head has {self.head_channels}: make it even"
            )
        if self.scale is not None and not self.scale > 0:
            raise ValueError(f"scale is {self.scale}; it must be above 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be at least 0 and below 1")

    @property
    def head_channels(self) -> int:
        return self.head_dim or self.dim // self.n_head

    @property
    def kv_heads(self) -> int:
        return self.n_kv_head or self.n_head

    @property
    def hidden(self) -> int:
        return self.mlp_dim or 4 * self.dim


def _divisors(n: int) -> str:
    return ", ".join(str(d) for d in range(1, min(n, 64) + 1) if n % d == 0)
