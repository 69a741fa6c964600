"""Sampling: each filter keeps exactly the tokens it should; draws follow the probabilities, row by row."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anyformer.errors import InputError
from anyformer.inference import sampling
from anyformer.inference.sampling import SamplingParams

LOGITS = st.lists(st.floats(-5, 5), min_size=2, max_size=12).map(lambda row: torch.tensor([row]))


def generators(n: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(n)]


@given(LOGITS, st.integers(1, 12))
def test_top_k_keeps_the_k_likeliest(logits: torch.Tensor, k: int):
    is_kept = sampling.top_k(logits, k).isfinite()[0]
    threshold = logits[0].sort(descending=True).values[min(k, logits.shape[1]) - 1]
    assert torch.equal(is_kept, logits[0] >= threshold)


@given(logits=LOGITS, p=st.floats(0.01, 1.0), candidates=st.sampled_from([1, 3, 1024]))
def test_top_p_keeps_the_smallest_set_that_reaches_p(logits: torch.Tensor, p: float, candidates: int):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "TOP_P_CANDIDATES", candidates)
        is_kept, probabilities = sampling.top_p(logits, p).isfinite()[0], logits[0].double().softmax(0)
    order = probabilities.argsort(descending=True, stable=True)
    assert is_kept.any() and probabilities[is_kept].sum() >= p - 1e-5
    assert probabilities[is_kept].min() >= probabilities[~is_kept].max() if (~is_kept).any() else True
    assert probabilities[order][: int(is_kept.sum()) - 1].sum() < p + 1e-5


@given(LOGITS, st.floats(0, 1))
def test_min_p_keeps_tokens_likely_relative_to_the_likeliest(logits: torch.Tensor, p: float):
    is_kept, probabilities = sampling.min_p(logits, p).isfinite()[0], logits[0].softmax(0)
    assert torch.equal(is_kept, probabilities >= p * probabilities.max())


def test_the_repetition_penalty_makes_seen_tokens_less_likely():
    logits, seen = torch.tensor([[2.0, -2.0, 1.0]]), torch.tensor([[True, True, False]])
    assert sampling.penalize_repetition(logits, seen, 2.0).tolist() == [[1.0, -4.0, 1.0]]


def test_draws_follow_the_probabilities_and_never_take_an_excluded_token():
    logits = torch.tensor([[0.5, 0.2, 0.0, 0.3]]).log().expand(4000, 4)
    share = torch.bincount(sampling.sample_tokens(logits, generators(4000)), minlength=4) / 4000
    assert torch.allclose(share, torch.tensor([0.5, 0.2, 0.0, 0.3]), atol=0.03) and share[2] == 0


@pytest.mark.parametrize("vocab_size", [2, 65, 1000, 50_257])
def test_rows_are_drawn_together_as_one_by_one(vocab_size: int, monkeypatch: pytest.MonkeyPatch):
    """Bit for bit, also where the rows do not fit into one piece."""
    torch.manual_seed(vocab_size)
    logits = 3 * torch.randn(7, vocab_size)
    logits[::2, ::2] = -torch.inf
    alone = []
    for row, generator in zip(logits, generators(7)):
        cumulative = row.double().softmax(-1).cumsum(-1)
        draw = torch.rand(1, dtype=torch.float64, generator=generator)
        alone.append(torch.searchsorted(cumulative, draw * cumulative[-1], right=True))
    assert torch.equal(sampling.sample_tokens(logits, generators(7)), torch.cat(alone))
    monkeypatch.setattr(sampling, "MAX_DRAW_ELEMENTS", 3 * vocab_size)
    assert torch.equal(sampling.sample_tokens(logits, generators(7)), torch.cat(alone))


def test_temperature_zero_takes_the_likeliest_whatever_else_is_set():
    logits = torch.tensor([[0.1, 3.0, 0.2]])
    params = SamplingParams(temperature=0, top_k=2, top_p=0.5, min_p=0.1)
    assert sampling.Sampler(params, [[0]], [0])(logits).tolist() == [1]


def test_penalties_count_what_was_generated():
    """By OpenAI's formula: logit - count * frequency - (count > 0) * presence; the prompt does not count."""
    params = SamplingParams(temperature=0, presence_penalty=1.0, frequency_penalty=0.25)
    sampler, logits = sampling.Sampler(params, [[2]], [0]), torch.tensor([[2.0, 1.9, 0.7]])
    assert [int(sampler(logits)) for _ in range(6)] == [0, 1, 0, 2, 1, 0]


def test_biases_are_added_to_the_logits_of_their_tokens():
    sampler = sampling.Sampler(SamplingParams(temperature=0, logit_bias={"2": 5.0, "0": -1.0}), [[0], [0]], [0, 0])
    assert sampler(torch.tensor([[3.0, 2.5, -1.0], [9.0, 2.5, 0.0]])).tolist() == [2, 0]


@pytest.mark.parametrize("bias", [{"a": 1.0}, {"-1": 1.0}, {"²": 1.0}, {"1": 1e9}, {"1": "x"}, {1: 1.0}])
def test_biases_that_make_no_sense_are_refused(bias: dict):
    with pytest.raises(InputError, match="logit_bias"):
        SamplingParams(logit_bias=bias)


@pytest.mark.parametrize("field", ["temperature", "top_k", "top_p", "min_p", "repetition_penalty"])
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), 1e30, "1"])
def test_values_that_make_no_sense_are_refused(field: str, value: object):
    with pytest.raises(InputError, match=field):
        SamplingParams(**{field: value})
