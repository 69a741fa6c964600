"""ModernBERT (2412.13663): the `modernbert` family, with its head for masked tokens or without.

Rotary positions, no biases, a gated MLP, pre-norm but for the first attention, since the embedding is normed. The first
of every few layers is global; the others read near nodes on either side, with a rotary base of their own.
"""

from collections.abc import Mapping

from torch import Tensor

from ..errors import InputError
from .bert import map_masked_head
from .config_fields import LAYERNORM, ConfigFields
from .family import Family
from .layer_kinds import GLOBAL, LOCAL, read_kinds
from .rotary import expand_cycle, find_cycle, read_scaling
from .sentence_encoder import make_pooling_files, read_pooling
from .tensor_map import ConfigDict, TensorMap, WeightSource, map_affine, map_layers, map_weight

FIELDS = {
    "hidden_size": ("dim", 768),
    "num_hidden_layers": ("n_layer", 22),
    "num_attention_heads": ("n_head", 12),
    "intermediate_size": ("mlp_dim", 1152),
    "hidden_activation": ("activation", "gelu", {"gelu": "geglu_exact", "gelu_pytorch_tanh": "geglu"}),
    "max_position_embeddings": ("context", 8192),
    "norm_eps": ("norm_eps", 1e-5),
    **dict.fromkeys(("mlp_dropout", "attention_dropout", "embedding_dropout"), ("dropout", 0.0)),
}
SETTINGS = {"position": ("rotary",), "norm_place": ("pre",), "bias": (False,), **LAYERNORM}
VOCABULARY = {"vocab_size": ("padded_vocab", 50368), "tie_word_embeddings": ("tied", True)}
# How the weights were drawn, how classifiers pool, how kernels run, and fields that transformers does not read.
UNUSED = ("initializer_cutoff_factor", "classifier_pooling", "deterministic_flash_attn", "reference_compile")
UNUSED += ("sparse_prediction", "sparse_pred_ignore_index", "repad_logits_with_grad", "layer_norm_eps")
UNUSED += ("position_embedding_type",)
BASES = {GLOBAL: 160_000.0, LOCAL: 10_000.0}
BASE_NAMES = {GLOBAL: "global_rope_theta", LOCAL: "local_rope_theta"}
MAPS = {
    ("attn.query", "attn.key", "attn.value"): "attn.Wqkv",
    "attn.output": "attn.Wo",
    ("mlp.gate", "mlp.up"): "mlp.Wi",
    "mlp.down": "mlp.Wo",
    "attn_norm": "attn_norm",
    "mlp_norm": "mlp_norm",
}
OUTER = {"nodes.token": "embeddings.tok_embeddings", "nodes.norm": "embeddings.norm", "body.norm": "final_norm"}
HEAD = ("head.dense", "head.norm", "decoder")
HEAD_BIAS = "head.dense.bias"


