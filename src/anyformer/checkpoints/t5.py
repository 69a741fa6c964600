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
from .config_fields import ConfigFields, require_settings
from .family import Family
from .tensor_map import ConfigDict, TensorMap, WeightSource, map_layers, map_lm_head, map_tensor, map_weight

FEED_FORWARD = {"relu": "relu", "gelu": "gelu", "gated-gelu": "geglu", "gated-silu": "swiglu"}
DENSE_ACTIVATIONS = {"gated-gelu": "gelu_new", "gated-silu": "silu"}  # dense_act_fn in newer files
FIELDS = {
    "d_model": ("dim", 512),
    "num_heads": ("n_head", 8),
    "d_kv": ("head_dim", 64),
    "d_ff": ("mlp_dim", 2048),
    "n_positions": ("context", 512),
    "feed_forward_proj": ("activation", "relu", FEED_FORWARD),
    "layer_norm_epsilon": ("norm_eps", 1e-6),
    "dropout_rate": ("dropout", 0.0),
}
SETTINGS = {
    "position": ("relative",),
    "norm": ("rmsnorm",),
    "norm_place": ("pre",),
    "qk_norm": (False,),
    "bias": (False,),
    "scale": (1.0,),
}
STACKS = {
    "encoder": ({"num_layers": ("n_layer", 6), **FIELDS}, SETTINGS),
    "decoder": ({"num_decoder_layers": ("n_layer", None), **FIELDS}, SETTINGS),
}
VOCABULARY = {"vocab_size": ("padded_vocab", 32128), "tie_word_embeddings": ("tied", True)}
TRANSLATOR_SETTINGS = {
    "shared": (True,),
    "copy": (False,),
    "embedding_norm": (False,),
    "logit_bias": (False,),
    "source_start": (None,),
}
EQUAL_IN_BOTH_STACKS = ("dim", "n_head", "head_dim", "mlp_dim", "norm_eps", "activation", "dropout")
MAX_CONTEXT = 4096  # nodes; relative positions set no limit, but the memory of generation does
BUCKETS = {"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128}


class T5(Family):
    model_type, recipes, architecture = "t5", ("translation", "spans"), "T5ForConditionalGeneration"
    stacks, fields, settings, embedding = STACKS, VOCABULARY, TRANSLATOR_SETTINGS, "source.token.weight"

    def normalize_name(self, name: str) -> str | None:
        """Ignore copies of the shared embedding and the unused position bias of cross-attention, in old files."""
        if name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
            return None
        return None if name.endswith("EncDecAttention.relative_attention_bias.weight") else name

    def read_config(self, c: ConfigFields, weights: WeightSource) -> ConfigDict:
        c.require(**BUCKETS, is_decoder=False)
        values = super().read_config(c, weights)
        context = min(values["encoder"]["context"], MAX_CONTEXT)
        n_layer = values["decoder"]["n_layer"] or values["encoder"]["n_layer"]
        name, vocab_size, tied = c.get("feed_forward_proj", "relu"), values["padded_vocab"], values["tied"]
        c.require(dense_act_fn=DENSE_ACTIVATIONS.get(name, name), is_gated_act=name in DENSE_ACTIVATIONS)
        pad = c.get_token_id("pad_token_id", 0, vocab_size)
        return values | {
            "encoder": values["encoder"] | {"context": context},
            "decoder": values["decoder"] | {"context": context, "n_layer": n_layer},
            "tied": "lm_head.weight" not in weights.shapes if "scale_decoder_outputs" in c.values else tied,
            "scaled": c.get_flag("scale_decoder_outputs", tied),
            "start": c.get_token_id("decoder_start_token_id", pad, vocab_size),
            "end": c.get_token_id("eos_token_id", 1, vocab_size),
        }

    def check_config(self, values: ConfigDict) -> None:
        super().check_config(values)
        equal = {name: (values["encoder"][name],) for name in EQUAL_IN_BOTH_STACKS}
        require_settings(values["decoder"], equal, "decoder.")
        require_settings(values, {"scaled": (values["tied"],)})
        if values["start"] is None or values["end"] is None:
            raise InputError("start and end, the ids that begin and end a target, must be set")

    def write_config(self, values: ConfigDict, tensors: Mapping[str, Tensor]) -> ConfigDict:
        contexts = [values[stack]["context"] for stack in STACKS]
        config = super().write_config(values, tensors) | {"n_positions": max(contexts), **BUCKETS}
        return config | {"is_encoder_decoder": True, **get_token_ids(values)}

    def make_files(self, values: ConfigDict, files: Mapping[str, str]) -> dict[str, ConfigDict]:
        """Return generation_config.json, without which transformers does not know how a target begins."""
        name = "generation_config.json"
        return {name: json.loads(files[name]) if name in files else get_token_ids(values)}

    def build_tensor_map(self, values: ConfigDict, config: ConfigDict) -> TensorMap:
        return [
            map_tensor("source.token.weight", "shared.weight"),
            *map_stack("encoder", values["encoder"]),
            *map_stack("decoder", values["decoder"]),
            map_lm_head(values["tied"], "source.token"),
        ]


def get_token_ids(values: ConfigDict) -> ConfigDict:
    """Return the ids that begin and end a target; the first also pads."""
    start = dict.fromkeys(("decoder_start_token_id", "pad_token_id"), values["start"])
    return start | {"bos_token_id": None, "eos_token_id": values["end"]}


def map_stack(stack: str, model: ConfigDict) -> TensorMap:
    """Map the encoder or the decoder, whose blocks also have cross-attention."""
    attention = [("attn", "SelfAttention")] + ([("cross", "EncDecAttention")] if stack == "decoder" else [])
    block = {}
    for i, (local, public) in enumerate(attention):
        block |= {f"{local}.{name}": f"{i}.{public}.{name[0]}" for name in ("query", "key", "value", "output")}
        block |= {f"{local}_norm": f"{i}.layer_norm"}
    i, is_gated = len(attention), model["activation"] in ("geglu", "swiglu")
    mlp = {"gate": "wi_0", "up": "wi_1", "down": "wo"} if is_gated else {"up": "wi", "down": "wo"}
    block |= {f"mlp.{local}": f"{i}.DenseReluDense.{public}" for local, public in mlp.items()}
    block |= {"mlp_norm": f"{i}.layer_norm"}
    position = "block.0.layer.0.SelfAttention.relative_attention_bias"
    return [
        *map_layers(model["n_layer"], map_weight(block, f"{stack}.blocks.{{i}}.", f"{stack}.block.{{i}}.layer.")),
        *map_weight({"bias": position, "norm": "final_layer_norm"}, f"{stack}.", f"{stack}."),
    ]
