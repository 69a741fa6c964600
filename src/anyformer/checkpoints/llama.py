"""Llama (2302.13971 and later): the `llama` family.

Rotary positions rotate channel i with channel i + D/2, as anyformer's do. A file has biases in attention, in the MLP,
in both or in neither; a local model has them everywhere or nowhere, and those that a file lacks are zero.
"""

from collections.abc import Mapping

from torch import Tensor

from ..errors import InputError
from .config_fields import REQUIRED, ConfigFields
from .family import Family
from .tensor_map import ConfigDict, TensorMap, WeightSource, are_zero, map_affine, map_layers, map_lm_head, map_weight

ACTIVATIONS = {"silu": "swiglu", "gelu_pytorch_tanh": "geglu", "gelu_new": "geglu"}
FIELDS = {
    "hidden_size": ("dim", REQUIRED),
    "num_hidden_layers": ("n_layer", REQUIRED),
    "num_attention_heads": ("n_head", REQUIRED),
    "num_key_value_heads": ("n_kv_head", None),
    "head_dim": ("head_dim", None),
    "intermediate_size": ("mlp_dim", REQUIRED),
    "max_position_embeddings": ("context", 2048),
    "rms_norm_eps": ("norm_eps", 1e-6),
    "hidden_act": ("activation", "silu", ACTIVATIONS),
    "attention_dropout": ("dropout", 0.0),
}
SETTINGS = {
    "position": ("rotary",),
    "norm": ("rmsnorm",),
    "norm_place": ("pre",),
    "scale": (None,),
    "qk_norm": (False,),
    "rope_scaling": (None,),
}
VOCABULARY = {"vocab_size": ("padded_vocab", REQUIRED), "tie_word_embeddings": ("tied", False)}
NORMS = {"attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
HEAD_NORMS = {"attn.query_norm": "self_attn.q_norm", "attn.key_norm": "self_attn.k_norm"}
ATTENTION = {f"attn.{name}": f"self_attn.{name[0]}_proj" for name in ("query", "key", "value", "output")}

BIASES = {"attention": r".*\.attn\..*\.bias", "mlp": r".*\.mlp\..*\.bias"}  # patterns of local names


class Llama(Family):
    model_type, recipes, architecture = "llama", ("language", "chat", "preference", "grpo"), "LlamaForCausalLM"
    stacks, fields = {"model": (FIELDS, SETTINGS)}, VOCABULARY
    settings, embedding = {"window": (None,)}, "nodes.token.weight"

    def normalize_name(self, name: str) -> str | None:
        """Add the prefix `model.`; old files also store the rotary frequencies."""
        if name.endswith("rotary_emb.inv_freq"):
            return None
        return name if name.startswith(("model.", "lm_head.")) else f"model.{name}"

    def read_config(self, c: ConfigFields, weights: WeightSource) -> ConfigDict:
        c.require(pretraining_tp=1)
        values = super().read_config(c, weights)
        values["model"] |= {
            "n_kv_head": values["model"]["n_kv_head"] or values["model"]["n_head"],
            "rotary_base": read_rotary_base(c),
            "bias": c.get_flag("attention_bias", False) | c.get_flag("mlp_bias", False),
        }
        return values

    def write_config(self, values: ConfigDict, tensors: Mapping[str, Tensor]) -> ConfigDict:
        base = values["model"]["rotary_base"]
        return super().write_config(values, tensors) | {
            "rope_theta": base,  # read by version 4 of transformers, the other by version 5
            "rope_parameters": {"rope_type": "default", "rope_theta": base},
            **{f"{part}_bias": not are_zero(tensors, pattern) for part, pattern in BIASES.items()},
        }

    def build_tensor_map(self, values: ConfigDict, config: ConfigDict) -> TensorMap:
        model, local, public = values["model"], "body.blocks.{i}.", "model.layers.{i}."
        attention = map_affine if config.get("attention_bias") else map_weight
        mlp = map_affine if config.get("mlp_bias") else map_weight
        gate = "mlp.up" if model["activation"] == "relu2" else "mlp.gate"
        block = [
            *map_weight(NORMS | (HEAD_NORMS if model["qk_norm"] else {}), local, public),
            *attention(ATTENTION, local, public),
            *mlp({"mlp.up": "mlp.up_proj", "mlp.down": "mlp.down_proj"}, local, public),
            *mlp({gate: "mlp.gate_proj"}, local, public),
        ]
        return [
            *map_weight({"nodes.token": "model.embed_tokens", "body.norm": "model.norm"}),
            *map_layers(model["n_layer"], block),
            map_lm_head(values["tied"]),
        ]


def read_rotary_base(c: ConfigFields) -> float:
    """Read rope_theta, which version 5 of transformers nests and version 4 does not; scaled angles are rejected."""
    nested, scaling = c.get_object("rope_parameters"), c.get_object("rope_scaling")
    for fields in (nested, scaling):
        fields.get_choice("rope_type", {"default": True}, "default")
        fields.get_choice("type", {"default": True}, "default")
        fields.require(partial_rotary_factor=1.0)
    outer = c.get_number("rope_theta", nested.get_number("rope_theta", 10_000.0))
    base = nested.get_number("rope_theta", outer)
    if base != outer:
        raise InputError(f"{c.where}: rope_theta is {outer:g}, and in rope_parameters {base:g}; they must be equal")
    c.require(partial_rotary_factor=1.0)
    scaling.get("rope_theta", None)
    nested.reject_unread(), scaling.reject_unread()
    return base


family = Llama()
