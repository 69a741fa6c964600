"""Notes: stored and read again equals reading them and the newest tokens uncached; keys, limits, texts of any size."""

import random
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from anyformer.data.tokenizers.build import Characters
from anyformer.errors import InputError
from anyformer.inference import decode
from anyformer.inference.batching import Batcher
from anyformer.inference.completion import CompletionRequest, generate_text
from anyformer.inference.notes import Notes, Reading, build_notes, choose_crop, read_stream
from anyformer.inference.sampling import SamplingParams
from anyformer.model.config import TransformerConfig
from anyformer.recipes import language, recall
from batching_kit import Arrival, answer_requests

QUICK = {
    "test_windows_are_read_together_as_one_id_after_the_other": {"3", "28"},
}  # with which parameters a test runs each time; with all others it is slow (conftest.py)

ALPHABET = "ab=[]\n"
TOKENIZER = Characters(ALPHABET)
NOTES = Notes(TOKENIZER, [3], [4], max_tokens=6)


def encode(text: str) -> list[int]:
    return TOKENIZER.encode(text).tolist()


def build_model(seed: int = 0, **fields: Any) -> language.LanguageModel:
    torch.manual_seed(seed)
    shape = TransformerConfig(dim=16, n_layer=2, n_head=2, context=24, position="rotary")
    config = language.Config(
        **{"model": shape, "note_start": "[", "note_end": "]", "note_tokens": 6, "tied": False} | fields
    )
    model = language.LanguageModel(config, TOKENIZER)
    for parameter in model.parameters():  # large weights, so that a wrong key changes the result
        torch.nn.init.normal_(parameter, std=0.8)
    return model.eval()


# --- what is kept ---


def crop(text: str, size: int) -> str:
    return TOKENIZER.decode(NOTES.crop(encode(text), size))


def test_notes_and_the_newest_tokens_are_kept():
    assert crop("aab[a=b]" + "ab" * 10, 12) == "[a=b]bababab"
    assert crop("ab" * 10, 12) == "ab" * 6
    assert crop("a[a=b]b", 12) == "a[a=b]b"  # all fits


def test_a_note_of_the_same_key_replaces_the_old_one():
    assert crop("[a=b][b=b][a=a]" + "b" * 20, 24) == "[b=b][a=a]" + "b" * 14
    assert crop("[a=b]" + "b" * 14 + "[a=a]bbb", 12) == "bbbb[a=a]bbb", "the old note goes although the new one is near"
    assert crop("[ab][ab]" + "b" * 20, 12) == "[ab]" + "b" * 8, "a note without a key is its own"


def test_no_note_is_cut():
    assert crop("b" * 10 + "[a=b]" + "b" * 9, 12) == "[a=b]" + "b" * 7
    assert crop("b" * 30 + "[a=", 12) == "b" * 9 + "[a=", "one that goes on is among the newest"
    assert crop("b" * 30 + "[a=", 3) == "b" * 9 + "[a=", "size is at least two of the longest notes"


def test_notes_have_half_of_the_size_and_the_oldest_go_first():
    assert crop("[a=a][b=a][ab=]" + "b" * 20, 20) == "[b=a][ab=]" + "b" * 10


def test_what_does_not_end_in_time_is_text():
    assert NOTES.list_texts(encode("[aaaaaaaa][b=a]")) == ["b=a"]
    assert NOTES.list_texts(encode("[aa[b=a]]")) == ["b=a"]
    assert crop("[aaaaaaaaaaa" + "b" * 20, 12) == "b" * 12


def test_marks_of_several_tokens():
    notes = Notes(TOKENIZER, encode("[["), encode("]\n"), max_tokens=10)
    assert notes.list_texts(encode("[a]\n[[a=b]]\n[[b=a]\n")) == ["a=b]", "b=a"]
    assert TOKENIZER.decode(notes.crop(encode("[[b=a]\n" + "a" * 30), 20)) == "[[b=a]\n" + "a" * 13


# --- decoding ---


def read_again(model: Any, prompt: list[int], forced: list[int], keep: int) -> Tensor:
    """The logits before each of the forced ids, each from all that is then in the context, without a cache."""
    window, logits = model.notes.crop(prompt, 24), []
    for token in forced:
        logits.append(model(torch.tensor([window]))[0, -1])
        window = [*window, token]
        window = model.notes.crop(window, keep) if len(window) > 24 else window
    return torch.stack(logits)


