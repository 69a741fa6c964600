"""Structure where hypotheses branch and rows come and go: beam search, and continuous batching."""

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from anyformer.data.tokenizers import build as tok
from anyformer.data.tokenizers.token_bytes import TokenBytes
from anyformer.errors import InputError
from anyformer.inference import structure
from anyformer.inference.beam import Hypothesis, beam_search
from anyformer.inference.completion import CompletionRequest, generate_text
from anyformer.inference.structure import Constraint
from anyformer.recipes import spans, translation
from anyformer.recipes._shared.pairs import Translator
from batching_kit import Arrival, answer_requests, make_batcher
from structure_kit import TOKENIZERS, Pieces, build_model

pytest.importorskip("llguidance", reason="structure: pip install 'anyformer[structure]'")

# --- beams ---


@pytest.mark.parametrize("regex", ["a|bca?|cc", "[ab]{1,3}", "(ab|b){1,2}c?"])
def test_a_wide_beam_is_the_likeliest_of_all_texts_of_the_structure(regex: str, monkeypatch: pytest.MonkeyPatch):
    """Scores are the model's own log-probabilities, the end included; every continuation is tried."""
    pieces = ["a", "b", "c", "bc", ""]
    data = [piece.encode() for piece in pieces]
    monkeypatch.setattr(structure, "read_token_bytes", lambda _: TokenBytes(data, data))
    model = build_model(tok.Characters("abcd"), std=0.5)
    constraint, expected = Constraint("regex", regex, Pieces(pieces[:-1])), []
    for length in range(1, 6):
        for tokens in itertools.product(range(4), repeat=length):
            if re.fullmatch(regex, "".join(pieces[token] for token in tokens)):
                with torch.no_grad():
                    table = model(torch.tensor([[3, 1, *tokens, 4]]))[0].double().log_softmax(-1)
                log_prob = sum(table[1 + i, token].item() for i, token in enumerate((*tokens, 4)))
                expected.append(Hypothesis(list(tokens), log_prob / (length + 1), log_prob, True))
    expected = sorted(expected, key=lambda hypothesis: -hypothesis.score)[:5]
    (best,) = beam_search(model, [[3, 1]], beam=200, tokens=6, end=4, n_best=5, matchers=[constraint.start()])
    assert [hypothesis.tokens for hypothesis in best] == [hypothesis.tokens for hypothesis in expected]
    assert [hypothesis.score for hypothesis in best] == pytest.approx([h.score for h in expected], abs=1e-5)


def build_translator() -> Translator:
    torch.manual_seed(0)
    model = translation.build(translation.PRESETS["tiny"]).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("beam", [1, 4])
def test_translations_have_the_structure(beam: int):
    model = build_translator()
    request = {"input": ["12", "3", "4567"], "beam": beam, "n_best": min(2, beam), "regex": "[1-3]{2,5}|9[0-9]{3}"}
    results = translation.predict(model, request)["results"]
    for result in results:
        for candidate in result.get("candidates", [result]):
            assert re.fullmatch(request["regex"], candidate["text"]) and candidate["finish_reason"] == "stop"
    alone = [translation.predict(model, request | {"input": text})["results"][0] for text in request["input"]]
    assert [result["text"] for result in results] == [result["text"] for result in alone]
    (short,) = translation.predict(model, request | {"input": "12", "regex": "[1-3]{9}", "tokens": 4})["results"]
    assert short["finish_reason"] == "length"


def test_translations_with_a_structure_that_makes_no_sense_get_one_line():
    model = build_translator()
    for fields, message in [
        ({"regex": "("}, "regex: unclosed group"),
        ({"regex": "1", "choices": ["1"]}, "exclude each other"),
    ]:
        with pytest.raises(InputError, match=message):
            translation.predict(model, {"input": "12"} | fields)


def test_gaps_have_no_structure(text: Path):
    config = replace(spans.PRESETS["tiny"], data=str(text))
    model = spans.build(config)
    with pytest.raises(InputError, match="request: regex is for whole answers; this model fills gaps"):
        spans.predict(model, {"input": "the ___ sat", "regex": "a"})
    assert "regex" in spans.form(model, config).tasks[0].omit


# --- continuous batching ---

SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": [True, "x y"]}},
    "required": ["a"],
    "additionalProperties": False,
}
STRUCTURES: list[dict[str, Any]] = [
    {"json_schema": SCHEMA}, {}, {"regex": "[ab]{3,9}"}, {"choices": ["yes", "no"], "samples": 3},
    {"grammar": 'start: "(" start ")" | /[a-c]+/', "stop": ")"}, {"regex": "(ab )*", "logprobs": 1, "top_k": 3},
    {"json_schema": SCHEMA, "stop": ["}", '"']},
]  # fmt: skip


@pytest.mark.parametrize("name", ["characters", "bpe", "sentencepiece"])
def test_constrained_requests_that_share_a_batch_are_answered_as_alone(name: str):
    model = build_model(TOKENIZERS[name](), context=24)
    requests = [
        CompletionRequest(prompt="a b a"[: 1 + i % 5], tokens=40, seed=i, temperature=0.9 * (i != 2), **fields)
        for i, fields in enumerate(STRUCTURES)
    ]
    batcher = make_batcher(model)
    answers = answer_requests(batcher, [Arrival(request, after=4 * i) for i, request in enumerate(requests)])
    batcher.close()
    for request, answer in zip(requests, answers, strict=True):
        alone = list(generate_text(model, model.tokenizer, request))[-1]
        assert answer.errors == [None] and answer.tokens == [completion.tokens for completion in alone]
        assert answer.reasons == [completion.finish_reason for completion in alone]
        assert answer.texts == [completion.text for completion in alone] or request.structure is None
        if request.json_schema is not None:
            assert json.loads(answer.texts[0])["a"] in (True, "x y")


def test_a_batcher_refuses_before_anything_joins():
    batcher = make_batcher(build_model(tok.Characters("ab")))
    for fields, message in [
        ({"regex": "("}, "regex: unclosed"),
        ({"choices": ["c"]}, "choices: 'c'"),
        ({"regex": "a", "exact": True}, "exact: only Python"),
    ]:
        with pytest.raises(InputError, match=message):
            batcher.submit(CompletionRequest(prompt="a", **fields), print, print)
    assert not batcher.slots and not batcher.waiting
    batcher.close()


def test_a_constraint_that_fails_on_the_way_ends_its_request_alone():
    """The vocabulary lacks what the schema needs after its first letter."""
    model = build_model(tok.Characters('ab{}":1 '))
    batcher, good = make_batcher(model), CompletionRequest(prompt="a", regex="[ab]{9}", tokens=9)
    bad = CompletionRequest(prompt="a", json_schema={"enum": ["aö"]}, tokens=9)
    first, failed, last = answer_requests(batcher, [Arrival(good), Arrival(bad), Arrival(good, after=6)])
    batcher.close()
    assert "cannot write 'ö'" in str(failed.errors[0])
    assert first.errors == last.errors == [None] and first.texts == last.texts and len(first.texts[0]) == 9
