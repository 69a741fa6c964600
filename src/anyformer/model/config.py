"""The shape of a Transformer, in one frozen record. Every field is set by some preset of some recipe."""

import difflib
from dataclasses import dataclass
from typing import Any, Literal, get_args

Position = Literal["none", "learned", "sinusoidal", "rotary", "relative", "alibi", "mixed"]
Norm = Literal["layernorm", "rmsnorm", "rmsnorm_1p"]
NormPlace = Literal["pre", "post", "output", "sandwich"]
Activation = Literal[
    "gelu", "gelu_tanh", "quick_gelu", "relu", "relu2", "silu", "swiglu", "geglu", "geglu_exact"
]  # fmt: skip
Init = Literal["gpt2", "zero"]
RopeType = Literal["linear", "dynamic", "yarn", "llama3", "longrope"]

CHOICES = {
    "position": get_args(Position),
    "norm": get_args(Norm),
    "norm_place": get_args(NormPlace),
    "activation": get_args(Activation),
    "init": get_args(Init),
}
GATED = ("swiglu", "geglu", "geglu_exact")
LEARNED, RELATIVE = ("learned", "mixed"), ("relative", "mixed")  # positions
ALIASES = {"rope": "rotary", "swish": "silu"}  # common names that no spelling distance would find
MAX_SIZES = {
    "dim": 1 << 20,
    "n_layer": 1 << 14,
    "n_head": 1 << 14,
    "n_kv_head": 1 << 14,
    "head_dim": 1 << 16,
    "mlp_dim": 1 << 22,
    "context": 1 << 24,
}


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Frequencies of a rotary position for longer contexts than those of the training; the names are transformers'."""

    rope_type: RopeType
    """linear: position interpolation (2306.15595); dynamic: NTK-aware, by the length that is read; yarn (2309.00071);
    llama3: as Llama 3.1 (2407.21783); longrope: each pair of channels has a divisor of its own (2402.13753)."""
    factor: float
    """How many times longer the context is."""
    original_max_position_embeddings: int
    """The context of the training."""
    attention_factor: float | None = None
    """yarn, longrope: queries and keys are multiplied by it. None: 0.1 ln(factor) + 1, and in longrope
    sqrt(1 + ln(factor) / ln(original))."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    """yarn: pairs of channels that turn more than beta_fast times in the original context keep their frequency, those
    that turn less than beta_slow times are interpolated."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    """llama3: the same bounds, slow and fast."""
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    """longrope: what the frequency of each pair of channels is divided by, within the original context and where more
    nodes are read."""

    def __post_init__(self) -> None:
        _check_choice("rope_type", self.rope_type, get_args(RopeType))
        _check_number("factor", self.factor, 1, 1e6)
        _check_size("original_max_position_embeddings", self.original_max_position_embeddings, MAX_SIZES["context"])
        if self.attention_factor is not None:
            _check_number("attention_factor", self.attention_factor, 1e-6, 1e6)
        for low, high in (("beta_slow", "beta_fast"), ("low_freq_factor", "high_freq_factor")):
            _check_number(low, getattr(self, low), 1e-6, 1e6)
            _check_number(high, getattr(self, high), 1e-6, 1e6)
            if getattr(self, low) >= getattr(self, high):
                raise ValueError(f"{low} is {getattr(self, low)}; it must be below {high}, {getattr(self, high)}")
        for name in ("short_factor", "long_factor"):
            factors = getattr(self, name)
            if type(factors) is not tuple or (self.rope_type == "longrope") != bool(factors):
                raise ValueError(f"{name} is {str(factors)[:40]}; longrope needs a tuple of numbers, others none")
            for factor in factors:
                _check_number(name, factor, 1e-6, 1e6)


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """What a Transformer is made of.

    Raises:
        ValueError: if a value is out of range, misspelt or of the wrong type, or if two values do not fit together.
    """

    dim: int = 128
    """Channels of the residual stream."""
    n_layer: int = 4
    """Number of blocks."""
    n_head: int = 4
    """Attention heads: message passing in parallel."""
    n_kv_head: int | None = None
    """Heads of keys and values: None as many as n_head, 1 MQA (1911.02150), between GQA (2305.13245)."""
    head_dim: int | None = None
    """Channels of a head. None: dim / n_head."""
    mlp_dim: int | None = None
    """Hidden channels of the MLP. None: 4 * dim."""
    context: int = 64
    """The longest sequence the model is trained on, in nodes."""
    position: Position = "learned"
    """How nodes carry their position: none, learned or sinusoidal vectors (1706.03762), rotary (2104.09864),
    relative buckets (T5, 1910.10683), ALiBi (2108.12409), or learned vectors and relative buckets (2004.09297)."""
    embedding_scale: float = 1.0
    """Of the tokens' vectors, before a position is added: sqrt(dim) in Gemma (2403.08295)."""
    rotary_base: float = 10_000.0
    """Longest wavelength of the rotary position, in nodes / 2 pi."""
    rope_scaling: RopeScaling | None = None
    """Other frequencies of the rotary position, for a longer context than that of the training, in layers whose base is
    `rotary_base`."""
    rotary_cycle: tuple[float, ...] = ()
    """Rotary base of each layer in turn, over and over: a smaller one in local layers (Gemma 3, 2503.19786), 0 in those
    without rotation (2501.18795). Empty: `rotary_base` in all."""
    norm: Norm = "layernorm"
    """LayerNorm (1607.06450), RMSNorm (1910.07467), or RMSNorm times 1 + weight (Gemma, 2403.08295)."""
    norm_eps: float = 1e-5
    """Added to the variance."""
    norm_place: NormPlace = "pre"
    """Before each sublayer (GPT-2 and later), after its residual sum (2017, BERT), on its output before the sum
    (OLMo 2, 2501.00656), or sandwich: before it and on its output (Gemma 2, 2408.00118)."""
    activation: Activation = "gelu"
    """Of the MLP; swiglu, geglu (with gelu_tanh) and geglu_exact are gated (2002.05202), relu2 is squared ReLU
    (2109.08668)."""
    bias: bool = True
    """Biases in every linear map and LayerNorm."""
    scale: float | None = None
    """Of the scores, query times key. None: 1 / sqrt(channels of a head); T5 has 1 (1910.10683)."""
    softcap: float | None = None
    """Scores s become softcap * tanh(s / softcap), so that none exceeds it (Gemma 2, 2408.00118)."""
    qk_norm: bool = False
    """RMSNorm on each head's queries and keys (2302.05442)."""
    qk_norm_joint: bool = False
    """With qk_norm: one norm over the channels of all heads together (OLMo 2, 2501.00656)."""
    dropout: float = 0.0
    """On the embeddings, the attention weights and the output of each sublayer."""
    init: Init = "gpt2"
    """Output maps of the sublayers start small (GPT-2) or at zero, where each block starts as the identity."""

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            _check_choice(name, getattr(self, name), choices)
        for name, maximum in MAX_SIZES.items():
            value = getattr(self, name)
            if not (value is None and name in ("n_kv_head", "head_dim", "mlp_dim")):
                _check_size(name, value, maximum)
        for name in ("bias", "qk_norm", "qk_norm_joint"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be true or false")
        self._check_rotary()
        _check_number("norm_eps", self.norm_eps, 1e-30, 1)
        _check_number("embedding_scale", self.embedding_scale, 1e-6, 1e6)
        for name in ("scale", "softcap"):
            if getattr(self, name) is not None:
                _check_number(name, getattr(self, name), 1e-30, 1e6)
        if not _is_number(self.dropout) or not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout!r}; it must be at least 0 and below 1")
        self._check_heads()

    def _check_rotary(self) -> None:
        _check_number("rotary_base", self.rotary_base, 1, 1e12)
        for name in ("rope_scaling", "rotary_cycle"):
            if getattr(self, name) and self.position != "rotary":
                raise ValueError(f"{name} is set, but position is '{self.position}'; it must be 'rotary'")
        if self.rope_scaling is not None:
            for name in ("short_factor", "long_factor"):
                if (n := len(getattr(self.rope_scaling, name))) not in (0, self.head_channels // 2):
                    raise ValueError(f"{name} has {n} numbers; a head has {self.head_channels // 2} pairs of channels")
        if self.rope_scaling is not None and self.rotary_base <= 1:
            raise ValueError(f"rotary_base is {self.rotary_base}; with rope_scaling it must be above 1")
        if type(self.rotary_cycle) is not tuple:
            raise ValueError(f"rotary_cycle is {self.rotary_cycle!r}; it must be a tuple of numbers")
        for base in self.rotary_cycle:
            if type(base) not in (int, float) or base != 0:
                _check_number("rotary_cycle", base, 1, 1e12)

    def _check_heads(self) -> None:
        if self.head_dim is None and self.dim % self.n_head:
            raise ValueError(f"n_head {self.n_head} does not divide dim {self.dim}; divisors: {_divisors(self.dim)}")
        if self.n_head % self.kv_heads:
            divisors = _divisors(self.n_head)
            raise ValueError(f"n_kv_head {self.n_kv_head} does not divide n_head {self.n_head}; divisors: {divisors}")
        if self.position == "rotary" and self.head_channels % 2:
            raise ValueError(f"a head has {self.head_channels} channels; rotary positions need an even number")

    @property
    def head_channels(self) -> int:
        return self.head_dim or self.dim // self.n_head

    @property
    def kv_heads(self) -> int:
        return self.n_kv_head or self.n_head

    @property
    def hidden(self) -> int:
        return self.mlp_dim or 4 * self.dim

    def get_rotary_base(self, layer: int) -> float:
        """Return the rotary base of a layer; 0 for a layer that rotates nothing."""
        if self.position != "rotary":
            return 0.0
        return self.rotary_cycle[layer % len(self.rotary_cycle)] if self.rotary_cycle else self.rotary_base


def find_stacks(config: Any) -> dict[str, TransformerConfig]:
    """Return the stacks that the config of a recipe describes, by the names of its fields."""
    return {name: value for name, value in vars(config).items() if isinstance(value, TransformerConfig)}


def check_config(config: Any) -> None:
    """Raise TypeError for what is no config, such as the width that torch's modules take."""
    if not isinstance(config, TransformerConfig):
        raise TypeError(f"config is {config!r}; it must be a TransformerConfig, such as TransformerConfig(dim=64)")


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        near = difflib.get_close_matches(ALIASES.get(str(value), str(value)), choices, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ValueError(f"{name} is {value!r}: {hint}valid: {', '.join(choices)}")


def _check_size(name: str, value: Any, maximum: int) -> None:
    if type(value) is int and value < 1:
        raise ValueError(f"{name} is {value}; it must be at least 1")
    if type(value) is not int or value > maximum:
        raise ValueError(f"{name} is {value!r}; it must be an integer from 1 to {maximum:,}")


def _check_number(name: str, value: Any, minimum: float, maximum: float) -> None:
    if not _is_number(value) or not minimum <= value <= maximum:
        raise ValueError(f"{name} is {value!r}; it must be a number from {minimum:g} to {maximum:g}")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _divisors(n: int) -> str:
    return ", ".join(str(d) for d in range(1, min(n, 64) + 1) if n % d == 0)
