"""SmolLM3 (2025): the `smollm3` family, Llama in which some layers rotate nothing (2501.18795)."""

from ..errors import InputError
from . import llama
from .config_fields import ConfigFields
from .rotary import expand_cycle, find_cycle, read_rotary, write_rotary
from .tensor_map import ConfigDict

FIELDS = llama.FIELDS | {"max_position_embeddings": ("context", 32768)}
DEFAULT_BASE, DEFAULT_PERIOD = 2_000_000.0, 4


class SmolLM3(llama.Llama):
    model_type, architecture = "smollm3", "SmolLM3ForCausalLM"
    stacks = {"model": (FIELDS, llama.SETTINGS)}
    fields = llama.VOCABULARY | {"tie_word_embeddings": ("tied", True)}
    own = ("rope_scaling", "rotary_cycle")

    def read_positions(self, c: ConfigFields, model: ConfigDict) -> ConfigDict:
        n_layer = model["n_layer"]
        c.require(use_sliding_window=False, layer_types=["full_attention"] * n_layer)
        for name in ("sliding_window", "max_window_layers", "pretraining_tp"):
            c.get(name, None)  # not used without `use_sliding_window`, or not at all
        period = c.get_size("no_rope_layer_interval", DEFAULT_PERIOD)
        rotated = c.get("no_rope_layers", [int((i + 1) % period != 0) for i in range(n_layer)])
        if not isinstance(rotated, list) or len(rotated) != n_layer or not all(value in (0, 1) for value in rotated):
            raise InputError(f"{c.where}: no_rope_layers must be a list of {n_layer} numbers, 1 for a rotated layer")
        rotary = read_rotary(c, model["context"], DEFAULT_BASE)
        bases = [rotary["rotary_base"] if value else 0.0 for value in rotated]
        return rotary | {"rotary_cycle": find_cycle(bases) if 0.0 in bases else []}

    def check_config(self, values: ConfigDict) -> None:
        super().check_config(values)
        model = values["model"]
        if not set(expand_cycle(model)) <= {0.0, model["rotary_base"]}:
            raise InputError(f"rotary_cycle is {model['rotary_cycle']}; it must hold 0 and rotary_base only")

    def write_positions(self, values: ConfigDict) -> ConfigDict:
        bases = expand_cycle(values["model"])
        kinds = ["full_attention"] * len(bases)
        layers = {"no_rope_layers": [int(base > 0) for base in bases], "layer_types": kinds}
        return write_rotary(values["model"]) | layers | {"use_sliding_window": False}
