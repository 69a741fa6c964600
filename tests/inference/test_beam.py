"""Beam search: against all there is to find, against greedy, alone and in company, and after a cache was reordered."""

import itertools
import math
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from anyformer.inference.beam import Hypothesis, Search, search
from anyformer.inference.decode import generate, new_cache, prefill, step
from anyformer.inference.sampling import Rules
from anyformer.model.block import Transformer
from anyformer.model.cache import KVCache
from anyformer.model.config import TransformerConfig
from anyformer.model.edges import causal, within
from anyformer.model.embeddings import Tokens
from anyformer.model.encoder_decoder import EncoderDecoder
from anyformer.model.heads import LMHead

END = 2


def shape(**more) -> TransformerConfig:
    return TransformerConfig(**{"dim": 16, "n_layer": 2, "n_head": 2, "context": 24} | more)


class Language(nn.Module):
    """A language model with opinions: large weights, so that no two tokens are near equally likely."""

    def __init__(self, vocab: int, seed: int = 0, **more):
        super().__init__()
        torch.manual_seed(seed)
        config = shape(**more)
        self.nodes, self.body, self.head = Tokens(vocab, config), Transformer(config), LMHead(config.dim, vocab)
        for p in self.parameters():
            nn.init.normal_(p, std=0.5)
        self.eval()

    def hidden(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        return self.body(self.nodes(ids, None if cache is None else cache.positions(ids.shape[1])), causal, cache=cache)


def log_probs(model: Language, prompt: list[int], tokens: tuple[int, ...]) -> float:
    """Of a continuation, read at once and without a cache."""
    ids = torch.tensor([[*prompt, *tokens]])
    with torch.inference_mode():
        table = model.head(model.hidden(ids)).double().log_softmax(-1)[0]
    return sum(table[len(prompt) - 1 + i, token].item() for i, token in enumerate(tokens))


def everything(model: Language, prompt: list[int], vocab: int, limit: int, penalty: float) -> list[Hypothesis]:
    """Every continuation there is: those that end within the limit, and those that the limit ends."""
    found = []
    for length in range(1, limit + 1):
        for tokens in itertools.product(range(vocab), repeat=length):
            finished = tokens[-1] == END
            if END in tokens[:-1] or not (finished or length == limit):
                continue
            log_prob = log_probs(model, prompt, tokens)
            said = list(tokens[:-1] if finished else tokens)
            found.append(Hypothesis(said, log_prob / length**penalty, log_prob, finished))
    return sorted(found, key=lambda h: -h.score)


@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.0, 2.0, -0.5])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_beam_as_wide_as_everything_finds_the_best_of_everything(seed: int, penalty: float):
    model, prompt = Language(4, seed), [1, 3]
    wanted = everything(model, prompt, 4, 4, penalty)
    found = search(model, [prompt], beam=200, tokens=4, end=END, n_best=12, penalty=penalty)[0]
    assert [(h.tokens, h.finished) for h in found] == [(h.tokens, h.finished) for h in wanted[:12]]
    assert [h.score for h in found] == pytest.approx([h.score for h in wanted[:12]], abs=1e-5)
    assert [h.log_prob for h in found] == pytest.approx([h.log_prob for h in wanted[:12]], abs=1e-5)


@pytest.mark.parametrize("penalty", [0.0, 1.0])
@pytest.mark.parametrize("beam", [2, 3, 5])
def test_a_narrow_beam_scores_what_it_finds_as_the_model_does(beam: int, penalty: float):
    model, prompt = Language(11, 3), [4, 9, 1]
    found = search(model, [prompt], beam=beam, tokens=12, end=END, n_best=beam, penalty=penalty)[0]
    assert len({tuple(h.tokens) for h in found}) == len(found) == beam
    assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)
    for h in found:
        said = (*h.tokens, END) if h.finished else tuple(h.tokens)
        assert h.log_prob == pytest.approx(log_probs(model, prompt, said), abs=1e-4)
        assert h.score == pytest.approx(h.log_prob / len(said) ** penalty)


@pytest.mark.parametrize("position", ["learned", "rotary", "relative", "alibi"])
def test_one_beam_is_greedy(position: str):
    model = Language(13, 5, position=position, n_kv_head=1)
    prompts = [[1, 4, 6], [3], [7, 7, 7, 7, 0]]
    rounds = list(
        generate(
            model,
            prompts,
            tokens=15,
            rules=Rules(temperature=0),
            seeds=[0] * 3,
            stop=lambda row, token: token == END,
        )
    )
    greedy = [[token for token in row if token not in (None, END)] for row in zip(*rounds)]
    assert [found[0].tokens for found in search(model, prompts, beam=1, tokens=15, end=END)] == greedy
    alone = [search(model, [prompt], beam=1, tokens=15, end=END)[0][0].tokens for prompt in prompts]
    assert alone == greedy


@pytest.mark.parametrize("beam", [2, 4])
def test_prompts_of_any_length_together_are_as_each_alone(beam: int):
    model = Language(17, 7)
    prompts = [[1, 4, 6], [3], [7, 7, 7, 7, 0], [3, 5]]
    together = search(model, prompts, beam=beam, tokens=10, end=END, n_best=beam)
    for prompt, row in zip(prompts, together):
        alone = search(model, [prompt], beam=beam, tokens=10, end=END, n_best=beam)[0]
        assert [h.tokens for h in row] == [h.tokens for h in alone]
        assert [h.score for h in row] == pytest.approx([h.score for h in alone], abs=1e-5)


