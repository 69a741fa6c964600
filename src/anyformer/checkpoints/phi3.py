"""Phi-3 (2404.14219): the `phi3` family, which also holds Phi-4: Mistral whose query, key and value are one tensor, and
gate and up another. The scaled angles of its models for long contexts (`longrope`) are not supported.
"""

from ..errors import InputError
from . import llama, mistral
from .config_fields import ConfigFields
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


class Phi3(mistral.Mistral):
    model_type, architecture = "phi3", "Phi3ForCausalLM"
    stacks = {"model": (FIELDS, llama.SETTINGS | {"bias": (False,)})}  # noqa: RUF012
    own, default_window = (), None

    def read_positions(self, c: ConfigFields, model: ConfigDict) -> ConfigDict:
        c.get_size("original_max_position_embeddings", 4096)  # of longrope only
        positions = super().read_positions(c, model)
        if positions["rope_scaling"] is not None:
            raise InputError(f"{c.where}: rope_type is not 'default', and this family is supported only with it")
        return positions

    def map_sublayers(self, model: ConfigDict, config: ConfigDict, local: str, public: str) -> TensorMap:
        return map_weight(MAPS, local, public)
