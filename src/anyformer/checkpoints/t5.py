"""T5 (1910.10683): the `t5` family, v1.0 and v1.1.

No biases, attention scores that are not divided by the square root of a head's channels, relative position buckets that
all layers of a stack share. v1.0 ties the head to the embedding and scales its input; v1.1 (2002.05202) does neither,
and its MLP is gated. In older files `tie_word_embeddings` decides both; newer ones always set it, have a field for the
scale, and are untied where they store a head.
"""

import json
from collections.abc import Mapping

from torch import Tensor

from ..errors import InputError
from .config_fields import ConfigFields, get_public_name, require_settings, write_sizes
from .family import Family
from .tensor_map import ConfigDict, TensorMap, WeightSource, map_layers, map_lm_head, map_tensor

SIZES = {
    "d_model": ("dim", 512),
    "num_heads": ("n_head", 8),
    "d_kv": ("head_dim", 64),
    "d_ff": ("mlp_dim", 2048),
    "num_layers": ("n_layer", 6),
}
FEED_FORWARD = {"relu": "relu", "gelu": "gelu", "gated-gelu": "geglu", "gated-silu": "swiglu"}
DENSE_ACTIVATIONS = {"gated-gelu": "gelu_new", "gated-silu": "silu"}  # dense_act_fn in newer files
EQUAL_IN_BOTH_STACKS = ("dim", "n_head", "n_kv_head", "head_dim", "mlp_dim", "norm_eps", "activation", "dropout")
MAX_CONTEXT = 4096  # nodes; relative positions set no limit, but the memory of generation does
ATTENTION = {"query": "q", "key": "k", "value": "v", "output": "o"}
MODEL_SETTINGS = {
    "position": ("relative",),
    "norm": ("rmsnorm",),
    "norm_place": ("pre",),
    "qk_norm": (False,),
    "bias": (False,),
    "scale": (1,),
    "activation": tuple(FEED_FORWARD.values()),
}


class T5(Family):
    model_type, recipes, architecture = "t5", ("translation", "spans"), "T5ForConditionalGeneration"

    def normalize_name(self, name: str) -> str | None:
        """Ignore copies of the shared embedding and the unused position bias of cross-attention, in old files."""
        if name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
            return None
        return None if name.endswith("EncDecAttention.relative_attention_bias.weight") else name

    def read_config(self, c: ConfigFields, weights: WeightSource) -> ConfigDict:
        c.require(relative_attention_num_buckets=32, relative_attention_max_distance=128, is_decoder=False)
        feed_forward = c.get("feed_forward_proj", "relu")
        encoder = c.get_sizes(SIZES, max_layers=len(weights.shapes)) | {
            "context": min(c.get_size("n_positions", 512), MAX_CONTEXT),
            "position": "relative",
            "norm": "rmsnorm",
            "norm_eps": c.get_number("layer_norm_epsilon", 1e-6),
            "activation": c.get_choice("feed_forward_proj", FEED_FORWARD, "relu"),
            "bias": False,
            "scale": 1.0,
            "dropout": c.get_dropout("dropout_rate"),
        }
        c.require(
            dense_act_fn=DENSE_ACTIVATIONS.get(feed_forward, feed_forward),
            is_gated_act=feed_forward in DENSE_ACTIVATIONS,
        )
        n_layer = c.get_size("num_decoder_layers", encoder["n_layer"], limit=len(weights.shapes))
        vocab_size, tied = c.get_size("vocab_size", 32128), c.get_flag("tie_word_embeddings", True)
        stored_head, is_newer = "lm_head.weight" in weights.shapes, "scale_decoder_outputs" in c.values
        pad = c.get_token_id("pad_token_id", 0, vocab_size)
        return {
            "encoder": encoder,
            "decoder": encoder | {"n_layer": n_layer},
            "shared": True,
            "tied": not stored_head if is_newer else tied,
            "scaled": c.get_flag("scale_decoder_outputs", tied),
            "padded_vocab": vocab_size,
            "start": c.get_token_id("decoder_start_token_id", pad, vocab_size),
            "end": c.get_token_id("eos_token_id", 1, vocab_size),
        }

    def check_config(self, values: ConfigDict) -> None:
        encoder, decoder = values["encoder"], values["decoder"]
        require_settings(encoder, MODEL_SETTINGS, "encoder.")
        require_settings(decoder, MODEL_SETTINGS | {"n_kv_head": (None, decoder["n_head"])}, "decoder.")
        for name in EQUAL_IN_BOTH_STACKS:
            if decoder[name] != encoder[name]:
                raise InputError(f"{name} is {encoder[name]} in the encoder and {decoder[name]} in the decoder")
        require_settings(values, {"shared": (True,), "scaled": (values["tied"],)})
        if values["start"] is None or values["end"] is None:
            raise InputError("start and end, the ids that begin and end a target, must be set")

    def write_config(self, values: ConfigDict, tensors: Mapping[str, Tensor]) -> ConfigDict:
        encoder, decoder = values["encoder"], values["decoder"]
        return write_sizes(encoder, SIZES) | {
            "vocab_size": len(tensors["source.token.weight"]),
            "num_decoder_layers": decoder["n_layer"],
            "n_positions": max(decoder["context"], encoder["context"]),
            "relative_attention_num_buckets": 32,
            "relative_attention_max_distance": 128,
            "feed_forward_proj": get_public_name(decoder["activation"], FEED_FORWARD),
            "layer_norm_epsilon": decoder["norm_eps"],
            "dropout_rate": decoder["dropout"],
            "tie_word_embeddings": values["tied"],
            "is_encoder_decoder": True,
            **get_token_ids(values),
        }

    def write_extra_files(self, values: ConfigDict, files: Mapping[str, str]) -> dict[str, str]:
        """Return generation_config.json, without which transformers does not know how a target begins."""
        return {
            "generation_config.json": files.get("generation_config.json", json.dumps(get_token_ids(values), indent=2))
        }

    def build_tensor_map(self, config: ConfigDict) -> TensorMap:
        n_layer, tied = config.get("num_layers", 6), config.get("tie_word_embeddings", True)
        head = map_tensor("source.token.weight", "lm_head.weight", duplicate=True) if tied else map_lm_head(tied=False)
        return [
            map_tensor("source.token.weight", "shared.weight"),
            *map_stack("encoder", n_layer, config),
            *map_stack("decoder", config.get("num_decoder_layers") or n_layer, config),
            head,
        ]


