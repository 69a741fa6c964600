"""What the lens shows of recipes of images and sounds: patches and slices of the picture that they are cut from.

Shapes: H, W pixels, M mel bands, F frames, T nodes, C channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...data.audio.batches import join_clips
from ...data.audio.datasets import load_tones
from ...data.audio.features import HOP_LENGTH, SAMPLE_RATE, log_mel
from ...data.audio.read import read_blocks, split_at_pauses
from ...data.images.read import read_image
from ...errors import InputError
from ...inference.classification import unique_names
from ...inference.drawing import draw, parse_drawing
from ...inference.speaking import generate_frames, parse_speaking
from ...parsing import parse_dataclass
from ...recipe import LensNodes, LensView
from .speaking_figures import shade
from .text_lenses import END, crop, name_class_rows, name_token, read_classes, to_row
from .towers import embed_texts


@dataclass(frozen=True)
class MediaLensRequest:
    """An image or a sound to look at."""

    input: str | Path | list[str | Path] | None = None
    """The path of a file; of several the first. None: an example."""
    target: str | list[int] | None = None
    """Of a sound: the text, or the tokens, that are written. None: the model's own."""

    @property
    def path(self) -> Path | None:
        paths = self.input if isinstance(self.input, list) else [self.input]
        return Path(paths[0]).expanduser() if paths and paths[0] is not None else None


# --- images ---


def choose_image(model: Any, request: dict[str, Any]) -> np.ndarray:
    """Return the image of a request, or one of the examples, at the size of the model: (H, W, channels) uint8."""
    path, preprocessor = parse_dataclass(MediaLensRequest, request, "request").path, model.preprocessor
    if path is None:
        return next(iter(preprocessor.decode_examples(model.size)), np.full(model.size, 128, np.uint8))
    return preprocessor.resize(read_image(path), model.size)


def lens_vision(model: Any, request: dict[str, Any]) -> LensView:
    """The patches of an image, its class, and the class that each patch would give alone."""
    image, preprocessor = choose_image(model, request), model.preprocessor
    pixels = torch.from_numpy(image[None].transpose(0, 3, 1, 2).copy()).to(model.mean.device)
    nodes = describe_patches(image, model.nodes.project.kernel_size[0], model.class_nodes)
    names = unique_names(model.classes)

    def forward() -> Tensor:
        return read_classes(model.head, model.hidden((pixels.float() * preprocessor.scale - model.mean) / model.std))

    return LensView({"body": nodes}, forward, name_class_rows(nodes), names.__getitem__, answer=0)


def lens_towers(model: Any, request: dict[str, Any]) -> LensView:
    """The patches of an image, and how well captions fit it; and how well they would fit each patch alone."""
    image = choose_image(model, request)
    pixels = torch.from_numpy(image[None].transpose(0, 3, 1, 2).copy()).to(model.logit_scale.device)
    nodes = describe_patches(image, model.vision.nodes.project.kernel_size[0], model.vision.class_nodes)
    texts, tower = embed_texts(model, model.captions, cut=True).to(pixels.device), model.vision

    def forward() -> Tensor:
        x = tower.hidden(tower.normalize(pixels))
        parts = torch.cat([tower.reduce_nodes(x), tower.reduce_nodes(x.transpose(0, 1))])
        vectors = torch.nn.functional.normalize(model.image_projection(parts).float(), dim=-1)
        return model.compute_logits(vectors, texts)

    return LensView({"vision.body": nodes}, forward, name_class_rows(nodes), model.captions.__getitem__, answer=0)


