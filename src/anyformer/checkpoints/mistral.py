"""Mistral (2310.06825): the `mistral` family, Llama without biases whose layers are all local, or all global."""

from collections.abc import Mapping

from torch import Tensor

from ..errors import InputError
from . import llama
from .config_fields import ConfigFields
from .tensor_map import ConfigDict, WeightSource

FIELDS = llama.FIELDS | {"max_position_embeddings": ("context", 131072)}
DEFAULT_WINDOW = 4096  # of a config.json that does not mention it; null is no window


class Mistral(llama.Llama):
    model_type, architecture = "mistral", "MistralForCausalLM"
    stacks = {"model": (FIELDS, llama.SETTINGS | {"bias": (False,)})}
    settings, biases = {"sinks": (0,)}, ()
    default_window: int | None = DEFAULT_WINDOW

    def read_config(self, c: ConfigFields, weights: WeightSource) -> ConfigDict:
        values = super().read_config(c, weights)
        default = None if "sliding_window" in c.values else self.default_window
        window = c.get_size("sliding_window", default)
        return values | {"window": window} | ({"global_every": values["model"]["n_layer"] + 1} if window else {})

    def check_config(self, values: ConfigDict) -> None:
        super().check_config(values)
        n_layer, period = values["model"]["n_layer"], values["global_every"]
        if values["window"] is not None and period <= n_layer:
            raise InputError(f"global_every is {period}, not above {n_layer}: layers are all local or all global")

    def write_config(self, values: ConfigDict, tensors: Mapping[str, Tensor]) -> ConfigDict:
        return super().write_config(values, tensors) | {"sliding_window": values["window"]}
