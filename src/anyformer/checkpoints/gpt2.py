"""GPT-2 (Radford et al. 2019): the `gpt2` family.

Linear maps are stored [in, out], with query, key and value side by side. Biases are always stored; a model without them
is written with zeros, and a file whose biases are all zero is read as a model without them.
"""

from .config_fields import ACTIVATIONS, LAYERNORM, REQUIRED, ConfigFields
from .family import Family
from .tensor_map import ConfigDict, TensorMap, WeightSource, has_biases, map_affine, map_layers, map_lm_head, map_weight

BODY_FIELDS = {
    "n_inner": ("mlp_dim", None),
    "n_positions": ("context", 1024),
    "activation_function": ("activation", "gelu_new", ACTIVATIONS),
    "layer_norm_epsilon": ("norm_eps", 1e-5),
    **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), ("dropout", 0.0)),
}
FIELDS = {
    "n_embd": ("dim", 768),
    "n_layer": ("n_layer", 12),
    "n_head": ("n_head", 12),
    **BODY_FIELDS,
    "n_ctx": ("context", 1024),
}
SETTINGS = {"position": ("learned",), "norm_place": ("pre",), **LAYERNORM}
VOCABULARY = {"vocab_size": ("padded_vocab", REQUIRED), "tie_word_embeddings": ("tied", True)}
NORMS = {"attn_norm": "ln_1", "mlp_norm": "ln_2"}
MAPS = {
    ("attn.query", "attn.key", "attn.value"): "attn.c_attn",
    "attn.output": "attn.c_proj",
    "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
}


class GPT2(Family):
    model_type, recipes, architecture = "gpt2", ("language", "chat", "preference", "grpo"), "GPT2LMHeadModel"
    stacks, fields = {"model": (FIELDS, SETTINGS)}, VOCABULARY
    settings, embedding = {"window": (None,)}, "nodes.token.weight"

    def normalize_name(self, name: str) -> str | None:
        """Add the prefix `transformer.`; old files also store causal masks."""
        bare = name.removeprefix("transformer.")
        if bare.endswith((".attn.bias", ".attn.masked_bias")):
            return None
        return bare if bare == "lm_head.weight" else f"transformer.{bare}"

    def read_config(self, c: ConfigFields, weights: WeightSource) -> ConfigDict:
        values = super().read_config(c, weights)
        read_body(c, values["model"], has_biases(weights))
        return values

    def build_tensor_map(self, values: ConfigDict, config: ConfigDict) -> TensorMap:
        return [
            *map_weight({"nodes.token": "wte", "nodes.position": "wpe"}, public="transformer."),
            *map_body(values["model"]["n_layer"], "transformer"),
            map_lm_head(values["tied"]),
        ]


def read_body(c: ConfigFields, model: ConfigDict, has_bias: bool) -> None:
    """Complete the config of GPT-2's blocks, which other families share."""
    c.require(add_cross_attention=False, scale_attn_weights=True, reorder_and_upcast_attn=False)
    c.require(scale_attn_by_inverse_layer_idx=False)
    model |= {"mlp_dim": model["mlp_dim"] or 4 * model["dim"], "bias": has_bias}


def map_body(n_layer: int, prefix: str) -> TensorMap:
    """Map the blocks and the final norm."""
    local, public = "body.blocks.{i}.", f"{prefix}.h.{{i}}."
    block = map_affine(NORMS, local, public) + map_affine(MAPS, local, public, transposed=True)
    return map_layers(n_layer, block) + map_affine({"body.norm": f"{prefix}.ln_f"})