def describe_patches(image: np.ndarray, patch: int, class_nodes: int = 0) -> LensNodes:
    """The patches of an image (H, W, 1 or 3), row by row, behind the class node and extra ones, if there are some."""
    cells = [(x, y) for y in range(image.shape[0] // patch) for x in range(image.shape[1] // patch)]
    labels, kinds = [f"patch {y + 1},{x + 1}" for x, y in cells], ["patch"] * len(cells)
    boxes: list[Any] = [(x * patch, y * patch, patch, patch) for x, y in cells]
    if class_nodes:
        names = ["class", *(f"extra {i}" for i in range(1, class_nodes))]
        labels, kinds, boxes = [*names, *labels], [*["class"] * len(names), *kinds], [*[None] * len(names), *boxes]
    return LensNodes(labels, kinds, image[..., 0] if image.shape[2] == 1 else image, boxes=boxes)


def lens_picture(model: Any, request: dict[str, Any]) -> LensView:
    """The words of a caption and the patches of the picture that is drawn after it, and what is expected in each cell.
    Patches are drawn without guidance, the likeliest first."""
    fields = parse_drawing(model, request | {"guidance": 1.0, "temperature": 0.0, "samples": 1})
    words = model.vocabulary.encode((fields.captions or [""])[0])
    picture = draw(model, fields)[0]
    codes = model.encode(torch.from_numpy(picture[None].copy()).to(model.codebook.device))
    ids = torch.cat([torch.from_numpy(words)[None].to(codes.device) + model.codes, codes[:, :-1]], dim=1)
    patches = describe_patches(picture, model.patch)
    texts = [["(blank)", *model.vocabulary.words][number] for number in words.tolist()]
    kinds = ["token"] * len(texts) + ["patch"] * (model.cells - 1)
    boxes = [*[None] * len(texts), *patches.boxes[:-1]]
    nodes = LensNodes([*texts, *patches.labels[:-1]], kinds, patches.picture, boxes=boxes)
    rows = [(label, len(texts) - 1 + cell) for cell, label in enumerate(patches.labels)]
    return LensView({"body": nodes}, lambda: model(ids)[0, len(texts) - 1 :], rows, "code {}".format)


# --- sounds ---


def lens_speech(model: Any, request: dict[str, Any]) -> LensView:
    """The slices of a sound, of a long one its first window, and the tokens of its text."""
    c, fields = model.config, parse_dataclass(MediaLensRequest, request, "request")
    if fields.path is None:
        blocks = iter([join_clips(load_tones(), np.array([3, 1, 4]), np.random.Philox(key=0))[0]])
    else:
        blocks = read_blocks(fields.path)
    pieces = list(islice(split_at_pauses(blocks, 2 * c.encoder.context * HOP_LENGTH), 2))
    if not pieces:
        raise InputError(f"{fields.path} holds no sound")
    notes = ["the sound is longer than the context: its first window is shown"] if len(pieces) > 1 else []
    mel = log_mel(pieces[0], c.mels, 2 * c.encoder.context if c.pad_to_context else None)
    return lens_sound(model, mel, fields.target, notes)


def lens_sound(model: Any, mel: np.ndarray, target: str | list[int] | None, notes: Sequence[str]) -> LensView:
    """The slices of a spectrogram (M, F), and what follows each token that is written."""
    inputs = torch.from_numpy(mel)[None].to(next(model.parameters()).device)
    lengths = torch.tensor([mel.shape[1] // 2], device=inputs.device)
    edges = model.sound_edges(lengths)
    limit = model.config.decoder.context - len(model.prompt)
    if target is None:
        target = model.transcribe(inputs, lengths)[0][:limit]
    written = model.tokenizer.encode(target).tolist() if isinstance(target, str) else list(target)
    written, more_notes = crop(written, limit, "text")
    ids = to_row(model, [*model.prompt, *written])
    if not 0 <= int(ids.min()) <= int(ids.max()) < model.target.token.num_embeddings:
        raise InputError(f"request: target has ids that are none of {model.target.token.num_embeddings:,}")

    def name_output(token: int) -> str:
        return END if token == model.end else name_token(model.tokenizer, token)

    def forward() -> Tensor:
        return model.head(model.decode(ids, model.encode(inputs, edges), edges))[0].float()

    prompt = ["⟨start⟩"] if len(model.prompt) == 1 else [name_output(i) for i in model.prompt]
    labels = [*prompt, *map(name_output, written)]
    stacks = {"encoder": describe_slices(mel), "decoder": LensNodes(labels, ["token"] * len(labels))}
    rows, answer = [(f"after {label}", i) for i, label in enumerate(labels)], len(model.prompt) - 1
    shared = {"target": [int(i) for i in written]}
    return LensView(stacks, forward, rows, name_output, answer=answer, notes=[*notes, *more_notes], shared=shared)


def describe_slices(mel: np.ndarray) -> LensNodes:
    """The nodes of a sound, two frames of its spectrogram (M, F) each; low tones are at the bottom."""
    count, seconds = mel.shape[1] // 2, 2 * HOP_LENGTH / SAMPLE_RATE
    low, high = float(mel.min()), float(mel.max())
    picture = ((mel[::-1] - low) / max(high - low, 1e-6) * 255).astype(np.uint8)
    boxes = [(2.0 * i, 0.0, 2.0, float(len(mel))) for i in range(count)]
    return LensNodes([f"{i * seconds:.2f} s" for i in range(count)], ["slice"] * count, picture, boxes=boxes)


def lens_speaking(model: Any, request: dict[str, Any]) -> LensView:
    """The speaker, the text, and the frames of the sound that is said, the likeliest without guidance."""
    fields = parse_speaking(model, request | {"guidance": 1.0, "temperature": 0.0, "samples": 1, "voice": None})
    text = fields.texts[0]
    frames = generate_frames(model, replace(fields, input=text, voice_text=""))[0]
    prompt, codes = (
        model.ids.encode(text, fields.speaker),
        model.encode(torch.from_numpy(frames).to(model.codebook.device)),
    )
    ids = torch.tensor([[*prompt, *codes.tolist()]], device=codes.device)[:, : model.body.config.context]
    tokens = [name_token(model.ids.tokenizer, i - model.ids.first_token) for i in prompt[1:-1]]
    labels = [fields.speaker or "anyone", *tokens, "⟨start⟩"]
    n_frames, seconds = ids.shape[1] - len(labels), HOP_LENGTH / SAMPLE_RATE
    boxes = [*[None] * len(labels), *[(float(i), 0.0, 1.0, float(frames.shape[1])) for i in range(n_frames)]]
    kinds = ["token"] * len(labels) + ["slice"] * n_frames
    picture = shade(frames)[..., 0]
    nodes = LensNodes([*labels, *[f"{i * seconds:.2f} s" for i in range(n_frames)]], kinds, picture, boxes=boxes)
    rows = [(f"after {label}", i) for i, label in enumerate(nodes.labels) if i >= len(labels) - 1]

    def name_output(code: int) -> str:
        return END if code == model.ids.end else f"frame {code}"

    return LensView({"body": nodes}, lambda: model(ids)[0, len(labels) - 1 :], rows, name_output)
