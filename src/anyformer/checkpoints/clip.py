"""CLIP (2103.00020): the `clip` family, an image tower and a text tower with one space for both.

Both towers are pre-norm with biases. Images: a class node, patches without a bias, a norm before the first block.
Texts: causal, read at the end token. The pixels' normalization and cropping come from preprocessor_config.json; a
folder without one gets CLIP's own. config.json has a part for each tower.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from ..data.images.preprocessing import ImagePreprocessor, load_preprocessor
from ..data.images.read import RESAMPLE_FILTERS
from ..data.io.checks import read_json
from ..data.tokenizers.build import tokenizer_from_files
from ..data.tokenizers.masked_tokenizer import MaskedTokenizer
from ..errors import InputError
from .config_fields import ACTIVATIONS, LAYERNORM, ConfigFields, FieldTable, Settings, write_table
from .family import Family, take_first
from .tensor_map import ConfigDict, TensorMap, WeightSource, map_affine, map_layers, map_tensor, map_weight
from .vit import PREPROCESSING, PROCESSOR, read_size

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's training images
STACK: Settings = {"position": ("learned",), "norm_place": ("pre",), "bias": (True,), **LAYERNORM}
TOWERS = {"text": "text_config", "vision": "vision_config"}
EMBEDDING = "text.nodes.token.weight"
LEGACY_END = 2  # of configs whose model reads the node of the highest id instead
BLOCK = {
    "attn_norm": "layer_norm1",
    "mlp_norm": "layer_norm2",
    "mlp.up": "mlp.fc1",
    "mlp.down": "mlp.fc2",
    "attn.query": "self_attn.q_proj",
    "attn.key": "self_attn.k_proj",
    "attn.value": "self_attn.v_proj",
    "attn.output": "self_attn.out_proj",
}


def make_fields(dim: int, mlp_dim: int, n_head: int, activation: str, norm_eps: float) -> dict[str, tuple]:
    """Return the field table of a tower, with its defaults."""
    return {
        "hidden_size": ("dim", dim),
        "intermediate_size": ("mlp_dim", mlp_dim),
        "num_hidden_layers": ("n_layer", 12),
        "num_attention_heads": ("n_head", n_head),
        "hidden_act": ("activation", activation, ACTIVATIONS | {"silu": "silu", "swish": "silu"}),
        "layer_norm_eps": ("norm_eps", norm_eps),
    }


class CLIP(Family):
    """Base class of the families with two towers.

    Attributes:
        image_size, patch_size, context: the defaults of config.json.
        unused: fields of the towers that change nothing.
    """

    model_type, recipes, architecture = "clip", ("contrastive",), "CLIPModel"
    stacks: ClassVar[Mapping[str, tuple[FieldTable, Settings]]] = {
        "vision": (make_fields(768, 3072, 12, "quick_gelu", 1e-5), STACK),
        "text": (make_fields(512, 2048, 8, "quick_gelu", 1e-5), STACK),
    }
    fields: ClassVar = {"projection_dim": ("embed_dim", 512)}
    settings: ClassVar = {
        "image_pool": ("first",),
        "image_norm": (True,),
        "patch_bias": (False,),
        "text_edges": ("causal",),
        "text_pool": ("last",),
        "projection": ("both",),
        "pad_id": (None,),
        "loss": ("softmax",),
    }
    embedding = EMBEDDING
    patch_size, context = 32, 77
    unused: tuple[str, ...] = ("projection_dim", "tie_word_embeddings")

    def normalize_name(self, name: str) -> str | None:
        return None if name.endswith(".position_ids") else name

    # --- config.json -> recipe ---

    def read_config(self, c: ConfigFields, weights: WeightSource) -> ConfigDict:
        c.get("logit_scale_init_value", None)  # before training
        c.get("tie_word_embeddings", None)  # there is no output matrix
        parts = {stack: c.get_object(name) for stack, name in TOWERS.items()}
        values: ConfigDict = c.read_table(self.fields) | take_first(self.settings)
        for stack, part in parts.items():
            fields, settings = self.stacks[stack]
            values[stack] = part.read_table(fields, max_layers=len(weights.shapes)) | take_first(settings)
            for name in self.unused:
                part.get(name, None)
        values |= self.read_images(parts["vision"], values) | self.read_texts(parts["text"], values)
        for part in parts.values():
            part.reject_unread()
        return values

    def read_images(self, c: ConfigFields, values: ConfigDict) -> ConfigDict:
        """Read the image tower's part, and the image processor."""
        channels = c.get_choice("num_channels", {1: 1, 3: 3}, 3)
        (height, width), patch = read_size(c, "image_size", 224), read_size(c, "patch_size", self.patch_size)
        if height != width or patch[0] != patch[1] or height % patch[0]:
            problem = f"patches of {patch[0]} x {patch[1]} on {height} x {width}"
            raise InputError(f"{c.where}: {problem}; they must be squares that fit")
        nodes = (height // patch[0]) ** 2 + (values["image_pool"] == "first")
        values["vision"]["context"] = nodes
        size = {"height": height, "width": width, "patch": patch[0], "channels": channels}
        return size | {"preprocessing": self.read_preprocessing(c, height, channels)}

    def read_preprocessing(self, c: ConfigFields, side: int, channels: int) -> str:
        """Return the JSON of a preprocessing.json for the folder's image processor, or for CLIP's own."""
        path = Path(c.where.partition(": ")[0]).with_name(PROCESSOR)
        if not path.is_file():
            mean, std = (MEAN, STD) if channels == 3 else ((0.5,), (0.5,))
            return ImagePreprocessor(mean, std, resample="bicubic", crop=True).to_json()
        p = ConfigFields(read_json(path), str(path))
        p.require(do_resize=True, do_pad=False)
        crop = p.get_flag("do_center_crop", True)
        expected = {"size": p.get("size", side)} | ({"crop_size": p.get("crop_size", side)} if crop else {})
        for name, value in expected.items():
            if value not in (side, {"shortest_edge": side}, {"height": side, "width": side}):
                raise InputError(f"{path}: {name} is {value}, but the model takes {side} x {side}")
        is_square = isinstance(expected["size"], dict) and "height" in expected["size"]
        if crop is is_square:
            raise InputError(
                f"{path}: size is {expected['size']}, do_center_crop {crop}: such cropping is not supported"
            )
        rescale, normalize = p.get_flag("do_rescale", True), p.get_flag("do_normalize", True)
        values = {
            "mean": p.get("image_mean", MEAN) if normalize else [0.0] * channels,
            "std": p.get("image_std", STD) if normalize else [1.0] * channels,
            "scale": p.get_number("rescale_factor", 1 / 255) if rescale else 1.0,
            "resample": p.get_choice("resample", dict(enumerate(RESAMPLE_FILTERS)), 3),
            "crop": crop,
        }
        try:
            return load_preprocessor(json.dumps(values), channels).to_json()
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    def read_texts(self, c: ConfigFields, values: ConfigDict) -> ConfigDict:
        """Read the text tower's part."""
        c.require(is_decoder=False, add_cross_attention=False)
        values["text"]["context"] = c.get_size("max_position_embeddings", self.context)
        vocab_size = c.get_size("vocab_size", 49408)
        return {"padded_vocab": vocab_size, **self.read_ends(c, vocab_size)}

    def read_ends(self, c: ConfigFields, vocab_size: int) -> ConfigDict:
        """Read which token ends a text, and which one fills it up."""
        end = c.get_token_id("eos_token_id", 49407, vocab_size)
        return {"end_id": vocab_size - 1 if end == LEGACY_END else end}

    # --- recipe -> config.json ---

    def check_config(self, values: ConfigDict) -> None:
        super().check_config(values)
        if values["height"] != values["width"]:
            raise InputError(f"height is {values['height']} and width {values['width']}; they must be equal")

    def write_config(self, values: ConfigDict, tensors: Mapping[str, Tensor]) -> ConfigDict:
        config: ConfigDict = {**write_table(values, self.fields), "logit_scale_init_value": 2.6592}
        for stack, name in TOWERS.items():
            config[name] = write_table(values[stack], self.stacks[stack][0])
            config[name]["model_type"] = f"{self.model_type}_{stack}_model"
        names = {"height": "image_size", "patch": "patch_size", "channels": "num_channels"}
        config["vision_config"] |= {public: values[local] for local, public in names.items()}
        rows = len(tensors[EMBEDDING])
        return config | {"text_config": config["text_config"] | self.write_texts(values, rows)}

    def write_texts(self, values: ConfigDict, vocab_size: int) -> ConfigDict:
        return {"vocab_size": vocab_size, "max_position_embeddings": values["text"]["context"]}

    def make_files(self, values: ConfigDict, files: Mapping[str, str]) -> dict[str, ConfigDict]:
        tokenizer = tokenizer_from_files(files)
        ends = MaskedTokenizer.from_tokenizer(tokenizer, tokenizer.vocab_size).suffix_ids
        end = ends[-1] if ends else values["end_id"]
        if end is None:
            raise InputError("no token ends a text of this model, which CLIP needs")
        if end == LEGACY_END and end != tokenizer.vocab_size - 1:
            raise InputError(f"the token that ends a text has the id {end}, which transformers reads otherwise")
        name = tokenizer.special_name(end)
        return {
            "config.json": {"text_config": {"eos_token_id": end, "bos_token_id": None, "pad_token_id": end}},
            "tokenizer_config.json": {"pad_token": name, "model_max_length": values["text"]["context"]},
            PROCESSOR: self.make_processor(values, load_preprocessor(files[PREPROCESSING], values["channels"])),
        }

    def make_processor(self, values: ConfigDict, preprocessor: ImagePreprocessor) -> ConfigDict:
        """Return preprocessor_config.json."""
        square = {"height": values["height"], "width": values["width"]}
        return {
            "image_processor_type": "CLIPImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"shortest_edge": values["height"]} if preprocessor.crop else square,
            "do_center_crop": preprocessor.crop,
            "crop_size": square,
            "resample": RESAMPLE_FILTERS.index(preprocessor.resample),
            "do_rescale": True,
            "rescale_factor": preprocessor.scale,
            "do_normalize": True,
            "image_mean": preprocessor.mean,
            "image_std": preprocessor.std,
        }

    # --- tensors ---

    def build_tensor_map(self, values: ConfigDict, config: ConfigDict) -> TensorMap:
        dim, images, texts = values["vision"]["dim"], "vision_model.", "text_model."
        return [
            map_tensor("logit_scale", "logit_scale", shape=()),
            *map_weight({"image_projection": "visual_projection", "text_projection": "text_projection"}),
            map_tensor("vision.nodes.cls_token", f"{images}embeddings.class_embedding", shape=(dim,)),
            *map_weight({"vision.nodes.project": f"{images}embeddings.patch_embedding"}),
            *map_affine({"vision.embedding_norm": f"{images}pre_layrnorm"}),
            *self.map_towers(values),
            *map_affine({"text.body.norm": f"{texts}final_layer_norm"}),
        ]

    def map_towers(self, values: ConfigDict) -> TensorMap:
        """Map what all families have alike: positions, tokens, blocks and the norm of the images."""
        table = [map_tensor("text.nodes.token.weight", "text_model.embeddings.token_embedding.weight")]
        for stack in TOWERS:
            position = f"{stack}_model.embeddings.position_embedding.weight"
            table.append(map_tensor(f"{stack}.nodes.position.weight", position))
            block = map_affine(BLOCK, f"{stack}.body.blocks.{{i}}.", f"{stack}_model.encoder.layers.{{i}}.")
            table += map_layers(values[stack]["n_layer"], block)
        return [*table, *map_affine({"vision.body.norm": "vision_model.post_layernorm"})]
