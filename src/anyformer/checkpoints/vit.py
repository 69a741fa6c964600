"""ViT (2010.11929), as the `vit` family of public checkpoints has it.

A class node in front, learned positions, pre-norm with biases; query, key and value may go without. What an image
processor does to pixels lies beside, in preprocessor_config.json, and the names of the classes in config.json. A folder
without a classifier has a head that is yet to be trained.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..data.images.decode import RESAMPLE
from ..data.images.preprocessing import flat, read_looks
from ..errors import InputError
from .config_fields import Fields, activations
from .safetensors_files import Weights, read_json
from .tensor_map import Row, Values, affine, layers, row, unbiased, zero

RECIPE = "vision"
ARCHITECTURE = "ViTForImageClassification"
PRESETS = ("small", "vit-base")
PROCESSOR = "preprocessor_config.json"
TOLD = ("query", "key", "value")
MOST_CLASSES = 1 << 20


def spelling(name: str) -> str | None:
    """With or without `vit.`; the pooler belongs to a training that is over."""
    bare = name.removeprefix("vit.")
    if bare.startswith("pooler."):
        return None
    return bare if bare.startswith("classifier.") else f"vit.{bare}"


def read(c: Fields, weights: Weights) -> Values:
    """Their config -> the vision recipe's."""
    c.value("encoder_stride", None)  # of a head that paints patches: not this one
    (height, width), (patch, other) = sides(c, "image_size", 224), sides(c, "patch_size", 16)
    if patch != other or height % patch or width % patch:
        raise InputError(
            f"{c.where}: patches of {patch} x {other} on {height} x {width}; they must be squares that fit"
        )
    channels, dim = c.size("num_channels", 3, most=4), c.size("hidden_size", 768)
    if channels not in (1, 3):
        raise InputError(f"{c.where}: num_channels is {channels}; anyformer has images of 1 or 3")
    c.flag("qkv_bias", True)
    model = {
        "dim": dim,
        "n_layer": c.size("num_hidden_layers", 12, most=len(weights.shapes)),
        "n_head": c.size("num_attention_heads", 12),
        "mlp_dim": c.size("intermediate_size", 3072),
        "context": 1 + (height // patch) * (width // patch),
        "activation": c.choice("hidden_act", activations(), "gelu"),
        "norm_eps": c.number("layer_norm_eps", 1e-12),
        "bias": biased(weights),
        "dropout": c.dropout("hidden_dropout_prob"),
    }
    image = {"height": height, "width": width, "channels": channels, "patch": patch}
    return image | {"model": model, "labels": labels(c), "looks": looks(c, height, width, channels)}


def sides(c: Fields, name: str, default: int) -> tuple[int, int]:
    """One number for both sides, or [height, width]."""
    found = c.value(name, default)
    pair = found if isinstance(found, list) else [found, found]
    if len(pair) != 2 or not all(isinstance(n, int) and not isinstance(n, bool) and 0 < n <= 1 << 14 for n in pair):
        raise InputError(f"{c.where}: {name} is {found!r}; it must be a whole number, or two: [height, width]")
    return pair[0], pair[1]


def biased(weights: Weights) -> bool:
    """Whether any bias of the body is not zero."""
    body = ("vit.encoder.", "vit.layernorm.")
    biases = [name for name in weights.shapes if name.endswith(".bias") and name.startswith(body)]
    return any(bool(weights.rows(name, 0, weights.shapes[name][0]).any()) for name in biases)


def labels(c: Fields) -> str:
    """What the classes are called, in the order of their numbers, as a labels.json has it."""
    found = c.value("id2label", None)
    if found is None:
        n = c.size("num_labels", 2, most=MOST_CLASSES)
        found = {str(i): f"LABEL_{i}" for i in range(n)}
    c.value("label2id", None)
    if not isinstance(found, dict) or set(found) != {str(i) for i in range(len(found))} or not found:
        raise InputError(f"{c.where}: id2label must name the classes 0, 1, 2 and on")
    return json.dumps([str(found[str(i)]) for i in range(len(found))])


def looks(c: Fields, height: int, width: int, channels: int) -> str:
    """How pixels become numbers, as a looks.json has it. Without an image processor: from -1 to 1."""
    path = Path(c.where).with_name(PROCESSOR)
    if not path.is_file():
        return flat(0.5, channels).json()
    p = Fields(read_json(path), str(path))
    p.must(do_resize=True, do_center_crop=False, do_pad=False)
    if (size := square(p)) != (height, width):
        raise InputError(f"{path}: size is {size[0]} x {size[1]}, but the model takes {height} x {width}")
    rescale, normalize = p.flag("do_rescale", True), p.flag("do_normalize", True)
    mean, std = p.value("image_mean", [0.5] * channels), p.value("image_std", [0.5] * channels)
    given = {
        "mean": mean if normalize else [0.0] * channels,
        "std": std if normalize else [1.0] * channels,
        "scale": p.number("rescale_factor", 1 / 255) if rescale else 1.0,
        "resample": p.choice("resample", dict(enumerate(RESAMPLE)), 2),
    }
    try:
        return read_looks(json.dumps(given), channels).json()
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def square(p: Fields) -> tuple[int, int]:
    """The size that images are brought to: {"height", "width"}, or one number in old files."""
    found = p.value("size", 224)
    if isinstance(found, dict) and set(found) == {"height", "width"}:
        found = [found["height"], found["width"]]
    return sides(Fields({"size": found}, p.where), "size", 224)


# --- ours -> theirs ---


def write(values: Values, own: Mapping[str, Tensor]) -> Values:
    """The vision recipe's config -> theirs. Raises InputError for what this family cannot say."""
    m = values["model"]
    wanted = {"position": "learned", "norm": "layernorm", "norm_place": "pre", "qk_norm": False, "scale": None}
    for name, right in wanted.items():
        if m[name] != right:
            raise InputError(f"{name} is {m[name]}, not {right}")
    if values["pool"] != "first":
        raise InputError("the head reads the mean node, there is no class node (pool first)")
    if values["local"]:
        raise InputError(f"the first {values['local']} layers are local")
    if m["n_kv_head"] not in (None, m["n_head"]) or m["head_dim"] not in (None, m["dim"] // m["n_head"]):
        raise InputError("heads of keys are fewer, or channels of heads are not dim / n_head")
    known = {ours: theirs for theirs, ours in reversed(activations().items())}
    if m["activation"] not in known:
        raise InputError(f"the activation is {m['activation']}")
    told = [f"body.blocks.{i}.attn.{name}.bias" for i in range(m["n_layer"]) for name in TOLD]
    side = values["height"]
    return {
        "model_type": "vit",
        "image_size": side if side == values["width"] else [side, values["width"]],
        "patch_size": values["patch"],
        "num_channels": values["channels"],
        "hidden_size": m["dim"],
        "num_hidden_layers": m["n_layer"],
        "num_attention_heads": m["n_head"],
        "intermediate_size": m["mlp_dim"] or 4 * m["dim"],
        "hidden_act": known[m["activation"]],
        "layer_norm_eps": m["norm_eps"],
        "qkv_bias": not zero(own, *told),
        **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), m["dropout"]),
    }


