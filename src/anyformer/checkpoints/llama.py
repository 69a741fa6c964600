"""Llama (2302.13971 and later): the `llama` family.

Rotary positions rotate channel i with channel i + D/2, as anyformer's do. A file has biases in attention, in the MLP,
in both or in neither; a local model has them everywhere or nowhere, and those that a file lacks are zero.
"""

from collections.abc import Iterable, Mapping

from torch import Tensor

from ..errors import InputError
from .config_fields import REQUIRED, ConfigFields, get_public_name, require_settings, write_sizes
from .family import Family
from .tensor_map import (
    ConfigDict,
    TensorMap,
    WeightSource,
    are_zero,
    map_affine,
    map_layers,
    map_lm_head,
    map_tensor,
    map_weight,
)

SIZES = {
    "hidden_size": ("dim", REQUIRED),
    "num_hidden_layers": ("n_layer", REQUIRED),
    "num_attention_heads": ("n_head", REQUIRED),
    "num_key_value_heads": ("n_kv_head", None),
    "head_dim": ("head_dim", None),
    "intermediate_size": ("mlp_dim", REQUIRED),
    "max_position_embeddings": ("context", 2048),
}
GATED_ACTIVATIONS = {"silu": "swiglu", "gelu_pytorch_tanh": "geglu", "gelu_new": "geglu"}
ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}
MLP = {"up": "up_proj", "gate": "gate_proj", "down": "down_proj"}


class Llama(Family):
    model_type, recipes, architecture = "llama", ("language",), "LlamaForCausalLM"
    activations, has_qk_norm = GATED_ACTIVATIONS, False

    def normalize_name(self, name: str) -> str | None:
        """Add the prefix `model.`; old files also store the rotary frequencies."""
        if name.endswith("rotary_emb.inv_freq"):
            return None
        return name if name.startswith(("model.", "lm_head.")) else f"model.{name}"

    def read_config(self, c: ConfigFields, weights: WeightSource) -> ConfigDict:
        c.require(pretraining_tp=1)
        model = c.get_sizes(SIZES, max_layers=len(weights.shapes)) | {
            "position": "rotary",
            "rotary_base": read_rotary_base(c),
            "norm": "rmsnorm",
            "norm_eps": c.get_number("rms_norm_eps", 1e-6),
            "qk_norm": self.has_qk_norm,
            "activation": c.get_choice("hidden_act", self.activations, "silu"),
            "bias": c.get_flag("attention_bias", False) | c.get_flag("mlp_bias", False),
            "dropout": c.get_dropout("attention_dropout"),
        }
        model["n_kv_head"] = model["n_kv_head"] or model["n_head"]
        return {
            "model": model,
            "tied": c.get_flag("tie_word_embeddings", False),
            "padded_vocab": c.get_size("vocab_size"),
        }

    def check_config(self, values: ConfigDict) -> None:
        supported: dict[str, tuple] = {"position": ("rotary",), "norm": ("rmsnorm",), "norm_place": ("pre",)}
        supported |= {"scale": (None,), "qk_norm": (self.has_qk_norm,)}
        supported |= {"activation": tuple(self.activations.values())}
        require_settings(values["model"], supported)
        require_settings(values, {"window": (None,)})

    def write_config(self, values: ConfigDict, tensors: Mapping[str, Tensor]) -> ConfigDict:
        model, base = values["model"], values["model"]["rotary_base"]
        blocks = [f"body.blocks.{i}" for i in range(model["n_layer"])]
        attention_biases = [f"{block}.attn.{name}.bias" for block in blocks for name in ATTENTION]
        mlp_biases = [f"{block}.mlp.{name}.bias" for block in blocks for name in MLP]
        return write_sizes(model, SIZES) | {
            "vocab_size": len(tensors["nodes.token.weight"]),
            "rope_theta": base,  # read by version 4 of transformers, the other by version 5
            "rope_parameters": {"rope_type": "default", "rope_theta": base},
            "rms_norm_eps": model["norm_eps"],
            "hidden_act": get_public_name(model["activation"], self.activations),
            "attention_bias": not are_zero(tensors, attention_biases),
            "mlp_bias": not are_zero(tensors, mlp_biases),
            "attention_dropout": model["dropout"],
            "tie_word_embeddings": values["tied"],
        }

    def build_tensor_map(self, config: ConfigDict) -> TensorMap:
        return [
            map_tensor("nodes.token.weight", "model.embed_tokens.weight"),
            *map_layers(config["num_hidden_layers"], self.map_block(config)),
            map_tensor("body.norm.weight", "model.norm.weight"),
            map_lm_head(config.get("tie_word_embeddings", False)),
        ]

    def list_mlp_maps(self, config: ConfigDict) -> Iterable[tuple[str, str]]:
        """Return the linear maps of the MLP as (local name, public name)."""
        return MLP.items()

    def map_block(self, config: ConfigDict) -> TensorMap:
        """Map one layer."""
        local, public = "body.blocks.{i}", "model.layers.{i}"
        attention = map_affine if config.get("attention_bias") else map_weight
        mlp = map_affine if config.get("mlp_bias") else map_weight
        return [
            map_tensor(f"{local}.attn_norm.weight", f"{public}.input_layernorm.weight"),
            *(m for a, b in ATTENTION.items() for m in attention(f"{local}.attn.{a}", f"{public}.self_attn.{b}")),
            map_tensor(f"{local}.mlp_norm.weight", f"{public}.post_attention_layernorm.weight"),
            *(m for a, b in self.list_mlp_maps(config) for m in mlp(f"{local}.mlp.{a}", f"{public}.mlp.{b}")),
        ]


def read_rotary_base(c: ConfigFields) -> float:
    """Read rope_theta, which version 5 of transformers nests and version 4 does not; scaled angles are rejected."""
    nested = ConfigFields(c.get("rope_parameters", {}), f"{c.where}: rope_parameters")
    scaling = ConfigFields(c.get("rope_scaling", {}), f"{c.where}: rope_scaling")
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
