"""Attention spelled out in products: where it serves, and how near it is. (That it is exact, the oracle says.)"""

import pytest
import torch

from anyformer.model import paths
from anyformer.model.edges import causal, every, full, window
from anyformer.model.paths import Asked, choose


@pytest.mark.parametrize("edges", [full, causal, every(2), causal & window(3)], ids=str)
def test_products_serve_bfloat16_on_a_cpu_and_are_as_near_as_its_kernel(edges, monkeypatch):
    exact = torch.randn(3, 2, 4, 130, 16, generator=torch.Generator().manual_seed(0)).unbind()
    path = choose(edges, None, Asked(2, 4, 130, 130, 0, torch.device("cpu")))
    short = [x.bfloat16() for x in exact]
    assert paths.products_pay(*short[:2]) and not paths.products_pay(*exact[:2])
    q, k = exact[0][:, :, :1], exact[1]
    assert paths.products_pay(q, k) and not paths.products_pay(q, k[:, :2])  # one query; not if heads share their keys
    long = torch.empty(1, 1, 1100, 8, dtype=torch.bfloat16)
    assert not paths.products_pay(long, long)  # there all scores would be kept
    ours = (path(*short).float() - path(*exact)).abs().max()
    monkeypatch.setattr(paths, "products_pay", lambda q, k, drop=0.0: False)
    assert ours < 2 * (path(*short).float() - path(*exact)).abs().max() + 0.01