class ModernBERT(Family):
    model_type, recipes, architecture = "modernbert", ("masked",), "ModernBertForMaskedLM"
    stacks, fields = {"model": (FIELDS, SETTINGS)}, VOCABULARY
    settings = {"embedding_norm": (True,), "first_norm": (False,), "token_types": (0,)}
    own, embedding = ("rotary_cycle",), "nodes.token.weight"

    def normalize_name(self, name: str) -> str | None:
        """Add the prefix `model.`."""
        bare = name.removeprefix("model.")
        return bare if bare.startswith(HEAD) else f"model.{bare}"

    def read_config(self, c: ConfigFields, weights: WeightSource) -> ConfigDict:
        c.require(norm_bias=False, attention_bias=False, mlp_bias=False, decoder_bias=True)
        c.get_flag("classifier_bias", False)
        for name in UNUSED:
            c.get(name, None)
        values = super().read_config(c, weights)
        c.require(classifier_activation=c.get("hidden_activation", "gelu"))
        kinds, bases = read_layers(c, values["model"]["n_layer"]), read_bases(c, values["model"]["context"])
        cycle = find_cycle([bases[kind] for kind in kinds])
        values["model"] |= {"rotary_base": bases[GLOBAL], "rotary_cycle": cycle if len(set(cycle)) > 1 else []}
        local = {"window": c.get_size("local_attention", 128) // 2 + 1, "global_every": find_period(kinds)}
        return values | (local if LOCAL in kinds else {}) | read_pooling(c.where)

    def check_config(self, values: ConfigDict) -> None:
        super().check_config(values)
        kinds = list_kinds(values)
        for kind in set(kinds):
            find_base(values["model"], kinds, kind)

    def write_config(self, values: ConfigDict, tensors: Mapping[str, Tensor]) -> ConfigDict:
        kinds, model = list_kinds(values), values["model"]
        bases = {kind: find_base(model, kinds, kind) if kind in kinds else BASES[kind] for kind in BASES}
        return super().write_config(values, tensors) | {
            "classifier_activation": "gelu" if model["activation"] == "geglu_exact" else "gelu_pytorch_tanh",
            "classifier_bias": HEAD_BIAS in tensors and bool(tensors[HEAD_BIAS].any()),
            "local_attention": 128 if values["window"] is None else 2 * (values["window"] - 1),
            "layer_types": kinds,
            "rope_parameters": {kind: {"rope_type": "default", "rope_theta": base} for kind, base in bases.items()},
            **{BASE_NAMES[kind]: base for kind, base in bases.items()},
            **dict.fromkeys(("pad_token_id", "cls_token_id", "sep_token_id")),  # the tokenizer has them
            "global_attn_every_n_layers": values["global_every"] if LOCAL in kinds else 1,
        }

    def make_files(self, values: ConfigDict, files: Mapping[str, str]) -> dict[str, ConfigDict]:
        return make_pooling_files(values)

    def build_tensor_map(self, values: ConfigDict, config: ConfigDict) -> TensorMap:
        blocks = map_layers(values["model"]["n_layer"], map_weight(MAPS, "body.blocks.{i}.", "model.layers.{i}."))
        return [
            *map_weight(OUTER, public="model."),
            *(mapping for mapping in blocks if not mapping.local[0].startswith("body.blocks.0.attn_norm.")),
            *map_head(values["tied"], bool(config.get("classifier_bias"))),
        ]


def map_head(tied: bool, has_bias: bool) -> TensorMap:
    """Map the head: its norm has no bias, its hidden layer perhaps."""
    table = [m for m in map_masked_head(tied, *HEAD) if m.local[0] not in ("head.norm.bias", HEAD_BIAS)]
    dense = [m for m in map_affine({"head.dense": HEAD[0]}, optional=True) if m.local[0] == HEAD_BIAS]
    return [*table, *(dense if has_bias else map_weight({"head.dense": HEAD[0]})[1:])]


def read_layers(c: ConfigFields, n_layer: int) -> list[str]:
    """Return the kind of each layer."""
    period = c.get_size("global_attn_every_n_layers", 3)
    kinds = read_kinds(c, [LOCAL if i % period else GLOBAL for i in range(n_layer)])
    if kinds != [LOCAL if i % find_period(kinds) else GLOBAL for i in range(n_layer)]:
        raise InputError(f"{c.where}: layer_types is {kinds}; supported: the first of every k layers is global")
    return kinds


def find_period(kinds: list[str]) -> int:
    return next((i for i, kind in enumerate(kinds) if i and kind == GLOBAL), len(kinds))


def list_kinds(values: ConfigDict) -> list[str]:
    """Return the kind of each layer of a recipe's config."""
    is_local = [values["window"] is not None and i % values["global_every"] for i in range(values["model"]["n_layer"])]
    return [LOCAL if value else GLOBAL for value in is_local]


def read_bases(c: ConfigFields, context: int) -> dict[str, float]:
    """Return the rotary base of each kind of layer. Version 5 of transformers nests it in `rope_parameters`."""
    nested, bases = c.get_object("rope_parameters"), {}
    for kind, name in BASE_NAMES.items():
        part = nested.get_object(kind)
        bases[kind] = part.get_number("rope_theta", c.get_number(name, BASES[kind]))
        c.require(**{name: bases[kind]})
        if read_scaling(part, context, bases[kind]) is not None:
            raise InputError(f"{part.where}: rope_type must be 'default'")
    nested.reject_unread()
    return bases


def find_base(model: ConfigDict, kinds: list[str], kind: str) -> float:
    """Return the rotary base of the layers of a kind. Raises InputError if they differ, or have none."""
    bases = {base for base, own in zip(expand_cycle(model), kinds) if own == kind}
    if len(bases) != 1 or 0.0 in bases:
        raise InputError(f"model.rotary_cycle is {model['rotary_cycle']}; it must be that of local and global layers")
    return bases.pop()
