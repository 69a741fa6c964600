"""Exact sampling: against the enumerated distribution, whatever its trie holds; what masking makes of it instead."""

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from anyformer.data.tokenizers import build as tok
from anyformer.data.tokenizers.token_bytes import TokenBytes
from anyformer.errors import InputError
from anyformer.inference import exact_sampling, structure
from anyformer.inference.completion import CompletionRequest
from anyformer.inference.exact_sampling import ExactSampler, Predictor
from anyformer.inference.structure import Constraint
from anyformer.model.config import TransformerConfig
from anyformer.recipes import language
from structure_kit import Pieces, build_model

pytest.importorskip("llguidance", reason="structure: pip install 'anyformer[structure]'")

PIECES = ["a", "b", "c", "ab", "bc", "x", "y"]  # a text has several tokenizations, and most tokens may never follow
REGEX = "(a|b)(a|bc|c)?c?"
MAX_TOKENS = 4
Distribution = dict[str, float]


@pytest.fixture
def constraint(monkeypatch: pytest.MonkeyPatch) -> Constraint:
    data = [piece.encode() for piece in [*PIECES, ""]]
    monkeypatch.setattr(structure, "read_token_bytes", lambda _: TokenBytes(data, data))
    return Constraint("regex", REGEX, Pieces(PIECES))


@cache
def predict(tokens: tuple[int, ...]) -> np.ndarray:
    """Return the next token's probabilities of a made-up model: random, and different after each beginning."""
    logits = np.random.default_rng([7, *tokens]).normal(size=len(PIECES) + 1) * 1.5
    return np.exp(logits) / np.exp(logits).sum()


def can_go_on(text: str, least: int) -> bool:
    """Whether the text, with at least so many more characters, is of the language: every ending is tried."""
    endings = (map("".join, itertools.product("abc", repeat=n)) for n in range(least, 5))
    return any(re.fullmatch(REGEX, text + ending) for ending in itertools.chain(*endings))


def enumerate_answers() -> tuple[Distribution, Distribution]:
    """Return p(text) of all answers of at most MAX_TOKENS tokens, by the model, and by masking."""
    exact, masked = Counter[str](), Counter[str]()

    def visit(tokens: tuple[int, ...], text: str, p: float, q: float) -> None:
        is_answer, is_extendable = re.fullmatch(REGEX, text) is not None, can_go_on(text, 1)
        if is_answer and not is_extendable:
            exact[text], masked[text] = exact[text] + p, masked[text] + q
            return
        if len(tokens) == MAX_TOKENS:
            return
        probabilities = predict(tokens)
        follows = [i for i, piece in enumerate(PIECES) if can_go_on(text + piece, 0)] + [len(PIECES)] * is_answer
        kept = probabilities[follows].sum()
        for i in follows:
            if i == len(PIECES):
                exact[text] += p * probabilities[i]
                masked[text] += q * probabilities[i] / kept
            else:
                visit((*tokens, i), text + PIECES[i], p * probabilities[i], q * probabilities[i] / kept)

    visit((), "", 1.0, 1.0)
    return exact, masked


def measure_chi_square(counts: Counter, expected: Distribution) -> float:
    """Return the probability of counts that differ as much, by Wilson and Hilferty; rare answers are one."""
    total, n = sum(expected.values()), sum(counts.values())
    assert counts.keys() <= expected.keys()
    rows = [(counts[text], n * p / total) for text, p in expected.items()]
    rare = [row for row in rows if row[1] < 5]
    rows = [row for row in rows if row[1] >= 5] + ([tuple(map(sum, zip(*rare)))] if rare else [])
    chi2, df = sum((count - mean) ** 2 / mean for count, mean in rows), len(rows) - 1
    z = ((chi2 / df) ** (1 / 3) - (1 - 2 / (9 * df))) / math.sqrt(2 / (9 * df))
    return 0.5 * math.erfc(z / math.sqrt(2))


def draw_texts(make_sampler: Callable[[], ExactSampler], n: int, is_fresh: bool) -> Counter:
    sampler, texts = make_sampler(), Counter()
    for seed in range(n):
        sampler = make_sampler() if is_fresh else sampler
        tokens, _ = sampler.draw(torch.Generator().manual_seed(seed))
        texts["".join(PIECES[token] for token in tokens)] += 1
    return texts


@pytest.mark.parametrize("is_fresh", [True, False], ids=["an empty trie", "a trie that grows"])
def test_answers_have_the_models_own_distribution(constraint: Constraint, is_fresh: bool):
    def make_sampler() -> ExactSampler:
        return ExactSampler(constraint.start, lambda tokens: predict(tuple(tokens)), MAX_TOKENS)

    exact, masked = enumerate_answers()
    counts = draw_texts(make_sampler, 2000 if is_fresh else 6000, is_fresh)
    assert measure_chi_square(counts, exact) > 0.001
    assert measure_chi_square(counts, masked) < 1e-9, "the test would see the distribution of masking"
    assert len(exact) > 10


def test_masking_has_another_distribution_and_says_by_how_much(constraint: Constraint):
    """p(text) = q(text) times the kept mass of its tokens, where a text has one tokenization."""
    exact, masked = enumerate_answers()
    counts: Counter = Counter()
    for seed in range(1500):
        matcher, tokens, generator = constraint.start(), [], torch.Generator().manual_seed(seed)
        while not (matcher.is_complete or matcher.is_over) and len(tokens) < MAX_TOKENS:
            logits = torch.from_numpy(predict(tuple(tokens))).log()[None]
            row = structure.constrain(logits, [matcher]).softmax(-1)
            tokens.append(int(torch.multinomial(row[0], 1, generator=generator)))
            matcher.consume(tokens[-1])
        if matcher.is_complete or matcher.is_over:
            counts[matcher.written.decode()] += 1
    assert measure_chi_square(counts, masked) > 0.001 > 1e-9 > measure_chi_square(counts, exact)


