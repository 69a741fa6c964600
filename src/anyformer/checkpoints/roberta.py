"""RoBERTa (1907.11692), XLM-RoBERTa (1911.02116) and CamemBERT (1911.03894): BERT whose positions are numbered from 2.

Position 1 is that of padding, whose id is 1, and position 0 is unused: both rows are zero when written. The head has an
exact GELU, whatever the encoder has.
"""

from collections.abc import Mapping

from torch import Tensor

from ..errors import InputError
from .bert import BERT, ENCODER_FIELDS, KINDS, SETTINGS, VOCABULARY
from .config_fields import ConfigFields
from .tensor_map import ConfigDict, TensorMap, WeightSource, map_affine, map_tensor, map_weight

PAD_ID = 1
UNUSED = PAD_ID + 1  # positions
FIELDS = {**ENCODER_FIELDS, "hidden_act": ("activation", "gelu", {"gelu": "gelu"})}
HEAD = ("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "lm_head.bias")


class RoBERTa(BERT):
    model_type, architecture = "roberta", "RobertaForMaskedLM"
    stacks = {"model": (FIELDS, SETTINGS)}
    fields = VOCABULARY | {"vocab_size": ("padded_vocab", 50265)}
    prefix, ignored, head = "roberta.", ("pooler.", "embeddings.position_ids"), HEAD

    def read_config(self, c: ConfigFields, weights: WeightSource) -> ConfigDict:
        c.require(pad_token_id=PAD_ID)
        values = super().read_config(c, weights)
        context = c.get_size("max_position_embeddings", 512) - UNUSED
        if context < 1:
            raise InputError(f"{c.where}: max_position_embeddings is {context + UNUSED}; it must be above {UNUSED}")
        values["model"]["context"] = context
        return values

    def write_config(self, values: ConfigDict, tensors: Mapping[str, Tensor]) -> ConfigDict:
        positions = {"max_position_embeddings": values["model"]["context"] + UNUSED, "pad_token_id": PAD_ID}
        return super().write_config(values, tensors) | positions

    def map_embeddings(self, public: str) -> TensorMap:
        names = {"nodes.token": "word_embeddings", **(KINDS if "type_vocab_size" in self.fields else {})}
        return [
            *map_weight(names, public=public),
            map_tensor("nodes.position.weight", f"{public}position_embeddings.weight", unused_rows=UNUSED),
            *map_affine({"nodes.norm": "LayerNorm"}, public=public),
        ]


class XLMRoBERTa(RoBERTa):
    model_type, architecture = "xlm-roberta", "XLMRobertaForMaskedLM"


class CamemBERT(RoBERTa):
    model_type, architecture = "camembert", "CamembertForMaskedLM"
