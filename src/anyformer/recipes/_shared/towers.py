"""Two towers: an encoder of images and one of texts, whose vectors lie in one space, and the losses that align them.

Shapes: B images or texts, G groups of N pairs, T nodes, C channels of a tower, E of the shared space.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...data.images.preprocessing import ImagePreprocessor
from ...data.images.read import read_image
from ...data.tokenizers.base import Tokenizer
from ...data.tokenizers.masked_tokenizer import MaskedTokenizer
from ...inference.prompt_reading import pad_rows
from ...model import MLP, Attention, Encoder, PatchEmbedding, Transformer, TransformerConfig, initialize
from ...model.edges import causal, full
from ...model.norm import build_norm
from ...model.pooling import POOLING
from .encoder import batch_by_length

BATCH_SIZE = 32  # images in one forward
SOFTMAX_SCALE, SIGMOID_SCALE, SIGMOID_BIAS = 1 / 0.07, 10.0, -10.0  # before training (2103.00020, 2303.15343)
MAX_SOFTMAX_SCALE = 100.0  # CLIP's limit; logits of a larger scale make training unstable


class ProbePool(nn.Module):
    """A learned node reads all nodes, then computes by itself (SigLIP, 2303.15343; 1810.00825): (B, T, C) -> (B, C)"""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.probe = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.attn, self.mlp_norm, self.mlp = Attention(config), build_norm(config), MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        y = self.attn(self.probe.expand(x.shape[0], -1, -1), full, memory=x)
        return (y + self.mlp(self.mlp_norm(y)))[:, 0]


class ImageTower(nn.Module):
    """pixels (B, channels, H, W) from 0 to 255 -> (B, C)"""

    mean: Tensor
    std: Tensor

    def __init__(self, config: Any, preprocessor: ImagePreprocessor):
        super().__init__()
        stack, cls_tokens = config.vision, int(config.image_pool == "first")
        self.class_nodes, self.scale = cls_tokens, preprocessor.scale
        self.nodes = PatchEmbedding(config.patch, stack, config.channels, cls_tokens)
        if not config.patch_bias:
            self.nodes.project.register_parameter("bias", None)
        self.embedding_norm = build_norm(stack) if config.image_norm else nn.Identity()
        self.body = Transformer(stack)
        self.reduce_nodes: Any = ProbePool(stack) if config.image_pool == "probe" else POOLING[config.image_pool]
        self.register_buffer("mean", torch.tensor(preprocessor.mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocessor.std).view(-1, 1, 1), persistent=False)

    def normalize(self, pixels: Tensor) -> Tensor:
        return (pixels.float() * self.scale - self.mean) / self.std

    def hidden(self, x: Tensor) -> Tensor:
        """Return the nodes after the last block, (B, T, C), of normalized pixels."""
        return self.body(self.embedding_norm(self.nodes(x)), full)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.reduce_nodes(self.hidden(self.normalize(pixels)))


class TextTower(Encoder):
    """ids (B, T), lengths (B,) -> (B, C)"""

    def __init__(self, config: Any, vocab_size: int):
        super().__init__(vocab_size, config.text)
        self.edges = [causal if config.text_edges == "causal" else full] * config.text.n_layer
        self.reduce_nodes = POOLING[config.text_pool]

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        return self.reduce_nodes(self.hidden(ids, lengths), lengths)


class TwoTowers(nn.Module):
    """pixels (B, channels, H, W), ids (B, T), lengths (B,) -> vectors of length 1 of images and of texts, (B, E)
    each."""

    def __init__(self, config: Any, tokenizer: Tokenizer, preprocessor: ImagePreprocessor, captions: Sequence[str]):
        super().__init__()
        self.masked_tokenizer = wrap_tokenizer(tokenizer, config)
        self.vocab_size = max(self.masked_tokenizer.vocab_size, config.padded_vocab or 0)
        self.captions, self.preprocessor, self.pad_id = list(captions), preprocessor, config.pad_id
        self.size: tuple[int, int, int] = (config.height, config.width, config.channels)
        self.context, self.loss = config.text.context, config.loss
        self.files = {"tokenizer.json": tokenizer.to_json(), **tokenizer.extra_files}
        self.files |= {
            "labels.json": json.dumps(self.captions, ensure_ascii=False),
            "preprocessing.json": preprocessor.to_json(),
        }
        has_both, width = config.projection == "both", config.embed_dim
        self.vision, self.text = ImageTower(config, preprocessor), TextTower(config, self.vocab_size)
        self.image_projection = nn.Linear(config.vision.dim, width, bias=False) if has_both else nn.Identity()
        self.text_projection = nn.Linear(config.text.dim, width if has_both else config.vision.dim, bias=not has_both)
        self.logit_scale = nn.Parameter(torch.zeros(1))
        self.logit_bias = nn.Parameter(torch.zeros(1)) if config.loss == "sigmoid" else None

    def embed_images(self, pixels: Tensor) -> Tensor:
        return F.normalize(self.image_projection(self.vision(pixels)).float(), dim=-1)

    def embed_texts(self, ids: Tensor, lengths: Tensor) -> Tensor:
        return F.normalize(self.text_projection(self.text(ids, lengths)).float(), dim=-1)

    def forward(self, pixels: Tensor, ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return self.embed_images(pixels), self.embed_texts(ids, lengths)

    def compute_logits(self, images: Tensor, texts: Tensor) -> Tensor:
        """Scale similarities by the learned temperature: images (..., N, E), texts (..., M, E) -> (..., N, M)"""
        scale = self.logit_scale
        if self.logit_bias is None:
            return scale.clamp(max=math.log(MAX_SOFTMAX_SCALE)).exp() * (images @ texts.transpose(-1, -2))
        return scale.exp() * (images @ texts.transpose(-1, -2)) + self.logit_bias

    def encode(self, texts: Sequence[str], cut: bool = False) -> list[list[int]]:
        """Return the ids of texts, filled up to the context if this model reads padding. Raises InputError."""
        return encode_captions(self.masked_tokenizer, texts, self.context, self.pad_id, cut)

    def embed_pairs(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the vectors of the images and texts of a batch, (G, N, E) each."""
        groups = batch["pixels"].shape[:2]
        images, texts = self(*(batch[name].flatten(0, 1) for name in ("pixels", "ids", "lengths")))
        return images.unflatten(0, groups), texts.unflatten(0, groups)


