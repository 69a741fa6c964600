"""The linear map computed in every way: the same sums, and torch's own operation where a gradient is needed."""

import pytest
import torch
import torch.nn.functional as F

from anyformer.model.kernels import linear
from anyformer.model.kernels.linear import Linear, has_onednn, onednn_linear, pack_weight


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def make(inputs: int, outputs: int, bias: bool = True) -> Linear:
    torch.manual_seed(inputs + outputs)
    return Linear(inputs, outputs, bias)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("outputs", [512, 131])
@pytest.mark.parametrize("min_products", [0, 1 << 40], ids=["oneDNN", "split"])
@torch.inference_mode()
def test_every_way_gives_the_same_sums(outputs, bias, min_products, monkeypatch, two_threads):
    """By oneDNN, in parts for two cores, or by torch; for any number of rows, contiguous or not."""
    monkeypatch.setattr(linear, "MIN_ONEDNN_PRODUCTS", min_products)
    module = make(256, outputs, bias)
    for shape in ((1, 1), (3,), (2, 5), (40,), (1, 0)):
        x = torch.randn(*shape, 512)[..., ::2]
        expected = F.linear(x.double(), module.weight.double(), module.bias.double() if bias else None).float()
        torch.testing.assert_close(module(x), expected, atol=1e-5, rtol=1e-5)


def test_a_single_row_is_split_over_several_cores(two_threads):
    module, x = make(256, 512), torch.randn(3, 256)
    assert module._is_worth_splitting(x[:1]) and not module._is_worth_splitting(x)
    assert not make(256, 513)._is_worth_splitting(x[:1])
    torch.set_num_threads(1)
    assert not module._is_worth_splitting(x[:1])


def test_training_uses_torchs_own_operation(monkeypatch):
    """oneDNN's product has no backward: neither autograd nor autocast nor a compiler may meet it."""
    monkeypatch.setattr(linear, "MIN_ONEDNN_PRODUCTS", 0)
    monkeypatch.setattr(linear, "onednn_linear", lambda *_: pytest.fail("oneDNN was called"))
    module, x = make(256, 512), torch.randn(4, 256)
    y = module(x)
    y.sum().backward()
    assert torch.equal(y, F.linear(x, module.weight, module.bias)) and module.weight.grad is not None
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert module(x).dtype == torch.bfloat16
    with torch.no_grad():
        assert module.double()(x.double()).dtype == torch.float64
        torch.export.export(make(256, 512), (x,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_packed_weight_is_the_same_weight(dtype, monkeypatch):
    if not has_onednn(dtype):
        pytest.skip(f"this processor or this torch has no oneDNN for {dtype}")
    monkeypatch.setattr(linear, "MIN_PACKED_WEIGHTS", 1 << 12)
    weight, tolerance = torch.randn(131, 96).to(dtype), 1e-5 if dtype == torch.float32 else 2**-7
    small = weight[:5]
    assert pack_weight(weight).is_mkldnn and pack_weight(small) is small
    with torch.inference_mode():
        for rows in (1, 2, 17, 300):
            x = torch.randn(rows, 96).to(dtype)
            expected = (x.double() @ weight.double().T).to(dtype)
            torch.testing.assert_close(onednn_linear(x, pack_weight(weight)), expected, atol=tolerance, rtol=tolerance)