def test_the_mass_of_the_trie_bounds_that_of_the_grammar_and_reaches_it(constraint: Constraint):
    exact, _ = enumerate_answers()
    sampler, total = (
        ExactSampler(constraint.start, lambda tokens: predict(tuple(tokens)), MAX_TOKENS),
        sum(exact.values()),
    )
    masses = [sampler.root.mass]
    for seed in range(4000):
        sampler.draw(torch.Generator().manual_seed(seed))
        masses.append(sampler.root.mass)
    assert all(b <= a + 1e-15 for a, b in itertools.pairwise(masses)) and masses[-1] >= total - 1e-12
    assert masses[-1] == pytest.approx(total, rel=1e-3) and masses[0] > 1.5 * total


def test_a_model_draws_exactly_what_its_own_forward_says():
    """Through prefill and steps of the cache: the log-masses of an answer are those of whole passes."""
    model = build_model(tok.Characters("abc"))
    request = {"prompt": "ab", "regex": "[ab]c?|ca", "tokens": 4, "temperature": 0.5, "samples": 400, "exact": True}
    samples = language.predict(model, request)["samples"]
    assert samples == language.predict(model, request)["samples"]
    probabilities = {text: math.exp(score(model, text)) for text in ("a", "b", "ac", "bc", "ca")}
    assert measure_chi_square(Counter(sample["text"] for sample in samples), probabilities) > 0.001
    assert samples[-1]["log_grammar_mass"] == pytest.approx(math.log(sum(probabilities.values())), abs=1e-4)
    assert {sample["finish_reason"] for sample in samples} == {"stop"} and all(s["log_kept_mass"] < 0 for s in samples)


@pytest.mark.parametrize("window", [None, 3])
def test_probabilities_are_those_of_a_whole_pass_whatever_was_read_before(window: int | None):
    """The cache goes back to what two beginnings share; a layer that keeps a window reads them again."""
    torch.manual_seed(0)
    shape = TransformerConfig(dim=16, n_layer=2, n_head=2, context=32, position="rotary")
    model = language.LanguageModel(language.Config(model=shape, window=window), tok.Characters("abc")).eval()
    request = CompletionRequest(prompt="ab", regex="a", exact=True, temperature=0.7, logit_bias={"1": 0.5})
    predictor, rng = Predictor(model, [0, 1, 2, 0], request, 9), np.random.default_rng(0)
    for _ in range(40):
        tokens = rng.integers(0, 2, rng.integers(0, 9)).tolist()
        with torch.no_grad():
            logits = model(torch.tensor([[0, 1, 2, 0, *tokens]]))[0, -1]
        logits[1] += 0.5
        assert predictor(tokens) == pytest.approx((logits / 0.7).softmax(-1).numpy(), abs=1e-6)


def score(model: Any, text: str) -> float:
    """Return log p(text) at temperature 0.5, with its end where something else of the regex could follow."""
    prompt, ids = model.tokenizer.encode("ab").tolist(), model.tokenizer.encode(text).tolist()
    ids += [model.tokenizer.end_id] if text in ("a", "b") else []
    with torch.no_grad():
        table = (model(torch.tensor([[*prompt, *ids]]))[0].double() / 0.5).log_softmax(-1)
    return sum(table[len(prompt) - 1 + i, token].item() for i, token in enumerate(ids))


def test_the_samples_of_each_prompt_are_its_own():
    model = build_model(tok.Characters("abc"))
    request = {"regex": "[ab]{1,3}c", "tokens": 6, "samples": 3, "exact": True, "temperature": 1.0}
    together = language.predict(model, {"prompt": ["a", "cb"]} | request)["samples"]
    alone = [language.predict(model, {"prompt": prompt} | request)["samples"] for prompt in ("a", "cb")]
    assert together == [*alone[0], *alone[1]]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": 0}, "exact needs a temperature above 0"),
        ({"stop": "a"}, "exact and stop exclude each other"),
        ({"repetition_penalty": 1.5}, "exact and repetition_penalty exclude each other"),
        ({"logprobs": 1}, "exact and logprobs exclude each other"),
        ({"tokens": 0}, "exact: tokens is 0"),
        ({"tokens": 1000}, "exact: a prompt of 1 and 1,000 new tokens exceed the context of 96: ask for fewer tokens"),
        ({"tokens": 2}, "exact: the model writes no text of this structure of at most 2 tokens"),
        ({"regex": "[ab]{60}", "tokens": 60, "prompt": "ab"}, "exact: no answer in 30 tries"),
    ],
)
def test_what_cannot_be_drawn_exactly_gets_one_line(
    fields: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(exact_sampling, "MAX_TRIES", 30)
    model = build_model(tok.Characters("abcdefgh"))
    with pytest.raises(InputError, match=message):
        language.predict(model, {"prompt": "a", "regex": "[ab]{3}", "tokens": 9, "exact": True} | fields)


def test_a_trie_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(exact_sampling, "MAX_NUMBERS", 50)
    with pytest.raises(InputError, match="exact: too many beginnings of answers"):
        language.predict(
            build_model(tok.Characters("abc")), {"prompt": "a", "regex": "[abc]{20}", "exact": True, "tokens": 25}
        )
