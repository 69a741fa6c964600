"""Two ways to one answer, on generated models and inputs: cached and uncached, batched and single, packed and separate.

Weights are large and in float64, so that a wrong key changes the result and rounding does not; rotations and the counts
of `recall` are float32. B rows, V entries of the vocabulary.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from anyformer.baselines.recurrent import RNNSearch, Seq2SeqLSTM
from anyformer.baselines.window_lm import WindowLM
from anyformer.data.tokenizers.build import Characters
from anyformer.inference import decode
from anyformer.inference.batching import Batcher
from anyformer.inference.completion import CompletionRequest, generate_text
from anyformer.inference.prompt_reading import prefill
from anyformer.inference.sampling import SamplingParams
from anyformer.inference.translation import TranslationRequest, search_translations
from anyformer.model import Encoder, TransformerConfig
from anyformer.model.kernels import linear, sdpa
from anyformer.model.quantization.quantize import quantize
from anyformer.recipes import language, recall, speech
from anyformer.recipes._shared import pairs
from batching_kit import Arrival, answer_requests
from examples_kit import few_examples

ALPHABET = "abcdefghij"
V = len(ALPHABET) + 1
POSITIONS = ["none", "learned", "sinusoidal", "rotary", "relative", "alibi"]
pytestmark = pytest.mark.fuzz


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text("".join(ALPHABET[i * i * 7 // 3 % 10] for i in range(2000)))
    return path


def randomize(model: nn.Module, seed: int) -> Any:
    torch.manual_seed(seed)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model.double().eval()


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual.double(), expected.double(), rtol=1e-5, atol=1e-5)


def shapes(context: st.SearchStrategy[int]) -> st.SearchStrategy[TransformerConfig]:
    return st.builds(
        TransformerConfig,
        dim=st.just(8),
        n_layer=st.integers(1, 3),
        n_head=st.sampled_from([2, 4]),
        n_kv_head=st.sampled_from([None, 1]),
        mlp_dim=st.just(8),
        context=context,
        position=st.sampled_from(POSITIONS),
        norm=st.sampled_from(["layernorm", "rmsnorm"]),
        norm_place=st.sampled_from(["pre", "post"]),
        qk_norm=st.booleans(),
        activation=st.sampled_from(["gelu", "relu2", "swiglu"]),
    )


SEEDS = st.integers(0, 1000)
KEYS = st.sampled_from([0, sdpa.MIN_KEY_NUMBERS])
"""A single query over so many numbers of keys is computed by batched products: over any, or never."""
CONTEXTS = st.integers(1, 9)
LANGUAGE = st.builds(
    language.Config,
    model=shapes(CONTEXTS),
    window=st.none() | st.integers(1, 7),
    global_every=st.sampled_from([1, 2, 9]),
    sinks=st.sampled_from([0, 0, 1, 3]),
    tied=st.booleans(),
)


# --- one token after the other ---


@dataclass(frozen=True)
class Decoding:
    """Rows of ids, the ids that follow in each row, and how many stay when the context is full."""

    prompts: list[list[int]]
    forced: list[list[int]]
    keep: int | None
    min_keys: int


@st.composite
def decodings(draw: st.DrawFn) -> Decoding:
    """Some rows short, some far past any context."""
    token = st.integers(0, V - 1)
    steps = draw(st.integers(1, 14))
    prompts = draw(st.lists(st.lists(token, min_size=1, max_size=14), min_size=1, max_size=4))
    forced = [draw(st.lists(token, min_size=steps, max_size=steps)) for _ in prompts]
    return Decoding(prompts, forced, draw(st.none() | st.integers(1, 9)), draw(KEYS))


def generate_logits(model: Any, decoding: Decoding) -> Tensor:
    """The logits of `generate` before each of the forced tokens: (B, steps, V)"""
    logits: list[Tensor] = []

    def select_forced(_: Any, step_logits: Tensor) -> Tensor:
        logits.append(step_logits)
        return torch.tensor([row[len(logits) - 1] for row in decoding.forced])

    keys = patch.object(sdpa, "MIN_KEY_NUMBERS", decoding.min_keys)
    with keys, patch.object(decode.Sampler, "__call__", select_forced):
        settings = {"tokens": len(decoding.forced[0]), "sampling": SamplingParams(), "keep": decoding.keep}
        list(decode.generate(model, decoding.prompts, seeds=[0] * len(decoding.prompts), **settings))
    return torch.stack(logits, dim=1)


@torch.inference_mode()
def read_again(model: Any, prompt: list[int], forced: list[int], keep: int | None, is_unbounded: bool) -> Tensor:
    """The same logits of one row alone, each from all that the model then reads, without a cache: (steps, V)"""
    context = model.body.config.context
    keep = min(keep or max(1, context // 2), context)
    window, logits = prompt[-context:], []
    for token in forced:
        logits.append(model(torch.tensor([window]))[0, -1])
        window = [*window, token]
        if len(window) > context and not is_unbounded:
            window = window[-keep:]
    return torch.stack(logits)


def check_decoding(model: Any, decoding: Decoding, is_unbounded: bool = False, form: str = "float64") -> None:
    rows = zip(decoding.prompts, decoding.forced)
    expected = torch.stack([read_again(model, *row, decoding.keep, is_unbounded) for row in rows])
    if form == "float64":
        assert_close(generate_logits(model, decoding), expected)
        return
    model = model.float()
    if form == "fused":
        quantize(model, "float32")
    with patch.object(linear, "MIN_ONEDNN_PRODUCTS", 0):  # the kernels of large maps, also for small ones
        logits = generate_logits(model, decoding)
    torch.testing.assert_close(logits.double(), expected.double(), rtol=1e-3, atol=1e-2)


def has_unbounded_cache(config: language.Config) -> bool:
    """Whether no layer reads as far as the context, and no position is added to the nodes."""
    is_local = config.window is not None and config.global_every > config.model.n_layer
    is_ring = is_local and config.window + config.sinks < config.model.context
    return is_ring and config.model.position not in ("learned", "sinusoidal")


@few_examples
@given(LANGUAGE, decodings(), st.sampled_from(["float64", "float32", "fused"]), SEEDS)
def test_language_cached_in_a_batch_is_uncached_alone(
    config: language.Config, decoding: Decoding, form: str, seed: int
):
    model = randomize(language.LanguageModel(config, Characters(ALPHABET)), seed)
    check_decoding(model, decoding, has_unbounded_cache(config), form)


SAMPLING = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.5, 1.0]),
    top_k=st.none() | st.integers(1, 4),
    top_p=st.none() | st.just(0.7),
    min_p=st.none() | st.just(0.1),
    repetition_penalty=st.sampled_from([1.0, 2.0]),
)


@few_examples
@given(LANGUAGE, decodings(), SAMPLING, SEEDS)
def test_tokens_are_sampled_in_a_batch_as_alone(
    config: language.Config, decoding: Decoding, sampling: SamplingParams, seed: int
):
    """Also where rows stop at different times."""
    model = randomize(language.LanguageModel(config, Characters(ALPHABET)), seed)

    def sample(rows: list[int]) -> list[tuple]:
        ends = {row: decoding.forced[row][0] for row in rows}  # any token
        steps = decode.generate(
            model,
            [decoding.prompts[row] for row in rows],
            tokens=len(decoding.forced[0]),
            sampling=sampling,
            seeds=[seed + row for row in rows],
            stop=lambda i, token: token == ends[rows[i]],
            keep=decoding.keep,
        )
        return [tuple(token for token in row if token is not None) for row in zip(*steps)]

    everyone = list(range(len(decoding.prompts)))
    assert sample(everyone) == [sample([row])[0] for row in everyone]


PROMPTS = st.text(ALPHABET, min_size=1, max_size=14)
REQUESTS = st.builds(
    CompletionRequest,
    prompt=PROMPTS | st.lists(PROMPTS, min_size=1, max_size=3),
    tokens=st.integers(0, 20),
    samples=st.integers(1, 2),
    temperature=st.sampled_from([0.0, 0.7, 1.0]),
    top_k=st.none() | st.integers(1, 4),
    repetition_penalty=st.sampled_from([1.0, 2.0]),
    frequency_penalty=st.sampled_from([0.0, 0.5]),
    logit_bias=st.sampled_from([{}, {"1": 2.0}]),
    stop=st.sampled_from(["", "a", "bc"]),
    regex=st.sampled_from([None, None, "[a-d]{2,9}", "(ab|c)*d?"]),
    logprobs=st.none() | st.integers(0, 2),
    keep=st.none() | st.integers(1, 9),
    seed=SEEDS,
)
ARRIVALS = st.lists(
    st.builds(Arrival, REQUESTS, after=st.integers(0, 30), cancel_after=st.none() | st.integers(1, 9)),
    min_size=1,
    max_size=5,
)


@few_examples
@given(LANGUAGE, ARRIVALS, st.integers(1, 5), st.integers(1, 20), SEEDS)
def test_requests_that_share_a_running_batch_are_answered_as_alone(
    config: language.Config, arrivals: list[Arrival], max_rows: int, prompt_tokens: int, seed: int
):
    """Under any mix of lengths, arrivals and cancellations."""
    model = randomize(language.LanguageModel(config, Characters(ALPHABET)), seed)
    check_answers(model, arrivals, max_rows, prompt_tokens)


@few_examples
@given(st.integers(1, 6), CONTEXTS, ARRIVALS, st.integers(1, 5), st.integers(1, 20), SEEDS)
def test_requests_that_share_a_batch_without_keys_are_answered_as_alone(
    words: int, context: int, arrivals: list[Arrival], max_rows: int, prompt_tokens: int, seed: int
):
    model = randomize(WindowLM(V, 4, 6, words, context, False, 0.0), seed)
    model.tokenizer = Characters(ALPHABET)
    check_answers(model, arrivals, max_rows, prompt_tokens)


def check_answers(model: Any, arrivals: list[Arrival], max_rows: int, prompt_tokens: int) -> None:
    batcher = Batcher(model, max_rows=max_rows, prompt_tokens=prompt_tokens)
    answers = answer_requests(batcher, arrivals)
    assert not batcher.slots and not batcher.waiting
    batcher.close()
    for arrival, answer in zip(arrivals, answers, strict=True):
        assert answer.errors == [None]
        alone = list(generate_text(model, model.tokenizer, arrival.request))[-1]
        for i, completion in enumerate(alone):
            tokens = answer.tokens[i]
            if arrival.cancel_after is None:
                assert (answer.texts[i], answer.reasons[i]) == (completion.text, completion.finish_reason)
            assert tokens == completion.tokens[: None if arrival.cancel_after is None else len(tokens)]
            expected = [row.logprob for row in (completion.logprobs or [])[: len(tokens)]]
            assert [row.logprob for row in answer.logprobs[i]] == pytest.approx(expected, abs=1e-4)


@few_examples
@given(shapes(CONTEXTS), st.none() | st.integers(1, 7), st.integers(1, 5), decodings(), SEEDS)
def test_recall_cached_in_a_batch_is_uncached_alone(
    corpus_file: Path, shape: TransformerConfig, window: int | None, order: int, decoding: Decoding, seed: int
):
    config = recall.Config(data=str(corpus_file), counts=str(order), model=shape, window=window, global_every=9)
    check_decoding(randomize(recall.build(config), seed), decoding)


@few_examples
@given(st.integers(1, 6), CONTEXTS, st.booleans(), decodings(), SEEDS)
def test_the_window_of_words_cached_in_a_batch_is_uncached_alone(
    words: int, context: int, direct: bool, decoding: Decoding, seed: int
):
    check_decoding(randomize(WindowLM(V, 4, 6, words, context, direct, 0.0), seed), decoding)


@few_examples
@given(
    LANGUAGE,
    st.lists(st.integers(1, 14), min_size=1, max_size=3),
    st.lists(st.integers(1, 6), min_size=1, max_size=6),
    KEYS,
    SEEDS,
)
@torch.inference_mode()
def test_a_cache_is_read_in_chunks_of_any_length(
    config: language.Config, lengths: list[int], chunks: list[int], keys: int, seed: int
):
    """Rows of unequal length, then any number of nodes at once."""
    config = replace(config, model=replace(config.model, context=max(lengths) + sum(chunks)))
    model = randomize(language.LanguageModel(config, Characters(ALPHABET)), seed)
    ids = torch.randint(V, (len(lengths), max(lengths) + sum(chunks)))
    cache = decode.new_cache(model, len(lengths))
    expected = [model(row[None])[0] for row in ids]
    first = prefill(model, [row[:n].tolist() for row, n in zip(ids, lengths)], cache)
    assert_close(first, torch.stack([logits[n - 1] for logits, n in zip(expected, lengths)]))
    start = torch.tensor(lengths)
    for chunk in chunks:
        columns = start[:, None] + torch.arange(chunk)
        with patch.object(sdpa, "MIN_KEY_NUMBERS", keys):
            logits = model.head(model.hidden(ids.gather(1, columns), cache))
        assert_close(logits, torch.stack([row[i] for row, i in zip(expected, columns)]))
        start = start + chunk


# --- a source, and a text decoded from it ---


@st.composite
def translators(draw: st.DrawFn) -> Any:
    """An encoder-decoder of any kind, with tokenizers."""
    seed, vocabulary = draw(SEEDS), Characters(ALPHABET)
    if draw(st.booleans()):
        kind = draw(st.sampled_from([Seq2SeqLSTM, RNNSearch]))
        model: Any = kind((V, V), dim=4, hidden=6, layers=draw(st.integers(1, 2)), context=12, dropout=0.0)
        model.pair_tokenizer = pairs.build_pair(pairs.TranslatorConfig(), vocabulary)
        return randomize(model, seed)
    shape = draw(shapes(st.just(12)))
    config = pairs.TranslatorConfig(
        encoder=replace(shape, position=draw(st.sampled_from(POSITIONS))),
        decoder=shape,
        copy=draw(st.booleans()),
        tied=draw(st.booleans()),
        scaled=draw(st.booleans()),
    )
    return randomize(pairs.build_translator(config, pairs.build_pair(config, vocabulary)), seed)


SOURCES = st.lists(st.lists(st.integers(0, V - 2), max_size=11), min_size=1, max_size=4)


@few_examples
@given(translators(), SOURCES, st.integers(1, 3), st.sampled_from([0, 2]), st.sampled_from([0.0, 1.0]))
def test_sources_of_any_length_are_translated_in_a_batch_as_alone(
    model: Any, sources: list[list[int]], beam: int, ngram: int, penalty: float
):
    """And the score of a translation is what the model gives it without a cache."""
    settings = {"n_best": beam, "no_repeat_ngram": ngram, "length_penalty": penalty, "max_length_ratio": 0.0}
    request, marks = TranslationRequest(input="", beam=beam, tokens=8, **settings), model.pair_tokenizer
    sources = [[*source, marks.source_end_id] for source in sources]
    for source, hypotheses in zip(sources, search_translations(model, sources, request)):
        (alone,) = search_translations(model, [source], request)
        assert [h.tokens for h in hypotheses] == [h.tokens for h in alone]
        for hypothesis, same in zip(hypotheses, alone):
            assert hypothesis.score == pytest.approx(same.score, abs=1e-5)
            ids = [marks.start_id, *hypothesis.tokens]
            labels = [*hypothesis.tokens, *([marks.end_id] if hypothesis.finished else [])]
            with torch.no_grad():
                logits = model(torch.tensor([source]), torch.tensor([ids]))[0, : len(labels)].double()
            log_probs = logits.log_softmax(-1)[torch.arange(len(labels)), labels]
            assert hypothesis.log_prob == pytest.approx(log_probs.sum().item(), abs=1e-4)


@few_examples
@given(shapes(st.just(10)), st.lists(st.integers(1, 10), min_size=1, max_size=4), st.sampled_from(POSITIONS), SEEDS)
def test_sounds_of_any_length_are_transcribed_in_a_batch_as_alone(
    shape: TransformerConfig, lengths: list[int], position: str, seed: int
):
    config = speech.Config(mels=4, encoder=replace(shape, position=position), decoder=shape)
    model = randomize(speech.SpeechTransformer(config, Characters(ALPHABET)), seed)
    mel, nodes = torch.randn(len(lengths), 4, 2 * max(lengths)).double(), torch.tensor(lengths)
    mel[(torch.arange(mel.shape[2]) >= 2 * nodes[:, None])[:, None].expand_as(mel)] = 0
    together = model.transcribe(mel, nodes)
    for row, n in enumerate(lengths):
        assert together[row] == model.transcribe(mel[row : row + 1, :, : 2 * n], nodes[row : row + 1])[0]


# --- packed = separate ---


@st.composite
def packings(draw: st.DrawFn) -> list[list[int]]:
    """Rows of equal length, cut into documents: the lengths of each."""
    length = draw(st.integers(1, 12))
    cuts = st.sets(st.integers(0, length)).map(lambda cuts: sorted(cuts | {0, length}))
    return [[b - a for a, b in pairwise(row)] for row in draw(st.lists(cuts, min_size=1, max_size=3))]


def check_packing(model: Any, packing: list[list[int]]) -> None:
    ids = torch.randint(V, (len(packing), sum(packing[0])))
    document = torch.stack([torch.repeat_interleave(torch.arange(len(row)), torch.tensor(row)) for row in packing])
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in packing])
    packed = model.hidden(ids, document=document, positions=positions)
    parts = [torch.cat([model.hidden(part[None]) for part in row.split(n)], 1) for row, n in zip(ids, packing)]
    assert_close(packed, torch.cat(parts))


@few_examples
@given(LANGUAGE, packings(), SEEDS)
@torch.no_grad()
def test_packed_texts_are_separate_texts(config: language.Config, packing: list[list[int]], seed: int):
    config = replace(config, model=replace(config.model, context=12))
    check_packing(randomize(language.LanguageModel(config, Characters(ALPHABET)), seed), packing)


@few_examples
@given(shapes(st.just(12)), packings(), SEEDS)
@torch.no_grad()
def test_packed_texts_that_read_both_ways_are_separate_texts(
    shape: TransformerConfig, packing: list[list[int]], seed: int
):
    check_packing(randomize(Encoder(V, shape), seed), packing)


@few_examples
@given(shapes(st.just(12)), st.lists(st.integers(1, 12), min_size=1, max_size=4), SEEDS)
@torch.no_grad()
def test_padded_texts_that_read_both_ways_are_separate_texts(shape: TransformerConfig, lengths: list[int], seed: int):
    model, ids = randomize(Encoder(V, shape), seed), torch.randint(V, (len(lengths), max(lengths)))
    together = model.hidden(ids, torch.tensor(lengths))
    for row, n in enumerate(lengths):
        assert_close(together[row, :n], model.hidden(ids[row : row + 1, :n])[0])
