"""The config.json of a public checkpoint, read with suspicion: a value that would change the maths is never ignored."""

import math
import re
from collections.abc import Mapping
from typing import Any

from ..errors import InputError

LARGEST = 1 << 31  # of any size in a config
MISSING = object()

# What says nothing about the maths of a forward: bookkeeping, initialisation, dropout, and defaults of generation.
HARMLESS = re.compile(
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


class Fields:
    """Every value is asked for by its name; `done` complains about those nobody asked for."""

    def __init__(self, values: Mapping[str, Any], where: str):
        self.values, self.where = values, where
        self.asked: set[str] = set()

    def value(self, name: str, default: Any = MISSING) -> Any:
        self.asked.add(name)
        found = self.values.get(name)
        if found is None and default is MISSING:
            raise InputError(f"{self.where} lacks {name}")
        return default if found is None else found

    def size(self, name: str, default: Any = MISSING, most: int = LARGEST) -> int:
        """A whole number from 1 to `most`, or the default (which may be None)."""
        found = self.value(name, default)
        if found is default:
            return found
        if not isinstance(found, int) or isinstance(found, bool) or not 0 < found <= most:
            limit = "on" if most == LARGEST else f"to {most}, as many tensors as there are"
            raise InputError(f"{self.where}: {name} is {found!r}; it must be a whole number from 1 {limit}")
        return found

    def number(self, name: str, default: float) -> float:
        found = self.value(name, default)
        if not isinstance(found, int | float) or isinstance(found, bool) or not math.isfinite(found):
            raise InputError(f"{self.where}: {name} is {found!r}; it must be a number")
        return float(found)

    def flag(self, name: str, default: bool) -> bool:
        found = self.value(name, default)
        if not isinstance(found, bool):
            raise InputError(f"{self.where}: {name} is {found!r}; it must be true or false")
        return found

    def choice(self, name: str, known: Mapping[Any, Any], default: Any) -> Any:
        """What `known` makes of the value. Raises InputError that names what is known."""
        found = self.value(name, default)
        if not isinstance(found, str | int | float | bool) or found not in known:
            names = ", ".join(map(repr, known))
            raise InputError(f"{self.where}: {name} is {found!r}, which anyformer has no maths for: {names} it has")
        return known[found]

    def must(self, **wanted: Any) -> None:
        """Values that would change the maths in a way we do not have: absent, null, or exactly these."""
        for name, right in wanted.items():
            found = self.value(name, right)
            if found != right:
                raise InputError(f"{self.where}: {name} is {found!r}; anyformer has this family only with {right!r}")

    def dropout(self, name: str) -> float:
        found = self.number(name, 0.0)
        if not 0 <= found < 1:
            raise InputError(f"{self.where}: {name} is {found}; it must be at least 0 and below 1")
        return found

    def done(self) -> None:
        """Raises InputError for a value that nobody asked for and that might mean something."""
        for name, found in self.values.items():
            nothing = found is None or found is False or found in ({}, [])
            if name not in self.asked and not nothing and not HARMLESS.fullmatch(name):
                known = "it might change the maths; if it does not, take it out of the file"
                raise InputError(f"{self.where}: anyformer does not know {name} = {found!r}: {known}")


def activations(*names: str) -> dict[str, str]:
    """Their names of activations -> ours, those that are named."""
    known = {
        "gelu": "gelu",
        "gelu_new": "gelu_tanh",
        "gelu_pytorch_tanh": "gelu_tanh",
        "gelu_fast": "gelu_tanh",
        "relu": "relu",
        "relu2": "relu2",
    }
    return {name: ours for name, ours in known.items() if not names or name in names}
