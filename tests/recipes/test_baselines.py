"""Models before the Transformer (2003, 2014), each against a slow version of its formula.

Shapes: B batch, S source, T target.
"""

from pathlib import Path

import pytest
import torch
from torch import nn

from anyformer import api
from anyformer.baselines.recurrent import RecurrentSeq2Seq, RNNSearch, Seq2SeqLSTM
from anyformer.baselines.window_lm import WindowLM
from anyformer.inference.decode import generate, new_cache, step
from anyformer.inference.prompt_reading import prefill
from anyformer.inference.sampling import SamplingParams
from anyformer.model import within
from cli_kit import assert_refused, call

SIZES = {"vocab_sizes": (23, 23), "dim": 8, "hidden": 12, "layers": 2, "context": 16, "dropout": 0.0}
MODELS = {"seq2seq": Seq2SeqLSTM, "rnnsearch": RNNSearch}


def build(name: str, seed: int = 0) -> RecurrentSeq2Seq:
    torch.manual_seed(seed)
    return MODELS[name](**SIZES).eval()


def make_sources(lengths: list[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Sources padded on the right, and their lengths."""
    ids = torch.randint(23, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(seed))
    return ids, torch.tensor(lengths)


# --- 2003 ---


@pytest.mark.parametrize("direct", [False, True])
@torch.no_grad()
def test_the_window_lm_reads_its_words_and_nothing_else(direct: bool):
    torch.manual_seed(0)
    model = WindowLM(11, 5, 7, words=3, context=16, direct=direct, dropout=0.0).eval()
    ids = torch.randint(11, (2, 9))
    padded = torch.cat([torch.full((2, 2), 11), ids], dim=1)  # entry 11 stands before a text
    for t in range(9):
        x = torch.cat([model.token.weight[padded[:, t + i]] for i in range(3)], dim=-1)
        expected = model.output(torch.tanh(model.body.net(x)))
        expected = expected if model.direct is None else expected + model.direct(x)
        torch.testing.assert_close(model(ids)[:, t], expected)


@torch.no_grad()
def test_the_window_lm_cached_is_uncached():
    """Rows of unequal length, then token by token."""
    torch.manual_seed(0)
    model = WindowLM(11, 5, 7, words=4, context=16, direct=True, dropout=0.0).eval()
    rows = [[1, 2, 3, 4, 5, 6], [7], [8, 9, 10]]
    cache = new_cache(model, 3)
    logits = prefill(model, rows, cache)
    for new in ([1, 2, 3], [4, 5, 6], [7, 8, 9]):
        for row, row_logits in zip(rows, logits, strict=True):
            torch.testing.assert_close(row_logits, model(torch.tensor([row]))[0, -1])
        rows = [[*row, token] for row, token in zip(rows, new, strict=True)]
        logits = step(model, torch.tensor(new), cache)


@pytest.mark.parametrize("keep", [None, 1, 16])
def test_the_window_lm_decodes_short_rows_beside_rows_past_their_context_as_alone(keep: int | None):
    """When the long row is read again from its newest tokens, so are the short ones: from before their first token."""
    torch.manual_seed(0)
    model = WindowLM(11, 5, 7, words=4, context=16, direct=True, dropout=0.0).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    prompts = [[3], [i % 11 for i in range(40)], [7, 8]]

    def decode(prompts: list[list[int]]) -> list[tuple]:
        params = SamplingParams(temperature=0)
        return list(zip(*generate(model, prompts, tokens=30, sampling=params, seeds=[0] * len(prompts), keep=keep)))

    assert decode(prompts) == [decode([prompt])[0] for prompt in prompts]


# --- 2014 ---


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_padding_changes_nothing(name: str):
    model, (source, lengths) = build(name), make_sources([7, 3, 5])
    ids = torch.randint(23, (3, 6))
    logits = model(source, ids, within(lengths))
    for i, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(logits[i : i + 1], model(source[i : i + 1, :length], ids[i : i + 1]))
    source[1, 3:] = 0
    torch.testing.assert_close(model(source, ids, within(lengths)), logits)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_token_by_token_is_all_at_once(name: str):
    model, (source, lengths) = build(name, 1), make_sources([4, 6])
    ids = torch.randint(23, (2, 7))
    expected = model(source, ids, within(lengths))
    decoder = model.condition(model.encode(source, within(lengths)), within(lengths))
    cache = new_cache(decoder, 2)
    logits = prefill(decoder, [[int(row[0])] for row in ids], cache)
    for t in range(1, 7):
        torch.testing.assert_close(logits, expected[:, t - 1])
        logits = step(decoder, ids[:, t], cache)
    cache.reorder(torch.tensor([1, 1]))
    assert step(decoder, torch.tensor([3, 3]), cache).isfinite().all()
    with pytest.raises(ValueError, match="prompts of one length"):
        prefill(decoder, [[1, 2], [3]], new_cache(decoder, 2))


@torch.no_grad()
def test_seq2seq_passes_one_vector_of_fixed_size():
    model, (source, lengths) = build("seq2seq"), make_sources([9, 2])
    memory = model.encode(source, within(lengths))
    assert memory.shape == (2, 1, 2 * 2 * 12)
    _, (h, c) = model.encoder.net(model.source(source[1:, :2].flip(1)))  # in reverse
    torch.testing.assert_close(memory[1, 0], torch.cat([h, c]).transpose(0, 1).flatten())


@torch.no_grad()
def test_rnnsearch_weighs_the_source_by_a_softmax():
    """e_ij = v tanh(W s_(i-1) + U h_j), computed slowly (1409.0473, section 3.1)."""
    model, (source, lengths) = build("rnnsearch"), make_sources([5, 3])
    weights = model.alignment(source, torch.randint(23, (2, 4)), within(lengths))
    assert weights.shape == (2, 4, 5) and (weights[1, :, 3:] == 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4))
    memory = model.encode(source, within(lengths))
    s = model.init_state(memory)[0]
    scores = [model.score(torch.tanh(model.query(s[1]) + model.key(memory[1, j]))) for j in range(3)]
    torch.testing.assert_close(weights[1, 0, :3], torch.cat(scores).softmax(-1))


@pytest.mark.parametrize(
    ("recipe", "flags", "message"),
    [
        ("seq2seq", ("--hidden", 0), "hidden is 0; it must be at least 1"),
        ("rnnsearch", ("--dropout", 1.5), "dropout is 1.5; it must be at least 0 and below 1"),
        ("mlp", ("--model.words", 0), "words is 0; it must be at least 1"),
        ("translation", ("--encoder.dim", 16), "encoder.dim is 16 and decoder.dim 32"),
    ],
)
def test_impossible_sizes_are_one_line(recipe: str, flags: tuple, message: str, tmp_path: Path):
    assert_refused(call("train", recipe, "--preset", "tiny", *flags, "--out", tmp_path / "run"), message)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", MODELS)
def test_a_baseline_is_trained_evaluated_and_predicts(recipe: str, tmp_path: Path):
    flags = ("--preset", "tiny", "--steps", 10, "--device", "cpu", "--train.eval-batches", 2)
    flags = (*flags, "--train.final-every", 20)
    call("train", recipe, *flags, "--out", tmp_path / "run").ok()
    together = call("predict", tmp_path / "run", "31415", "27", "--request", '{"beam": 2}', "--json").ok().json
    alone = call("predict", tmp_path / "run", "27", "--request", '{"beam": 2}', "--json").ok().json
    assert together["results"][1]["text"] == alone["results"][0]["text"]
    assert together["results"][1]["score"] == pytest.approx(alone["results"][0]["score"], abs=1e-6)
    model = api.load(tmp_path / "run", "cpu")
    assert isinstance(model.module, nn.Module) and model.evaluate()["loss"] > 0
