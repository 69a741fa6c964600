"""ViT (2010.11929): the `vit` family.

A class node in front, learned positions, pre-norm with biases (optional for query, key and value). Pixel preprocessing
is described by preprocessor_config.json, class names by config.json. A folder without a classifier is read with a head
that is yet to be trained.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..data.images.preprocessing import load_preprocessor, uniform_preprocessor
from ..data.images.read import RESAMPLE_FILTERS
from ..data.io.checks import read_json
from ..errors import InputError
from .bert import ENCODER_FIELDS, ENCODER_MAPS, QKV
from .config_fields import LAYERNORM, ConfigFields
from .family import Family
from .tensor_map import (
    ConfigDict,
    TensorMap,
    WeightSource,
    are_zero,
    has_biases,
    map_affine,
    map_layers,
    map_tensor,
    map_weight,
)

SETTINGS = {"position": ("learned",), "norm_place": ("pre",), **LAYERNORM}
PROCESSOR, PREPROCESSING = "preprocessor_config.json", "preprocessing.json"  # transformers' file, and anyformer's
NORMS = {"attn_norm": "layernorm_before", "mlp_norm": "layernorm_after"}
MAX_CLASSES, MAX_IMAGE_SIZE = 1 << 20, 1 << 14


class ViT(Family):
    """Base class of the families that have ViT's shape.

    Attributes:
        prefix: of the tensors, but those of `heads`.
        class_nodes: nodes in front of the patches.
    """

    model_type, recipes, architecture = "vit", ("vision",), "ViTForImageClassification"
    stacks, fields = {"model": (ENCODER_FIELDS, SETTINGS)}, {"num_channels": ("channels", 3, {1: 1, 3: 3})}
    settings, embedding = {"pool": ("first",), "local_layers": (0,), "extra_tokens": (0,)}, None
    prefix, class_nodes = "vit.", 1
    heads: tuple[str, ...] = ("classifier.",)

    def normalize_name(self, name: str) -> str | None:
        """Add the prefix; the pooler is ignored."""
        bare = name.removeprefix(self.prefix)
        if bare.startswith("pooler."):
            return None
        return bare if bare.startswith(self.heads) else f"{self.prefix}{bare}"

    def read_config(self, c: ConfigFields, weights: WeightSource) -> ConfigDict:
        c.get("encoder_stride", None)  # of a head for masked images, which is not read
        c.get_flag("qkv_bias", True)
        (height, width), patch = read_size(c, "image_size", 224), read_size(c, "patch_size", 16)
        if patch[0] != patch[1] or height % patch[0] or width % patch[0]:
            raise InputError(
                f"{c.where}: patches of {patch[0]} x {patch[1]} on {height} x {width}; they must be squares that fit"
            )
        values = super().read_config(c, weights)
        values["model"]["context"] = self.class_nodes + (height // patch[0]) * (width // patch[0])
        values["model"]["bias"] = has_biases(weights, f"{self.prefix}encoder.", f"{self.prefix}layernorm.")
        return values | {
            "height": height,
            "width": width,
            "patch": patch[0],
            "labels": read_labels(c),
            "preprocessing": read_preprocessing(c, height, width, values["channels"]),
        }

    def write_config(self, values: ConfigDict, tensors: Mapping[str, Tensor]) -> ConfigDict:
        height, width = values["height"], values["width"]
        return super().write_config(values, tensors) | {
            "image_size": height if height == width else [height, width],
            "patch_size": values["patch"],
            "qkv_bias": not are_zero(tensors, r"body\.blocks\.\d+\.attn\.(query|key|value)\.bias"),
        }

    def make_files(self, values: ConfigDict, files: Mapping[str, str]) -> dict[str, ConfigDict]:
        names = json.loads(files["labels.json"])
        labels = {"id2label": {str(i): name for i, name in enumerate(names)}}
        preprocessor = load_preprocessor(files[PREPROCESSING], values["channels"])
        processor = {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": {"height": values["height"], "width": values["width"]},
            "resample": RESAMPLE_FILTERS.index(preprocessor.resample),
            "do_rescale": True,
            "rescale_factor": preprocessor.scale,
            "do_normalize": True,
            "image_mean": preprocessor.mean,
            "image_std": preprocessor.std,
        }
        return {"config.json": labels | {"label2id": {name: i for i, name in enumerate(names)}}, PROCESSOR: processor}

    def build_tensor_map(self, values: ConfigDict, config: ConfigDict) -> TensorMap:
        local, public = "body.blocks.{i}.", f"{self.prefix}encoder.layer.{{i}}."
        attention = map_affine if config.get("qkv_bias", True) else map_weight
        block = [
            *map_affine(ENCODER_MAPS | NORMS, local, public),
            *attention({name: name for name in QKV}, f"{local}attn.", f"{public}attention.attention."),
        ]
        outer = {"nodes.project": "embeddings.patch_embeddings.projection", "body.norm": "layernorm"}
        return [
            map_tensor("nodes.cls_token", f"{self.prefix}embeddings.cls_token"),
            map_tensor("nodes.position.weight", f"{self.prefix}embeddings.position_embeddings", leading_axis=True),
            *map_affine(outer, public=self.prefix),
            *map_layers(values["model"]["n_layer"], block),
            *self.map_outer(values),
        ]

    def map_outer(self, values: ConfigDict) -> TensorMap:
        """Map what is neither patches nor blocks: heads, and further nodes."""
        return map_affine({"head.project": "classifier"}, optional=True)


def read_size(c: ConfigFields, name: str, default: int) -> tuple[int, int]:
    """Read one number for both sides, [height, width] or {"height", "width"}."""
    value = c.get(name, default)
    if isinstance(value, dict) and set(value) == {"height", "width"}:
        value = [value["height"], value["width"]]
    pair = value if isinstance(value, list) else [value, value]
    if len(pair) != 2 or not all(type(n) is int and 0 < n <= MAX_IMAGE_SIZE for n in pair):
        raise InputError(f"{c.where}: {name} is {value!r}; it must be a whole number, or two: [height, width]")
    return pair[0], pair[1]


def read_labels(c: ConfigFields) -> str:
    """Return the names of the classes in the order of their ids, as the JSON of a labels.json."""
    names = c.get("id2label", None)
    if names is None:
        names = {str(i): f"LABEL_{i}" for i in range(c.get_size("num_labels", 2, limit=MAX_CLASSES))}
    c.get("label2id", None)
    if not isinstance(names, dict) or set(names) != {str(i) for i in range(len(names))} or not names:
        raise InputError(f"{c.where}: id2label must name the classes 0, 1, 2 and so on")
    return json.dumps([str(names[str(i)]) for i in range(len(names))])


def read_preprocessing(c: ConfigFields, height: int, width: int, channels: int) -> str:
    """Return the JSON of a preprocessing.json for the folder's image processor; without one, pixels go from -1 to 1."""
    path = Path(c.where).with_name(PROCESSOR)
    if not path.is_file():
        return uniform_preprocessor(0.5, channels).to_json()
    p = ConfigFields(read_json(path), str(path))
    p.require(do_resize=True, do_center_crop=False, do_pad=False)
    if (size := read_size(p, "size", 224)) != (height, width):
        raise InputError(f"{path}: size is {size[0]} x {size[1]}, but the model takes {height} x {width}")
    rescale, normalize = p.get_flag("do_rescale", True), p.get_flag("do_normalize", True)
    mean, std = p.get("image_mean", [0.5] * channels), p.get("image_std", [0.5] * channels)
    values = {
        "mean": mean if normalize else [0.0] * channels,
        "std": std if normalize else [1.0] * channels,
        "scale": p.get_number("rescale_factor", 1 / 255) if rescale else 1.0,
        "resample": p.get_choice("resample", dict(enumerate(RESAMPLE_FILTERS)), 2),
    }
    try:
        return load_preprocessor(json.dumps(values), channels).to_json()
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