def get_token_ids(values: ConfigDict) -> ConfigDict:
    """Return the ids that begin and end a target; the first also pads."""
    return {
        "decoder_start_token_id": values["start"],
        "pad_token_id": values["start"],
        "bos_token_id": None,
        "eos_token_id": values["end"],
    }


def map_stack(stack: str, n_layer: int, config: ConfigDict) -> TensorMap:
    """Map the encoder or the decoder, whose blocks also have cross-attention."""
    local, public = f"{stack}.blocks.{{i}}", f"{stack}.block.{{i}}.layer"
    is_decoder, mlp_layer = stack == "decoder", 2 if stack == "decoder" else 1
    is_gated = str(config.get("feed_forward_proj", "relu")).startswith("gated")
    mlp = {"gate": "wi_0", "up": "wi_1", "down": "wo"} if is_gated else {"up": "wi", "down": "wo"}
    block = [
        *map_attention(f"{local}.attn", f"{public}.0", "SelfAttention"),
        *(map_attention(f"{local}.cross", f"{public}.1", "EncDecAttention") if is_decoder else []),
        *(
            map_tensor(f"{local}.mlp.{a}.weight", f"{public}.{mlp_layer}.DenseReluDense.{b}.weight")
            for a, b in mlp.items()
        ),
        map_tensor(f"{local}.mlp_norm.weight", f"{public}.{mlp_layer}.layer_norm.weight"),
    ]
    return [
        *map_layers(n_layer, block),
        map_tensor(f"{stack}.bias.weight", f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"),
        map_tensor(f"{stack}.norm.weight", f"{stack}.final_layer_norm.weight"),
    ]


def map_attention(local: str, public: str, kind: str) -> TensorMap:
    """Map an attention and the norm before it."""
    maps = [map_tensor(f"{local}.{a}.weight", f"{public}.{kind}.{b}.weight") for a, b in ATTENTION.items()]
    return [*maps, map_tensor(f"{local}_norm.weight", f"{public}.layer_norm.weight")]


family = T5()
