"""DeiT (2012.12877): the `deit` family, ViT with a second node in front of the patches, the distillation token.

A distilled model has a classifier for each of both nodes, and its logits are their mean; one that was fine-tuned later
may have one, which reads the class node. `architectures` of config.json says which, as do the names of the tensors.
"""

from collections.abc import Mapping

from torch import Tensor

from .config_fields import ConfigFields
from .tensor_map import ConfigDict, TensorMap, WeightSource, map_affine, map_tensor
from .vit import ViT

DISTILLED = {"head.projects.0": "cls_classifier", "head.projects.1": "distillation_classifier"}
ARCHITECTURES = {"each": "DeiTForImageClassificationWithTeacher", "first": "DeiTForImageClassification"}


class DeiT(ViT):
    model_type, architecture, prefix = "deit", ARCHITECTURES["first"], "deit."
    heads = ("classifier.", *(f"{name}." for name in DISTILLED.values()))
    settings = {"extra_tokens": (1,), "local_layers": (0,), "pool": ("first", "each")}
    class_nodes = 2

    def read_config(self, c: ConfigFields, weights: WeightSource) -> ConfigDict:
        is_distilled = any(name.startswith(self.heads[1:]) for name in weights.shapes)
        return super().read_config(c, weights) | {"pool": "each" if is_distilled else "first"}

    def write_config(self, values: ConfigDict, tensors: Mapping[str, Tensor]) -> ConfigDict:
        return super().write_config(values, tensors) | {"architectures": [ARCHITECTURES[values["pool"]]]}

    def map_outer(self, values: ConfigDict) -> TensorMap:
        heads = DISTILLED if values["pool"] == "each" else {"head.project": "classifier"}
        token = map_tensor("nodes.extra_tokens", f"{self.prefix}embeddings.distillation_token")
        return [token, *map_affine(heads, optional=True)]
