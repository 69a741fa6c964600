"""Attention by torch's scaled_dot_product_attention, or by batched products where a CPU computes those faster.

Shapes: B batch, H heads, Q queries, K keys, D channels of a head.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .dropout import dropout

MIN_KEY_NUMBERS = 1 << 18  # of a single query: with fewer, the overhead of a batched product counts
MAX_SCORES = 1 << 26  # of a layer, kept for the backward: 128 MiB in bfloat16
MAX_SCORES_AT_ONCE = 1 << 22  # more do not fit into the processor's cache


class SDPA:
    """No mask to look up: every query reads every key, or, with `is_causal`, the keys up to its own index."""

    def __init__(self, is_causal: bool = False):
        self.is_causal = is_causal

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, scale: float | None = None) -> Tensor:
        if not is_matmul_faster(q, k, dropout_p):
            return sdpa(q, k, v, None, dropout_p, scale, self.is_causal)
        mask = q.new_full((1, 1, q.shape[2], k.shape[2]), -math.inf).triu(1) if self.is_causal else None
        return matmul_attention(q, k, v, mask, dropout_p, scale)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    dropout_p: float,
    scale: float | None,
    softcap: float | None = None,
) -> Tensor:
    """Attention under a mask that broadcasts to (B, H, Q, K): bool, or numbers added to the scores. Torch's
    kernel cannot cap the scores."""
    if softcap is None and not is_matmul_faster(q, k, dropout_p):
        return sdpa(q, k, v, mask.to(q.dtype) if mask.is_floating_point() else mask, dropout_p, scale)
    if not mask.is_floating_point():
        mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -math.inf)
    return matmul_attention(q, k, v, mask, dropout_p, scale, softcap)


def sdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    dropout_p: float,
    scale: float | None,
    is_causal: bool = False,
) -> Tensor:
    """Torch's attention. `enable_gqa` is used on a CPU only: elsewhere it would rule out the fast kernels."""
    if q.device.type != "cpu" or torch.compiler.is_exporting():
        k, v = repeat_kv(q, k, v)
    enable_gqa = k.shape[1] != q.shape[1]
    if enable_gqa and q.shape[2] == 1 and (mask is None or mask.shape[1] == 1):
        # Heads that share their keys are read as queries of one head: half of the time.
        grouped = q.reshape(*k.shape[:2], -1, q.shape[3])
        y = F.scaled_dot_product_attention(grouped, k, v, mask, dropout_p, scale=scale)
        return y.reshape(*q.shape[:3], v.shape[3])
    return F.scaled_dot_product_attention(q, k, v, mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)


def repeat_kv(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Repeat the heads of keys and values, so that there is one for each query head (GQA, 2305.13245)."""
    if k.shape[1] == q.shape[1]:
        return k, v
    n_repeat = q.shape[1] // k.shape[1]
    return k.repeat_interleave(n_repeat, dim=1), v.repeat_interleave(n_repeat, dim=1)


def is_matmul_faster(q: Tensor, k: Tensor, dropout_p: float = 0.0) -> bool:
    """Whether batched products compute this attention faster than torch's kernel (bench/model/attention.py).

    On a CPU they do in bfloat16, of which torch's kernel does not use the instructions (2 to 6 times faster in
    training, as long as all scores fit into memory); for a single query, except over a few keys; and with dropout.
    """
    (B, H, Q, _), K = q.shape, k.shape[2]
    if q.device.type != "cpu" or torch.compiler.is_exporting():
        return False
    if Q == 1 and not dropout_p:
        return q.dtype == torch.bfloat16 or k.numel() >= MIN_KEY_NUMBERS
    return max(Q, K) <= 1024 and B * H * Q * K <= MAX_SCORES and (dropout_p > 0 or q.dtype == torch.bfloat16)


def matmul_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    dropout_p: float,
    scale: float | None,
    softcap: float | None = None,
) -> Tensor:
    """softmax(cap(q k' * scale) + mask) v by batched products, some heads at a time. mask: numbers, -inf for no edge"""
    B, H, Q, D = q.shape
    scale = D**-0.5 if scale is None else scale
    if Q == 1 and not dropout_p:
        return attend_single_query(q, k, v, mask, scale, softcap)
    k, v = repeat_kv(q, k, v)
    heads_at_once = max(1, MAX_SCORES_AT_ONCE // (Q * k.shape[2]))
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    if mask is not None:
        mask = mask.to(q.dtype).expand(B, H, Q, -1).flatten(0, 1)

    def attend_heads(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        if softcap is None:
            bias = q.new_zeros(()) if mask is None else mask
            scores = torch.baddbmm(bias, q, k.transpose(1, 2), beta=float(mask is not None), alpha=scale)
        else:
            scores = cap_scores(torch.bmm(q, k.transpose(1, 2)) * scale, softcap)
            scores = scores if mask is None else scores + mask
        weights = scores.softmax(-1).to(v.dtype)
        return torch.bmm(dropout(weights, dropout_p) if dropout_p else weights, v)

    if heads_at_once >= B * H:
        return attend_heads(q, k, v, mask).unflatten(0, (B, H))
    masks = [None] * B * H if mask is None else mask.split(heads_at_once)
    pieces = zip(q.split(heads_at_once), k.split(heads_at_once), v.split(heads_at_once), masks)
    return torch.cat([attend_heads(*piece) for piece in pieces]).unflatten(0, (B, H))


def cap_scores(scores: Tensor, softcap: float | None) -> Tensor:
    return scores if softcap is None else softcap * (scores / softcap).tanh()


def attend_single_query(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, softcap: float | None = None
) -> Tensor:
    """`matmul_attention` of one query: (B, H, 1, D) -> (B, H, 1, D).

    Memory bandwidth decides, and keys are read fastest row by row: they are the left operand of the product, and the
    queries of all heads that share them are the columns of the right one.
    """
    (B, H, _, D), kv_heads, K = q.shape, k.shape[1], k.shape[2]
    q = (q * scale).reshape(B * kv_heads, H // kv_heads, D)
    scores = torch.bmm(k.flatten(0, 1), q.transpose(1, 2)).transpose(1, 2).reshape(B, H, 1, K)
    scores = cap_scores(scores, softcap)
    weights = (scores if mask is None else scores + mask.to(q.dtype)).softmax(-1)
    y = torch.bmm(weights.view(B * kv_heads, H // kv_heads, K), v.flatten(0, 1))
    return y.view(B, H, 1, v.shape[-1])
