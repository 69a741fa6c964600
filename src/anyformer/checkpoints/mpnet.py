"""MPNet (2004.09297): the `mpnet` family, RoBERTa without token types, which also has T5's relative positions."""

from .bert import MASKED_SETTINGS, SETTINGS, map_masked_head
from .config_fields import ConfigFields
from .roberta import FIELDS, RoBERTa
from .t5 import BUCKETS
from .tensor_map import ConfigDict, TensorMap, WeightSource, map_affine, map_layers, map_tensor

MAPS = {f"attn.{name}": f"attention.attn.{name[0]}" for name in ("query", "key", "value", "output")}
MAPS |= {"attn_norm": "attention.LayerNorm", "mlp.up": "intermediate.dense"}
MAPS |= {"mlp.down": "output.dense", "mlp_norm": "output.LayerNorm"}
N_BUCKETS = "relative_attention_num_buckets"


class MPNet(RoBERTa):
    model_type, architecture = "mpnet", "MPNetForMaskedLM"
    stacks = {"model": (FIELDS, SETTINGS | {"position": ("mixed",)})}
    fields = {"vocab_size": ("padded_vocab", 30527), "tie_word_embeddings": ("tied", True)}
    settings, prefix = MASKED_SETTINGS | {"token_types": (0,)}, "mpnet."

    def read_config(self, c: ConfigFields, weights: WeightSource) -> ConfigDict:
        c.require(**{N_BUCKETS: BUCKETS[N_BUCKETS]})
        return super().read_config(c, weights)

    def build_tensor_map(self, values: ConfigDict, config: ConfigDict) -> TensorMap:
        block = map_affine(MAPS, "body.blocks.{i}.", "mpnet.encoder.layer.{i}.")
        return [
            *self.map_embeddings("mpnet.embeddings."),
            map_tensor("body.bias.weight", "mpnet.encoder.relative_attention_bias.weight"),
            *map_layers(values["model"]["n_layer"], block),
            *map_masked_head(values["tied"], *self.head),
        ]
