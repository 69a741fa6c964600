"""Drafts never change what is generated; good ones save passes, and useless ones are soon left out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from anyformer import api
from anyformer.data.text.ngrams import count_ngrams
from anyformer.inference.decode import generate
from anyformer.inference.sampling import SamplingParams
from anyformer.inference.speculative import CountsDrafter, ModelDrafter, PromptLookup, generate_with_drafts
from anyformer.model import Transformer, TransformerConfig, causal
from anyformer.model.edges import Edges, window
from anyformer.model.heads import LMHead
from cli_kit import assert_refused, call
from data_kit import refuses

QUICK = {
    "test_tokens_are_those_without_drafts": {"1-filters", "2-sampled", "30-greedy", "30-sampled"},
}  # with which parameters a test runs each time; with all others it is slow (conftest.py)


V = 12


class Tiny(torch.nn.Module):
    """A random decoder of few words, which counts how many tokens it reads at a time."""

    def __init__(self, edges: Edges = causal, seed: int = 0, **fields: Any):
        super().__init__()
        torch.manual_seed(seed)
        config = TransformerConfig(dim=16, n_layer=2, n_head=2, context=48, **{"position": "rotary"} | fields)
        self.nodes, self.body, self.head = torch.nn.Embedding(V, 16), Transformer(config), LMHead(16, V)
        self.edges, self.sizes = edges, list[int]()

    def hidden(self, ids: torch.Tensor, cache: Any = None) -> torch.Tensor:
        self.sizes.append(ids.shape[1])
        return self.body(3 * self.nodes(ids), self.edges, cache=cache)


class Fixed:
    """Proposes the tokens of a row that is known."""

    cost = 0.0

    def __init__(self, row: Sequence[int]):
        self.row = list(row)

    def propose(self, ids: Sequence[int], most: int) -> list[int]:
        return self.row[len(ids) : len(ids) + most]


class Useless:
    """Proposes what is never right."""

    cost = 0.1

    def __init__(self, row: Sequence[int]):
        self.row, self.n_calls = list(row), 0

    def propose(self, ids: Sequence[int], most: int) -> list[int]:
        self.n_calls += 1
        return [(token + 1) % V for token in self.row[len(ids) : len(ids) + most]]


PROMPT = [1, 2, 3, 4, 1, 2, 3]
SETTINGS = {
    "greedy": SamplingParams(temperature=0),
    "sampled": SamplingParams(temperature=1.0),
    "filters": SamplingParams(temperature=0.7, top_k=4, repetition_penalty=1.3, frequency_penalty=0.2),
}


def run(model: Tiny, sampling: SamplingParams, tokens: int, drafter: Any = None, **settings: Any) -> list[int]:
    seen_tokens: list[int] = []  # each token, before it is yielded
    arguments: dict[str, Any] = {"tokens": tokens, "sampling": sampling, "seeds": [3], **settings}
    arguments["stop"] = lambda row, token: seen_tokens.append(token) is not None
    steps = generate(model, [PROMPT], **arguments)
    if drafter is not None:
        steps = generate_with_drafts(model, drafter, [PROMPT], **arguments)
    new = [(token, len(seen_tokens)) for (token,) in steps if token is not None]
    assert new == list(zip(seen_tokens, range(1, tokens + 1)))
    return seen_tokens


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("tokens", [1, 2, 30, 100])
def test_tokens_are_those_without_drafts(name: str, tokens: int):
    """Within the context of 48 and beyond it, whoever proposes."""
    model, sampling = Tiny(), SETTINGS[name]
    expected = run(model, sampling, tokens)
    counts = count_ngrams(np.random.default_rng(0).integers(0, V, 500), 3, V)
    right = [*PROMPT, *expected]
    drafters = [PromptLookup(), CountsDrafter(counts, 1), ModelDrafter(Tiny(seed=1), 0.1), ModelDrafter(model, 0.1)]
    for drafter in (*drafters, Fixed(right), Fixed([*right[:20], 0, *right[21:]]), Useless(right)):
        assert run(model, sampling, tokens, drafter) == expected, type(drafter).__name__


def test_logits_are_those_without_drafts():
    model, seen = Tiny(), ([], [])
    expected = run(model, SETTINGS["greedy"], 40, watch=lambda logits, new: seen[0].append(logits))
    drafter = Fixed([*PROMPT, *expected])
    run(model, SETTINGS["greedy"], 40, drafter, watch=lambda logits, new: seen[1].append(logits))
    torch.testing.assert_close(torch.cat(seen[0]), torch.cat(seen[1]), atol=1e-5, rtol=1e-5)


def test_right_drafts_save_passes_and_useless_ones_rest():
    model = Tiny()
    expected = run(model, SETTINGS["greedy"], 40)
    model.sizes.clear()
    run(model, SETTINGS["greedy"], 40, Fixed([*PROMPT, *expected]))
    assert len(model.sizes) <= 6 and max(model.sizes) <= 17
    useless = Useless([*PROMPT, *expected])
    run(model, SETTINGS["greedy"], 40, useless)
    assert useless.n_calls <= 20


def test_layers_that_keep_a_window_get_no_drafts():
    """Their cache cannot go back; what is generated is the same."""
    model = Tiny(causal & window(8))
    expected = run(model, SETTINGS["greedy"], 60)
    useless = Useless([*PROMPT, *expected])
    assert run(model, SETTINGS["greedy"], 60, useless) == expected and useless.n_calls == 0


def test_what_is_proposed():
    assert PromptLookup().propose([5, 6, 7, 8, 9, 6, 7, 8], 3) == [9, 6, 7]
    assert PromptLookup().propose([1, 2, 3, 1, 2], 5) == [3, 1, 2, 3, 1], "a repetition goes on"
    assert PromptLookup().propose([1, 2, 3, 4, 5], 5) == []
    lookup = PromptLookup()
    lookup.propose([1, 2, 3, 1, 2], 1)
    assert lookup.propose([7, 8, 9, 7, 8], 1) == [9], "of another row, nothing is kept"
    text = np.array([1, 2, 3] * 5 + [1, 2, 4])
    assert CountsDrafter(count_ngrams(text, 3, V)).propose([9, 1, 2], 4) == [3, 1, 2, 3]
    assert CountsDrafter(count_ngrams(text, 3, V)).propose([9, 9], 4) == []


def test_from_the_command_line(run_once: Any, tmp_path: Any):
    """A prompt, counts, a text and a run propose; the sample is the same."""
    sample = ("sample", run_once, "--prompt", "the cat", "--tokens", 25, "--seed", 2, "--json")
    expected = call(*sample).json["samples"]
    assert expected[0]["finish_reason"] == "length" and len(expected[0]["tokens"]) == 25
    text = tmp_path / "other.txt"
    text.write_text("the cat sat on the log. " * 20)
    for draft in ("prompt", "counts", text, run_once):
        assert call(*sample, "--draft", draft).json["samples"] == expected
    assert_refused(call(*sample, "--draft", "promt"), "draft 'promt'", "prompt, counts, a text file")


def test_drafts_of_another_vocabulary_are_refused(run_once: Any, tmp_path: Any):
    other = tmp_path / "text.txt"
    other.write_text("xyz " * 300)
    api.train("language", "tiny", data=other, out=tmp_path / "run", train={"steps": 1, "device": "cpu"}, progress=False)
    with refuses("has another vocabulary"):
        api.load(run_once, "cpu", draft=tmp_path / "run")
    api.train("control", "tiny", out=tmp_path / "line", train={"steps": 1, "device": "cpu"}, progress=False)
    with refuses("continues no texts"):
        api.load(tmp_path / "line", "cpu", draft="prompt")
