"""Cross-entropy over a large vocabulary whose logits are never whole: they are computed, used and freed in chunks.

Of 12 rows of 1,024 tokens and 50,304 entries, the logits alone are 2.5 GB in float32, and their softmax and gradient as
much again (bench/training/cross_entropy.py). The loss is the last operation of a training step, so that the gradient of
a chunk can be computed together with its loss, up to a factor that the backward pass brings (2410.10989).

Shapes: N predictions, C channels, V entries of the vocabulary.
"""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

# Entries of logits that are computed at once. On a CPU the smaller chunk is as fast; a GPU wants larger products.
MAX_CPU_LOGITS = 1 << 24
MAX_LOGITS = 1 << 28
IGNORE_INDEX = -100  # torch's default: the label of what is not predicted


class LinearHead(nn.Module):
    """A head that ends with a linear map to the vocabulary: head(x) = project(transform(x)), if `cap` is None."""

    project: nn.Module
    vocab_size: int
    cap: float | None = None

    def transform(self, x: Tensor) -> Tensor:
        raise NotImplementedError


def cross_entropy(
    head: Callable[[Tensor], Tensor], x: Tensor, labels: Tensor, label_smoothing: float = 0.0, reduction: str = "mean"
) -> Tensor:
    """F.cross_entropy of the logits head(x).

    Args:
        head: treats each node by itself. Only of one that has `vocab_size` large logits are computed in chunks.

    Shapes:
        x: (..., C); labels: (...), IGNORE_INDEX where nothing is predicted
    """
    chunks, labels = count_chunks(head, labels), labels.flatten()
    if chunks == 1:
        logits = head(x).flatten(0, -2).float()
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction=reduction)
    x = x.flatten(0, -2)
    if (
        torch.is_grad_enabled()
        and isinstance(head, LinearHead)
        and head.cap is None
        and isinstance(head.project, nn.Linear)
        and reduction != "none"
    ):
        weight, bias = head.project.weight, head.project.bias
        total = linear_cross_entropy(head.transform(x), weight, bias, labels, label_smoothing, chunks)
    else:
        parts = zip(split(x, chunks), split(labels, chunks))
        nats = torch.cat([_recompute(head, rows, targets, label_smoothing) for rows, targets in parts])
        if reduction == "none":
            return nats
        total = nats.sum()
    return total if reduction == "sum" else total / (labels != IGNORE_INDEX).sum()


def iterate_logits(head: Callable[[Tensor], Tensor], x: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the logits head(x) and their labels, (n, V) and (n,), as many at once as `cross_entropy` computes."""
    chunks, labels = count_chunks(head, labels), labels.flatten()
    parts = [x] if chunks == 1 else split(x.flatten(0, -2), chunks)
    for rows, targets in zip(parts, split(labels, chunks)):
        yield head(rows).flatten(0, -2).float(), targets


def count_chunks(head: Any, labels: Tensor) -> int:
    """Return in how many parts the logits are computed: a power of two, so that the graph that torch.compile traces
    with a symbolic number of rows serves many of them."""
    size, chunks = labels.numel() * getattr(head, "vocab_size", 0), 1
    limit = MAX_CPU_LOGITS if labels.device.type == "cpu" else MAX_LOGITS
    while size > limit * chunks:
        chunks *= 2
    return chunks


def split(x: Tensor, chunks: int) -> list[Tensor]:
    """Split the first axis into so many parts; the last ones may be shorter."""
    rows = -(-x.shape[0] // chunks)
    return [x[i * rows : (i + 1) * rows] for i in range(chunks)]


def _recompute(head: Callable[[Tensor], Tensor], x: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    """The losses of a chunk; its logits are computed again for the backward pass."""

    def compute(x: Tensor) -> Tensor:
        return F.cross_entropy(head(x).float(), labels, label_smoothing=label_smoothing, reduction="none")

    return checkpoint(compute, x, use_reentrant=False) if torch.is_grad_enabled() else compute(x)


def linear_cross_entropy(
    x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, label_smoothing: float = 0.0, chunks: int = 1
) -> Tensor:
    """F.cross_entropy(F.linear(x, weight, bias), labels, reduction="sum"), in chunks. Matrix products are computed in
    the dtype of autocast, the softmax in float32 (float64 of float64). It has no second derivative.

    Shapes:
        x: (N, C); weight: (V, C); bias: (V,) or None; labels: (N,), IGNORE_INDEX where nothing is predicted
    """
    return _LinearCrossEntropy.apply(x, weight, bias, labels, label_smoothing, chunks)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, label_smoothing: float, chunks: int
    ) -> Tensor:
        dtype = _product_dtype(x)
        inputs, matrix, vector = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grads_x, losses = [], []
        differentiate = _compile_differentiate() if has_fusion(x.device) else _differentiate
        grad_weight = torch.zeros_like(weight) if needs_weight else None
        grad_bias = torch.zeros_like(bias) if bias is not None and needs_bias else None
        for rows, targets in zip(split(inputs, chunks), split(labels, chunks)):
            loss, grad = differentiate(F.linear(rows, matrix, vector), targets, label_smoothing)
            losses.append(loss)
            if needs_x:
                grads_x.append((grad @ matrix).to(x.dtype))
            if grad_weight is not None:
                _add_product(grad_weight, grad.T, rows)
            if grad_bias is not None:
                grad_bias += grad.sum(0)
        ctx.save_for_backward(torch.cat(grads_x) if needs_x else None, grad_weight, grad_bias)
        return torch.stack(losses).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        gradients = (None if gradient is None else gradient * grad_output for gradient in ctx.saved_tensors)
        return (*gradients, None, None, None)


def _product_dtype(x: Tensor) -> torch.dtype:
    """The dtype that autocast gives a matrix product. (torch 2.11 does not compile `is_autocast_available`.)"""
    device = x.device.type
    is_autocast = device != "meta" and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if is_autocast else x.dtype


def _differentiate(logits: Tensor, labels: Tensor, label_smoothing: float) -> tuple[Tensor, Tensor]:
    """The cross-entropy of logits (n, V), summed, and its gradient (n, V), which takes their place, in float32 (float64
    of float64); the gradient has the dtype of the logits."""
    x = logits if logits.dtype == torch.float64 else logits.float()
    is_label, index = labels != IGNORE_INDEX, labels.clamp(min=0)[:, None]
    x = x.sub_(x.amax(-1, keepdim=True))
    target = (1 - label_smoothing) * x.gather(1, index)[:, 0]
    if label_smoothing:
        target = target + label_smoothing * x.mean(-1)
    sums = x.exp_().sum(-1)
    loss = torch.where(is_label, sums.log() - target, 0.0).sum()
    weights = is_label.to(x.dtype)[:, None]
    grad = x.mul_(weights / sums[:, None]).scatter_add_(1, index, weights * (label_smoothing - 1))
    grad = grad.sub_(weights * (label_smoothing / x.shape[-1])) if label_smoothing else grad
    return loss, grad.to(logits.dtype)


@cache
def _compile_differentiate() -> Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]:
    """`_differentiate` in as few passes over the logits as there can be, where a GPU would take ten."""
    return torch.compile(_differentiate, dynamic=True)


def has_fusion(device: torch.device) -> bool:
    """Whether torch can compile for this device in seconds: Triton is there, and nothing is being compiled already."""
    if device.type != "cuda" or torch.compiler.is_compiling():
        return False
    from torch.utils._triton import has_triton

    return has_triton()


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b"""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b
