"""BERT (1810.04805): the `bert` family, with its head for masked tokens or without.

Post-norm; the embedding is normalized too, and has a vector for each of two token types. The pooler and the
next-sentence head are ignored.
"""

from ..errors import InputError
from .config_fields import ACTIVATIONS, LAYERNORM, ConfigFields
from .family import Family
from .tensor_map import ConfigDict, TensorMap, WeightSource, map_affine, map_layers, map_tensor, map_weight

IGNORED = ("pooler.", "cls.seq_relationship.", "embeddings.position_ids")
ENCODER_FIELDS = {
    "hidden_size": ("dim", 768),
    "num_hidden_layers": ("n_layer", 12),
    "num_attention_heads": ("n_head", 12),
    "intermediate_size": ("mlp_dim", 3072),
    "hidden_act": ("activation", "gelu", ACTIVATIONS),
    "layer_norm_eps": ("norm_eps", 1e-12),
    **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), ("dropout", 0.0)),
}
FIELDS = {**ENCODER_FIELDS, "max_position_embeddings": ("context", 512)}
SETTINGS = {"position": ("learned",), "norm_place": ("post",), "bias": (True,), **LAYERNORM}
VOCABULARY = {
    "vocab_size": ("padded_vocab", 30522),
    "type_vocab_size": ("token_types", 2),
    "tie_word_embeddings": ("tied", True),
}
QKV = ("query", "key", "value")
ENCODER_MAPS = {
    "attn.output": "attention.output.dense",
    "mlp.up": "intermediate.dense",
    "mlp.down": "output.dense",
}
NORMS = {"attn_norm": "attention.output.LayerNorm", "mlp_norm": "output.LayerNorm"}
EMBEDDINGS = {
    "nodes.token": "word_embeddings",
    "nodes.position": "position_embeddings",
    "nodes.kind": "token_type_embeddings",
}


class BERT(Family):
    model_type, recipes, architecture = "bert", ("masked",), "BertForMaskedLM"
    stacks, fields = {"model": (FIELDS, SETTINGS)}, VOCABULARY
    settings, embedding = {"embedding_norm": (True,)}, "nodes.token.weight"

    def normalize_name(self, name: str) -> str | None:
        """Add the prefix `bert.`; old files call a norm's weight and bias gamma and beta."""
        bare = name.removeprefix("bert.")
        if bare.startswith(IGNORED):
            return None
        bare = bare.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        return bare if bare.startswith("cls.") else f"bert.{bare}"

    def read_config(self, c: ConfigFields, weights: WeightSource) -> ConfigDict:
        c.require(position_embedding_type="absolute", is_decoder=False, add_cross_attention=False)
        return super().read_config(c, weights)

    def check_config(self, values: ConfigDict) -> None:
        super().check_config(values)
        if not values["token_types"]:
            raise InputError("token_types is 0, not at least 1")

    def build_tensor_map(self, values: ConfigDict, config: ConfigDict) -> TensorMap:
        maps = ENCODER_MAPS | NORMS | {f"attn.{name}": f"attention.self.{name}" for name in QKV}
        head, matrix = "cls.predictions.", "nodes.token.weight" if values["tied"] else "head.project.weight"
        # Untied, transformers stores two biases and adds the decoder's.
        options = {"duplicate": True} if values["tied"] else {"optional": True}
        return [
            *map_weight(EMBEDDINGS, public="bert.embeddings."),
            *map_affine({"nodes.norm": "bert.embeddings.LayerNorm"}),
            *map_layers(values["model"]["n_layer"], map_affine(maps, "body.blocks.{i}.", "bert.encoder.layer.{i}.")),
            *map_affine({"dense": "dense", "norm": "LayerNorm"}, "head.", f"{head}transform.", optional=True),
            map_tensor("head.project.bias", f"{head}bias", optional=True),
            map_tensor(matrix, f"{head}decoder.weight", **options),
            map_tensor("head.project.bias", f"{head}decoder.bias", **options),
        ]


family = BERT()
