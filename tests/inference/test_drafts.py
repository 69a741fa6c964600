"""Drafts: orders, passes, exact sampling, revisions. The model is the exact conditional of a known distribution."""

from itertools import product

import pytest
import torch
from torch import Tensor

from anyformer.errors import InputError
from anyformer.inference.drafts import Draft, DraftSettings, write_drafts

V, T, MASK = 3, 4, 3
ALLOWED = torch.ones(V, dtype=torch.bool)


@pytest.fixture(scope="module")
def joint() -> Tensor:
    """The probability of every text of T tokens: (V, V, V, V)"""
    return (
        torch.randn(V, V, V, V, generator=torch.Generator().manual_seed(0)).mul(1.5).flatten().softmax(0).view([V] * T)
    )


class Exact:
    """The conditional of each hidden token, given those that are not."""

    def __init__(self, joint: Tensor):
        self.joint, self.n_reads = joint, 0

    def __call__(self, ids: Tensor, lengths: Tensor, sources: list[None] | None = None) -> Tensor:
        self.n_reads += 1
        logits = torch.zeros(*ids.shape, V + 1)
        for row, values in zip(logits, ids.tolist()):
            seen = self.joint[tuple(slice(None) if token == MASK else slice(token, token + 1) for token in values)]
            for i in range(T):
                marginal = seen.sum([axis for axis in range(T) if axis != i])
                row[i, : len(marginal)] = marginal.log() if len(marginal) == V else 0.0
        return logits


def write(predict: Exact, rows: list[list[int]], seeds: list[int] | None = None, **settings) -> list[Draft]:
    values = DraftSettings(**settings)
    gaps = [[i for i, token in enumerate(row) if token == MASK] for row in rows]
    seeds = seeds or [0] * len(rows)
    drafts = [Draft(row, gap, gap, values, seed) for row, gap, seed in zip(rows, gaps, seeds, strict=True)]
    for _ in write_drafts(predict, drafts, MASK, ALLOWED):
        pass
    return drafts


@pytest.mark.slow
@pytest.mark.parametrize("order", ["left", "random"])
def test_tokens_that_are_drawn_one_by_one_follow_the_distribution(joint: Tensor, order: str):
    """In any order that does not look at the probabilities."""
    n = 3000
    drafts = write(Exact(joint), [[MASK, 1, MASK, MASK]] * n, list(range(n)), order=order, temperature=1.0)
    counts = torch.zeros(V, V, V)
    for draft in drafts:
        counts[draft.ids[0], draft.ids[2], draft.ids[3]] += 1
    expected = n * joint[:, 1] / joint[:, 1].sum()
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 54.1  # of 26 degrees of freedom: one in a thousand


@pytest.mark.slow
def test_tokens_that_are_drawn_at_once_are_independent(joint: Tensor):
    n = 3000
    drafts = write(Exact(joint), [[MASK] * T] * n, list(range(n)), passes=1, temperature=1.0)
    assert all(draft.n_reads == 1 for draft in drafts)
    counts = torch.zeros(V, V)
    for draft in drafts:
        counts[draft.ids[0], draft.ids[1]] += 1
    expected = n * joint.sum([1, 2, 3])[:, None] * joint.sum([0, 2, 3])
    assert float(((counts - expected) ** 2 / expected).sum()) < 26.1  # of 8 degrees of freedom


def test_the_surest_token_is_filled_first(joint: Tensor):
    (draft,) = write(Exact(joint), [[MASK] * T])
    ids = [MASK] * T
    for _ in range(T):
        logprobs = Exact(joint)(torch.tensor([ids]), torch.tensor([T]))[0, :, :V].log_softmax(-1)
        best = max((i for i in range(T) if ids[i] == MASK), key=lambda i: float(logprobs[i].max()))
        ids[best] = int(logprobs[best].argmax())
    assert draft.ids == ids and draft.n_reads == T
    assert draft.rate() == pytest.approx(sum(draft.logprobs.values()) / T)


