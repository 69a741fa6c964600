"""The linear map by every way it can be made: the same sums, and the plain way where something is learned."""

import pytest
import torch
import torch.nn.functional as F

from anyformer.model.kernels import linear as ways
from anyformer.model.kernels.linear import Linear, pack_weight, onednn_linear


def made(inputs: int, outputs: int, bias: bool = True) -> Linear:
    torch.manual_seed(inputs + outputs)
    return Linear(inputs, outputs, bias)


def exactly(linear: Linear, x: torch.Tensor) -> torch.Tensor:
    bias = None if linear.bias is None else linear.bias.double()
    return F.linear(x.double(), linear.weight.double(), bias).float()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (3,), (2, 5), (40,), (1, 0)], ids=str)
@pytest.mark.parametrize("outputs", [512, 131])
@pytest.mark.parametrize("work", [0, 1 << 40], ids=["oneDNN", "parts"])
def test_every_way_makes_the_same_sums(outputs, shape, bias, work, monkeypatch):
    """By oneDNN, in parts for two cores, or as torch does it; however many rows, wherever they lie."""
    monkeypatch.setattr(ways, "WORK", work)
    linear = made(256, outputs, bias)
    torch.set_num_threads(2)
    try:
        with torch.inference_mode():
            x = torch.randn(*shape, 512)[..., ::2]
            torch.testing.assert_close(linear(x), exactly(linear, x), atol=1e-5, rtol=1e-5)
    finally:
        torch.set_num_threads(1)


def test_a_row_alone_is_shared_out_where_there_are_several_cores():
    linear, x = made(256, 512), torch.randn(3, 256)
    assert not linear.alone(x[:1])
    torch.set_num_threads(2)
    try:
        assert linear.alone(x[:1]) and not linear.alone(x) and not made(256, 513).alone(x[:1])
    finally:
        torch.set_num_threads(1)


def test_what_is_learned_from_takes_the_plain_way(monkeypatch):
    """oneDNN's product has no way back: neither a graph nor autocast nor a compiler may meet it."""
    monkeypatch.setattr(ways, "WORK", 0)
    monkeypatch.setattr(ways, "onednn_linear", lambda *_: pytest.fail("the quick way was taken"))
    linear, x = made(256, 512), torch.randn(4, 256)
    y = linear(x)
    y.sum().backward()
    assert torch.equal(y, F.linear(x, linear.weight, linear.bias)) and linear.weight.grad is not None
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert linear(x).dtype == torch.bfloat16
    with torch.no_grad():
        assert linear.double()(x.double()).dtype == torch.float64
        torch.export.export(made(256, 512), (x,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_weight_in_an_order_of_its_own_is_the_same_weight(dtype, monkeypatch):
    if not ways.has_onednn(dtype):
        pytest.skip(f"this processor or this torch has no oneDNN for {dtype}")
    monkeypatch.setattr(ways, "LARGE", 1 << 12)
    weight, near = torch.randn(131, 96).to(dtype), 1e-5 if dtype == torch.float32 else 2**-7
    small = weight[:5]
    assert pack_weight(weight).is_mkldnn and pack_weight(small) is small
    with torch.inference_mode():
        for rows in (1, 2, 17, 300):
            x = torch.randn(rows, 96).to(dtype)
            wanted = (x.double() @ weight.double().T).to(dtype)
            torch.testing.assert_close(onednn_linear(x, pack_weight(weight)), wanted, atol=near, rtol=near)