@torch.inference_mode()
@pytest.mark.parametrize("keep", [None, 14, 20])
def test_stored_notes_are_read_as_if_uncached(keep: int | None, monkeypatch: pytest.MonkeyPatch):
    """Rows of unlike length, with notes at random places, far beyond the context."""
    generator = random.Random(0)
    prompts = [encode("a[a=b]b"), encode("ab"), [generator.randrange(6) for _ in range(60)]]
    forced = [[generator.choice([0, 1, 3, 4, 2]) for _ in range(70)] for _ in prompts]
    forced[0][10:15], forced[1][3:9] = encode("[b=a]"), encode("[a=ab]")
    model, logits = build_model(), []

    def select_forced(_: Any, step_logits: Tensor) -> Tensor:
        logits.append(step_logits)
        return torch.tensor([row[len(logits) - 1] for row in forced])

    monkeypatch.setattr(decode.Sampler, "__call__", select_forced)
    settings: Any = {"tokens": 70, "sampling": SamplingParams(), "seeds": [0, 0, 0], "keep": keep}
    list(decode.generate(model, prompts, crop=choose_crop(model), **settings))
    for row, (prompt, ids) in enumerate(zip(prompts, forced)):
        expected = read_again(model, prompt, ids, keep or 12)
        torch.testing.assert_close(torch.stack(logits)[:, row], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("recipe", [language, recall])
def test_a_run_without_notes_keeps_the_newest(recipe: Any):
    model = build_model(note_start="", note_end="")
    assert model.notes is None and choose_crop(model)([1, 2, 3], 2) == [2, 3]


def test_a_batch_obeys_the_same_rule():
    """Continuous batching gives each request what it gets alone, notes and all."""
    model, bias = build_model(3), {str(token): 8.0 for token in range(6)}
    requests = [
        CompletionRequest(prompt=prompt, tokens=60, seed=seed, keep=keep, logit_bias=bias)
        for seed, (prompt, keep) in enumerate([("[a=b]a", None), ("b", 16), ("a" * 40, None)])
    ]
    batcher = Batcher(model, max_rows=2, prompt_tokens=5)
    answers = answer_requests(batcher, [Arrival(request, 9 * i) for i, request in enumerate(requests)])
    batcher.close()
    alone = [list(generate_text(model, TOKENIZER, request))[-1][0] for request in requests]
    assert [answer.tokens[0] for answer in answers] == [completion.tokens for completion in alone]
    assert any("[" in completion.text and "]" in completion.text for completion in alone)


# --- texts of any length ---


@torch.inference_mode()
def read_slowly(model: Any, ids: list[int], keep: int) -> Reading:
    """One id after the other, uncached; marks are one id each."""
    reading, (start,), (end,) = Reading([]), model.notes.start, model.notes.end

    def add(token: int) -> None:
        window = [*reading.window, token]
        reading.window = model.notes.crop(window, keep) if len(window) > 24 else window

    def choose(window: list[int]) -> int:
        return int(model(torch.tensor([window]))[0, -1].argmax())

    for n_read, token in enumerate(ids, 1):
        add(token)
        for _ in range(16):
            new, window = [], list(reading.window)
            while len(new) < 6 and not (new and (new[0] != start or (len(new) > 1 and new[-1] == end))):
                new.append(choose(window))
                window = [*window, new[-1]]
                window = model.notes.crop(window, keep) if len(window) > 24 else window
            if new[0] != start:
                break
            if new[-1] != end:
                reading.n_unended += 1
                break
            for written in new:
                add(written)
            reading.n_written += 1
            reading.log.append((n_read, TOKENIZER.decode(new[1:-1]).strip()))
    return reading


@torch.inference_mode()
@pytest.mark.parametrize("seed", [3, 14, 23, 28])
def test_windows_are_read_together_as_one_id_after_the_other(seed: int):
    """The marks are ids that the model of random weights often predicts."""
    generator, model = random.Random(seed), build_model(seed)
    ids = [generator.randrange(6) for _ in range(90)]
    predictions = model(torch.tensor(ids[:72]).view(3, 24)).argmax(-1)
    (end, _), (start, _) = Counter(predictions.flatten().tolist()).most_common(2)
    model.notes = Notes(TOKENIZER, [start], [end], max_tokens=6)
    reading = read_stream(model, ids)
    assert reading == read_slowly(model, ids, 12)
    assert reading.n_written > 2


def test_reading_goes_on_from_a_window():
    model = build_model(2)
    ids = random.Random(5).choices([0, 1, 2, 5], k=60)
    first = read_stream(model, ids[:37])
    assert read_stream(model, ids[37:], window=first.window).window == read_stream(model, ids).window


def test_no_ids_are_no_notes():
    assert read_stream(build_model(), []) == Reading([])


# --- what makes no sense ---


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"note_end": ""}, "note_start is what begins a note, and note_end what ends it: both are needed"),
        ({"note_tokens": 7}, "note_tokens is 7 and the context 24: a note may have a quarter of the context"),
        ({"note_tokens": 2}, "note_tokens is 2; it must be at least 3"),
        ({"note_start": "{"}, "note_start or note_end: the vocabulary of 6 characters has no '{'"),
        ({"window": 4, "global_every": 9}, "with local layers only nothing is read again"),
    ],
)
def test_settings_that_make_no_sense(fields: dict[str, Any], message: str):
    with pytest.raises(InputError, match="(?s).*".join([message.replace("(", "\\(").replace("{", "\\{")])):
        build_model(**fields)


def test_a_model_without_notes_writes_none():
    with pytest.raises(InputError, match="trained without them: train on texts with notes in them, with --note-start"):
        read_stream(build_model(note_start="", note_end=""), [0, 1])


def test_a_run_without_notes_builds_none():
    assert build_notes(language.PRESETS["tiny"], TOKENIZER) is None
