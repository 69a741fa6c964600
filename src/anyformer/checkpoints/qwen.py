"""Qwen2 (2407.10671) and Qwen3 (2505.09388): the `qwen2` and `qwen3` families, Llama with local layers.

Qwen2 has biases of query, key and value; Qwen3 has RMSNorm on each head's queries and keys. The MLP is gated. A squared
ReLU (2109.08668) without a gate is written as a gated ReLU whose gate equals its input map: relu(Wx) * Wx; a file of
Qwen3 with `hidden_act` relu is read only if its gates are such copies.
"""

from collections.abc import Mapping

from torch import Tensor

from ..errors import InputError
from . import llama
from .config_fields import ConfigFields
from .layer_kinds import GLOBAL, LOCAL, read_layer_kinds, write_layer_kinds
from .tensor_map import ConfigDict, TensorMap, WeightSource, are_equal, map_affine, map_weight

CONTEXT = {"max_position_embeddings": ("context", 32768)}
FIELDS = llama.FIELDS | CONTEXT | {"hidden_act": ("activation", "silu", llama.ACTIVATIONS | {"relu": "relu2"})}
SETTINGS = llama.SETTINGS | {"qk_norm": (True,), "bias": (False,)}
QKV = {name: llama.ATTENTION[name] for name in ("attn.query", "attn.key", "attn.value")}


class LocalLlama(llama.Llama):
    """Base class: Llama with local layers."""

    settings = {"sinks": (0,)}

    def read_config(self, c: ConfigFields, weights: WeightSource) -> ConfigDict:
        values = super().read_config(c, weights)
        return values | read_window(c, values["model"]["n_layer"])

    def write_config(self, values: ConfigDict, tensors: Mapping[str, Tensor]) -> ConfigDict:
        return super().write_config(values, tensors) | {
            "use_sliding_window": values["window"] is not None,
            "sliding_window": values["window"],
            "max_window_layers": values["model"]["n_layer"],
            "layer_types": write_layer_kinds(values),
        }


class Qwen2(LocalLlama):
    model_type, architecture = "qwen2", "Qwen2ForCausalLM"
    stacks, biases = {"model": (llama.FIELDS | CONTEXT, llama.SETTINGS | {"bias": (True,)})}, ()

    def map_sublayers(self, model: ConfigDict, config: ConfigDict, local: str, public: str) -> TensorMap:
        return [
            *map_affine(QKV, local, public),
            *map_weight({"attn.output": llama.ATTENTION["attn.output"], **llama.MLP}, local, public),
        ]


class Qwen3(LocalLlama):
    model_type, architecture = "qwen3", "Qwen3ForCausalLM"
    stacks, biases = {"model": (FIELDS, SETTINGS)}, ("attention",)

    def read_config(self, c: ConfigFields, weights: WeightSource) -> ConfigDict:
        c.require(attention_bias=False)
        values = super().read_config(c, weights)
        if values["model"]["activation"] == "relu2":
            check_gates(values["model"]["n_layer"], weights)
        return values


def check_gates(n_layer: int, weights: WeightSource) -> None:
    """Check that each layer's gate is a copy of the other map; `check_shapes` reports missing tensors later."""
    for i in range(n_layer):
        gate, up = (f"model.layers.{i}.mlp.{name}_proj.weight" for name in ("gate", "up"))
        if {gate, up} <= weights.shapes.keys() and not are_equal(weights, gate, up):
            raise InputError(f"{weights.where}: hidden_act 'relu' is supported only where {gate} equals {up}")


def read_window(c: ConfigFields, n_layer: int) -> ConfigDict:
    """Read which layers are local."""
    window = c.get_size("sliding_window", None) if c.get_flag("use_sliding_window", False) else None
    c.get("sliding_window", None)  # without `use_sliding_window` it is not used
    first_local = c.get_number("max_window_layers", 28)
    default = [GLOBAL if i < first_local or window is None else LOCAL for i in range(n_layer)]
    return read_layer_kinds(c, window, default)
