"""Positions: each equals its paper's formula, written a second time."""

import math

import pytest
import torch

from anyformer.model.config import TransformerConfig
from anyformer.model.position_bias import Alibi, RelativeBias, build_position_bias
from anyformer.model.positions import (
    LearnedPosition,
    SinusoidalPosition,
    apply_rotary,
    build_position_embedding,
    rotary_cos_sin,
)
from anyformer.model.rope_scaling import rotary_frequencies
from reference import bucket_slowly, rotate_slowly, slopes_slowly


def frequencies(channels: int, base: float = 10_000.0) -> torch.Tensor:
    config = TransformerConfig(dim=channels, n_head=1, position="rotary", rotary_base=base)
    return rotary_frequencies(config, 1, torch.device("cpu"))[0]


def rotate(x: torch.Tensor, position: int, base: float = 10_000.0) -> torch.Tensor:
    cos_sin = rotary_cos_sin(torch.tensor([position]), frequencies(x.numel(), base))
    return apply_rotary(x.view(1, 1, 1, -1), cos_sin).flatten()


@pytest.mark.parametrize("shift", [1, 40, 1000])
def test_rotary_dot_products_depend_on_distance_only(shift):
    torch.manual_seed(0)
    q, k = torch.randn(2, 16).double()
    product = rotate(q, 9).dot(rotate(k, 4))
    torch.testing.assert_close(rotate(q, 9 + shift).dot(rotate(k, 4 + shift)), product, rtol=1e-3, atol=1e-3)
    assert abs(product - rotate(q, 9).dot(rotate(k, 5))) > 1e-2


@pytest.mark.parametrize(("position", "base"), [(0, 10_000.0), (1, 10_000.0), (7, 500_000.0)])
def test_rotary_turns_complex_numbers(position, base):
    x = torch.linspace(-1, 1, 8).double()
    assert rotate(x, position, base).tolist() == pytest.approx(rotate_slowly(x.tolist(), position, base), abs=1e-6)


def test_rotary_turns_each_row_by_its_own_position():
    x, positions = torch.randn(2, 3, 4, 8), torch.tensor([[0, 1, 2, 3], [5, 6, 7, 8]])
    rows = [apply_rotary(x[b : b + 1], rotary_cos_sin(positions[b], frequencies(8))) for b in range(2)]
    torch.testing.assert_close(apply_rotary(x, rotary_cos_sin(positions, frequencies(8))), torch.cat(rows))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (16, 64), (8, 20)])
def test_relative_buckets_are_those_of_t5(bidirectional, buckets, max_distance):
    offsets = range(-3 * max_distance, 3 * max_distance + 1)
    result = RelativeBias(1, buckets, max_distance).bucket(torch.tensor(list(offsets)), bidirectional)
    assert result.tolist() == [bucket_slowly(offset, bidirectional, buckets, max_distance) for offset in offsets]


def test_relative_buckets_by_hand():
    offsets = torch.tensor([0, -1, -15, -16, -127, -128, -900, 1])
    assert RelativeBias(1).bucket(offsets, False).tolist() == [0, 1, 15, 16, 31, 31, 31, 0]
    offsets = torch.tensor([0, -7, -8, -16, -900, 1, 7, 900])
    assert RelativeBias(1).bucket(offsets, True).tolist() == [0, 7, 8, 10, 15, 17, 23, 31]


def test_relative_bias_is_one_weight_for_each_bucket_and_head():
    bias = RelativeBias(3)
    q, k = torch.tensor(9), torch.tensor([9, 8, 2])
    assert torch.equal(bias(torch.tensor(2), q, k, False), bias.weight[[0, 1, 7], 2])


@pytest.mark.parametrize(
    ("n_head", "slopes"),
    [
        (8, [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]),
        (16, [2 ** (-i / 2) for i in range(1, 17)]),
        (12, [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256, 2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]),
        (1, [1 / 256]),
    ],
)
def test_alibi_slopes_are_those_of_the_paper(n_head, slopes):
    assert Alibi(n_head).slope.tolist() == pytest.approx(slopes)
    assert slopes_slowly(n_head) == pytest.approx(slopes)


def test_alibi_falls_with_distance_on_either_side():
    bias = Alibi(8)(torch.tensor(1), torch.tensor(5), torch.tensor([2, 4, 5, 6, 8]), True)
    assert bias.tolist() == [-0.75, -0.25, 0, -0.25, -0.75]


@pytest.mark.parametrize("dim", [8, 7])
def test_sinusoids_are_those_of_2017(dim):
    result = SinusoidalPosition(dim)(torch.arange(60))
    for position in range(60):
        # the paper has 2 i / dim, and sines and cosines in turn; its code (tensor2tensor) is what others followed
        waves = [position / 10_000 ** (i / (dim // 2 - 1)) for i in range(dim // 2)]
        expected = [*map(math.sin, waves), *map(math.cos, waves), *[0.0] * (dim % 2)]
        assert result[position].tolist() == pytest.approx(expected, abs=1e-5)


def test_a_learned_position_beyond_the_context_is_rejected():
    learned = LearnedPosition(4, 8)
    assert torch.equal(learned(torch.tensor([3, 0])), learned.weight[[3, 0]])
    with pytest.raises(IndexError):
        learned(torch.tensor([4]))


def test_each_kind_of_position_acts_in_one_place():
    """Added to the nodes, or a rotation, or a bias on the edges: never two of them."""
    places = {}
    for position in ("none", "learned", "sinusoidal", "rotary", "relative", "alibi"):
        config = TransformerConfig(position=position)
        places[position] = (build_position_embedding(config) is not None) + (build_position_bias(config) is not None)
    assert places == {"none": 0, "learned": 1, "sinusoidal": 1, "rotary": 0, "relative": 1, "alibi": 1}
