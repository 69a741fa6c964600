"""Attention spelled out in products: where it serves, and how near it is. (That it is exact, the oracle says.)"""

import pytest
import torch

from anyformer.model.edges import causal, every, full, window
from anyformer.model.kernels import select as paths
from anyformer.model.kernels.select import AttentionSpec, select_kernel


@pytest.mark.parametrize("edges", [full, causal, every(2), causal & window(3)], ids=str)
def test_products_serve_bfloat16_on_a_cpu_and_are_as_near_as_its_kernel(edges, monkeypatch):
    exact = torch.randn(3, 2, 4, 130, 16, generator=torch.Generator().manual_seed(0)).unbind()
    path = select_kernel(edges, None, AttentionSpec(2, 4, 130, 130, 0, torch.device("cpu")))
    short = [x.bfloat16() for x in exact]
    assert paths.is_matmul_faster(*short[:2]) and not paths.is_matmul_faster(*exact[:2])
    monkeypatch.setattr(paths, "READ", exact[1].numel())
    q, k = exact[0][:, :, :1], exact[1]
    assert paths.is_matmul_faster(q, k) and not paths.is_matmul_faster(q, k[:1])  # one query, if there is much to read
    long = torch.empty(1, 1, 1100, 8, dtype=torch.bfloat16)
    assert not paths.is_matmul_faster(long, long)  # there all scores would be kept
    ours = (path(*short).float() - path(*exact)).abs().max()
    monkeypatch.setattr(paths, "is_matmul_faster", lambda q, k, drop=0.0: False)
    assert ours < 2 * (path(*short).float() - path(*exact)).abs().max() + 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("heads", "shared"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("table", [None, (1, 1), (2, 1), (2, 6)], ids=str)
def test_one_query_reads_as_it_does_by_the_kernel(heads: int, shared: int, table, dtype: torch.dtype):
    """Of a part of a cache, with and without a table of what it may read, heads sharing keys or not."""
    rng = torch.Generator().manual_seed(heads)
    q = torch.randn(2, heads, 1, 16, generator=rng).to(dtype)
    k, v = (torch.randn(2, shared, 90, 16, generator=rng).to(dtype)[:, :, 3:40] for _ in range(2))
    added = None
    if table is not None:
        rows, each = table
        added = torch.randn(rows, heads if each > 1 else 1, 1, 37, generator=rng)
        added = added.masked_fill(torch.rand(added.shape, generator=rng) < 0.3, -torch.inf)
    found = paths.matmul_attention(q, k, v, added, 0.0, 0.3)
    wanted = paths.sdpa(q.float(), k.float(), v.float(), added, 0.0, False, 0.3)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), wanted, rtol=0, atol=1e-6 if dtype == torch.float32 else 0.03)
