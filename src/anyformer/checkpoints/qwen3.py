"""Qwen3 (2505.09388): the `qwen3` family: Llama with RMSNorm on each head's queries and keys, and local layers.

Its MLP is gated. A squared ReLU (2109.08668) without a gate is written as a gated ReLU whose gate equals its input map:
relu(Wx) * Wx; a file with `hidden_act` relu is read only if its gates are such copies.
"""

from collections.abc import Mapping

from torch import Tensor

from ..errors import InputError
from . import llama
from .config_fields import ConfigFields
from .tensor_map import ConfigDict, WeightSource, are_equal

GLOBAL, LOCAL = "full_attention", "sliding_attention"
FIELDS = llama.FIELDS | {"hidden_act": ("activation", "silu", llama.ACTIVATIONS | {"relu": "relu2"})}
SETTINGS = llama.SETTINGS | {"qk_norm": (True,), "bias": (False,)}


class Qwen3(llama.Llama):
    model_type, architecture = "qwen3", "Qwen3ForCausalLM"
    stacks, settings = {"model": (FIELDS, SETTINGS)}, {"sinks": (0,)}

    def read_config(self, c: ConfigFields, weights: WeightSource) -> ConfigDict:
        c.require(attention_bias=False)
        values = super().read_config(c, weights)
        if values["model"]["activation"] == "relu2":
            check_gates(values["model"]["n_layer"], weights)
        return values | read_window(c, values["model"]["n_layer"])

    def write_config(self, values: ConfigDict, tensors: Mapping[str, Tensor]) -> ConfigDict:
        config = super().write_config(values, tensors)
        del config["mlp_bias"]
        n_layer, window, period = values["model"]["n_layer"], values["window"], values["global_every"]
        is_global = [window is None or (i + 1) % period == 0 for i in range(n_layer)]
        return config | {
            "use_sliding_window": window is not None,
            "sliding_window": window,
            "max_window_layers": n_layer,
            "layer_types": [GLOBAL if value else LOCAL for value in is_global],
        }


def check_gates(n_layer: int, weights: WeightSource) -> None:
    """Check that each layer's gate is a copy of the other map; `check_shapes` reports missing tensors later."""
    for i in range(n_layer):
        gate, up = (f"model.layers.{i}.mlp.{name}_proj.weight" for name in ("gate", "up"))
        if {gate, up} <= weights.shapes.keys() and not are_equal(weights, gate, up):
            raise InputError(f"{weights.where}: hidden_act 'relu' is supported only where {gate} equals {up}")


def read_window(c: ConfigFields, n_layer: int) -> ConfigDict:
    """Read which layers are local: all but every k-th."""
    window = c.get_size("sliding_window", None) if c.get_flag("use_sliding_window", False) else None
    first_local = c.get_number("max_window_layers", 28)
    kinds = c.get("layer_types", [GLOBAL if i < first_local or window is None else LOCAL for i in range(n_layer)])
    if not isinstance(kinds, list) or len(kinds) != n_layer or not set(map(str, kinds)) <= {GLOBAL, LOCAL}:
        raise InputError(f"{c.where}: layer_types must be a list of {n_layer} names, {GLOBAL} or {LOCAL}")
    if window is None or LOCAL not in kinds:
        return {"window": None}
    period = kinds.index(GLOBAL) + 1 if GLOBAL in kinds else n_layer + 1
    if kinds != [GLOBAL if (i + 1) % period == 0 else LOCAL for i in range(n_layer)]:
        raise InputError(f"{c.where}: layer_types is {kinds}; supported: all layers local but every k-th")
    return {"window": window, "global_every": period}


family = Qwen3()
