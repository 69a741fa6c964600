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
from .config_fields import ACTIVATIONS, ConfigFields, get_public_name, require_layernorm, require_settings, write_sizes
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

SIZES = {
    "hidden_size": ("dim", 768),
    "num_hidden_layers": ("n_layer", 12),
    "num_attention_heads": ("n_head", 12),
    "intermediate_size": ("mlp_dim", 3072),
}
PROCESSOR, PREPROCESSING = "preprocessor_config.json", "preprocessing.json"  # transformers' file, and anyformer's
QKV = ("query", "key", "value")
MAX_CLASSES, MAX_IMAGE_SIZE = 1 << 20, 1 << 14


class ViT(Family):
    model_type, recipes, architecture = "vit", ("vision",), "ViTForImageClassification"

    def normalize_name(self, name: str) -> str | None:
        """Add the prefix `vit.`; the pooler is ignored."""
        bare = name.removeprefix("vit.")
        if bare.startswith("pooler."):
            return None
        return bare if bare.startswith("classifier.") else f"vit.{bare}"

    def read_config(self, c: ConfigFields, weights: WeightSource) -> ConfigDict:
        c.get("encoder_stride", None)  # of a head for masked images, which is not read
        (height, width), patch = read_size(c, "image_size", 224), read_size(c, "patch_size", 16)
        if patch[0] != patch[1] or height % patch[0] or width % patch[0]:
            raise InputError(
                f"{c.where}: patches of {patch[0]} x {patch[1]} on {height} x {width}; they must be squares that fit"
            )
        channels = c.get_size("num_channels", 3, limit=4)
        if channels not in (1, 3):
            raise InputError(f"{c.where}: num_channels is {channels}; images of 1 or 3 channels are supported")
        c.get_flag("qkv_bias", True)
        model = c.get_sizes(SIZES, max_layers=len(weights.shapes)) | {
            "context": 1 + (height // patch[0]) * (width // patch[0]),
            "activation": c.get_choice("hidden_act", ACTIVATIONS, "gelu"),
            "norm_eps": c.get_number("layer_norm_eps", 1e-12),
            "bias": has_biases(weights, "vit.encoder.", "vit.layernorm."),
            "dropout": c.get_dropout("hidden_dropout_prob"),
        }
        return {
            "height": height,
            "width": width,
            "channels": channels,
            "patch": patch[0],
            "model": model,
            "labels": read_labels(c),
            "preprocessing": read_preprocessing(c, height, width, channels),
        }

    def check_config(self, values: ConfigDict) -> None:
        require_layernorm(values["model"], position=("learned",), norm_place=("pre",))
        require_settings(values, {"pool": ("first",), "local_layers": (0,)})

    def write_config(self, values: ConfigDict, tensors: Mapping[str, Tensor]) -> ConfigDict:
        model, height, width = values["model"], values["height"], values["width"]
        qkv_biases = [f"body.blocks.{i}.attn.{name}.bias" for i in range(model["n_layer"]) for name in QKV]
        return write_sizes(model, SIZES) | {
            "image_size": height if height == width else [height, width],
            "patch_size": values["patch"],
            "num_channels": values["channels"],
            "hidden_act": get_public_name(model["activation"], ACTIVATIONS),
            "layer_norm_eps": model["norm_eps"],
            "qkv_bias": not are_zero(tensors, qkv_biases),
            **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), model["dropout"]),
        }

    def write_extra_config(self, values: ConfigDict, files: Mapping[str, str]) -> ConfigDict:
        names = json.loads(files["labels.json"])
        return {
            "id2label": {str(i): name for i, name in enumerate(names)},
            "label2id": {name: i for i, name in enumerate(names)},
        }

    def write_extra_files(self, values: ConfigDict, files: Mapping[str, str]) -> dict[str, str]:
        preprocessor = load_preprocessor(files[PREPROCESSING], values["channels"])
        config = {
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
        return {PROCESSOR: json.dumps(config, indent=2)}

    def build_tensor_map(self, config: ConfigDict) -> TensorMap:
        local, public, embeddings = "body.blocks.{i}", "vit.encoder.layer.{i}", "vit.embeddings"
        attention = map_affine if config.get("qkv_bias", True) else map_weight
        block = [
            *map_affine(f"{local}.attn_norm", f"{public}.layernorm_before"),
            *(m for n in QKV for m in attention(f"{local}.attn.{n}", f"{public}.attention.attention.{n}")),
            *map_affine(f"{local}.attn.output", f"{public}.attention.output.dense"),
            *map_affine(f"{local}.mlp_norm", f"{public}.layernorm_after"),
            *map_affine(f"{local}.mlp.up", f"{public}.intermediate.dense"),
            *map_affine(f"{local}.mlp.down", f"{public}.output.dense"),
        ]
        return [
            map_tensor("nodes.cls_token", f"{embeddings}.cls_token"),
            map_tensor("nodes.position.weight", f"{embeddings}.position_embeddings", leading_axis=True),
            *map_affine("nodes.project", f"{embeddings}.patch_embeddings.projection"),
            *map_layers(config.get("num_hidden_layers", 12), block),
            *map_affine("body.norm", "vit.layernorm"),
            *map_affine("head.project", "classifier", optional=True),
        ]


def read_size(c: ConfigFields, name: str, default: int) -> tuple[int, int]:
    """Read one number for both sides, or [height, width]."""
    value = c.get(name, default)
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
    if (size := read_processor_size(p)) != (height, width):
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


def read_processor_size(p: ConfigFields) -> tuple[int, int]:
    """Read the size that images are resized to: {"height", "width"}, or one number in old files."""
    value = p.get("size", 224)
    if isinstance(value, dict) and set(value) == {"height", "width"}:
        value = [value["height"], value["width"]]
    return read_size(ConfigFields({"size": value}, p.where), "size", 224)


family = ViT()
