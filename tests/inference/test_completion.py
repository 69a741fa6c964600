"""Completion: stop texts, streaming, seeds, and requests that make no sense."""

from typing import Any

import pytest
import torch

from anyformer.data.tokenizers.build import Bytes, Characters
from anyformer.errors import InputError
from anyformer.inference.completion import Completion, CompletionRequest, encode_prompts
from anyformer.model.config import TransformerConfig
from anyformer.recipes import language

ALPHABET = "abcdefghijklmnopqrstuvwxyz \n"
TOKENIZER = Characters(ALPHABET)


@pytest.fixture(scope="module")
def model() -> language.LanguageModel:
    torch.manual_seed(0)
    shape = TransformerConfig(dim=32, n_layer=3, n_head=4, context=16, position="rotary")
    model = language.LanguageModel(language.Config(model=shape), TOKENIZER)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def add_text(completion: Completion, text: str) -> list[str]:
    """Add characters until the completion ends, and return the new text after each."""
    shown = []
    for character in text:
        is_done = completion.add(int(TOKENIZER.encode(character)[0]))
        shown.append(completion.new_text())
        if is_done:
            break
    return shown


def test_a_stop_text_ends_the_completion_and_is_never_shown():
    completion = Completion("x", [23], TOKENIZER, ["end", "ab"])
    shown = add_text(completion, "see a enemy end of it")
    assert shown[:5] == ["s", "", "e", "e ", ""] and "".join(shown) == completion.text == "see a enemy "
    assert completion.finish_reason == "stop"


def test_streamed_texts_add_up_to_the_text():
    completion = Completion("x", [23], TOKENIZER, ["zzz"])
    shown = "".join(add_text(completion, "a zz b z"))
    completion.finish_reason = "length"
    assert shown + completion.new_text() == completion.text == "a zz b z"


def test_stop_texts_and_streaming_cost_the_same_for_every_token():
    class Counting(Bytes):
        n_decoded = 0

        def decode(self, ids: Any) -> str:
            self.n_decoded += len(ids)
            return super().decode(ids)

    text, counts = "so an é, a 夏 or a 🌞 is whole; " * 100 + "en" * 500 + "end. and", []
    for n in (1000, 4000):
        completion, shown = Completion("x", [23], tokenizer := Counting(), ["end", "or b"]), []
        for token in text.encode()[:n]:
            completion.add(token)
            shown.append(completion.new_text())
        assert "".join(shown).rstrip("en") == text.encode()[:n].decode(errors="ignore").rstrip("en")
        counts.append(tokenizer.n_decoded / n)
    assert counts[1] <= 1.1 * counts[0] <= 100
    textless = Completion("x", [23], tokenizer := Counting(), ["end"])
    for token in [97, 98] + [300] * 3000 + [99]:  # of a vocabulary that is padded
        textless.add(token)
    assert textless.text == "abc" and tokenizer.n_decoded < 100 * 3000
    for token in text.encode()[4000:]:
        if completion.add(token):
            break
        shown.append(completion.new_text())
    assert completion.finish_reason == "stop" and "".join([*shown, completion.new_text()]) == completion.text
    assert completion.text == text.split("end")[0]


def test_the_end_token_ends_the_completion():
    completion = Completion("a", [0], TOKENIZER, [])
    assert not completion.add(1) and completion.add(TOKENIZER.end_id)
    text = TOKENIZER.decode([1])
    assert completion.result() == {"prompt": "a", "text": text, "tokens": [1], "finish_reason": "stop"}


def test_a_sample_does_not_depend_on_its_batch(model: language.LanguageModel):
    request = {"temperature": 1.0, "tokens": 25, "seed": 3, "samples": 2}
    alone = [language.predict(model, {"prompt": prompt} | request)["samples"] for prompt in ("ab", "hello w")]
    together = language.predict(model, {"prompt": ["ab", "hello w"]} | request)["samples"]
    assert together == [*alone[0], *alone[1]]
    assert together[0]["text"] != together[1]["text"], "two samples of one prompt differ"
    assert language.predict(model, {"prompt": "ab"} | request | {"seed": 4})["samples"] != alone[0]


def test_rows_stop_independently(model: language.LanguageModel):
    request = {"prompt": ["ab", "cd"], "tokens": 20, "temperature": 0}
    free = language.predict(model, request)["samples"]
    stop = free[0]["text"][4:7]
    assert len(stop) == 3
    stopped = language.predict(model, request | {"stop": [stop]})["samples"]
    assert stopped[0]["finish_reason"] == "stop"
    assert [sample["text"] for sample in stopped] == [sample["text"].split(stop)[0] for sample in free]


def test_streaming_gives_the_same_text(model: language.LanguageModel):
    request = {"prompt": "abc", "tokens": 12, "samples": 2}
    streamed = "".join(completions[0].new_text() for completions in language.stream(model, request))
    assert streamed == language.predict(model, request)["samples"][0]["text"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokns": 3}, "request: unknown field 'tokns': did you mean 'tokens'"),
        ({"tokens": "5"}, "request: tokens is '5'; it must be a whole number"),
        ({"seed": 1.5}, "request: seed is 1.5; it must be a whole number"),
        ({"prompt": 5}, "request: prompt is 5"),
        ({"prompt": ["a", 5]}, "request: prompt"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_k": 0}, "top_k is 0"),
        ({"tokens": -1}, "tokens is -1"),
        ({"samples": True}, "samples is True"),
        ({"keep": 0}, "keep is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"prompt": []}, "no prompt"),
        ({"stop": "a" * 1001}, "stop: at most 64 texts of 1,000 characters"),
        ({"stop": ["a"] * 65}, "stop: at most 64 texts"),
        ({"prompt": "É"}, "no 'É'"),
    ],
)
def test_a_request_that_makes_no_sense_gets_one_line(model: language.LanguageModel, fields: dict, message: str):
    with pytest.raises(InputError, match=message) as error:
        language.predict(model, fields)
    assert "\n" not in str(error.value)


def test_an_empty_prompt_starts_from_the_end_of_text():
    assert encode_prompts(CompletionRequest(prompt=["", "a"]), TOKENIZER) == [("", [TOKENIZER.end_id]), ("a", [0])]
