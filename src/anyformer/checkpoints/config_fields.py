"""Read config.json of a public checkpoint, and write one. A field that would change the result is never ignored.

A recipe's `TransformerConfig` and a public config name the same sizes differently: a size table maps a public field to
(local field, default) and is read in both directions.
"""

import re
from collections.abc import Mapping
from typing import Any

from ..data.io.checks import is_finite_number
from ..errors import InputError
from .tensor_map import ConfigDict

MAX_SIZE = 1 << 31
REQUIRED = object()  # the default of a field that a config must have
SizeTable = Mapping[str, tuple[str, Any]]

# Fields that do not change the result of a forward pass: bookkeeping, initialization, dropout, generation defaults.
IGNORED_FIELDS = re.compile(
    r"_.*|architectures|model_type|transformers(_|\.js_).*|(torch_)?dtype|(attn|experts)_implementation|quantization_config_used"
    r"|use_cache|torchscript|use_bfloat16|tf_legacy_loss|output_.*|return_dict(_in_generate)?|gradient_checkpointing"
    r"|(bos|eos|pad|sep|cls|mask|decoder_start|decoder_bos|forced_bos|forced_eos|suppress|begin_suppress|image|unk)_token_id"
    r"|initializer_(range|factor)|init_std|.*(dropout|dropout_prob|pdrop|dropout_rate|layerdrop|drop_path_rate)"
    r"|chunk_size_feed_forward|is_encoder_decoder|task_specific_params|problem_type|finetuning_task|tokenizer_class"
    r"|prefix|summary_.*|pooler_.*|id2label|label2id|num_labels|directionality|ignore_value|name|license"
    r"|(max|min)_length|max_new_tokens|do_sample|early_stopping|num_beams|num_beam_groups|diversity_penalty|temperature"
    r"|top_[kp]|typical_p|repetition_penalty|length_penalty|(encoder_)?no_repeat_ngram_size|bad_words_ids"
    r"|num_return_sequences|remove_invalid_values|exponential_decay_length_penalty|forced_.*|suppress_tokens"
    r"|begin_suppress_tokens|n_special|predict_special_tokens|output_past|classifier_proj_size|use_weighted_layer_sum"
    r"|apply_spec_augment|mask_(time|feature)_.*|median_filter_width|max_source_positions_used|n_ctx|xla_device"
)
# Activations by their names in transformers. Written with the first name of each.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}


class ConfigFields:
    """A config of which every field that is read is noted; `reject_unread` raises InputError for the others.

    All methods raise InputError that names the file, the field, its value and what would be valid.
    """

    def __init__(self, values: Mapping[str, Any], where: str):
        self.values, self.where = values, where
        self.names_read: set[str] = set()

    def get(self, name: str, default: Any = REQUIRED) -> Any:
        """Return a field; null counts as absent."""
        self.names_read.add(name)
        value = self.values.get(name)
        if value is None and default is REQUIRED:
            raise InputError(f"{self.where} lacks {name}")
        return default if value is None else value

    def get_size(self, name: str, default: Any = REQUIRED, limit: int = MAX_SIZE) -> int:
        """Return a whole number from 1 to `limit`, or the default (which may be None)."""
        value = self.get(name, default)
        if value is default:
            return value
        if type(value) is not int or not 0 < value <= limit:
            valid = "from 1 on" if limit == MAX_SIZE else f"from 1 to {limit}"
            raise InputError(f"{self.where}: {name} is {value!r}; it must be a whole number {valid}")
        return value

    def get_sizes(self, table: SizeTable, max_layers: int) -> ConfigDict:
        """Read all fields of a size table; a model cannot have more layers than a file has tensors."""
        limits = {"n_layer": max_layers}
        return {
            local: self.get_size(public, default, limits.get(local, MAX_SIZE))
            for public, (local, default) in table.items()
        }

    def get_number(self, name: str, default: float) -> float:
        value = self.get(name, default)
        if not is_finite_number(value):
            raise InputError(f"{self.where}: {name} is {value!r}; it must be a number")
        return float(value)

    def get_flag(self, name: str, default: bool) -> bool:
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise InputError(f"{self.where}: {name} is {value!r}; it must be true or false")
        return value

    def get_choice(self, name: str, choices: Mapping[Any, Any], default: Any) -> Any:
        """Return what `choices` maps the field's value to."""
        value = self.get(name, default)
        if not isinstance(value, str | int | float | bool) or value not in choices:
            supported = ", ".join(map(repr, choices))
            raise InputError(f"{self.where}: {name} is {value!r}, which is not supported; supported: {supported}")
        return choices[value]

    def get_token_id(self, name: str, default: Any, vocab_size: int) -> Any:
        """Return the id of a token, or the default (which may be None)."""
        value = self.get(name, default)
        if value is not None and (type(value) is not int or not 0 <= value < vocab_size):
            raise InputError(f"{self.where}: {name} is {value!r}; it must be an id from 0 to {vocab_size - 1}")
        return value

    def get_dropout(self, name: str) -> float:
        value = self.get_number(name, 0.0)
        if not 0 <= value < 1:
            raise InputError(f"{self.where}: {name} is {value}; it must be at least 0 and below 1")
        return value

    def require(self, **supported: Any) -> None:
        """Check fields of which one value is supported: each must be absent, null or this value."""
        for name, valid in supported.items():
            value = self.get(name, valid)
            if value != valid:
                raise InputError(f"{self.where}: {name} is {value!r}; this family is supported only with {valid!r}")

    def reject_unread(self) -> None:
        """Raise InputError for a field that nothing has read and that might change the result."""
        for name, value in self.values.items():
            is_empty = value is None or value is False or value in ({}, [])
            if name not in self.names_read and not is_empty and not IGNORED_FIELDS.fullmatch(name):
                raise InputError(
                    f"{self.where}: the field {name} = {value!r} is unknown and might change the result; if it does "
                    "not, remove it from the file"
                )


# --- local -> public ---


def require_settings(values: ConfigDict, supported: Mapping[str, tuple], where: str = "") -> None:
    """Check settings of a recipe's config against the values that a family supports.

    Raises:
        InputError: names the setting, its value and the supported values.
    """
    for name, valid in supported.items():
        if values[name] not in valid:
            names = " or ".join(map(str, dict.fromkeys(valid)))
            raise InputError(f"{where}{name} is {values[name]}, not {names}")


def require_layernorm(model: ConfigDict, where: str = "", **supported: tuple) -> None:
    """Check a `TransformerConfig` for families like GPT-2 and BERT: LayerNorm, an MLP without a gate, as many heads of
    keys as of queries, dim / n_head channels in a head; `supported`: further settings."""
    supported |= {"norm": ("layernorm",), "activation": tuple(ACTIVATIONS.values()), "qk_norm": (False,)}
    heads, channels = (None, model["n_head"]), (None, model["dim"] // model["n_head"])
    require_settings(model, supported | {"scale": (None,), "n_kv_head": heads, "head_dim": channels}, where)


def write_sizes(model: ConfigDict, table: SizeTable) -> ConfigDict:
    """Return the public fields of a size table for a `TransformerConfig`, its defaults resolved."""
    resolved = model | {
        "n_kv_head": model["n_kv_head"] or model["n_head"],
        "head_dim": model["head_dim"] or model["dim"] // model["n_head"],
        "mlp_dim": model["mlp_dim"] or 4 * model["dim"],
    }
    return {public: resolved[local] for public, (local, _) in table.items()}


def get_public_name(local: str, choices: Mapping[str, str]) -> str:
    """Return the first public name of a local choice, such as an activation."""
    return next(public for public, name in choices.items() if name == local)
