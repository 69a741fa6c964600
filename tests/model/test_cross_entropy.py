"""The cross-entropy in chunks equals that of whole logits, in loss and gradients; large logits are never whole.

Shapes: N predictions, C channels, V entries of the vocabulary.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from anyformer.model import LMHead, MaskedHead, TransformerConfig
from anyformer.model.kernels import cross_entropy as kernel
from anyformer.model.ngram_mixture import NGramMixture

N, C, V = 37, 16, 101


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kernel, "MAX_CPU_LOGITS", 12 * V)


def make_labels() -> Tensor:
    labels = torch.randint(0, V, (N,), generator=torch.Generator().manual_seed(1))
    labels[3:9] = kernel.IGNORE_INDEX
    return labels


def make_head(kind: str) -> nn.Module:
    embedding = nn.Embedding(V, C)
    heads = {
        "linear": lambda: LMHead(C, V, scale=0.5),
        "tied": lambda: LMHead(C, V, embedding),
        "capped": lambda: LMHead(C, V, cap=0.7),
        "masked": lambda: MaskedHead(TransformerConfig(dim=C), V, embedding),
        "mixture": lambda: NGramMixture(LMHead(C, V), C),
    }
    torch.manual_seed(0)
    return heads[kind]()


def make_nodes(kind: str) -> Tensor:
    return torch.randn(N, C + V if kind == "mixture" else C, generator=torch.Generator().manual_seed(2))


def differentiate(head: nn.Module, x: Tensor, loss: Tensor) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(3 * loss, [x, *head.parameters()])]


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("has_bias", [False, True])
def test_chunks_equal_whole_logits_in_float64(has_bias: bool, label_smoothing: float):
    torch.manual_seed(0)
    head, x = nn.Linear(C, V, has_bias).double(), make_nodes("linear").double().requires_grad_()
    labels = make_labels()
    full = F.cross_entropy(head(x), labels, reduction="sum", label_smoothing=label_smoothing)
    parts = kernel.linear_cross_entropy(x, head.weight, head.bias, labels, label_smoothing, chunks=5)
    for expected, actual in zip(differentiate(head, x, full), differentiate(head, x, parts), strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("kind", ["linear", "tied", "capped", "masked", "mixture"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_heads_in_chunks(kind: str, reduction: str, monkeypatch: pytest.MonkeyPatch):
    head, x, labels = make_head(kind), make_nodes(kind).requires_grad_(), make_labels()
    assert kernel.count_chunks(head, labels) == 4
    parts = differentiate(head, x, kernel.cross_entropy(head, x, labels, 0.1, reduction))
    monkeypatch.setattr(kernel, "MAX_CPU_LOGITS", N * V)
    full = F.cross_entropy(head(x).float(), labels, label_smoothing=0.1, reduction=reduction)
    assert torch.equal(kernel.cross_entropy(head, x, labels, 0.1, reduction), full), "small logits are computed whole"
    for expected, actual in zip(differentiate(head, x, full), parts, strict=True):
        torch.testing.assert_close(actual, expected, atol=2e-6 * expected.abs().max().item(), rtol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "masked", "mixture"])
def test_evaluation_in_chunks(kind: str):
    head, x, labels = make_head(kind), make_nodes(kind), make_labels()
    with torch.inference_mode():
        full = head(x)
        parts = list(kernel.iterate_logits(head, x[None], labels[None]))
        torch.testing.assert_close(kernel.cross_entropy(head, x, labels), F.cross_entropy(full, labels))
    assert len(parts) == 4
    torch.testing.assert_close(torch.cat([logits for logits, _ in parts]), full)
    assert torch.equal(torch.cat([targets for _, targets in parts]), labels)


def test_no_label_at_all_is_undefined_as_in_torch():
    labels = torch.full((N,), kernel.IGNORE_INDEX)
    assert kernel.cross_entropy(make_head("linear"), make_nodes("linear"), labels).isnan()


def test_products_in_the_dtype_of_autocast():
    head, x, labels = make_head("masked"), make_nodes("masked").requires_grad_(), make_labels()
    with torch.autocast("cpu", torch.bfloat16):
        full, parts = F.cross_entropy(head(x).float(), labels), kernel.cross_entropy(head, x, labels)
    assert parts.dtype == torch.float32
    for expected, actual in zip(differentiate(head, x, full), differentiate(head, x, parts), strict=True):
        assert actual.dtype == expected.dtype == torch.float32
        torch.testing.assert_close(actual, expected, atol=0.01 * expected.abs().max().item(), rtol=0.02)


def test_frozen_weights_get_no_gradient():
    head, x, labels = make_head("linear").requires_grad_(False), make_nodes("linear").requires_grad_(), make_labels()
    kernel.cross_entropy(head, x, labels).backward()
    assert x.grad is not None and all(p.grad is None for p in head.parameters())


class LargestSize(TorchDispatchMode):
    """Records how many entries the largest tensor has that an operation returns."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = out if isinstance(out, tuple | list) else [out]
        self.largest = max(self.largest, *(t.numel() for t in tensors if isinstance(t, Tensor)), 0)
        return out


@pytest.mark.parametrize("kind", ["linear", "masked", "mixture"])
def test_logits_are_never_whole(kind: str):
    rows = 16 * N  # more entries than the nodes and the weight have
    head, x = make_head(kind), torch.randn(rows, make_nodes(kind).shape[1], requires_grad=kind != "mixture")
    with LargestSize() as mode:
        kernel.cross_entropy(head, x, make_labels().repeat(16)).backward()
        with torch.no_grad():
            kernel.cross_entropy(head, x, make_labels().repeat(16))
    assert mode.largest < rows * V / 4


@pytest.mark.slow
def test_one_graph_serves_many_lengths():
    """torch.compile traces the chunks with a symbolic number of rows: other lengths do not trace them anew."""
    head, graphs = make_head("linear"), []

    def count(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(lambda x, labels: kernel.cross_entropy(head, x, labels), backend=count, fullgraph=True)
    for rows in (25, 26, 31, 37, 40, 45):
        x, labels = torch.randn(rows, C).requires_grad_(), torch.randint(0, V, (rows,))
        full, parts = F.cross_entropy(head(x), labels), compiled(x, labels)
        for expected, actual in zip(differentiate(head, x, full), differentiate(head, x, parts), strict=True):
            torch.testing.assert_close(actual, expected)
    assert len(graphs) <= 3
