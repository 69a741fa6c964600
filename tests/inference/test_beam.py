"""Beam search: against exhaustive search, against greedy decoding, batched and alone, with reordered caches."""

import itertools
import math
import random
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from anyformer.inference.beam import BeamState, Candidate, Hypothesis, beam_search
from anyformer.inference.decode import generate, new_cache, step
from anyformer.inference.prompt_reading import pad_rows, prefill
from anyformer.inference.sampling import SamplingParams
from anyformer.model.cache import KVCache
from anyformer.model.config import TransformerConfig
from anyformer.model.edges import causal, within
from anyformer.model.embeddings import TokenEmbedding
from anyformer.model.encoder_decoder import EncoderDecoder
from anyformer.model.heads import LMHead
from anyformer.model.transformer import Transformer

END = 2


def make_config(**fields) -> TransformerConfig:
    return TransformerConfig(**{"dim": 16, "n_layer": 2, "n_head": 2, "context": 24} | fields)


class TinyLM(nn.Module):
    """A language model with large weights, so that no two tokens are nearly equally likely."""

    def __init__(self, vocab_size: int, seed: int = 0, **fields):
        super().__init__()
        torch.manual_seed(seed)
        config = make_config(**fields)
        self.nodes, self.body = TokenEmbedding(vocab_size, config), Transformer(config)
        self.head = LMHead(config.dim, vocab_size)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5)
        self.eval()

    def hidden(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        return self.body(self.nodes(ids, None if cache is None else cache.positions(ids.shape[1])), causal, cache=cache)


def compute_log_prob(model: TinyLM, prompt: list[int], tokens: tuple[int, ...]) -> float:
    """Return the log-probability of a continuation, in one pass without a cache."""
    with torch.inference_mode():
        table = model.head(model.hidden(torch.tensor([[*prompt, *tokens]]))).double().log_softmax(-1)[0]
    return sum(table[len(prompt) - 1 + i, token].item() for i, token in enumerate(tokens))


@cache
def enumerate_continuations(seed: int) -> list[tuple[tuple[int, ...], bool, float]]:
    """All continuations of [1, 3] of up to 4 tokens of a vocabulary of 4: (tokens, has ended, log-probability)."""
    model, continuations = TinyLM(4, seed), []
    for length in range(1, 5):
        for tokens in itertools.product(range(4), repeat=length):
            has_ended = tokens[-1] == END
            if END not in tokens[:-1] and (has_ended or length == 4):
                continuations.append((tokens, has_ended, compute_log_prob(model, [1, 3], tokens)))
    return continuations


@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.0, 2.0, -0.5])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_beam_as_wide_as_the_tree_equals_exhaustive_search(seed: int, penalty: float):
    expected = [
        Hypothesis(list(tokens[:-1] if has_ended else tokens), log_prob / len(tokens) ** penalty, log_prob, has_ended)
        for tokens, has_ended, log_prob in enumerate_continuations(seed)
    ]
    expected = sorted(expected, key=lambda h: -h.score)[:12]
    best = beam_search(TinyLM(4, seed), [[1, 3]], beam=200, tokens=4, end=END, n_best=12, penalty=penalty)[0]
    assert [(h.tokens, h.finished) for h in best] == [(h.tokens, h.finished) for h in expected]
    assert [h.score for h in best] == pytest.approx([h.score for h in expected], abs=1e-5)
    assert [h.log_prob for h in best] == pytest.approx([h.log_prob for h in expected], abs=1e-5)


@pytest.mark.parametrize(("beam", "penalty"), [(2, 0.0), (3, 1.0), (5, 0.6)])
def test_a_narrow_beam_scores_its_hypotheses_as_the_model_does(beam: int, penalty: float):
    model, prompt = TinyLM(11, 3), [4, 9, 1]
    best = beam_search(model, [prompt], beam=beam, tokens=12, end=END, n_best=beam, penalty=penalty)[0]
    assert len({tuple(h.tokens) for h in best}) == len(best) == beam
    assert [h.score for h in best] == sorted((h.score for h in best), reverse=True)
    for h in best:
        tokens = (*h.tokens, END) if h.finished else tuple(h.tokens)
        assert h.log_prob == pytest.approx(compute_log_prob(model, prompt, tokens), abs=1e-4)
        assert h.score == pytest.approx(h.log_prob / len(tokens) ** penalty)