def wrap_tokenizer(tokenizer: Tokenizer, config: Any) -> MaskedTokenizer:
    """Return the tokenizer with the special tokens that it puts around a text, or that end one by the config."""
    masked = MaskedTokenizer.from_tokenizer(tokenizer, config.padded_vocab or tokenizer.vocab_size)
    has_end = masked.suffix_ids or config.end_id is None
    return masked if has_end else replace(masked, suffix_ids=(config.end_id,))


def encode_captions(
    tokenizer: MaskedTokenizer, texts: Sequence[str], context: int, pad_id: int | None, cut: bool
) -> list[list[int]]:
    """Return the ids of texts; with `pad_id`, all as long as the context."""
    rows = tokenizer.encode_batch(texts, context, cut)
    return rows if pad_id is None else [[*row, *[pad_id] * (context - len(row))] for row in rows]


def initialize_towers(model: TwoTowers, vision: TransformerConfig, text: TransformerConfig) -> TwoTowers:
    """Set every weight from torch's global random generator."""
    initialize(model, vision)
    initialize(model.vision, vision)
    initialize(model.text, text)
    if isinstance(pool := model.vision.reduce_nodes, ProbePool):
        nn.init.normal_(pool.probe, std=0.02)
    is_softmax = model.logit_bias is None
    nn.init.constant_(model.logit_scale, math.log(SOFTMAX_SCALE if is_softmax else SIGMOID_SCALE))
    if model.logit_bias is not None:
        nn.init.constant_(model.logit_bias, SIGMOID_BIAS)
    return model


# --- losses ---


def compare_pairs(model: TwoTowers, batch: dict[str, Tensor], images: Tensor, texts: Tensor) -> Tensor:
    """Return the loss of each group of pairs, (G,). Within a group every other pair is a negative, unless it has the
    same image or the same caption; then it is left out.

    softmax: the mean cross-entropy of the right text for each image and of the right image for each text (2103.00020).
    sigmoid: whether each image and each text belong together, by itself, the sum for an image (2303.15343).
    """
    logits = model.compute_logits(images, texts)  # (G, N, N)
    is_same = find_equal(batch["captions"]) | find_equal(batch["images"])
    own = torch.eye(logits.shape[-1], dtype=torch.bool, device=logits.device)
    if model.loss == "softmax":
        logits = logits.masked_fill(is_same & ~own, float("-inf"))
        rows, columns = logits.log_softmax(-1), logits.log_softmax(-2)
        return -(rows.diagonal(dim1=-2, dim2=-1) + columns.diagonal(dim1=-2, dim2=-1)).mean(-1) / 2
    losses = F.softplus(torch.where(own, -logits, logits))
    return losses.masked_fill(is_same & ~own, 0.0).sum(-1).mean(-1)


def find_equal(numbers: Tensor) -> Tensor:
    """Return which two of a group are equal: (G, N) -> (G, N, N) bool"""
    return numbers[:, :, None] == numbers[:, None]


# --- vectors ---


@torch.inference_mode()
def embed(model: TwoTowers, texts: list[str], cut: bool = False) -> list[list[float]]:
    """Return a vector of length 1 for each text, to be compared with those of images and texts. Raises InputError for a
    text that exceeds the context, unless it may be cut."""
    return embed_texts(model, texts, cut).tolist()


def count_tokens(model: TwoTowers, texts: list[str], cut: bool = False) -> int:
    """Return how many tokens `embed` reads of texts, special ones and read padding included."""
    return sum(map(len, model.encode(texts, cut)))


@torch.inference_mode()
def embed_texts(model: TwoTowers, texts: Sequence[str], cut: bool = False) -> Tensor:
    """Return the vectors of texts: (texts, E) on the CPU."""
    rows, vectors = model.encode(texts, cut), torch.zeros(len(texts), model.text_projection.out_features)
    for indices in batch_by_length(rows):
        ids, lengths = pad_rows([rows[i] for i in indices], model.logit_scale.device)
        vectors[indices] = model.embed_texts(ids, lengths).cpu()
    return vectors


@torch.inference_mode()
def embed_images(model: TwoTowers, images: Iterable[np.ndarray]) -> Tensor:
    """Return the vectors of images, (H, W, C) uint8 each: (images, E) on the CPU."""
    stream, parts = iter(images), [torch.zeros(0, model.text_projection.out_features)]
    while batch := list(islice(stream, BATCH_SIZE)):
        pixels = torch.from_numpy(np.stack(batch).transpose(0, 3, 1, 2).copy()).to(model.logit_scale.device)
        parts.append(model.embed_images(pixels).cpu())
    return torch.cat(parts)


def read_pixels(model: TwoTowers, paths: Iterable[str | Path]) -> Iterable[np.ndarray]:
    """Yield the pixels of image files at the model's size, decoded one at a time. Raises InputError."""
    for path in paths:
        yield model.preprocessor.resize(read_image(Path(path)), model.size)
