"""What two towers are asked: which text fits an image, which image fits a text, and the vectors of both."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...confinement import check_confined
from ...data.images.read import IMAGE_EXTENSIONS
from ...data.io.file_index import list_files
from ...data.io.manifest import split_columns
from ...errors import InputError
from ...forms import Form, Task
from ...inference.classification import describe_classes
from ...parsing import check_range, parse_dataclass
from ...recipe import FileInput
from .encoder import as_list
from .towers import TwoTowers, embed_images, embed_texts, read_pixels

MAX_SEARCHED = 1 << 20  # images of one request
SHOWN = 5  # images that a search names, unless it says how many
SHOWN_CHOICES = 10


@dataclass(frozen=True)
class TowerRequest:
    """Images to recognize, texts to find images for, or either to turn into vectors."""

    input: str | list[str] | None = None
    """The path of an image, or several; None: examples kept with the model."""
    choices: str | list[str] | None = None
    """Texts of which one fits each image best: a list, or one text with commas between. None: captions of the data."""
    template: str = "{}"
    """What is read of a choice: "a photo of a {}" puts each into a sentence."""
    top: int | None = None
    """How many choices, or images of a search, to name, the best first. None: all choices, five images."""
    search: str | list[str] | None = None
    """A text, or several, to find the nearest of `images` for."""
    images: str | list[str] | None = None
    """With `search`: paths of images, or of folders with images in them."""
    embed: str | list[str] | None = None
    """A text, or several, to turn into vectors."""
    embed_images: str | list[str] | None = None
    """The path of an image, or several, to turn into vectors of the same space."""
    cut: bool = False
    """Cut texts that are longer than the context instead of refusing them."""

    def __post_init__(self) -> None:
        check_range(self, "top", at_least=1, at_most=1 << 31)
        if "{}" not in self.template:
            raise InputError(f"template is {self.template!r}; it must hold {{}}, which stands for a choice")
        for name in ("input", "search", "images", "embed", "embed_images"):
            if getattr(self, name) == []:
                raise InputError(f"{name} is an empty list: expected one or several")
        if (self.search is None) != (self.images is None):
            raise InputError("search is a text and images are where to look: both are needed, or neither")
        if sum(value is not None for value in (self.input, self.search, self.embed, self.embed_images)) > 1:
            raise InputError("of input, search, embed and embed_images a request has one")

    def fill_template(self, text: str) -> str:
        return self.template.replace("{}", text)

    @property
    def texts(self) -> list[str] | None:
        """The choices as a list; None for those of the data. Raises InputError where there are none."""
        if self.choices is None or self.choices == []:
            return None
        texts = self.choices.split(",") if isinstance(self.choices, str) else self.choices
        if not (texts := [text.strip() for text in texts if text.strip()]):
            raise InputError("choices: expected at least one text")
        return list(dict.fromkeys(texts))


def predict(model: TwoTowers, request: dict[str, Any]) -> dict[str, Any]:
    """Answer the fields of `TowerRequest`.

    {"input": path, "choices": ["a cat", "a dog"]} returns {"results": [{"input", "label", "probability",
    "probabilities": {choice: p}}]}; with the loss softmax these sum to 1, with sigmoid each stands for itself.
    {"search": text, "images": folder} returns {"results": [{"input", "path", "similarity", "images": [{"path",
    "similarity"}]}]}. {"embed": [text]} and {"embed_images": [path]} return {"vectors": [[...], ...]}, of length 1.
    """
    fields = parse_dataclass(TowerRequest, request, "request")
    if fields.embed is not None:
        return {"vectors": embed_texts(model, as_list(fields.embed), fields.cut).tolist()}
    if fields.embed_images is not None:
        return {"vectors": embed_images(model, read_pixels(model, as_list(fields.embed_images))).tolist()}
    if fields.search is not None and fields.images is not None:
        return {"results": search_images(model, fields, as_list(fields.search), as_list(fields.images))}
    return {"results": classify_images(model, fields)}


def predict_batch(model: TwoTowers, inputs: list[str], settings: dict[str, Any]) -> list[dict[str, Any]]:
    return predict(model, settings | {"input": inputs})["results"]


def classify_images(model: TwoTowers, fields: TowerRequest) -> list[dict[str, Any]]:
    """Name the choice that fits each image best."""
    preprocessor = model.preprocessor
    if fields.input is None:
        sources = [{"truth": example["label"]} for example in preprocessor.examples] or [{"input": "a gray image"}]
        images = preprocessor.decode_examples(model.size) or [np.full(model.size, 128, np.uint8)]
    else:
        sources = [{"input": path} for path in as_list(fields.input)]
        images = read_pixels(model, as_list(fields.input))
    choices = fields.texts or model.captions
    texts = embed_texts(model, [fields.fill_template(text) for text in choices], fields.cut)
    probabilities = weigh_choices(model, embed_images(model, images), texts)
    rows = zip(sources, probabilities, strict=True)
    return [source | describe_classes(row, choices, fields.top) for source, row in rows]


@torch.inference_mode()
def weigh_choices(model: TwoTowers, images: Tensor, texts: Tensor) -> Tensor:
    """Return the probability of each text for each image, as the loss has it: (images, E), (texts, E) -> (images,
    texts) on the CPU."""
    device = model.logit_scale.device
    logits = model.compute_logits(images.to(device), texts.to(device)).cpu()
    return logits.softmax(-1) if model.loss == "softmax" else logits.sigmoid()


def search_images(model: TwoTowers, fields: TowerRequest, texts: list[str], places: list[str]) -> list[dict[str, Any]]:
    """Name the images that are nearest to each text."""
    paths = list_images(places)
    similarity = embed_texts(model, texts, fields.cut) @ embed_images(model, read_pixels(model, paths)).T
    results = []
    for text, row in zip(texts, similarity):
        order = row.argsort(descending=True, stable=True)[: fields.top or SHOWN].tolist()
        nearest = [{"path": str(paths[i]), "similarity": row[i].item()} for i in order]
        results.append({"input": text, **nearest[0], "images": nearest})
    return results


def list_images(places: Sequence[str]) -> list[Path]:
    """Return the paths of images, those in a folder for its path. Raises InputError."""
    paths: list[Path] = []
    for place in (Path(os.path.expanduser(place)) for place in places):  # Path's raises where there is no such user
        check_confined(place)
        images = list_files(place, IMAGE_EXTENSIONS) if place.is_dir() else [place]
        if not images:
            raise InputError(f"{place} holds no image: expected {', '.join(IMAGE_EXTENSIONS)}")
        paths += islice(images, MAX_SEARCHED + 1 - len(paths))
    if len(paths) > MAX_SEARCHED:
        raise InputError(f"images: more than {MAX_SEARCHED:,} to search: name a smaller folder")
    return paths


def file_input(model: TwoTowers, config: Any) -> FileInput:
    return FileInput((split_columns(config.columns, "file,caption")[0],), is_path=True)


def form(model: TwoTowers, config: Any) -> Form:
    others = ("search", "images", "embed", "embed_images")
    choices = model.captions[:SHOWN_CHOICES]
    texts = (model.captions * 2)[:2]
    return Form(
        (
            Task("Recognize an image", "image", TowerRequest, "classes", omit=(*others, "cut"),
                 usual={"top": (1, SHOWN_CHOICES)}, settings={"choices": choices} if choices else {}),
            Task("Compare texts", "texts", TowerRequest, "vectors", "embed", examples=(texts,),
                 omit=("input", "choices", "template", "top", *others[:2], "embed_images")),
        )
    )  # fmt: skip
