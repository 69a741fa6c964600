"""A language model beside its counts: the same however it is read, honest in training, safe to load."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from anyformer.data.text.ngrams import count_ngrams
from safetensors.torch import load_file, save_file

from anyformer import api
from anyformer.errors import InputError
from anyformer.inference.beam import beam_search
from anyformer.inference.decode import generate, new_cache, prefill, step
from anyformer.inference.sampling import SamplingParams
from anyformer.recipes import language, recall
from cli_kit import call, refused

TEXT = "the cat sat on the mat. the dog sat on the log. the rat ate the malt.\n" * 30


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recall")
    (folder / "a.txt").write_text(TEXT)
    few = ("--preset", "tiny", "--steps", 6, "--device", "cpu", "--dtype", "float32")
    call("train", "recall", *few, "--data", folder / "a.txt", "--out", folder / "run").well()
    return folder / "run"


@pytest.fixture
def model(run: Path) -> recall.RecallModel:
    return api.load(run, "cpu").module


def ids_of(model: recall.RecallModel, text: str) -> list[int]:
    return [int(i) for i in model.tokenizer.encode(text)]


def test_at_birth_it_says_what_the_counts_say(run: Path):
    stored = json.loads((run / "config.json").read_text())["config"]
    config = replace(recall.PRESETS["tiny"], data=stored["data"])
    torch.manual_seed(0)
    model = recall.build(config).eval()
    text = language.load_corpus(config).split("train").astype(np.int64)
    counts = count_ngrams(text, 3, model.nodes.token.num_embeddings)
    asked = text[None, 40:60]
    with torch.inference_mode():
        said = model(torch.from_numpy(asked)).softmax(-1)
        for parameter in model.head.head.parameters():
            parameter.zero_()
        bare = model(torch.from_numpy(asked)).softmax(-1)
    wanted = torch.from_numpy(counts.probabilities(asked))
    torch.testing.assert_close(bare, wanted, rtol=1e-4, atol=1e-6)
    assert (said - wanted).abs().sum(-1).mean() / 2 < 0.1, "the Transformer has little to add yet"


def test_in_training_a_position_is_told_nothing_of_itself(model: recall.RecallModel):
    """The last words occur once: known by heart when asked, news when learned from."""
    ids = torch.tensor([ids_of(model, "the cat sat on the mat. ")])
    nexts = torch.cat([ids[:, 1:], torch.full((1, 1), -100)], dim=1)
    batch = {"ids": ids, "labels": nexts}
    with torch.no_grad():
        assert recall.loss(model.train(), batch) > recall.loss(model.eval(), batch)


@pytest.mark.parametrize("split", [1, 2, 5, 11])
def test_cached_is_uncached(model: recall.RecallModel, split: int):
    ids = ids_of(model, "the dog sat on the mat.")
    with torch.inference_mode():
        cache = new_cache(model, 1)
        logits = [prefill(model, [ids[:split]], cache)]
        logits += [step(model, torch.tensor([token]), cache) for token in ids[split:]]
        whole = model(torch.tensor([ids]))[0, split - 1 :]
    torch.testing.assert_close(torch.cat(logits), whole, atol=1e-5, rtol=1e-5)


def test_prompts_of_any_length_together_are_as_each_alone(model: recall.RecallModel):
    prompts = [ids_of(model, text) for text in ("t", "the cat sat", "a", "the rat", "on the log. the")]
    rules = {"rules": SamplingParams(temperature=0), "tokens": 40}  # past the context, too
    together = list(zip(*generate(model, prompts, seeds=[0] * 5, **rules)))
    for prompt, said in zip(prompts, together):
        assert [row[0] for row in generate(model, [prompt], seeds=[0], **rules)] == list(said)


def test_beams_keep_their_own_past(model: recall.RecallModel):
    prompts = [ids_of(model, "the c"), ids_of(model, "the d")]
    found = beam_search(model, prompts, beam=3, tokens=8, end=None, penalty=0.0)
    for prompt, (best,) in zip(prompts, found):
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + best.tokens]))[0, len(prompt) - 1 : -1].double().log_softmax(-1)
        told = sum(logits[i, token].item() for i, token in enumerate(best.tokens))
        assert best.log_prob == pytest.approx(told, abs=1e-4)


def test_it_knows_without_its_text(run: Path, tmp_path: Path):
    best = api.load(run, "cpu")
    said = best.generate("the cat", tokens=12, temperature=0)
    (run.parent / "a.txt").rename(run.parent / "gone.txt")
    try:
        assert api.load(run, "cpu").generate("the cat", tokens=12, temperature=0) == said
    finally:
        (run.parent / "gone.txt").rename(run.parent / "a.txt")


def test_counts_that_are_none(run: Path, tmp_path: Path):
    path = api.load(run, "cpu").path
    for name in ("config.json", "state.json", "tokenizer.json", "counts.json", "model.safetensors"):
        (tmp_path / name).write_bytes((path / name).read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    for name, value in {"memory.2.tokens": 10**6, "memory.3.starts": -5, "memory.1.counts": 0}.items():
        broken = {key: tensor.clone() for key, tensor in tensors.items()}
        broken[name][1] = value
        save_file(broken, tmp_path / "model.safetensors", {"format": "pt"})
        refused(call("sample", tmp_path, "--tokens", 3), "counts of this checkpoint are damaged")
    state = json.loads((tmp_path / "state.json").read_text())
    (tmp_path / "state.json").write_text(json.dumps(state | {"files": {}}))
    for text in ("{}", "[", '{"sizes": [[99999999999, 3]], "discounts": [[0, 1, 1, 1]]}'):
        (tmp_path / "counts.json").write_text(text)
        refused(call("sample", tmp_path, "--tokens", 3), "counts.json does not hold the sizes of counts")


def test_numbers_that_make_no_sense(tmp_path: Path):
    (tmp_path / "a.txt").write_text(TEXT)
    flags = ("--preset", "tiny", "--data", tmp_path / "a.txt", "--out", tmp_path / "run")
    for given, says in (("0", "from 1 to 16"), ("99", "from 1 to 16"), ("many", "a number of tokens"), ("16", "bits")):
        refused(call("train", "recall", *flags, "--counts", given), "counts is", says)
    config = replace(recall.PRESETS["tiny"], data=str(tmp_path / "a.txt"), counts="16")
    with pytest.raises(InputError, match="lower --counts"):
        recall.build(config)
