"""BERT (1810.04805): the `bert` family, with its head for masked tokens or without.

Post-norm; the embedding is normalized too, and has a vector for each of two token types. The pooler and the
next-sentence head are ignored. How a sentence encoder pools is read from the files of sentence-transformers.
"""

from collections.abc import Mapping

from ..errors import InputError
from .config_fields import ACTIVATIONS, LAYERNORM, ConfigFields
from .family import Family
from .sentence_encoder import make_pooling_files, read_pooling
from .tensor_map import ConfigDict, TensorMap, WeightSource, map_affine, map_layers, map_tensor, map_weight

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
ATTENTION = {f"attn.{name}": f"attention.self.{name}" for name in QKV}
ENCODER_MAPS = {
    "attn.output": "attention.output.dense",
    "mlp.up": "intermediate.dense",
    "mlp.down": "output.dense",
}
NORMS = {"attn_norm": "attention.output.LayerNorm", "mlp_norm": "output.LayerNorm"}
WORDS = {"nodes.token": "word_embeddings", "nodes.position": "position_embeddings"}
KINDS = {"nodes.kind": "token_type_embeddings"}
MASKED_SETTINGS = {"embedding_norm": (True,), "window": (None,)}


class BERT(Family):
    """Base class of the families that have BERT's shape.

    Attributes:
        prefix: of the encoder's tensors; they may lack it in a file.
        ignored: beginnings of tensors that nothing reads.
        head: the head for masked tokens: its hidden layer, norm, output map and the bias of that.
    """

    model_type, recipes, architecture = "bert", ("masked",), "BertForMaskedLM"
    stacks, fields = {"model": (FIELDS, SETTINGS)}, VOCABULARY
    settings, embedding = MASKED_SETTINGS, "nodes.token.weight"
    prefix = "bert."
    ignored: tuple[str, ...] = ("pooler.", "cls.seq_relationship.", "embeddings.position_ids")
    head: tuple[str, ...] = (
        "cls.predictions.transform.dense",
        "cls.predictions.transform.LayerNorm",
        "cls.predictions.decoder",
        "cls.predictions.bias",
    )

    def normalize_name(self, name: str) -> str | None:
        """Add the prefix; old files call a norm's weight and bias gamma and beta."""
        bare = name.removeprefix(self.prefix)
        if bare.startswith(self.ignored):
            return None
        bare = bare.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        return bare if bare.startswith(self.head) else f"{self.prefix}{bare}"

    def read_config(self, c: ConfigFields, weights: WeightSource) -> ConfigDict:
        c.require(position_embedding_type="absolute", is_decoder=False, add_cross_attention=False)
        return super().read_config(c, weights) | read_pooling(c.where)

    def check_config(self, values: ConfigDict) -> None:
        super().check_config(values)
        if not values["token_types"] and "type_vocab_size" in self.fields:
            raise InputError("token_types is 0, not at least 1")

    def make_files(self, values: ConfigDict, files: Mapping[str, str]) -> dict[str, ConfigDict]:
        return make_pooling_files(values)

    def build_tensor_map(self, values: ConfigDict, config: ConfigDict) -> TensorMap:
        public = f"{self.prefix}encoder.layer.{{i}}."
        return [
            *self.map_embeddings(f"{self.prefix}embeddings."),
            *map_layers(
                values["model"]["n_layer"], map_affine(ATTENTION | ENCODER_MAPS | NORMS, "body.blocks.{i}.", public)
            ),
            *map_masked_head(values["tied"], *self.head),
        ]

    def map_embeddings(self, public: str) -> TensorMap:
        return [*map_weight(WORDS | KINDS, public=public), *map_affine({"nodes.norm": "LayerNorm"}, public=public)]


def map_masked_head(tied: bool, dense: str, norm: str, decoder: str, bias: str | None = None) -> TensorMap:
    """Map a head for masked tokens, which a file may lack. A tied output map may be stored again."""
    matrix = "nodes.token.weight" if tied else "head.project.weight"
    options = {"duplicate": True} if tied else {"optional": True}
    table = [
        *map_affine({"dense": dense, "norm": norm}, "head.", optional=True),
        map_tensor(matrix, f"{decoder}.weight", **options),
    ]
    if bias is None:
        return [*table, map_tensor("head.project.bias", f"{decoder}.bias", optional=True)]
    # Untied, transformers stores two biases and adds the decoder's.
    biases = map_tensor("head.project.bias", bias, optional=True)
    return [*table, biases, map_tensor("head.project.bias", f"{decoder}.bias", **options)]
