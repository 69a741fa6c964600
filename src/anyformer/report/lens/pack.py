"""Numbers as base64, small enough for a page.

Attention weights are bytes in units of the largest weight of their row, which is kept to 16 bits: each is exact to
1/510 of that. Where all weights are too many, only the largest of each row are kept, with their indices.

Shapes: H heads, Q queries, K keys, k largest weights of a row.
"""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

MAX_WEIGHT_BYTES = 10 << 20  # of all weights together, before base64
THUMBNAIL = 24  # pixels of the side of the picture of a head


def encode_array(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def share_bytes(sizes: Sequence[int], total: int) -> list[int]:
    """Share bytes out: small parts get all that they need, and large ones equal shares of what is left."""
    shares = [0] * len(sizes)
    for done, i in enumerate(sorted(range(len(sizes)), key=sizes.__getitem__)):
        shares[i] = min(sizes[i], total // (len(sizes) - done))
        total -= shares[i]
    return shares


def choose_kept(rows: int, keys: int, n_bytes: int) -> int:
    """How many weights of each row are kept: all of them (`keys`), or as many as fit into so many bytes with their
    indices."""
    return keys if rows * keys <= n_bytes else max(1, min(keys, n_bytes // (3 * rows)))


def pack_weights(weights: Tensor, kept: int) -> dict[str, Any]:
    """Pack weights (H, Q, K).

    Returns {"top" (H, Q) uint16 in units of 1/65535, "values" (H, Q, K or k) uint8 in units of top / 255}, and, where
    only some are kept, "indices" (H, Q, k) uint16, all in base64.
    """
    weights = weights.float().cpu()
    top = (weights.amax(-1).clamp(0, 1) * 65535).round().clamp(min=1)
    packed: dict[str, Any] = {}
    if kept < weights.shape[-1]:
        weights, indices = weights.topk(kept, dim=-1)
        packed["indices"] = encode_array(indices.numpy().astype("<u2"))
    shares = weights * (65535 * 255) / top[..., None]
    packed["values"] = encode_array(shares.round().clamp(0, 255).byte().numpy())
    return packed | {"top": encode_array(top.numpy().astype("<u2"))}


def pack_thumbnails(weights: Tensor) -> np.ndarray:
    """Small pictures of the heads of a layer: (H, Q, K) -> (H, h, w) uint8, the largest weight of each part, at most
    THUMBNAIL a side. The square root, so that small weights can be seen."""
    size = [min(THUMBNAIL, n) for n in weights.shape[1:]]
    pooled = torch.nn.functional.adaptive_max_pool2d(weights.float().cpu()[None], size)[0]
    return (pooled.clamp(0, 1).sqrt() * 255).round().byte().numpy()


def pack_mask(mask: Tensor) -> str:
    """(Q, K) bool -> bits, each row padded to whole bytes, the first key in the highest bit."""
    return encode_array(np.packbits(mask.cpu().numpy(), axis=-1))


def pack_picture(picture: Any, max_side: int = 3000) -> dict[str, Any] | None:
    """An image (H, W) or (H, W, 3) uint8, a large one with rows and columns left out."""
    if picture is None:
        return None
    height, width = picture.shape[:2]
    step = -(-max(height, width) // max_side)
    small = picture[::step, ::step]
    facts = {"width": width, "height": height, "step": step, "columns": small.shape[1], "rows": small.shape[0]}
    return facts | {"channels": 1 if picture.ndim == 2 else 3, "pixels": encode_array(small)}


def round_numbers(values: Any) -> Any:
    """Numbers of a tensor to four digits, as nested lists."""
    values = values.double().tolist() if isinstance(values, Tensor) else values
    return [round_numbers(value) for value in values] if isinstance(values, list) else float(f"{values:.4g}")