@pytest.mark.parametrize("position", ["learned", "rotary", "relative", "alibi"])
def test_one_beam_is_greedy(position: str):
    model = TinyLM(13, 5, position=position, n_kv_head=1)
    prompts = [[1, 4, 6], [3], [7, 7, 7, 7, 0]]
    greedy, stop = SamplingParams(temperature=0), lambda row, token: token == END
    steps = generate(model, prompts, tokens=15, sampling=greedy, seeds=[0] * 3, stop=stop)
    expected = [[token for token in row if token not in (None, END)] for row in zip(*steps)]
    assert [best[0].tokens for best in beam_search(model, prompts, beam=1, tokens=15, end=END)] == expected
    alone = [beam_search(model, [prompt], beam=1, tokens=15, end=END)[0][0].tokens for prompt in prompts]
    assert alone == expected


def assert_equal_hypotheses(rows: list[list[Hypothesis]], expected: list[list[Hypothesis]]) -> None:
    assert [[h.tokens for h in row] for row in rows] == [[h.tokens for h in row] for row in expected]
    for row, other in zip(rows, expected):
        assert [h.score for h in row] == pytest.approx([h.score for h in other], abs=1e-5)


@pytest.mark.parametrize("beam", [2, 4])
def test_prompts_of_unequal_length_are_searched_together_as_alone(beam: int):
    model, prompts = TinyLM(17, 7), [[1, 4, 6], [3], [7, 7, 7, 7, 0], [3, 5]]

    def search(rows: list[list[int]]) -> list[list[Hypothesis]]:
        return beam_search(model, rows, beam=beam, tokens=10, end=END, n_best=beam)

    assert_equal_hypotheses(search(prompts), [search([prompt])[0] for prompt in prompts])


