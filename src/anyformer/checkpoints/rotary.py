"""Rotary positions in config.json: their base, its scaling for a longer context, and layers with a base of their own.

Version 5 of transformers nests the base in `rope_parameters`; version 4 has `rope_theta` and `rope_scaling` beside it.
"""

from typing import Any

from ..errors import InputError
from .config_fields import REQUIRED, ConfigFields, require_settings
from .tensor_map import ConfigDict

SCALINGS = {"linear": "linear", "dynamic": "dynamic", "yarn": "yarn", "llama3": "llama3"}
NUMBERS: dict[str, dict[str, Any]] = {
    "linear": {},
    "dynamic": {},
    "yarn": {"beta_fast": 32.0, "beta_slow": 1.0},
    "llama3": {"low_freq_factor": REQUIRED, "high_freq_factor": REQUIRED},
}
"""Type of scaling -> its further fields, and their defaults."""
MAX_PERIOD = 64  # of layers with a rotary base of their own


def read_rotary(c: ConfigFields, context: int, default_base: float = 10_000.0) -> ConfigDict:
    """Return the fields of a `TransformerConfig` for the rotary position of a model with this context."""
    nested, outer = c.get_object("rope_parameters"), c.get_object("rope_scaling")
    c.require(partial_rotary_factor=1.0)
    base = c.get_number("rope_theta", nested.get_number("rope_theta", default_base))
    scalings = [read_scaling(fields, context, base) for fields in (nested, outer) if fields.values]
    if len(scalings) == 2 and scalings[0] != scalings[1]:
        raise InputError(f"{c.where}: rope_parameters and rope_scaling differ; they must say the same")
    scaling = scalings[0] if scalings else None
    if scaling is not None and scaling["rope_type"] == "dynamic":
        context = round(scaling["factor"] * context)
    return {"rotary_base": base, "rope_scaling": scaling, "context": context}


def read_scaling(fields: ConfigFields, context: int, base: float) -> ConfigDict | None:
    """Return the fields of a `RopeScaling`, or None where the frequencies are those of the training."""
    fields.require(partial_rotary_factor=1.0)
    if (own_base := fields.get_number("rope_theta", base)) != base:
        raise InputError(f"{fields.where}: rope_theta is {base:g} outside, and {own_base:g} here; they must be equal")
    kind = fields.get_choice("rope_type", {"default": None, **SCALINGS}, fields.get("type", "default"))
    fields.require(type=kind or "default")
    scaling: ConfigDict | None = None
    if kind is not None:
        scaling = {"rope_type": kind, "factor": fields.get_number("factor", REQUIRED)}
        scaling |= {name: fields.get_number(name, default) for name, default in NUMBERS[kind].items()}
        original = max(1, round(context / max(1.0, scaling["factor"]))) if kind == "linear" else context
        scaling["original_max_position_embeddings"] = fields.get_size("original_max_position_embeddings", original)
        if kind == "dynamic":
            fields.require(original_max_position_embeddings=context)
        if kind == "yarn":
            fields.require(truncate=True)
            if fields.get("attention_factor", None) is not None:
                scaling["attention_factor"] = fields.get_number("attention_factor", 1.0)
    fields.reject_unread()
    return scaling


def check_rotary(model: ConfigDict) -> None:
    """Raise InputError for a scaling that config.json cannot express."""
    scaling = model["rope_scaling"]
    if scaling is not None and scaling["rope_type"] == "dynamic":
        longest = round(scaling["factor"] * scaling["original_max_position_embeddings"])
        require_settings(model, {"context": (longest,)}, "model.")


def write_rotary(model: ConfigDict) -> ConfigDict:
    """Return the public fields, for both versions of transformers."""
    base, scaling = model["rotary_base"], write_scaling(model)
    config = {"rope_theta": base, "rope_parameters": scaling | {"rope_theta": base}}
    if model["rope_scaling"] is not None:
        config["rope_scaling"] = scaling
        if scaling["rope_type"] == "dynamic":
            config["max_position_embeddings"] = model["rope_scaling"]["original_max_position_embeddings"]
    return config


def write_scaling(model: ConfigDict) -> ConfigDict:
    """Return the fields of a scaling; an attention factor that is not set follows from the factor."""
    scaling = model["rope_scaling"]
    if scaling is None:
        return {"rope_type": "default"}
    kind = scaling["rope_type"]
    names = ["factor", *NUMBERS[kind]]
    names += ["original_max_position_embeddings"] if kind in ("yarn", "llama3") else []
    names += ["attention_factor"] if kind == "yarn" and scaling["attention_factor"] is not None else []
    return {"rope_type": kind} | {name: scaling[name] for name in names}


# --- layers with a base of their own ---


def find_cycle(bases: list[float]) -> list[float]:
    """Return the shortest start of a list that, over and over, is the list; at most MAX_PERIOD long, else all of it."""
    n = len(bases)
    periods = (p for p in range(1, min(n, MAX_PERIOD) + 1) if all(bases[i] == bases[i % p] for i in range(n)))
    return bases[: next(periods, n)]


def expand_cycle(model: ConfigDict) -> list[float]:
    """Return the rotary base of each layer."""
    cycle = model["rotary_cycle"] or [model["rotary_base"]]
    return [float(cycle[i % len(cycle)]) for i in range(model["n_layer"])]