def named(texts: Mapping[str, str]) -> Values:
    """What their config says of the classes."""
    names = json.loads(texts["labels.json"])
    return {"id2label": {str(i): name for i, name in enumerate(names)}, "label2id": {n: i for i, n in enumerate(names)}}


def beside(values: Values, texts: Mapping[str, str]) -> dict[str, str]:
    """The file of the image processor."""
    found = read_looks(texts["looks.json"], values["channels"])
    return {
        PROCESSOR: json.dumps(
            {
                "image_processor_type": "ViTImageProcessor",
                "do_resize": True,
                "size": {"height": values["height"], "width": values["width"]},
                "resample": RESAMPLE.index(found.resample),
                "do_rescale": True,
                "rescale_factor": found.scale,
                "do_normalize": True,
                "image_mean": found.mean,
                "image_std": found.std,
            },
            indent=2,
        )
    }


def rows(c: Values) -> list[Row]:
    """Names of ours and of theirs, for a config of theirs."""
    ours, theirs = "body.blocks.{i}", "vit.encoder.layer.{i}"
    attend = affine if c.get("qkv_bias", True) else unbiased
    block = [
        *affine(f"{ours}.attn_norm", f"{theirs}.layernorm_before"),
        *(r for name in TOLD for r in attend(f"{ours}.attn.{name}", f"{theirs}.attention.attention.{name}")),
        *affine(f"{ours}.attn.output", f"{theirs}.attention.output.dense"),
        *affine(f"{ours}.mlp_norm", f"{theirs}.layernorm_after"),
        *affine(f"{ours}.mlp.up", f"{theirs}.intermediate.dense"),
        *affine(f"{ours}.mlp.down", f"{theirs}.output.dense"),
    ]
    return [
        row("nodes.first", "vit.embeddings.cls_token"),
        row("nodes.position.weight", "vit.embeddings.position_embeddings", lead=True),
        *affine("nodes.project", "vit.embeddings.patch_embeddings.projection"),
        *layers(c.get("num_hidden_layers", 12), block),
        *affine("body.norm", "vit.layernorm"),
        *affine("head.project", "classifier", fresh=True),
    ]
