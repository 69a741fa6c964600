"""Numbers by their place among quantiles, and the linear model beside a Transformer."""

import pytest
import torch

from anyformer.model.tabular import CategoryPath, LinearPath, NumberPath, PiecewiseLinear


def test_positions_along_quantiles_by_hand():
    locate = PiecewiseLinear([0.0, 1.0, 3.0, 4.0])
    x = torch.tensor([[0.0], [0.5], [1.0], [2.0], [4.0], [-2.0], [6.0], [-99.0], [99.0], [torch.nan]])
    expected = [[0, 0, 0], [0.5, 0, 0], [1, 0, 0], [1, 0.5, 0], [1, 1, 1], [-2, 0, 0], [1, 1, 3]]
    expected += [[-3, 0, 0], [1, 1, 4], [0, 0, 0]]
    torch.testing.assert_close(locate(x), torch.tensor(expected).float())
    assert not locate.state_dict(), "quantiles belong to the schema"


def test_neighbors_in_float32_have_positions():
    low = torch.tensor(1e6)
    high = torch.nextafter(low, torch.tensor(torch.inf))
    locate = PiecewiseLinear([low.item(), high.item()])
    torch.testing.assert_close(locate(torch.stack([low, high])[:, None]), torch.tensor([[0.0], [1.0]]))


def build_path() -> LinearPath:
    parts = [NumberPath((1.0,), (2.0,), (0.0, 1.0, 3.0), 2), None, CategoryPath(3, 2)]
    return LinearPath(parts, 2)


def test_it_starts_at_zero_and_reads_every_part():
    path = build_path()
    path.reset_parameters()
    values = [torch.tensor([[0.5], [2.0]]), torch.zeros(2, 4), torch.tensor([[0], [2]])]
    is_present = torch.ones(2, 3, dtype=torch.bool)
    torch.testing.assert_close(path(values, is_present), torch.zeros(2, 2))
    torch.nn.init.normal_(path.parts["0"].project.weight)
    torch.nn.init.normal_(path.parts["2"].value.weight)
    output = path(values, is_present)
    for i, changed in ((0, torch.tensor([[0.7], [2.5]])), (2, torch.tensor([[1], [0]]))):
        other = [changed if k == i else value for k, value in enumerate(values)]
        assert (path(other, is_present) - output).abs().min() > 1e-3


@pytest.mark.parametrize("field", [0, 2])
def test_a_missing_value_is_not_read(field: int):
    path = build_path()
    torch.nn.init.normal_(path.parts["0"].project.weight)
    is_present = torch.ones(2, 3, dtype=torch.bool)
    is_present[:, field] = False
    values = [torch.tensor([[0.5], [2.0]]), torch.zeros(2, 4), torch.tensor([[0], [2]])]
    others = [torch.tensor([[torch.nan], [9.0]]), torch.zeros(2, 4), torch.tensor([[1], [0]])]
    other = [others[k] if k == field else value for k, value in enumerate(values)]
    torch.testing.assert_close(path(values, is_present), path(other, is_present))


def test_it_learns_what_is_linear_in_a_few_steps():
    torch.manual_seed(0)
    x, category = torch.randn(200, 1), torch.randint(3, (200, 1))
    y = 2 * x + torch.tensor([-1.0, 0.0, 3.0])[category]
    path = LinearPath([NumberPath((0.0,), (1.0,), (), 1), CategoryPath(3, 1)], 1)
    path.reset_parameters()
    optimizer = torch.optim.Adam(path.parameters(), lr=1e-2)
    for _ in range(100):
        loss = (path([x, category], torch.ones(200, 2, dtype=torch.bool)) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.01