def test_a_decoder_with_a_memory_is_searched_alone_as_in_company():
    torch.manual_seed(1)
    config = shape()
    pair = EncoderDecoder(Tokens(9, config), config, Tokens(9, config), config, LMHead(16, 9)).eval()
    for p in pair.parameters():
        nn.init.normal_(p, std=0.5)
    sources = [[4, 1, 7, 8, 3], [5, 5], [0, 6, 1]]

    def translate(rows: list[list[int]], beam: int) -> list[list[Hypothesis]]:
        lengths = torch.tensor([len(row) for row in rows])
        ids = torch.tensor([row + [0] * (int(lengths.max()) - len(row)) for row in rows])
        with torch.inference_mode():
            memory = pair.encode(ids, within(lengths)).repeat_interleave(beam, 0)
        given = pair.given(memory, within(lengths.repeat_interleave(beam)))
        return search(given, [[END]] * len(rows), beam=beam, tokens=8, end=END, n_best=beam)

    for beam in (1, 3):
        together = translate(sources, beam)
        for row, source in zip(together, sources):
            alone = translate([source], beam)[0]
            assert [h.tokens for h in row] == [h.tokens for h in alone]
            assert [h.score for h in row] == pytest.approx([h.score for h in alone], abs=1e-5)
    best_of_one, best_of_many = (translate(sources, beam) for beam in (1, 6))
    assert [row[0].tokens for row in best_of_one] != [row[0].tokens for row in best_of_many], "the width does nothing"


def followed(model: Language, cache: KVCache, rows: list[int]) -> Tensor:
    cache.pick(torch.tensor(rows))
    return step(model, torch.tensor([5] * len(rows)), cache)


@pytest.mark.parametrize("lengths", [[3, 3, 3], [1, 4, 2]])
@pytest.mark.parametrize("rows", [[2, 0, 1], [1, 1, 0], [0, 1, 2]])
def test_rows_of_a_cache_are_picked(lengths: list[int], rows: list[int]):
    model, draw = Language(11), random.Random(0)
    prompts = [[draw.randrange(11) for _ in range(n)] for n in lengths]
    with torch.inference_mode():
        first, straight = new_cache(model, 3), new_cache(model, 3)
        prefill(model, prompts, first)
        prefill(model, [prompts[row] for row in rows], straight)
        wanted = step(model, torch.tensor([5] * 3), straight)
        torch.testing.assert_close(followed(model, first, rows), wanted, rtol=1e-5, atol=1e-5)


class Fixed:
    """Says the same distribution after every token: a table of probabilities, by the token before."""

    def __init__(self, table: dict[int, list[float]], context: int = 12):
        self.table = torch.tensor([table[i] for i in range(len(table))]).clamp(min=1e-30).log()
        self.body = Transformer(shape(context=context, n_layer=1)).eval()
        self.head: Callable[[Tensor], Tensor] = lambda x: self.table[x[..., 0].long()]

    def hidden(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        if cache is not None:
            cache.advance(ids.shape[1])
        return ids[..., None]


def test_what_looks_worse_at_first_may_be_better():
    """The textbook case: greedy goes for 0.6, and then all is bad; the other way is sure."""
    model = Fixed({0: [0.3, 0.3, 0.4], 1: [0.0, 0.1, 0.9], 2: [1 / 3] * 3, 3: [0.55, 0.45, 0.0]})
    start = [[3]]
    narrow = search(model, start, beam=1, tokens=2, end=END, penalty=0.0)[0][0]
    wide = search(model, start, beam=2, tokens=2, end=END, penalty=0.0)[0][0]
    assert (narrow.tokens, wide.tokens) == ([0], [1])
    assert math.exp(narrow.log_prob) == pytest.approx(0.55 * 0.4)
    assert math.exp(wide.log_prob) == pytest.approx(0.45 * 0.9)


def test_a_finished_one_never_loses_to_a_worse_live_one():
    """A live one that can no longer win does not prolong the search, and one that can does."""
    found = Search(beam=2, limit=9, end=END, n_best=1, penalty=0.0)
    found.take([(-0.1, 0, END), (-3.0, 0, 0), (-4.0, 0, 1)])
    assert found.done and found.best()[0] == Hypothesis([], -0.1, -0.1, True)
    patient = Search(beam=2, limit=9, end=END, n_best=1, penalty=1.0)
    patient.take([(-0.5, 0, END), (-0.6, 0, 0), (-4.0, 0, 1)])
    assert not patient.done, "at length 9 its mean could still be -0.067"
    patient.take([(-8.0, 0, 1), (-9.0, 1, END), (-9.5, 1, 0)])
    assert patient.done and patient.best()[0].tokens == []


@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.3, -1.0])
def test_stopping_early_never_changes_the_best(penalty: float):
    """Random searches with and without the rule that stops a search that is settled."""

    class Stubborn(Search):
        settled = False  # type: ignore[assignment]

    draw = random.Random(7)
    for _ in range(200):
        both = [kind(3, 6, END, 2, penalty) for kind in (Search, Stubborn)]
        while not both[1].done:
            options = [
                (log_prob + math.log(draw.random()), parent, token)
                for parent, (log_prob, _) in enumerate(both[1].live)
                for token in range(5)
            ]
            options.sort(reverse=True)
            for one in both:
                if not one.done:
                    one.take(options[:6])
        assert [h.score for h in both[0].best()] == [h.score for h in both[1].best()]


def test_without_an_end_everything_runs_to_the_limit():
    found = search(Language(5), [[1]], beam=3, tokens=6, end=None, n_best=3)[0]
    assert [len(h.tokens) for h in found] == [6, 6, 6] and not any(h.finished for h in found)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="prompt of 20 and 6 new tokens are more than the context of 24"):
        search(Language(5), [[1] * 20], beam=2, tokens=6, end=END)
    assert len(search(Language(5), [[1] * 20], beam=2, tokens=5, end=None)[0][0].tokens) == 5