@pytest.mark.parametrize("order", ["surest", "margin", "entropy", "left", "random"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_drafts_in_a_batch_are_those_of_single_ones(joint: Tensor, order: str, temperature: float):
    rows, seeds = [[MASK] * T, [0, MASK, 2, MASK], [1, 1, MASK, 0], [0, 1, 2, 0]], [3, 1, 4, 1]
    settings = {"order": order, "temperature": temperature, "revise": 2, "passes": 3}
    together = write(Exact(joint), rows, seeds, **settings)
    alone = [write(Exact(joint), [row], [seed], **settings)[0] for row, seed in zip(rows, seeds)]
    assert [(d.ids, d.n_reads) for d in together] == [(d.ids, d.n_reads) for d in alone]


@pytest.mark.parametrize("passes", [1, 2, 3, 4, 9])
def test_a_pass_fills_its_share(joint: Tensor, passes: int):
    predict = Exact(joint)
    (draft,) = write(predict, [[MASK] * T], passes=passes)
    assert predict.n_reads == draft.n_reads == min(passes, T) and MASK not in draft.ids


def test_sure_tokens_are_filled_together(joint: Tensor):
    assert write(Exact(joint), [[MASK] * T], threshold=1e-6)[0].n_reads == 1
    assert write(Exact(joint), [[MASK] * T], threshold=1.0)[0].n_reads == T


def test_revisions_mend_tokens_that_do_not_fit():
    """A text of equal tokens, one of them wrong: every other one contradicts it."""
    joint = torch.full([V] * T, 1e-6)
    for token in range(V):
        joint[(token,) * T] = 1.0
    for wrong, right in product(range(T), range(V)):
        ids = [right] * T
        ids[wrong] = (right + 1) % V
        settings = DraftSettings(revise=1, remask=0.25)
        draft = Draft(ids, range(T), [], settings, 0)
        for _ in write_drafts(Exact(joint / joint.sum()), [draft], MASK, ALLOWED):
            pass
        assert draft.ids == [right] * T


def test_a_revision_leaves_tokens_that_are_only_a_little_less_likely():
    """Of two texts, one ten times as likely as the other: 2.3 nats."""
    joint = torch.full([V] * T, 1e-9)
    joint[0, 0, 0, 0], joint[1, 0, 0, 0] = 10.0, 1.0
    for above, first in ((0.0, 0), (2.2, 0), (2.4, 1)):
        draft = Draft([1, 0, 0, 0], range(T), [], DraftSettings(revise=1, remask_above=above), 0)
        for _ in write_drafts(Exact(joint / joint.sum()), [draft], MASK, ALLOWED):
            pass
        assert draft.ids == [first, 0, 0, 0]


def test_a_revision_keeps_the_likeliest_text(joint: Tensor):
    best = torch.unravel_index(joint.argmax(), joint.shape)
    draft = Draft([int(i) for i in best], range(T), [], DraftSettings(revise=3), 0)
    for _ in write_drafts(Exact(joint), [draft], MASK, ALLOWED):
        pass
    assert draft.ids == [int(i) for i in best] and not draft.logprobs


def test_only_tokens_that_are_allowed_are_written(joint: Tensor):
    draft = Draft([MASK] * T, range(T), range(T), DraftSettings(temperature=1.0, revise=2), 0)
    for _ in write_drafts(Exact(joint), [draft], MASK, torch.tensor([False, True, False])):
        pass
    assert draft.ids == [1] * T
    with pytest.raises(InputError, match="no token is allowed"):
        list(write_drafts(Exact(joint), [draft], MASK, torch.zeros(V, dtype=torch.bool)))


@pytest.mark.parametrize(
    "values",
    [
        {"order": "best"},
        {"passes": 0},
        {"threshold": 0.0},
        {"temperature": -1},
        {"revise": -1},
        {"remask": 2},
        {"remask_above": -1},
    ],
)
def test_settings_that_make_no_sense(values: dict):
    with pytest.raises(InputError, match=next(iter(values))):
        DraftSettings(**values)
