"""Gemma 2 (2408.00118) and the text of Gemma 3 (2503.19786): the `gemma2` and `gemma3_text` families.

Scaled embeddings, norms before and after each sublayer that multiply by 1 + weight, local layers and global ones in
turn. Gemma 2 caps scores and logits; Gemma 3 norms queries and keys, and has a rotary base for local layers.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..errors import InputError
from . import llama
from .config_fields import ConfigFields, FieldTable
from .layer_kinds import GLOBAL, LOCAL, list_kinds, read_layer_kinds, write_layer_kinds
from .rotary import expand_cycle, find_cycle, read_rotary, read_scaling, write_rotary, write_scaling
from .tensor_map import ConfigDict, WeightSource

FIELDS: FieldTable = {name: entry for name, entry in llama.FIELDS.items() if name != "hidden_act"} | {
    "num_key_value_heads": ("n_kv_head", 4),
    "head_dim": ("head_dim", 256),
    "max_position_embeddings": ("context", 8192),
    "hidden_activation": ("activation", "gelu_pytorch_tanh", {"gelu_pytorch_tanh": "geglu", "silu": "swiglu"}),
}
SETTINGS = {
    "position": ("rotary",),
    "norm": ("rmsnorm_1p",),
    "norm_place": ("sandwich",),
    "bias": (False,),
}
CAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}  # and their values in Gemma 2 if not mentioned
DEFAULT_SCALAR, DEFAULT_WINDOW = 256, 4096
LOCAL_BASE, GLOBAL_BASE = 10_000.0, 1_000_000.0  # of Gemma 3


class Gemma2(llama.Llama):
    model_type, architecture = "gemma2", "Gemma2ForCausalLM"
    stacks = {"model": (FIELDS, SETTINGS | {"qk_norm": (False,)})}
    fields = llama.VOCABULARY | {"tie_word_embeddings": ("tied", True)}
    settings, biases = {"sinks": (0,)}, ()
    own = ("rope_scaling", "embedding_scale", "softcap", "logit_softcap")
    norms = {
        "attn_norm": "input_layernorm",
        "attn_output_norm": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "mlp_output_norm": "post_feedforward_layernorm",
    }
    caps: Mapping[str, Any] = CAPS
    default_period, period_fields = 2, ()

    def read_config(self, c: ConfigFields, weights: WeightSource) -> ConfigDict:
        c.require(use_bidirectional_attention=False)
        c.get("hidden_act", None), c.get("cache_implementation", None)  # transformers reads `hidden_activation`
        values = super().read_config(c, weights)
        model = values["model"]
        cap, logit_cap = (read_cap(c, name, default) for name, default in self.caps.items())
        scalar = c.get_number("query_pre_attn_scalar", DEFAULT_SCALAR)
        if scalar <= 0:
            raise InputError(f"{c.where}: query_pre_attn_scalar is {scalar:g}; it must be above 0")
        model |= {"embedding_scale": model["dim"] ** 0.5, "scale": scalar**-0.5, "softcap": cap}
        return values | self.read_kinds(c, model["n_layer"]) | {"logit_softcap": logit_cap}

    def read_kinds(self, c: ConfigFields, n_layer: int) -> ConfigDict:
        window = c.get_size("sliding_window", None if "sliding_window" in c.values else DEFAULT_WINDOW)
        c.require(sliding_window_size=window)
        period = self.default_period
        for name in self.period_fields:
            period = c.get_size(name, period)
        return read_layer_kinds(c, window, list_kinds(n_layer, period))

    def check_config(self, values: ConfigDict) -> None:
        super().check_config(values)
        model = values["model"]
        if model["embedding_scale"] != model["dim"] ** 0.5:
            raise InputError(f"model.embedding_scale is {model['embedding_scale']}, not the square root of dim")
        write_scalar(model)

    def write_config(self, values: ConfigDict, tensors: Mapping[str, Tensor]) -> ConfigDict:
        model = values["model"]
        return super().write_config(values, tensors) | {
            "query_pre_attn_scalar": write_scalar(model),
            "attn_logit_softcapping": model["softcap"],
            "final_logit_softcapping": values["logit_softcap"],
            "sliding_window": values["window"],
            "layer_types": write_layer_kinds(values),
            "use_bidirectional_attention": False,
        }


class Gemma3(Gemma2):
    model_type, architecture = "gemma3_text", "Gemma3ForCausalLM"
    stacks = {"model": (FIELDS | {"max_position_embeddings": ("context", 131072)}, SETTINGS | {"qk_norm": (True,)})}
    own = (*Gemma2.own, "rotary_cycle")
    caps = dict.fromkeys(CAPS)
    default_period, period_fields = 6, ("sliding_window_pattern", "_sliding_window_pattern")

    def read_positions(self, c: ConfigFields, model: ConfigDict) -> ConfigDict:
        rotary, local = read_rotary_of_kinds(c, model["context"])
        kinds = write_layer_kinds({"model": model} | self.read_kinds(c, model["n_layer"]))
        bases = [rotary["rotary_base"] if kind == GLOBAL else local for kind in kinds]
        if rotary["rope_scaling"] is not None and local == rotary["rotary_base"] and LOCAL in kinds:
            raise InputError(f"{c.where}: local and global layers both have the base {local:g}, and only one is scaled")
        return rotary | {"rotary_cycle": find_cycle(bases) if set(bases) != {rotary["rotary_base"]} else []}

    def check_config(self, values: ConfigDict) -> None:
        super().check_config(values)
        find_local_base(values)

    def write_positions(self, values: ConfigDict) -> ConfigDict:
        model, local = values["model"], find_local_base(values)
        rotary = write_rotary(model)
        return rotary | {
            "rope_local_base_freq": local,
            "rope_parameters": {
                GLOBAL: write_scaling(model) | {"rope_theta": model["rotary_base"]},
                LOCAL: {"rope_type": "default", "rope_theta": local},
            },
        }


def read_cap(c: ConfigFields, name: str, default: float | None) -> float | None:
    """Read a cap, which is none if it is null."""
    if c.get(name, None if name in c.values else default) is None:
        return None
    cap = c.get_number(name, default)
    if cap <= 0:
        raise InputError(f"{c.where}: {name} is {cap:g}; it must be above 0")
    return cap


def write_scalar(model: ConfigDict) -> int:
    """Return the whole number whose root divides the scores. Raises InputError if there is none."""
    scale = model["scale"]
    if scale is None:
        return model["head_dim"] or model["dim"] // model["n_head"]
    scalar = round(scale**-2)
    if scalar < 1 or scalar**-0.5 != scale:
        raise InputError(f"model.scale is {scale}; it must be 1 / sqrt(a whole number)")
    return scalar


def read_rotary_of_kinds(c: ConfigFields, context: int) -> tuple[ConfigDict, float]:
    """Read the rotary fields of global layers, and the base of local ones. Version 5 has both in `rope_parameters`."""
    nested, outer = c.get_object("rope_parameters"), c.get_object("rope_scaling")
    rotary: ConfigDict
    base, local = c.get_number("rope_theta", GLOBAL_BASE), c.get_number("rope_local_base_freq", LOCAL_BASE)
    if not {GLOBAL, LOCAL} & nested.values.keys():
        rotary = read_rotary(c, context, GLOBAL_BASE)
    else:
        parts = {kind: nested.get_object(kind) for kind in (GLOBAL, LOCAL)}
        nested.reject_unread()
        base, local = parts[GLOBAL].get_number("rope_theta", base), parts[LOCAL].get_number("rope_theta", local)
        c.require(rope_theta=base, rope_local_base_freq=local)
        if read_scaling(parts[LOCAL], context, local) is not None:
            raise InputError(f"{c.where}: rope_parameters: the rope_type of {LOCAL} must be 'default'")
        scaling = read_scaling(parts[GLOBAL], context, base)
        if outer.values and read_scaling(outer, context, base) != scaling:
            raise InputError(f"{c.where}: rope_parameters and rope_scaling differ; they must say the same")
        rotary = {"rotary_base": base, "rope_scaling": scaling}
    if (rotary["rope_scaling"] or {}).get("rope_type") == "dynamic":
        raise InputError(f"{c.where}: rope_type is 'dynamic', which is not supported where layers have different bases")
    return rotary, local


def find_local_base(values: ConfigDict) -> float:
    """Return the rotary base of local layers. Raises InputError if those of a kind differ."""
    model, kinds = values["model"], write_layer_kinds(values)
    bases = {kind: {b for b, k in zip(expand_cycle(model), kinds) if k == kind} for kind in (GLOBAL, LOCAL)}
    local = bases[LOCAL] or {LOCAL_BASE}
    if len(local) != 1 or 0.0 in local or not bases[GLOBAL] <= {model["rotary_base"]}:
        raise InputError(f"model.rotary_cycle is {model['rotary_cycle']}; it must be that of local and global layers")
    return local.pop()
