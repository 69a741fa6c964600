"""Read config.json of a public checkpoint, and write one. A field that would change the result is never ignored.

A field table says what each public field is in a recipe's config; it is read in both directions. Settings say which
values of further fields of the recipe's config a family can express; on import, each gets the first of them.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from ..data.io.checks import is_finite_number
from ..errors import InputError
from .tensor_map import ConfigDict

MAX_SIZE = 1 << 31
REQUIRED = object()  # the default of a field that a config must have
FieldTable = Mapping[str, tuple]
"""Public field -> (local field, default), or (local field, default, choices), where choices map a public value to a
local one. The type of the default is that of the field; None and REQUIRED stand for sizes. Of several public fields
with the same local field, the first is read and all are written."""
Settings = Mapping[str, tuple]
"""Local field -> supported values."""

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
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu2": "relu2",
}
LAYERNORM: Settings = {"norm": ("layernorm",), "qk_norm": (False,), "scale": (None,)}  # of GPT-2, BERT and their kin


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

    def _get_checked(self, name: str, default: Any, is_valid: Callable[[Any], bool], expected: str) -> Any:
        value = self.get(name, default)
        if value is not None and not is_valid(value):
            raise InputError(f"{self.where}: {name} is {value!r}; it must be {expected}")
        return value

    def get_size(self, name: str, default: Any = REQUIRED, limit: int = MAX_SIZE) -> int:
        """Return a whole number from 1 to `limit`, or the default (which may be None)."""
        valid = "from 1 on" if limit == MAX_SIZE else f"from 1 to {limit}"
        return self._get_checked(name, default, lambda n: type(n) is int and 0 < n <= limit, f"a whole number {valid}")

    def get_number(self, name: str, default: Any) -> float:
        return float(self._get_checked(name, default, is_finite_number, "a number"))

    def get_flag(self, name: str, default: bool) -> bool:
        return self._get_checked(name, default, lambda value: isinstance(value, bool), "true or false")

    def get_choice(self, name: str, choices: Mapping[Any, Any], default: Any) -> Any:
        """Return what `choices` maps the field's value to."""
        value = self.get(name, default)
        if not isinstance(value, str | int | float | bool) or value not in choices:
            supported = ", ".join(map(repr, choices))
            raise InputError(f"{self.where}: {name} is {value!r}, which is not supported; supported: {supported}")
        return choices[value]

    def get_token_id(self, name: str, default: Any, vocab_size: int) -> Any:
        """Return the id of a token, or the default (which may be None)."""
        expected = f"an id from 0 to {vocab_size - 1}"
        return self._get_checked(name, default, lambda i: type(i) is int and 0 <= i < vocab_size, expected)

    def get_object(self, name: str) -> "ConfigFields":
        value = self._get_checked(name, {}, lambda value: isinstance(value, dict), "an object")
        return ConfigFields(value, f"{self.where}: {name}")

    def require(self, **supported: Any) -> None:
        """Check fields of which one value is supported: each must be absent, null or this value."""
        for name, valid in supported.items():
            if (value := self.get(name, valid)) != valid:
                raise InputError(f"{self.where}: {name} is {value!r}; this family is supported only with {valid!r}")

    def read_table(self, table: FieldTable, max_layers: int = MAX_SIZE) -> ConfigDict:
        """Return the local fields of a table; a model cannot have more layers than a file has tensors."""
        values: ConfigDict = {}
        for public, (local, default, *choices) in table.items():
            if local in values:
                continue
            if choices:
                values[local] = self.get_choice(public, choices[0], default)
            elif local == "dropout":
                in_range, valid = lambda p: is_finite_number(p) and 0 <= p < 1, "a number of at least 0 and below 1"
                values[local] = float(self._get_checked(public, default, in_range, valid))
            elif isinstance(default, bool):
                values[local] = self.get_flag(public, default)
            elif isinstance(default, float):
                values[local] = self.get_number(public, default)
            else:
                values[local] = self.get_size(public, default, max_layers if local == "n_layer" else MAX_SIZE)
        return values

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


def require_settings(values: ConfigDict, supported: Settings, where: str = "") -> None:
    """Raise InputError naming a setting of a recipe's config that has no supported value."""
    for name, valid in supported.items():
        if values[name] not in valid:
            names = " or ".join(dict.fromkeys(map(str, valid)))
            raise InputError(f"{where}{name} is {values[name]}, not {names}")


def require_model(model: ConfigDict, table: FieldTable, settings: Settings, where: str = "") -> None:
    """Check that a `TransformerConfig` has supported settings and choices, and heads that the table can express."""
    choices = {local: tuple(names[0].values()) for local, _, *names in table.values() if names}
    heads = {"n_kv_head": (None, model["n_head"]), "head_dim": (None, model["dim"] // model["n_head"])}
    mapped = {local for local, *_ in table.values()}
    unmapped = {name: valid for name, valid in heads.items() if name not in mapped}
    require_settings(model, {**settings, **choices, **unmapped}, where)


def write_table(values: ConfigDict, table: FieldTable) -> ConfigDict:
    """Return the public fields of a table; sizes of a `TransformerConfig` that are None get their meaning."""
    if "n_head" in values:
        values = values | {
            "n_kv_head": values["n_kv_head"] or values["n_head"],
            "head_dim": values["head_dim"] or values["dim"] // values["n_head"],
            "mlp_dim": values["mlp_dim"] or 4 * values["dim"],
        }
    return {
        public: next(p for p, name in choices[0].items() if name == values[local]) if choices else values[local]
        for public, (local, _, *choices) in table.items()
    }
