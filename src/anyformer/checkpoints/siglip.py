"""SigLIP (2303.15343): the `siglip` family, two towers of which each pair of image and text is judged by itself.

Images: patches, read by a probe; their vector is used as it is. Texts: filled up with the padding token to the length
of the context, and all tokens read each other, padding included; the last one is mapped to the images' space.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from ..data.images.preprocessing import ImagePreprocessor
from ..data.io.checks import read_json
from ..data.tokenizers.build import TOKENIZER_FILE, load_tokenizer
from ..data.tokenizers.special_tokens import TOKENIZER_CONFIG
from ..errors import InputError
from .clip import CLIP, STACK, make_fields
from .config_fields import ConfigFields, FieldTable, Settings, require_settings
from .tensor_map import ConfigDict, TensorMap, TensorMapping, WeightSource, map_affine, map_tensor
from .vit import read_preprocessing

FIELDS = make_fields(768, 3072, 12, "gelu_pytorch_tanh", 1e-6)
QKV = ("query", "key", "value")
SECOND = ("Gemma", "Siglip2")  # tokenizers of SigLIP 2 (2502.14786)
PROBE = "vision.reduce_nodes."


class SigLIP(CLIP):
    model_type, architecture = "siglip", "SiglipModel"
    stacks: ClassVar[Mapping[str, tuple[FieldTable, Settings]]] = {"vision": (FIELDS, STACK), "text": (FIELDS, STACK)}
    fields: ClassVar = {}
    settings: ClassVar = {
        "image_pool": ("probe",),
        "image_norm": (False,),
        "patch_bias": (True,),
        "text_edges": ("full",),
        "text_pool": ("last",),
        "projection": ("text",),
        "loss": ("sigmoid",),
    }
    patch_size, context = 16, 64
    unused = ("tie_word_embeddings",)

    def read_config(self, c: ConfigFields, weights: WeightSource) -> ConfigDict:
        values = super().read_config(c, weights)
        return values | {"embed_dim": values["vision"]["dim"]}

    def read_images(self, c: ConfigFields, values: ConfigDict) -> ConfigDict:
        c.require(vision_use_head=True)
        return super().read_images(c, values)

    def read_preprocessing(self, c: ConfigFields, side: int, channels: int) -> str:
        where = c.where.partition(": ")[0]
        return read_preprocessing(ConfigFields({}, where), side, side, channels)

    def read_texts(self, c: ConfigFields, values: ConfigDict) -> ConfigDict:
        texts = super().read_texts(c, values)
        size, width = c.get_size("projection_size", values["text"]["dim"]), values["vision"]["dim"]
        if size != width:
            raise InputError(f"{c.where}: projection_size is {size}; it must be that of the images, {width}")
        return texts

    def read_ends(self, c: ConfigFields, vocab_size: int) -> ConfigDict:
        """The tokenizer says which token fills a text up; without one config.json does."""
        pad = c.get_token_id("pad_token_id", 1, vocab_size)
        path = Path(c.where.partition(": ")[0]).with_name(TOKENIZER_CONFIG)
        settings = read_json(path) if path.is_file() else {}
        if str(settings.get("tokenizer_class")).startswith(SECOND):
            raise InputError(f"{path}: this is SigLIP 2, whose texts are prepared in another way: it is not supported")
        name = settings.get("pad_token")
        name = name.get("content") if isinstance(name, dict) else name
        if isinstance(name, str) and path.with_name(TOKENIZER_FILE).is_file():
            token_id = load_tokenizer(path.with_name(TOKENIZER_FILE)).token_to_id(name)
            pad = pad if token_id is None else token_id
        return {"end_id": None, "pad_id": pad}

    def check_config(self, values: ConfigDict) -> None:
        super().check_config(values)
        if values["pad_id"] is None:
            raise InputError("pad_id is None; texts must be filled up to the context")

    def write_config(self, values: ConfigDict, tensors: Mapping[str, Tensor]) -> ConfigDict:
        config = super().write_config(values, tensors)
        del config["logit_scale_init_value"]
        config["vision_config"]["vision_use_head"] = True
        return config

    def write_texts(self, values: ConfigDict, vocab_size: int) -> ConfigDict:
        size = {"projection_size": values["vision"]["dim"], "pad_token_id": values["pad_id"]}
        return super().write_texts(values, vocab_size) | size

    def make_files(self, values: ConfigDict, files: Mapping[str, str]) -> dict[str, ConfigDict]:
        contents = super().make_files(values | {"end_id": values["pad_id"]}, files)
        contents["config.json"]["text_config"]["pad_token_id"] = values["pad_id"]
        return contents

    def make_processor(self, values: ConfigDict, preprocessor: ImagePreprocessor) -> ConfigDict:
        require_settings({"crop": preprocessor.crop}, {"crop": (False,)})
        processor = super().make_processor(values, preprocessor) | {"image_processor_type": "SiglipImageProcessor"}
        return {name: value for name, value in processor.items() if name not in ("do_center_crop", "crop_size")}

    def build_tensor_map(self, values: ConfigDict, config: ConfigDict) -> TensorMap:
        head = "vision_model.head."
        inputs = [
            TensorMapping(tuple(f"{PROBE}attn.{name}.{kind}" for name in QKV), f"{head}attention.in_proj_{kind}")
            for kind in ("weight", "bias")
        ]
        maps = {
            "attn.output": "attention.out_proj",
            "mlp_norm": "layernorm",
            "mlp.up": "mlp.fc1",
            "mlp.down": "mlp.fc2",
        }
        outer = {
            "vision.nodes.project": "vision_model.embeddings.patch_embedding",
            "text.body.norm": "text_model.final_layer_norm",
            "text_projection": "text_model.head",
        }
        return [
            map_tensor("logit_scale", "logit_scale"),
            map_tensor("logit_bias", "logit_bias"),
            map_tensor(f"{PROBE}probe", f"{head}probe"),
            *inputs,
            *map_affine(maps, PROBE, head),
            *map_affine(outer),
            *self.map_towers(values),
        ]
