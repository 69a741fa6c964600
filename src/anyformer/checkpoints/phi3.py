"""Phi-3 (2404.14219): the `phi3` family, which also holds Phi-4: Mistral whose query, key and value are one tensor, and
gate and up another. Its models for long contexts have `longrope` positions (2402.13753).
"""

from typing import Any

from ..errors import InputError
from . import llama, mistral
from .config_fields import ConfigFields, require_settings
from .rotary import write_rotary
from .tensor_map import ConfigDict, TensorMap, map_weight

FIELDS = llama.FIELDS | {
    "max_position_embeddings": ("context", 4096),
    "rms_norm_eps": ("norm_eps", 1e-5),
    **dict.fromkeys(("attention_dropout", "resid_pdrop", "embd_pdrop"), ("dropout", 0.0)),
}
MAPS = {
    ("attn.query", "attn.key", "attn.value"): "self_attn.qkv_proj",
    "attn.output": "self_attn.o_proj",
    ("mlp.gate", "mlp.up"): "mlp.gate_up_proj",
    "mlp.down": "mlp.down_proj",
}
KINDS = {"default": None, "longrope": "longrope", "su": "longrope"}  # "su": in early files
FACTORS = ("short_factor", "long_factor")
ORIGINAL = "original_max_position_embeddings"


class Phi3(mistral.Mistral):
    model_type, architecture = "phi3", "Phi3ForCausalLM"
    stacks = {"model": (FIELDS, llama.SETTINGS | {"bias": (False,)})}
    default_window = None

    def read_positions(self, c: ConfigFields, model: ConfigDict) -> ConfigDict:
        nested, outer = c.get_object("rope_parameters"), c.get_object("rope_scaling")
        c.require(partial_rotary_factor=1.0)
        base = c.get_number("rope_theta", nested.get_number("rope_theta", 10_000.0))
        original = c.get_size(ORIGINAL, nested.get_size(ORIGINAL, outer.get_size(ORIGINAL, 4096)))
        pairs = (model["head_dim"] or 0) // 2
        scalings = [read_longrope(f, model["context"], original, base, pairs) for f in (nested, outer) if f.values]
        if len(scalings) == 2 and scalings[0] != scalings[1]:
            raise InputError(f"{c.where}: rope_parameters and rope_scaling differ; they must say the same")
        return {"rotary_base": base, "rope_scaling": scalings[0] if scalings else None}

    def check_config(self, values: ConfigDict) -> None:
        super().check_config(values)
        model, scaling = values["model"], values["model"]["rope_scaling"]
        if scaling is not None:
            require_settings(scaling, {"rope_type": ("longrope",)}, "model.rope_scaling.")
            factor = max(1.0, model["context"] / scaling[ORIGINAL])
            require_settings(scaling, {"factor": (factor,)}, "model.rope_scaling.")

    def write_positions(self, values: ConfigDict) -> ConfigDict:
        model, scaling = values["model"], values["model"]["rope_scaling"]
        if scaling is None:
            return write_rotary(model)
        factors = {"rope_type": "longrope"} | {name: list(scaling[name]) for name in FACTORS}
        parameters = factors | {"rope_theta": model["rotary_base"], ORIGINAL: scaling[ORIGINAL]}
        config = {"rope_theta": model["rotary_base"], ORIGINAL: scaling[ORIGINAL], "rope_parameters": parameters}
        if scaling["attention_factor"] is not None:  # version 4 of transformers cannot read one
            parameters["attention_factor"] = scaling["attention_factor"]
            return config
        old = {"type": "longrope"} | {name: factors[name] for name in FACTORS}  # and takes these fields only
        return config | {"rope_scaling": old}

    def map_sublayers(self, model: ConfigDict, config: ConfigDict, local: str, public: str) -> TensorMap:
        return map_weight(MAPS, local, public)


def read_longrope(fields: ConfigFields, context: int, original: int, base: float, pairs: int) -> ConfigDict | None:
    """Return the fields of a `RopeScaling`, or None where positions are not scaled."""
    fields.require(partial_rotary_factor=1.0, rope_theta=base, **{ORIGINAL: original})
    kind = fields.get_choice("rope_type", KINDS, fields.get("type", "default"))
    fields.get_choice("type", KINDS, "default")
    if kind is None:
        fields.reject_unread()
        return None
    fields.get("factor", None)  # transformers computes it from both contexts
    factors = {name: read_factors(fields, name, pairs) for name in FACTORS}
    attention = fields.get("attention_factor", None)
    attention = None if attention is None else fields.get_number("attention_factor", 1.0)
    fields.reject_unread()
    scaling = {"rope_type": kind, "factor": max(1.0, context / original), ORIGINAL: original}
    return scaling | {"attention_factor": attention, **factors}


def read_factors(fields: ConfigFields, name: str, pairs: int) -> list[float]:
    factors: Any = fields.get(name)
    is_list = isinstance(factors, list) and len(factors) == pairs
    if not is_list or not all(type(n) in (int, float) and 1e-6 <= n <= 1e6 for n in factors):
        raise InputError(f"{fields.where}: {name} must be a list of {pairs} numbers from 1e-6 to 1e6")
    return [float(n) for n in factors]
