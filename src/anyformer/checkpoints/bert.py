"""BERT (1810.04805): the `bert` family, with its head for masked tokens or without.

Post-norm; the embedding is normalized too, and has a vector for each of two token types. The pooler and the
next-sentence head are ignored.
"""

from collections.abc import Mapping

from torch import Tensor

from ..errors import InputError
from .config_fields import ACTIVATIONS, ConfigFields, get_public_name, require_layernorm, require_settings, write_sizes
from .family import Family
from .tensor_map import ConfigDict, TensorMap, WeightSource, map_affine, map_layers, map_tensor

IGNORED = ("pooler.", "cls.seq_relationship.", "embeddings.position_ids")
SIZES = {
    "hidden_size": ("dim", 768),
    "num_hidden_layers": ("n_layer", 12),
    "num_attention_heads": ("n_head", 12),
    "intermediate_size": ("mlp_dim", 3072),
    "max_position_embeddings": ("context", 512),
}


class BERT(Family):
    model_type, recipes, architecture = "bert", ("masked",), "BertForMaskedLM"

    def normalize_name(self, name: str) -> str | None:
        """Add the prefix `bert.`; old files call a norm's weight and bias gamma and beta."""
        bare = name.removeprefix("bert.")
        if bare.startswith(IGNORED):
            return None
        bare = bare.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        return bare if bare.startswith("cls.") else f"bert.{bare}"

    def read_config(self, c: ConfigFields, weights: WeightSource) -> ConfigDict:
        c.require(position_embedding_type="absolute", is_decoder=False, add_cross_attention=False)
        model = c.get_sizes(SIZES, max_layers=len(weights.shapes)) | {
            "norm_place": "post",
            "norm_eps": c.get_number("layer_norm_eps", 1e-12),
            "activation": c.get_choice("hidden_act", ACTIVATIONS, "gelu"),
            "dropout": c.get_dropout("hidden_dropout_prob"),
        }
        return {
            "model": model,
            "tied": c.get_flag("tie_word_embeddings", True),
            "padded_vocab": c.get_size("vocab_size", 30522),
            "token_types": c.get_size("type_vocab_size", 2),
            "embedding_norm": True,
        }

    def check_config(self, values: ConfigDict) -> None:
        require_layernorm(values["model"], position=("learned",), norm_place=("post",), bias=(True,))
        require_settings(values, {"embedding_norm": (True,)})
        if not values["token_types"]:
            raise InputError("token_types is 0, not at least 1")

    def write_config(self, values: ConfigDict, tensors: Mapping[str, Tensor]) -> ConfigDict:
        model = values["model"]
        return write_sizes(model, SIZES) | {
            "vocab_size": len(tensors["nodes.token.weight"]),
            "type_vocab_size": values["token_types"],
            "layer_norm_eps": model["norm_eps"],
            "hidden_act": get_public_name(model["activation"], ACTIVATIONS),
            "tie_word_embeddings": values["tied"],
            **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), model["dropout"]),
        }

    def build_tensor_map(self, config: ConfigDict) -> TensorMap:
        local, public = "body.blocks.{i}", "bert.encoder.layer.{i}"
        qkv = ("query", "key", "value")
        block = [
            *(m for n in qkv for m in map_affine(f"{local}.attn.{n}", f"{public}.attention.self.{n}")),
            *map_affine(f"{local}.attn.output", f"{public}.attention.output.dense"),
            *map_affine(f"{local}.attn_norm", f"{public}.attention.output.LayerNorm"),
            *map_affine(f"{local}.mlp.up", f"{public}.intermediate.dense"),
            *map_affine(f"{local}.mlp.down", f"{public}.output.dense"),
            *map_affine(f"{local}.mlp_norm", f"{public}.output.LayerNorm"),
        ]
        tied, head = config.get("tie_word_embeddings", True), "cls.predictions"
        matrix = "nodes.token.weight" if tied else "head.project.weight"
        # Untied, transformers stores two biases and adds the decoder's.
        decoder = {"duplicate": True} if tied else {"optional": True}
        return [
            map_tensor("nodes.token.weight", "bert.embeddings.word_embeddings.weight"),
            map_tensor("nodes.position.weight", "bert.embeddings.position_embeddings.weight"),
            map_tensor("nodes.kind.weight", "bert.embeddings.token_type_embeddings.weight"),
            *map_affine("nodes.norm", "bert.embeddings.LayerNorm"),
            *map_layers(config.get("num_hidden_layers", 12), block),
            *map_affine("head.dense", f"{head}.transform.dense", optional=True),
            *map_affine("head.norm", f"{head}.transform.LayerNorm", optional=True),
            map_tensor("head.project.bias", f"{head}.bias", optional=True),
            map_tensor(matrix, f"{head}.decoder.weight", **decoder),
            map_tensor("head.project.bias", f"{head}.decoder.bias", **decoder),
        ]


family = BERT()
