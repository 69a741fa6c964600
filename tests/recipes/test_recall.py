"""A language model with n-gram counts: cached equals uncached, no leakage in training, damaged counts are refused."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from anyformer import api
from anyformer.data.text.ngrams import count_ngrams
from anyformer.errors import InputError
from anyformer.inference.beam import beam_search
from anyformer.inference.decode import generate, new_cache, step
from anyformer.inference.prompt_reading import prefill
from anyformer.inference.sampling import SamplingParams
from anyformer.recipes import language, recall
from anyformer.recipes._shared import scaling
from cli_kit import assert_refused, call

TEXT = "the cat sat on the mat. the dog sat on the log. the rat ate the malt.\n" * 30


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recall")
    (folder / "a.txt").write_text(TEXT)
    flags = ("--preset", "tiny", "--steps", 6, "--device", "cpu", "--dtype", "float32")
    call("train", "recall", *flags, "--data", folder / "a.txt", "--out", folder / "run").ok()
    return folder / "run"


@pytest.fixture
def model(run: Path) -> recall.RecallModel:
    return api.load(run, "cpu").module


def encode(model: recall.RecallModel, text: str) -> list[int]:
    return model.tokenizer.encode(text).tolist()


def test_a_new_model_predicts_what_the_counts_predict(tmp_path: Path):
    (tmp_path / "a.txt").write_text(TEXT)
    config = replace(recall.PRESETS["tiny"], data=str(tmp_path / "a.txt"))
    torch.manual_seed(0)
    model = recall.build(config).eval()
    text = language.load_corpus(config).split("train").astype(np.int64)
    ids = text[None, 40:60]
    expected = torch.from_numpy(count_ngrams(text, 3, model.nodes.token.num_embeddings).probabilities(ids))
    with torch.inference_mode():
        probabilities = model(torch.from_numpy(ids)).softmax(-1)
        for parameter in model.head.head.parameters():
            parameter.zero_()
        torch.testing.assert_close(model(torch.from_numpy(ids)).softmax(-1), expected, rtol=1e-4, atol=1e-6)
    assert (probabilities - expected).abs().sum(-1).mean() / 2 < 0.1, "an untrained Transformer adds little"


@pytest.mark.slow
def test_in_training_the_own_occurrence_is_left_out(model: recall.RecallModel):
    ids = torch.tensor([encode(model, "the cat sat on the mat. ")])
    batch = {"ids": ids, "labels": torch.cat([ids[:, 1:], torch.full((1, 1), -100)], dim=1)}
    with torch.no_grad():
        assert recall.loss(model.train(), batch) > recall.loss(model.eval(), batch)


@pytest.mark.parametrize("split", [1, 5, 11])
def test_cached_equals_uncached(model: recall.RecallModel, split: int):
    ids = encode(model, "the dog sat on the mat.")
    with torch.inference_mode():
        cache = new_cache(model, 1)
        logits = [prefill(model, [ids[:split]], cache)]
        logits += [step(model, torch.tensor([token]), cache) for token in ids[split:]]
        expected = model(torch.tensor([ids]))[0, split - 1 :]
    torch.testing.assert_close(torch.cat(logits), expected, atol=1e-5, rtol=1e-5)


def test_prompts_of_unequal_length_decode_together_as_alone(model: recall.RecallModel):
    prompts = [encode(model, text) for text in ("t", "the cat sat", "a", "the rat", "on the log. the")]
    arguments = {"sampling": SamplingParams(temperature=0), "tokens": 40}  # beyond the context
    together = list(zip(*generate(model, prompts, seeds=[0] * 5, **arguments)))
    for prompt, tokens in zip(prompts, together):
        assert [row[0] for row in generate(model, [prompt], seeds=[0], **arguments)] == list(tokens)


def test_each_beam_looks_up_its_own_tokens(model: recall.RecallModel):
    prompts = [encode(model, "the c"), encode(model, "the d")]
    for prompt, (best,) in zip(prompts, beam_search(model, prompts, beam=3, tokens=8, end=None, penalty=0.0)):
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + best.tokens]))[0, len(prompt) - 1 : -1].double().log_softmax(-1)
        expected = sum(logits[i, token].item() for i, token in enumerate(best.tokens))
        assert best.log_prob == pytest.approx(expected, abs=1e-4)


def test_a_run_is_loaded_without_its_text(run: Path):
    answer = api.load(run, "cpu").generate("the cat", tokens=12, temperature=0)
    text = run.parent / "a.txt"
    text.rename(run.parent / "moved.txt")
    try:
        assert api.load(run, "cpu").generate("the cat", tokens=12, temperature=0) == answer
    finally:
        (run.parent / "moved.txt").rename(text)


def test_damaged_counts_are_refused(run: Path, tmp_path: Path):
    path = api.load(run, "cpu").path
    for name in ("config.json", "state.json", "tokenizer.json", "counts.json", "model.safetensors"):
        (tmp_path / name).write_bytes((path / name).read_bytes())
    state = json.loads((tmp_path / "state.json").read_text())
    (tmp_path / "state.json").write_text(json.dumps(state | {"files": {}}))
    tensors = load_file(tmp_path / "model.safetensors")
    for name, value in {"memory.2.tokens": 10**6, "memory.3.starts": -5, "memory.1.counts": 0}.items():
        damaged = {key: tensor.clone() for key, tensor in tensors.items()}
        damaged[name][1] = value
        save_file(damaged, tmp_path / "model.safetensors", {"format": "pt"})
        assert_refused(call("sample", tmp_path, "--tokens", 3), "counts of this checkpoint are damaged")
    sizes = '{"sizes": [[99999999999, 3]], "discounts": [[0, 1, 1, 1]]}'
    for text, message in (("{}", "does not hold the sizes"), ("[", "JSON"), (sizes, "does not hold the sizes")):
        (tmp_path / "counts.json").write_text(text)
        assert_refused(call("sample", tmp_path, "--tokens", 3), "counts.json", message)


@pytest.mark.parametrize(
    ("counts", "message"),
    [("0", "from 1 to 16"), ("99", "from 1 to 16"), ("many", "a number of tokens"), ("16", "bits: lower --counts")],
)
def test_counts_that_make_no_sense_are_refused(counts: str, message: str, tmp_path: Path):
    (tmp_path / "a.txt").write_text(TEXT)
    config = replace(recall.PRESETS["tiny"], data=str(tmp_path / "a.txt"), counts=counts)
    with pytest.raises(InputError, match=f"counts is .*{message}"):
        recall.build(config)


# --- contexts beyond the edge of a window ---


def sum_counts(model: recall.RecallModel, config: recall.Config) -> float:
    """The nats of all labels by the counts alone, through the batches of the validation split."""
    nats = 0.0
    for batch, _ in recall.batches(config, "val"):
        inputs = {name: batch.get(name) for name in ("positions", "previous")}
        log_probs = model.look_up(batch["ids"], **inputs).flatten(0, 1)
        nats += torch.nn.functional.nll_loss(log_probs, batch["labels"].flatten(), reduction="sum").item()
    return nats


@pytest.mark.parametrize(("context", "batch"), [(2, 3), (7, 2), (64, 8)])
def test_windows_read_the_counts_as_the_unbroken_text(tmp_path: Path, context: int, batch: int):
    (tmp_path / "a.txt").write_text(TEXT)
    tiny = recall.PRESETS["tiny"]
    shape = {"model": replace(tiny.model, context=context), "train": replace(tiny.train, batch=batch)}
    config = replace(tiny, data=str(tmp_path / "a.txt"), **shape)
    model = recall.build(config)
    tokens = torch.from_numpy(language.load_corpus(config).split("val").astype(np.int64))[None]
    log_probs = model.look_up(tokens[:, :-1])[0]
    expected = torch.nn.functional.nll_loss(log_probs, tokens[0, 1:], reduction="sum").item()
    assert sum_counts(model, config) == pytest.approx(expected, rel=1e-5)


def test_documents_that_are_apart_do_not_read_the_one_before(tmp_path: Path):
    texts = ["the cat sat on the mat", "a dog", "the rat ate the malt on the log", "so it goes"] * 30
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tiny = recall.PRESETS["tiny"]
    config = replace(tiny, data=str(tmp_path / "a.jsonl"), documents="apart", model=replace(tiny.model, context=8))
    model, corpus = recall.build(config), language.load_corpus(config)
    tokens = corpus.split("val").astype(np.int64)
    starts = [0, *(np.flatnonzero(tokens[1:-1] == corpus.separator) + 1), len(tokens) - 1]
    expected = 0.0
    for start, end in pairwise(starts):  # each document alone
        log_probs = model.look_up(torch.from_numpy(tokens[None, start:end]))[0]
        labels = torch.from_numpy(tokens[start + 1 : end + 1])
        expected += torch.nn.functional.nll_loss(log_probs, labels, reduction="sum").item()
    assert sum_counts(model, config) == pytest.approx(expected, rel=1e-5)


def test_a_loaded_run_is_evaluated_with_unbroken_contexts(run: Path):
    model = api.load(run, "cpu")
    batch, _ = next(recall.batches(model.config, "val"))
    assert model.config.counts.endswith("counts.json") and batch["previous"].shape[1] == 3
    assert (batch["previous"][0] == -1).all() and (batch["previous"][1:] >= 0).all()


# --- minutes ---


def test_minutes_choose_a_size_and_keep_the_counts(tmp_path: Path):
    (tmp_path / "a.txt").write_text(TEXT)
    config = replace(recall.PRESETS["small"], data=str(tmp_path / "a.txt"), counts="4")
    options = list(recall.sizes(config))
    assert len(options) > 1 and {option.config.counts for option in options} == {"4"}


def test_the_law_of_the_mixture_agrees_with_measurements():
    """A minute of plays and of novels (docs/benchmarks.md): the mixture is better than its parts."""
    for difficulty, weights, tokens, both in ((1.571, 786_432, 1_638_400, 1.464), (1.260, 786_432, 1_638_400, 1.176)):
        text = scaling.TextStatistics(difficulty, 1_000_000, 66)
        low, high = scaling.predict_mixture_range(text, weights, tokens)
        assert low < both < high
        plain = sum(scaling.predict_loss_range(text, weights, tokens))
        assert low + high < min(plain, 2 * difficulty)
    worthless = scaling.TextStatistics(5.0, 10**9, 66)
    assert scaling.predict_mixture_range(worthless, 10**8, 1e10) == pytest.approx(
        scaling.predict_loss_range(worthless, 10**8, 1e10), rel=0.05
    )


def test_language_says_when_counts_would_pay():
    text = scaling.TextStatistics(1.5, 1_000_000, 66)
    advice = scaling.advise_counts(text, 100_000, 500_000)
    assert advice is not None and "n-gram counts alone reach a loss of about 1.50" in advice
    assert "`anyformer train recall`" in advice and "cannot be exported" in advice
    assert scaling.advise_counts(scaling.TextStatistics(1.5, 10**9, 4096), 10**7, 10**9) is None, "no longer"
