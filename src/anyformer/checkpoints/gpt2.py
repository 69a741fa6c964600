"""GPT-2 (Radford et al. 2019): the `gpt2` family.

Linear maps are stored [in, out], with query, key and value side by side. Biases are always stored; a model without them
is written with zeros, and a file whose biases are all zero is read as a model without them.
"""

from collections.abc import Mapping

from torch import Tensor

from .config_fields import ACTIVATIONS, ConfigFields, get_public_name, require_layernorm, require_settings, write_sizes
from .family import Family
from .tensor_map import ConfigDict, TensorMap, WeightSource, has_biases, map_affine, map_layers, map_lm_head, map_tensor

SIZES = {
    "n_embd": ("dim", 768),
    "n_layer": ("n_layer", 12),
    "n_head": ("n_head", 12),
    "n_inner": ("mlp_dim", None),
    "n_positions": ("context", 1024),
}
DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")


class GPT2(Family):
    model_type, recipes, architecture = "gpt2", ("language",), "GPT2LMHeadModel"

    def normalize_name(self, name: str) -> str | None:
        """Add the prefix `transformer.`; old files also store causal masks."""
        bare = name.removeprefix("transformer.")
        if bare.endswith((".attn.bias", ".attn.masked_bias")):
            return None
        return bare if bare == "lm_head.weight" else f"transformer.{bare}"

    def read_config(self, c: ConfigFields, weights: WeightSource) -> ConfigDict:
        model = read_body(c, weights, SIZES, "gelu_new") | {"bias": has_biases(weights)}
        return {
            "model": model,
            "tied": c.get_flag("tie_word_embeddings", True),
            "padded_vocab": c.get_size("vocab_size"),
        }

    def check_config(self, values: ConfigDict) -> None:
        require_layernorm(values["model"], position=("learned",), norm_place=("pre",))
        require_settings(values, {"window": (None,)})

    def write_config(self, values: ConfigDict, tensors: Mapping[str, Tensor]) -> ConfigDict:
        return {
            "vocab_size": len(tensors["nodes.token.weight"]),
            "n_ctx": values["model"]["context"],
            "tie_word_embeddings": values["tied"],
            **write_body(values["model"], SIZES),
        }

    def build_tensor_map(self, config: ConfigDict) -> TensorMap:
        return [
            map_tensor("nodes.token.weight", "transformer.wte.weight"),
            map_tensor("nodes.position.weight", "transformer.wpe.weight"),
            *map_body(config.get("n_layer", 12), "transformer"),
            map_lm_head(config.get("tie_word_embeddings", True)),
        ]


def read_body(c: ConfigFields, weights: WeightSource, sizes: Mapping, activation: str) -> ConfigDict:
    """Read the fields of GPT-2's blocks, which other families share. activation: the family's default."""
    c.require(add_cross_attention=False, scale_attn_weights=True, reorder_and_upcast_attn=False)
    c.require(scale_attn_by_inverse_layer_idx=False)
    model = c.get_sizes(sizes, max_layers=len(weights.shapes))
    return model | {
        "mlp_dim": model["mlp_dim"] or 4 * model["dim"],
        "activation": c.get_choice("activation_function", ACTIVATIONS, activation),
        "norm_eps": c.get_number("layer_norm_epsilon", 1e-5),
        "dropout": c.get_dropout("resid_pdrop"),
    }


def write_body(model: ConfigDict, sizes: Mapping) -> ConfigDict:
    return write_sizes(model, sizes) | {
        "activation_function": get_public_name(model["activation"], ACTIVATIONS),
        "layer_norm_epsilon": model["norm_eps"],
        **dict.fromkeys(DROPOUTS, model["dropout"]),
    }


def map_body(n_layer: int, prefix: str) -> TensorMap:
    """Map the blocks and the final norm."""
    local, public = "body.blocks.{i}", f"{prefix}.h.{{i}}"
    qkv = [f"{local}.attn.{name}" for name in ("query", "key", "value")]
    block = [
        *map_affine(f"{local}.attn_norm", f"{public}.ln_1"),
        *map_affine(qkv, f"{public}.attn.c_attn", transposed=True),
        *map_affine(f"{local}.attn.output", f"{public}.attn.c_proj", transposed=True),
        *map_affine(f"{local}.mlp_norm", f"{public}.ln_2"),
        *map_affine(f"{local}.mlp.up", f"{public}.mlp.c_fc", transposed=True),
        *map_affine(f"{local}.mlp.down", f"{public}.mlp.c_proj", transposed=True),
    ]
    return [*map_layers(n_layer, block), *map_affine("body.norm", f"{prefix}.ln_f")]


family = GPT2()
