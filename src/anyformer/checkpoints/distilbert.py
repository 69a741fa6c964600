"""DistilBERT (1910.01108): the `distilbert` family, BERT without token types."""

from .bert import BERT, MASKED_SETTINGS, SETTINGS, WORDS, map_masked_head
from .config_fields import ACTIVATIONS, ConfigFields
from .tensor_map import ConfigDict, TensorMap, WeightSource, map_affine, map_layers, map_weight

FIELDS = {
    "dim": ("dim", 768),
    "n_layers": ("n_layer", 6),
    "n_heads": ("n_head", 12),
    "hidden_dim": ("mlp_dim", 3072),
    "activation": ("activation", "gelu", ACTIVATIONS),
    "max_position_embeddings": ("context", 512),
    **dict.fromkeys(("dropout", "attention_dropout"), ("dropout", 0.0)),
}
MAPS = {
    "attn.query": "attention.q_lin",
    "attn.key": "attention.k_lin",
    "attn.value": "attention.v_lin",
    "attn.output": "attention.out_lin",
    "attn_norm": "sa_layer_norm",
    "mlp.up": "ffn.lin1",
    "mlp.down": "ffn.lin2",
    "mlp_norm": "output_layer_norm",
}


class DistilBERT(BERT):
    model_type, architecture = "distilbert", "DistilBertForMaskedLM"
    stacks = {"model": (FIELDS, SETTINGS | {"norm_eps": (1e-12,)})}
    fields = {"vocab_size": ("padded_vocab", 30522), "tie_word_embeddings": ("tied", True)}
    settings = MASKED_SETTINGS | {"token_types": (0,)}
    prefix, ignored = "distilbert.", ("embeddings.position_ids",)
    head = ("vocab_transform", "vocab_layer_norm", "vocab_projector")

    def read_config(self, c: ConfigFields, weights: WeightSource) -> ConfigDict:
        c.require(tie_weights_=True)
        c.get_flag("sinusoidal_pos_embds", False)  # only how the positions, which are in the file, were made
        return super().read_config(c, weights)

    def build_tensor_map(self, values: ConfigDict, config: ConfigDict) -> TensorMap:
        block = map_affine(MAPS, "body.blocks.{i}.", "distilbert.transformer.layer.{i}.")
        return [
            *self.map_embeddings("distilbert.embeddings."),
            *map_layers(values["model"]["n_layer"], block),
            *map_masked_head(values["tied"], *self.head),
        ]

    def map_embeddings(self, public: str) -> TensorMap:
        return [*map_weight(WORDS, public=public), *map_affine({"nodes.norm": "LayerNorm"}, public=public)]