def test_a_decoder_with_a_memory_is_searched_together_as_alone():
    torch.manual_seed(1)
    config = make_config()
    embeddings = TokenEmbedding(9, config), TokenEmbedding(9, config)
    model = EncoderDecoder(embeddings[0], config, embeddings[1], config, LMHead(16, 9)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    sources = [[4, 1, 7, 8, 3], [5, 5], [0, 6, 1]]

    def translate(rows: list[list[int]], beam: int) -> list[list[Hypothesis]]:
        ids, lengths = pad_rows(rows)
        with torch.inference_mode():
            memory = model.encode(ids, within(lengths)).repeat_interleave(beam, 0)
        decoder = model.condition(memory, within(lengths.repeat_interleave(beam)))
        return beam_search(decoder, [[END]] * len(rows), beam=beam, tokens=8, end=END, n_best=beam)

    assert_equal_hypotheses(translate(sources, 3), [translate([source], 3)[0] for source in sources])
    narrow, wide = translate(sources, 1), translate(sources, 6)
    assert [row[0].tokens for row in narrow] != [row[0].tokens for row in wide], "the width matters"


@pytest.mark.parametrize("lengths", [[3, 3, 3], [1, 4, 2]])
@pytest.mark.parametrize("rows", [[2, 0, 1], [1, 1, 0], [0, 1, 2]])
def test_rows_of_a_cache_are_reordered(lengths: list[int], rows: list[int]):
    model, draw, new = TinyLM(11), random.Random(0), torch.tensor([5] * 3)
    prompts = [[draw.randrange(11) for _ in range(n)] for n in lengths]
    with torch.inference_mode():
        reordered, direct = new_cache(model, 3), new_cache(model, 3)
        prefill(model, prompts, reordered)
        prefill(model, [prompts[row] for row in rows], direct)
        reordered.reorder(torch.tensor(rows))
        torch.testing.assert_close(step(model, new, reordered), step(model, new, direct), rtol=1e-5, atol=1e-5)


class TableLM:
    """A model whose next-token probabilities depend on the last token alone, by a table."""

    def __init__(self, table: dict[int, list[float]]):
        self.table = torch.tensor([table[i] for i in range(len(table))]).clamp(min=1e-30).log()
        self.body = Transformer(make_config(context=12, n_layer=1)).eval()
        self.head: Callable[[Tensor], Tensor] = lambda x: self.table[x[..., 0].long()]

    def hidden(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        if cache is not None:
            cache.advance(ids.shape[1])
        return ids[..., None]


def test_a_wider_beam_recovers_from_a_greedy_mistake():
    """Greedy takes 0.55, after which every token is unlikely; the other path is nearly certain."""
    model = TableLM({0: [0.3, 0.3, 0.4], 1: [0.0, 0.1, 0.9], 2: [1 / 3] * 3, 3: [0.55, 0.45, 0.0]})
    narrow, wide = (beam_search(model, [[3]], beam=k, tokens=2, end=END, penalty=0.0)[0][0] for k in (1, 2))
    assert (narrow.tokens, wide.tokens) == ([0], [1])
    assert math.exp(narrow.log_prob) == pytest.approx(0.55 * 0.4)
    assert math.exp(wide.log_prob) == pytest.approx(0.45 * 0.9)


def advance(state: BeamState, *candidates: tuple[float, int, int]) -> None:
    state.advance([Candidate(*candidate) for candidate in candidates])


def test_a_search_ends_when_no_live_hypothesis_can_win():
    state = BeamState(beam=2, max_tokens=9, end=END, n_best=1, penalty=0.0)
    advance(state, (-0.1, 0, END), (-3.0, 0, 0), (-4.0, 0, 1))
    assert state.done and state.best()[0] == Hypothesis([], -0.1, -0.1, True)
    state = BeamState(beam=2, max_tokens=9, end=END, n_best=1, penalty=1.0)
    advance(state, (-0.5, 0, END), (-0.6, 0, 0), (-4.0, 0, 1))
    assert not state.done, "at length 9 its mean could still be -0.067"
    advance(state, (-8.0, 0, 1), (-9.0, 1, END), (-9.5, 1, 0))
    assert state.done and state.best()[0].tokens == []


@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.3, -1.0])
def test_stopping_early_never_changes_the_best(penalty: float):
    """Random searches with and without the rule that stops a settled search."""

    class NeverSettled(BeamState):
        is_settled = False  # type: ignore[assignment]

    draw = random.Random(7)
    for _ in range(100):
        states = [kind(3, 6, END, 2, penalty) for kind in (BeamState, NeverSettled)]
        while not states[1].done:
            candidates = [
                Candidate(log_prob + math.log(draw.random()), parent, token)
                for parent, (log_prob, _) in enumerate(states[1].live)
                for token in range(5)
            ]
            for state in states:
                if not state.done:
                    state.advance(sorted(candidates, reverse=True)[:6])
        assert [h.score for h in states[0].best()] == [h.score for h in states[1].best()]


def test_without_an_end_token_hypotheses_reach_the_limit():
    best = beam_search(TinyLM(5), [[1]], beam=3, tokens=6, end=None, n_best=3)[0]
    assert [len(h.tokens) for h in best] == [6, 6, 6] and not any(h.finished for h in best)


def test_more_tokens_than_the_context_are_refused():
    with pytest.raises(ValueError, match="prompt of 20 and 6 new tokens are more than the context of 24"):
        beam_search(TinyLM(5), [[1] * 20], beam=2, tokens=6, end=END)
    assert len(beam_search(TinyLM(5), [[1] * 20], beam=2, tokens=5, end=None)[0][0].tokens) == 5


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_no_run_of_tokens_occurs_twice(beam: int, n: int):
    def repeats(tokens: list[int]) -> bool:
        runs = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
        return len(set(runs)) < len(runs)

    model, prompts = TinyLM(7, 3), [[1, 3], [2]]
    free, blocked = (
        [
            h.tokens
            for row in beam_search(model, prompts, beam=beam, tokens=14, end=None, n_best=beam, **option)
            for h in row
        ]
        for option in ({}, {"no_repeat_ngram": n})
    )
    assert any(map(repeats, free)) and blocked and not any(map(repeats, blocked))


def test_each_prompt_can_have_a_limit_of_its_own():
    model, prompts = TinyLM(17, 7), [[1, 4, 6], [3], [7, 7]]
    together = beam_search(model, prompts, beam=2, tokens=[3, 9, 5], end=None)
    assert [len(row[0].tokens) for row in together] == [3, 9, 5]
    alone = [beam_search(model, [row], beam=2, tokens=n, end=None)[0] for row, n in zip(prompts, (3, 9, 5))]
    assert_equal_hypotheses(together, alone)
