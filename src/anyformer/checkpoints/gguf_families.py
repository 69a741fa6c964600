"""Architectures of GGUF (llama.cpp): each is a family like those of Hugging Face, with the names of GGUF.

What llama.cpp sets by itself for an architecture, such as which layers are local, is an error where a model has another
value.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import InputError
from ..model.config import RopeScaling
from ..model.rope_scaling import SCALE
from ..parsing import parse_dataclass
from . import gpt2, llama
from .config_fields import REQUIRED, ConfigFields, require_settings
from .family import Family
from .layer_kinds import GLOBAL, list_kinds, write_layer_kinds
from .rotary import expand_cycle, find_cycle
from .tensor_map import (
    ConfigDict,
    TensorMap,
    WeightSource,
    are_equal,
    are_zero,
    has_biases,
    map_affine,
    map_layers,
    map_lm_head,
    map_weight,
)

SIZES = {
    "block_count": ("n_layer", REQUIRED),
    "context_length": ("context", 2048),
    "embedding_length": ("dim", REQUIRED),
    "feed_forward_length": ("mlp_dim", REQUIRED),
    "attention.head_count": ("n_head", REQUIRED),
}
GPT2_FIELDS = {
    **SIZES,
    "context_length": ("context", 1024),
    "feed_forward_length": ("mlp_dim", None),
    "attention.layer_norm_epsilon": ("norm_eps", 1e-5),
}
LLAMA_FIELDS = {
    **SIZES,
    "attention.head_count_kv": ("n_kv_head", None),
    "attention.layer_norm_rms_epsilon": ("norm_eps", 1e-6),
    **dict.fromkeys(("attention.key_length", "attention.value_length", "rope.dimension_count"), ("head_dim", None)),
    "rope.freq_base": ("rotary_base", 10_000.0),
}
LLAMA_SETTINGS = {**llama.SETTINGS, "activation": ("swiglu",)}  # the activations that llama.cpp computes
NORMS = {"attn_norm": "attn_norm", "mlp_norm": "ffn_norm"}
HEAD_NORMS = {"attn.query_norm": "attn_q_norm", "attn.key_norm": "attn_k_norm"}
ATTENTION = {"attn.query": "attn_q", "attn.key": "attn_k", "attn.value": "attn_v", "attn.output": "attn_output"}
MLP = {"mlp.up": "ffn_up", "mlp.down": "ffn_down"}
GPT2_ATTENTION = {("attn.query", "attn.key", "attn.value"): "attn_qkv", "attn.output": "attn_output"}
BLOCK = ("body.blocks.{i}.", "blk.{i}.")
QKV = {name: ATTENTION[name] for name in ("attn.query", "attn.key", "attn.value")}
ROPE_FREQS = "rope_freqs.weight"  # Llama 3: what the frequency of each pair of channels is divided by
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3_CONTEXT = 8192  # of the training; files do not mention it
YARN = {"beta_fast": 32.0, "beta_slow": 1.0, "attention_factor": None}
BIASES = {"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_up.bias"}  # flag -> tensor that a file then has
PHI3_MAPS = {
    ("attn.query", "attn.key", "attn.value"): "attn_qkv",
    "attn.output": "attn_output",
    ("mlp.gate", "mlp.up"): "ffn_up",
    "mlp.down": "ffn_down",
}
OLMO2_SETTINGS = {"norm_place": ("output",), "qk_norm": (True,), "qk_norm_joint": (True,), "bias": (False,)}
GEMMA_SETTINGS = {
    "position": ("rotary",),
    "norm": ("rmsnorm_1p",),
    "norm_place": ("sandwich",),
    "activation": ("geglu",),
    "bias": (False,),
}
GEMMA3_LOCAL_BASE = 10_000.0
INTERLEAVED_ARCHITECTURES, SHIFTED_ARCHITECTURES = ("llama", "smollm3"), ("gemma2", "gemma3")


class GPT2(Family):
    model_type, recipes, architecture = "gpt2", ("language", "chat", "preference", "grpo"), "GPT2LMHeadModel"
    stacks = {"model": (GPT2_FIELDS, {**gpt2.SETTINGS, "activation": ("gelu_tanh",)})}
    fields, settings, embedding = {"vocab_size": ("padded_vocab", None)}, {"window": (None,)}, "nodes.token.weight"

    def read_config(self, c: ConfigFields, weights: WeightSource) -> ConfigDict:
        n_rows = weights.shapes["token_embd.weight"][0]
        c.require(**{"vocab_size": n_rows, "attention.causal": True, "expert_count": 0})
        values = super().read_config(c, weights)
        values["model"]["bias"] = has_biases(weights)
        has_own_head = "output.weight" in weights.shapes
        is_tied = not has_own_head or are_equal(weights, "token_embd.weight", "output.weight")
        return values | {"padded_vocab": n_rows, "tied": is_tied}

    def build_tensor_map(self, values: ConfigDict, config: ConfigDict) -> TensorMap:
        return [
            *map_weight({"nodes.token": "token_embd", "nodes.position": "position_embd"}),
            *map_layers(values["model"]["n_layer"], map_affine(NORMS | GPT2_ATTENTION | MLP, *BLOCK)),
            *map_affine({"body.norm": "output_norm"}),
            map_lm_head(values["tied"], public="output"),
        ]


class Llama(GPT2):
    model_type, architecture = "llama", "LlamaForCausalLM"
    stacks = {"model": (LLAMA_FIELDS, LLAMA_SETTINGS)}
    own = ("rope_scaling",)
    norms: dict[str, str] = NORMS

    def read_config(self, c: ConfigFields, weights: WeightSource) -> ConfigDict:
        """Partially rotated heads are not supported."""
        n_head, dim = c.get_size("attention.head_count"), c.get_size("embedding_length")
        channels = c.get_size("attention.key_length", dim // n_head)
        c.require(**{"attention.value_length": channels, "rope.dimension_count": channels})
        values = super().read_config(c, weights)
        values["model"]["rope_scaling"] = read_rope_scaling(c, values["model"], channels)
        bias = c.get_flag("attention_bias", False) | c.get_flag("mlp_bias", False)
        values["model"] |= {"head_dim": channels, "n_kv_head": values["model"]["n_kv_head"] or n_head, "bias": bias}
        return values

    def check_config(self, values: ConfigDict) -> None:
        super().check_config(values)
        write_rope_scaling(values["model"])

    def write_config(self, values: ConfigDict, tensors: Mapping[str, Tensor]) -> ConfigDict:
        config = super().write_config(values, tensors) | write_rope_scaling(values["model"])
        return config | {f"{name}_bias": not are_zero(tensors, pattern) for name, pattern in llama.BIASES.items()}

    def build_tensor_map(self, values: ConfigDict, config: ConfigDict) -> TensorMap:
        return [
            *map_weight({"nodes.token": "token_embd", "body.norm": "output_norm"}),
            *map_layers(values["model"]["n_layer"], self.map_block(values, config)),
            map_lm_head(values["tied"], public="output"),
        ]

    def map_block(self, values: ConfigDict, config: ConfigDict) -> TensorMap:
        attention, mlp = (map_affine if config[name] else map_weight for name in BIASES)
        return [
            *map_weight(self.norms | (HEAD_NORMS if values["model"]["qk_norm"] else {}), *BLOCK),
            *attention(ATTENTION, *BLOCK),
            *mlp(MLP | {"mlp.gate": "ffn_gate"}, *BLOCK),
        ]


class Qwen2(Llama):
    model_type, architecture = "qwen2", "Qwen2ForCausalLM"
    stacks = {"model": (LLAMA_FIELDS, LLAMA_SETTINGS | {"bias": (True,)})}

    def read_config(self, c: ConfigFields, weights: WeightSource) -> ConfigDict:
        values = super().read_config(c, weights)
        values["model"]["bias"] = True
        return values

    def map_block(self, values: ConfigDict, config: ConfigDict) -> TensorMap:
        maps = NORMS | {"attn.output": ATTENTION["attn.output"]} | MLP | {"mlp.gate": "ffn_gate"}
        return map_affine(QKV, *BLOCK) + map_weight(maps, *BLOCK)


class Qwen3(Llama):
    model_type, architecture = "qwen3", "Qwen3ForCausalLM"
    stacks = {"model": (LLAMA_FIELDS, LLAMA_SETTINGS | {"qk_norm": (True,), "bias": (False,)})}


class OLMo2(Llama):
    """Norms on the output of sublayers, and over the queries and keys of all heads; no scaled positions."""

    model_type, architecture = "olmo2", "Olmo2ForCausalLM"
    stacks = {"model": (LLAMA_FIELDS, LLAMA_SETTINGS | OLMO2_SETTINGS)}
    own = ()
    norms = {"attn_output_norm": "post_attention_norm", "mlp_output_norm": "post_ffw_norm"}

    def read_config(self, c: ConfigFields, weights: WeightSource) -> ConfigDict:
        values = super().read_config(c, weights)
        if values["model"]["rope_scaling"] is not None and "rope_scaling" not in self.own:
            raise InputError(f"{c.where}: scaled rotary positions are not supported in this architecture")
        return values


class Phi3(OLMo2):
    """Query, key and value are one tensor, gate and up another. llama.cpp reads all nodes, whatever the window."""

    model_type, architecture = "phi3", "Phi3ForCausalLM"
    stacks = {"model": (LLAMA_FIELDS, LLAMA_SETTINGS | {"bias": (False,)})}

    def read_config(self, c: ConfigFields, weights: WeightSource) -> ConfigDict:
        values = super().read_config(c, weights)
        window, n_layer = c.get_size("attention.sliding_window", None), values["model"]["n_layer"]
        return values | ({} if window is None else {"window": window, "global_every": n_layer + 1})

    def check_config(self, values: ConfigDict) -> None:
        super().check_config(values)
        model = values["model"]
        require_settings(model, {"head_dim": (None, model["dim"] // model["n_head"])}, "model.")

    def map_block(self, values: ConfigDict, config: ConfigDict) -> TensorMap:
        return map_weight(NORMS | PHI3_MAPS, *BLOCK)


class SmolLM3(OLMo2):
    """Every fourth layer rotates nothing."""

    model_type, architecture = "smollm3", "SmolLM3ForCausalLM"
    stacks = {"model": (LLAMA_FIELDS, LLAMA_SETTINGS | {"bias": (False,)})}
    own, norms = ("rotary_cycle",), NORMS

    def read_config(self, c: ConfigFields, weights: WeightSource) -> ConfigDict:
        values = super().read_config(c, weights)
        bases = list_smollm3_bases(values["model"])
        values["model"]["rotary_cycle"] = find_cycle(bases) if 0.0 in bases else []
        return values

    def check_config(self, values: ConfigDict) -> None:
        super().check_config(values)
        if expand_cycle(values["model"]) != list_smollm3_bases(values["model"]):
            raise InputError("model.rotary_cycle must be 0 in every fourth layer, and rotary_base in the others")


class Gemma2(OLMo2):
    """Scaled embeddings, four norms a block, caps; every second layer is global."""

    model_type, architecture = "gemma2", "Gemma2ForCausalLM"
    stacks = {"model": (LLAMA_FIELDS, GEMMA_SETTINGS | {"qk_norm": (False,)})}
    settings = {"tied": (True,), "sinks": (0,)}
    own = ("embedding_scale", "softcap", "logit_softcap")
    norms = NORMS | {"attn_output_norm": "post_attention_norm", "mlp_output_norm": "post_ffw_norm"}
    period, largest = 2, 46  # of layers; how many the model has whose scores are scaled by dim / n_head
    caps: tuple[str, ...] = ("attn_logit_softcapping", "final_logit_softcapping")

    def read_config(self, c: ConfigFields, weights: WeightSource) -> ConfigDict:
        values = super().read_config(c, weights)
        model = values["model"]
        cap, logit_cap = (c.get_number(name, REQUIRED) for name in self.caps) if self.caps else (None, None)
        model |= {"embedding_scale": model["dim"] ** 0.5, "scale": self.find_scale(model), "softcap": cap}
        window = c.get_size("attention.sliding_window")
        return values | {"logit_softcap": logit_cap, "window": window, "global_every": self.period}

    def find_scale(self, model: ConfigDict) -> float:
        is_largest = model["n_layer"] == self.largest
        return float(model["dim"] // model["n_head"] if is_largest else model["head_dim"]) ** -0.5

    def check_config(self, values: ConfigDict) -> None:
        super().check_config(values)
        model = values["model"]
        model = model | {"head_dim": model["head_dim"] or model["dim"] // model["n_head"]}
        expected = {"embedding_scale": (model["dim"] ** 0.5,), "scale": (self.find_scale(model),)}
        require_settings(model, expected, "model.")
        for name, value in zip(("softcap", "logit_softcap"), (model["softcap"], values["logit_softcap"])):
            if (value is None) == bool(self.caps):
                raise InputError(f"{name} is {value}: {self.model_type} {'has one' if self.caps else 'has none'}")
        if values["window"] is None or write_layer_kinds(values) != list_kinds(model["n_layer"], self.period):
            raise InputError(f"layers are not local but for every {self.period}-th, as those of {self.model_type}")

    def write_config(self, values: ConfigDict, tensors: Mapping[str, Tensor]) -> ConfigDict:
        caps = dict(zip(self.caps, (values["model"]["softcap"], values["logit_softcap"])))
        return super().write_config(values, tensors) | {"attention.sliding_window": values["window"]} | caps


class Gemma3(Gemma2):
    """Norms of queries and keys instead of caps; local layers have a rotary base of their own."""

    model_type, architecture = "gemma3", "Gemma3ForCausalLM"
    stacks = {"model": (LLAMA_FIELDS, GEMMA_SETTINGS | {"qk_norm": (True,)})}
    own = (*Gemma2.own, "rotary_cycle", "rope_scaling")
    period, largest, caps = 6, 62, ()

    def read_config(self, c: ConfigFields, weights: WeightSource) -> ConfigDict:
        c.require(**{"rope.freq_base_swa": GEMMA3_LOCAL_BASE, "attention.sliding_window_pattern": self.period})
        values = super().read_config(c, weights)
        check_linear(values["model"])
        bases = self.list_bases(values["model"])
        values["model"]["rotary_cycle"] = find_cycle(bases) if GEMMA3_LOCAL_BASE in bases else []
        return values

    def list_bases(self, model: ConfigDict) -> list[float]:
        kinds = list_kinds(model["n_layer"], self.period)
        return [model["rotary_base"] if kind == GLOBAL else GEMMA3_LOCAL_BASE for kind in kinds]

    def check_config(self, values: ConfigDict) -> None:
        super().check_config(values)
        check_linear(values["model"])
        if expand_cycle(values["model"]) != self.list_bases(values["model"]):
            raise InputError(f"model.rotary_cycle must be {GEMMA3_LOCAL_BASE:g} in local layers")


ARCHITECTURES: dict[str, GPT2] = {
    "gpt2": GPT2(),
    "llama": Llama(),
    "qwen3": Qwen3(),
    "qwen2": Qwen2(),
    "olmo2": OLMo2(),
    "phi3": Phi3(),
    "smollm3": SmolLM3(),
    "gemma2": Gemma2(),
    "gemma3": Gemma3(),
}


def list_smollm3_bases(model: ConfigDict) -> list[float]:
    return [0.0 if (i + 1) % 4 == 0 else model["rotary_base"] for i in range(model["n_layer"])]


def check_linear(model: ConfigDict) -> None:
    if (model["rope_scaling"] or {}).get("rope_type", "linear") != "linear":
        raise InputError("model.rope_scaling.rope_type must be linear in gemma3")


def read_rope_scaling(c: ConfigFields, model: ConfigDict, channels: int) -> ConfigDict | None:
    """Return the fields of a `RopeScaling` for the metadata and for what ROPE_FREQS holds."""
    c.require(**{"rope.scale_linear": 1.0, "rope.scaling.yarn_log_multiplier": 0.1, "rope.scaling.attn_factor": 1.0})
    c.get("rope.scaling.finetuned", None)  # whether the model was trained with it
    kind = c.get_choice("rope.scaling.type", {"none": None, "linear": "linear", "yarn": "yarn"}, "none")
    divisors = c.get("rope_freqs", None)
    if kind is None:
        c.require(**{"rope.scaling.factor": 1.0})
        if divisors is None:
            c.get("rope.scaling.original_context_length", None)  # only YaRN reads it
            return None
        original = c.get_size("rope.scaling.original_context_length", LLAMA3_CONTEXT)
        return find_llama3_scaling(divisors, model["rotary_base"], channels, original, c.where)
    if divisors is not None:
        raise InputError(f"{c.where}: {ROPE_FREQS} besides rope.scaling.type {kind!r} is not supported")
    original = c.get_size("rope.scaling.original_context_length", model["context"])
    factor = c.get_number("rope.scaling.factor", REQUIRED)
    return {"rope_type": kind, "factor": factor, "original_max_position_embeddings": original}


def find_llama3_scaling(divisors: list[float], base: float, channels: int, original: int, where: str) -> ConfigDict:
    """Return the scaling of Llama 3 that divides the frequencies so. Raises InputError if there is none."""
    scaling = {"rope_type": "llama3", "factor": max(divisors), "original_max_position_embeddings": original, **LLAMA3}
    is_finite = all(math.isfinite(divisor) and 1 <= divisor <= 1e6 for divisor in divisors)
    if not is_finite or len(divisors) != channels // 2 or base <= 1:
        raise InputError(f"{where}: {ROPE_FREQS} should have {channels // 2} numbers of at least 1")
    expected = make_llama3_divisors(scaling, base, channels)
    if not torch.allclose(torch.tensor(divisors), expected, rtol=1e-4):
        raise InputError(f"{where}: {ROPE_FREQS} are not the divisors of Llama 3, and others are not supported")
    return scaling


def make_llama3_divisors(scaling: ConfigDict, base: float, channels: int) -> Tensor:
    """Return what the frequency of each pair of channels is divided by: (channels / 2,)"""
    fast = 1.0 / base ** (torch.arange(0, channels, 2).float() / channels)
    config = parse_dataclass(RopeScaling, scaling)
    return fast / SCALE["llama3"](fast, fast / config.factor, base, config)


def write_rope_scaling(model: ConfigDict) -> ConfigDict:
    """Return the metadata of a `RopeScaling`; that of Llama 3 is also a tensor. Raises InputError for other kinds."""
    scaling = model["rope_scaling"]
    if scaling is None:
        return {}
    kind = scaling["rope_type"]
    expected = {"linear": {}, "yarn": YARN, "llama3": LLAMA3}
    require_settings(scaling, {"rope_type": tuple(expected)}, "model.rope_scaling.")
    valid = {name: (value,) for name, value in expected[kind].items()}
    require_settings(scaling, valid, "model.rope_scaling.")
    original = {"rope.scaling.original_context_length": scaling["original_max_position_embeddings"]}
    types = {"rope.scaling.type": kind, "rope.scaling.factor": float(scaling["factor"])}
    return original if kind == "llama3" else original | types
