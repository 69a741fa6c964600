"""Guaranteed structure: masks against brute force, answers of every tokenizer, what is refused, and its limits."""

# ruff: noqa: E501 (one line for each request)

import itertools
import json
import math
import random
import re
import sys
from collections.abc import Sequence
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch

from anyformer.data.tokenizers import build as tok
from anyformer.data.tokenizers.token_bytes import TokenBytes, read_token_bytes
from anyformer.errors import InputError
from anyformer.inference import structure
from anyformer.inference.structure import Constraint, Matcher
from anyformer.memory import read_resident_memory
from anyformer.recipes import language
from structure_kit import NUMBERS, TOKENIZERS, Pieces, build_model

QUICK = {
    "test_answers_have_the_structure_with_every_tokenizer": {"bytes", "bpe"},
}  # with which parameters a test runs each time; with all others it is slow (conftest.py)

pytest.importorskip("llguidance", reason="structure: pip install 'anyformer[structure]'")

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 5},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "a b"]}, "maxItems": 2},
        "more": {"anyOf": [{"type": "null"}, {"type": "boolean"}, {"$ref": "#/$defs/code"}]},
    },
    "required": ["name", "age", "more"],
    "additionalProperties": False,
    "$defs": {"code": {"type": "string", "pattern": "^[a-f]{2}-[0-9]$"}},
}
DATE = r"(19|20)\d{2}-(0[1-9]|1[0-2])"
LARK = 'start: "if " COND " then " start | WORD\nCOND: /[a-c]{1,2}/\nWORD: "x" | "yy"'
GBNF = 'root ::= item ("," item){0,2} # a list\nitem ::= "(" [a-c]+ ")" | [0-9]\n'
ITEM = r"(\([abc]+\)|[0-9])"
REQUESTS: dict[str, tuple[dict[str, Any], Any]] = {
    "json": ({"json_schema": PERSON}, lambda text: jsonschema.validate(json.loads(text), PERSON) is None),
    "regex": ({"regex": DATE}, lambda text: re.fullmatch(DATE, text)),
    "choices": ({"choices": ["yes", "no", "yes yes"]}, ["yes", "no", "yes yes"].__contains__),
    "lark": ({"grammar": LARK}, lambda text: re.fullmatch("(if [a-c]{1,2} then )*(x|yy)", text)),
    "gbnf": ({"grammar": GBNF}, lambda text: re.fullmatch(f"{ITEM}(,{ITEM}){{0,2}}", text)),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_answers_have_the_structure_with_every_tokenizer(name: str):
    """In a batch of prompts of unequal length, by a model that was never trained."""
    model = build_model(TOKENIZERS[name]())
    for fields, is_valid in REQUESTS.values():
        request = {"prompt": ["a", "a b a"], "samples": 3, "tokens": 150, "temperature": 1.0, **fields}
        for sample in language.predict(model, request)["samples"]:
            if sample["finish_reason"] == "stop":
                assert is_valid(sample["text"]), sample
            else:  # its answers have any length
                assert "grammar" in fields and len(sample["tokens"]) == 150, sample


def test_a_text_loses_the_space_that_its_tokenizer_drops():
    """After an empty prompt "▁a" is "a", so that it may begin an answer of a's; after a word it is " a"."""
    model = build_model(TOKENIZERS["sentencepiece"]())
    space_a = model.tokenizer.token_to_id("▁a")
    constraint = Constraint("regex", "a+", model.tokenizer)
    assert (
        constraint.start([1]).mask[space_a] and not constraint.start([model.tokenizer.token_to_id("a")]).mask[space_a]
    )
    bias = {str(space_a): 50.0}
    samples = language.predict(model, {"prompt": ["", "a"], "regex": "a{3}", "tokens": 9, "logit_bias": bias})[
        "samples"
    ]
    assert [sample["text"] for sample in samples] == ["aaa", "aaa"]
    assert samples[0]["tokens"][0] == space_a and space_a not in samples[1]["tokens"]


def test_numbers_without_an_end_stop_once_they_are_complete():
    model = build_model(tok.tokenizer_from_files({"tokenizer.json": NUMBERS}))
    samples = language.predict(model, {"prompt": "7", "regex": " [12] [0-9]+", "samples": 20, "tokens": 9})["samples"]
    assert all(re.fullmatch(" [12] [0-9]{1,2}", sample["text"]) for sample in samples)
    assert {sample["finish_reason"] for sample in samples} == {"stop"} and {len(s["tokens"]) for s in samples} == {2}


def test_a_tokenizer_that_joins_tokens_otherwise_is_refused():
    from tokenizers import Tokenizer, decoders, models

    public = Tokenizer(models.BPE(vocab={"a": 0, "b</w>": 1, "c": 2}, merges=[]))
    public.decoder = decoders.BPEDecoder()
    with pytest.raises(InputError, match="does not write its tokens one after the other"):
        read_token_bytes(tok.Subwords(public.to_str()))


# --- masks against brute force ---

VOCABULARIES = [
    ["a", "b", "c"],
    ["a", "b", "c", "ab", "bc", "abc"],
    ["a", "b", "c", "a", "aa", "cab", "bb", "ab", "ab"],
]
REGEXES = [
    "abc",
    "ab|ac",
    "(ab|b)*c?",
    "a{2,3}b?",
    "[ab]{0,3}c",
    "(a|bc){1,2}",
    "a*",
    "(aa)*b",
    "c(ab)?(ab)?",
    "abcabc",
]
LONGEST = 7


@pytest.mark.parametrize("pieces", VOCABULARIES, ids=["letters", "words", "twice"])
@pytest.mark.parametrize("regex", REGEXES)
def test_masks_equal_brute_force(pieces: list[str], regex: str, monkeypatch: pytest.MonkeyPatch):
    """Every token is tried, after every beginning: it may follow if some text of the language goes on so."""
    language_ = {
        text
        for n in range(LONGEST + 3)
        for text in map("".join, itertools.product("abc", repeat=n))
        if re.fullmatch(regex, text)
    }
    beginnings = {text[:i] for text in language_ for i in range(len(text) + 1)}
    constraint, n_masks = make_constraint(pieces, regex, monkeypatch), 0

    def check(matcher: Matcher, text: str) -> None:
        nonlocal n_masks
        n_masks += 1
        expected = [text + piece in beginnings for piece in pieces] + [text in language_]
        assert matcher.mask.tolist() == expected, text
        assert matcher.is_complete == (text in language_ and not any(expected[:-1]))
        for token, piece in enumerate(pieces):
            if expected[token] and len(text + piece) < LONGEST - 2:
                check(matcher.extend(token), text + piece)

    check(constraint.start(), "")
    assert n_masks > 2


def make_constraint(pieces: Sequence[str], regex: str, monkeypatch: pytest.MonkeyPatch) -> Constraint:
    tokenizer, data = Pieces(pieces), [piece.encode() for piece in [*pieces, ""]]
    monkeypatch.setattr(structure, "read_token_bytes", lambda _: TokenBytes(data, data))
    return Constraint("regex", regex, tokenizer)


def test_masks_of_bytes_equal_a_partial_match_of_text():
    """Choices with characters of several bytes, after every beginning of their bytes."""
    choices = ["né", "née", "no", "€", "€é", "🌞n"]
    constraint = Constraint("choices", choices, tok.Bytes())
    texts = [choice.encode() for choice in choices]
    for start in {text[:i] for text in texts for i in range(len(text) + 1)}:
        matcher = constraint.start()
        for byte in start:
            matcher.consume(byte)
        expected = [any(text.startswith(start + bytes([byte])) for text in texts) for byte in range(256)]
        assert matcher.mask.tolist() == [*expected, start in texts]


def test_the_kept_mass_is_the_product_of_what_could_follow():
    model = build_model(tok.Characters("abc"))
    request = {"prompt": "a", "regex": "(ab|b)*c?", "tokens": 9, "temperature": 0.7, "samples": 6, "top_k": 2}
    for sample in language.predict(model, request)["samples"]:
        matcher, log_mass, ids = Constraint("regex", "(ab|b)*c?", model.tokenizer).start(), 0.0, [0]
        ends = (
            [model.tokenizer.end_id] if sample["finish_reason"] == "stop" and not sample["text"].endswith("c") else []
        )
        for token in [*sample["tokens"], *ends]:
            with torch.no_grad():
                probabilities = (model(torch.tensor([ids]))[0, -1] / 0.7).softmax(-1)
            log_mass += math.log(probabilities[torch.from_numpy(matcher.mask)].sum().item())
            matcher.consume(token)
            ids.append(token)
        assert sample["log_kept_mass"] == pytest.approx(log_mass, abs=1e-4)


# --- thousands of answers ---

SCHEMAS: list[dict[str, Any]] = [
    PERSON,
    {"type": "array", "items": {"type": "number", "minimum": -2.5, "exclusiveMaximum": 40}, "maxItems": 3},
    {
        "type": "object",
        "properties": {'é"': {"const": "\u0001\U0001f600"}, "b": {"enum": [1, 2.5, None, {"x": [True]}]}},
        "required": ["b", 'é"'],
        "additionalProperties": False,
    },
    {"oneOf": [{"type": "string", "maxLength": 3}, {"type": "integer", "multipleOf": 7, "maximum": 500}]},
    {
        "type": "object",
        "patternProperties": {"^x[a-c]?$": {"type": "integer"}},
        "additionalProperties": False,
        "maxProperties": 3,
    },
    {"type": "object", "required": ["a"], "additionalProperties": {"type": "boolean"}, "minProperties": 1},
    {"allOf": [{"type": ["integer", "string"]}, {"maxLength": 4}, {"minimum": 3}]},
    {"type": "array", "prefixItems": [{"type": "null"}, {"type": "string", "format": "date"}], "items": False},
    {"$ref": "#/$defs/tree", "$defs": {"tree": {"properties": {"l": {"$ref": "#/$defs/tree"}}, "type": "object"}}},
    {"title": "a", "type": "string", "format": "ipv4", "description": "an address", "x-order": 1},
]


@pytest.mark.parametrize("number_of_each", [50, pytest.param(200, marks=pytest.mark.slow)])
def test_random_answers_validate(number_of_each: int):
    """Of bytes at random, as an untrained model writes them; those that are not complete were cut, and none is wrong."""
    draft, n_complete = jsonschema.Draft202012Validator, 0
    for number, schema in enumerate(SCHEMAS):
        constraint = Constraint("json_schema", schema, tok.Bytes())
        validator = draft(schema, format_checker=draft.FORMAT_CHECKER)
        for seed in range(number_of_each):
            text, is_complete = write_at_random(constraint.start(), random.Random(1000 * number + seed))
            if is_complete:
                validator.validate(json.loads(text))
            n_complete += is_complete
    assert n_complete > 9.5 * number_of_each


def test_dates_are_those_of_the_calendar():
    schema = {"items": {"$ref": "#/$defs/day"}, "$defs": {"day": {"type": "string", "format": "date"}}, "type": "array"}
    constraint = Constraint("json_schema", schema, tok.Bytes())
    dates = [
        "2023-02-29",
        "2024-02-29",
        "1900-02-29",
        "2000-02-29",
        "0000-01-05",
        "0001-01-05",
        "0100-10-10",
        "2023-04-31",
    ]
    draft = jsonschema.Draft202012Validator
    validator = draft(schema, format_checker=draft.FORMAT_CHECKER)
    for date in dates:
        assert constraint.accepts(json.dumps([date])) == validator.is_valid([date]), date
    times = Constraint("json_schema", {"type": "string", "format": "date-time"}, tok.Bytes())
    assert [times.accepts(f'"{day}T10:00:00Z"') for day in dates[:3]] == [False, True, False]
    assert schema["$defs"]["day"] == {"type": "string", "format": "date"}, "the schema of the caller stays as it is"


def write_at_random(matcher: Matcher, rng: random.Random, tokens: int = 400) -> tuple[str, bool]:
    for _ in range(tokens):
        matcher.consume(rng.choice(np.flatnonzero(matcher.mask).tolist()))
        if matcher.is_complete or matcher.is_over:
            return matcher.written.decode(), True
    return "", False


# --- how an answer ends ---


def test_an_answer_that_is_cut_says_so_and_one_that_just_fits_does_not():
    model = build_model(tok.Characters("abc"))
    reasons = {
        n: language.predict(model, {"prompt": "a", "regex": "[ab]{5}", "tokens": n})["samples"][0]["finish_reason"]
        for n in (4, 5, 6)
    }
    assert reasons == {4: "length", 5: "stop", 6: "stop"}


def test_a_stop_text_ends_an_answer_only_where_it_is_complete():
    model = build_model(tok.Characters('ab{}":1 '), context=32)
    schema = {
        "type": "object",
        "properties": {"a": {"type": "object", "properties": {}, "additionalProperties": False}},
        "required": ["a"],
        "additionalProperties": False,
    }
    request = {"prompt": "a", "json_schema": schema, "tokens": 60, "samples": 8, "temperature": 1.0}
    for stop in ("}", '"', "{", ":"):
        samples = language.predict(model, request | {"stop": stop})["samples"]
        assert all(json.loads(sample["text"]) == {"a": {}} for sample in samples)
    for sample in language.predict(
        model, {"prompt": "a", "regex": "(ab)+", "stop": ["b", "aba"], "tokens": 40, "samples": 8}
    )["samples"]:
        assert sample["finish_reason"] == "stop" and re.fullmatch("(ab)+", sample["text"]), sample


def test_streamed_pieces_add_up_and_hold_back_no_refused_stop():
    model = build_model(tok.Bytes())
    request = {"prompt": "a", "json_schema": PERSON, "stop": ["}", "x"], "tokens": 300, "seed": 4}
    streamed = "".join(completions[0].new_text() for completions in language.stream(model, request))
    assert streamed == language.predict(model, request)["samples"][0]["text"]
    jsonschema.validate(json.loads(streamed), PERSON)


def test_a_vocabulary_that_is_padded_and_an_end_of_several_tokens():
    matcher = Constraint("regex", "[ab]*", tok.Characters("abc"), end_ids=[2, 3]).start()
    assert matcher.mask.tolist() == [True, True, True, True]
    logits = structure.constrain(torch.zeros(1, 9), [matcher])
    assert logits.isfinite().tolist() == [[True] * 4 + [False] * 5]
    assert matcher.log_kept_mass == pytest.approx(math.log(4 / 9))
    matcher.consume(2)
    assert matcher.is_over and structure.constrain(torch.zeros(1, 9), [matcher]).isfinite().all()


# --- what is refused, in one line ---


def nest(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"json_schema": {"type": "strin"}}, r"json_schema: #/type is 'strin': did you mean 'string'"),
    ({"json_schema": {"type": 5}}, "#/type is 5; it must be a type or a list of types"),
    ({"json_schema": "{"}, "json_schema: it is no JSON"),
    ({"json_schema": "[1]"}, r"json_schema: it is \[1\]; it must be an object"),
    ({"json_schema": {"a": float("nan")}}, "json_schema: it is no JSON"),
    ({"json_schema": {"properties": {"a": {"maxlength": 3}}}}, "#/properties/a has 'maxlength', which is not supported: did you mean 'maxLength'"),
    ({"json_schema": {"type": "array", "uniqueItems": True}}, "# has 'uniqueItems', which is not supported"),
    ({"json_schema": {"not": {}}}, "# has 'not', which is not supported"),
    ({"json_schema": {"$ref": "#/$defs/a", "$defs": {"a": {"if": {}}}}}, "#/[$]defs/a has 'if', which is not supported"),
    ({"json_schema": {"x-guidance": {"lenient": True}}}, "has 'x-guidance', which is not supported"),
    ({"json_schema": {"type": "integer", "exclusiveMinimum": True}}, "#/exclusiveMinimum is True; it must be a number"),
    ({"json_schema": {"items": [{}]}}, "#/items is .*; it must be a schema"),
    ({"json_schema": {"$ref": "#/a"}}, "#/[$]ref is '#/a', and the schema has no such part"),
    ({"json_schema": {"$ref": "http://a/b"}}, "it must name a part of this schema"),
    ({"json_schema": {"$ref": "#"}}, "json_schema: no text meets it"),
    ({"json_schema": {"minimum": 5, "maximum": 3, "type": "integer"}}, r"nothing can meet it: minimum \(5\) is greater than maximum \(3\)"),
    ({"json_schema": {"enum": []}}, "nothing can meet it"),
    ({"json_schema": {"type": "string", "pattern": "("}}, "json_schema: unclosed group"),
    ({"json_schema": {"type": "string", "format": "regex"}}, "json_schema: Unknown format: regex"),
    ({"json_schema": {"oneOf": [{"type": "integer"}, {"type": "number"}]}}, "the options of oneOf overlap, which is not supported: write anyOf"),
    ({"json_schema": {"const": 1e30}}, "#/const has the number 1e.30"),
    ({"json_schema": nest(100)}, "json_schema: it is nested more than 64 deep"),
    ({"json_schema": nest(20_000)}, "json_schema: it is (no JSON|nested more than 64 deep)"),
    ({"regex": "(a"}, "regex: unclosed group"),
    ({"regex": "a(?=b)"}, "regex: look-around, including look-ahead and look-behind, is not supported"),
    ({"regex": r"(a)\1"}, "regex: backreferences are not supported"),
    ({"regex": ""}, "regex: its only answer is the empty text"),
    ({"regex": "[a&&b]"}, "regex: no text meets it|regex: .*empty"),
    ({"regex": "\ud800"}, "half a surrogate pair"),
    ({"regex": "a" * 2_000_000}, "regex has 2,000,000 characters"),
    ({"grammar": 'start: "a" b'}, 'grammar: line 1, column 8: unknown name: "b"'),
    ({"grammar": 'start: "a"\n\nstart b'}, "grammar: line 3, column 7: Expected token ':'"),
    ({"grammar": 'start: "a"\nb: <|end|>'}, "grammar: line 2 has '<|'".replace("|", r"\|")),
    ({"grammar": 'start: "<[" b\nb: <[7]>'}, r"grammar: line 2 has '<\['"),
    ({"grammar": 'root ::= "a'}, "grammar: Unexpected end of input at line 1"),
    ({"grammar": "root ::= " + "(" * 5000 + '"a"' + ")" * 5000}, "grammar: it is nested too deeply"),
    ({"grammar": "start: " + "(" * 5000 + '"a"' + ")" * 5000}, "grammar: .*too deeply nested"),
    ({"grammar": ""}, "grammar: no start rule found"),
    ({"choices": []}, "choices: expected at least one text"),
    ({"choices": ["a", ""]}, "choices: expected at least one text, and none of them empty"),
    ({"choices": ["ab", "añ"]}, "choices: 'añ' has what the vocabulary of this model cannot write"),
    ({"choices": "ab"}, "choices is 'ab'; it must be a list"),
    ({"regex": "ñ+"}, "regex: the vocabulary of this model cannot write|regex: no text meets it"),
    ({"regex": "a", "choices": ["b"]}, "regex and choices exclude each other"),
    ({"json_schema": {}, "grammar": "start: /a/"}, "json_schema and grammar exclude each other"),
    ({"exact": True}, "exact needs a json_schema, a regex, a grammar or choices"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "message"), REFUSED, ids=[f"{i}-{next(iter(f))}" for i, (f, _) in enumerate(REFUSED)]
)
def test_what_makes_no_sense_gets_one_line(fields: dict[str, Any], message: str):
    model = build_model(tok.Characters('abx{}[]":,.0123456789 \n'))
    with pytest.raises(InputError, match=message) as error:
        language.predict(model, {"prompt": "a", "tokens": 5} | fields)
    assert "\n" not in str(error.value) and len(str(error.value)) < 700


def test_a_dead_end_of_the_vocabulary_is_named():
    """What cannot be seen before: a text of the schema that lacks a character."""
    model = build_model(tok.Characters('ab{}":1 '))
    with pytest.raises(InputError, match="json_schema: the vocabulary of this model cannot write 'ö' after '\"a'"):
        language.predict(model, {"prompt": "a", "json_schema": {"enum": ["aö"]}, "tokens": 20})


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    model = build_model(tok.Characters("ab"))
    with pytest.raises(InputError, match=r"structure needs llguidance: pip install 'anyformer\[structure\]'"):
        language.predict(model, {"prompt": "a", "regex": "a", "tokens": 5})
    assert language.predict(model, {"prompt": "a", "tokens": 5})["samples"]


# --- requests from strangers ---

HOSTILE: list[tuple[str, Any]] = [
    ("regex", "((a{1000}){1000}){1000}"), ("regex", "(((a?){50}){50}){50}"), ("regex", "(.*a.{20}|.*b.{20}|.*c.{20})*"),
    ("regex", "(" * 20_000 + "a" + ")" * 20_000), ("regex", r"(\w{1,200}\W){1,200}"), ("regex", "(a|b|ab)*c{1,5000}(a|b)*.{500}"),
    ("grammar", 'start: s\ns: s s s | s s | "a" s | s "a" | "a"'), ("grammar", 'start: b{1,100000000}\nb: "a" | "b"'),
    ("grammar", "start: a0\n" + "\n".join(f"a{i}: a{i + 1} a{i + 1}" for i in range(60)) + '\na60: "x"'),
    ("grammar", "start: A\nA: " + " & ".join(f"/(.*{chr(97 + i)}.{{40}}.*)/" for i in range(20))),
    ("choices", [f"{i:05}" for i in range(20_000)]),
    ("json_schema", {"type": "string", "pattern": "^(a+)+$", "minLength": 5000, "maxLength": 100_000}),
    ("json_schema", {"type": "array", "items": {"type": "integer"}, "minItems": 10**8}),
    ("json_schema", {"allOf": [{"anyOf": [{"type": "string", "pattern": f"{chr(97 + j)}{{{i}}}.*"} for j in range(8)]} for i in range(8)]}),
    ("json_schema", {"type": "integer", "multipleOf": 999999937}),
    ("json_schema", {"properties": {f"p{i}": {"type": "integer"} for i in range(2000)}, "type": "object"}),
    ("json_schema", {"$ref": "#/$defs/d0", "$defs": {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{min(i + 1, 40)}"}] * 2} for i in range(40)} | {"d40": {}}}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), HOSTILE, ids=[f"{i}-{name}" for i, (name, _) in enumerate(HOSTILE)])
def test_hostile_structures_take_little_memory_and_end(name: str, value: Any):
    """They are compiled and followed, or refused in one line; each step has limits of its own."""
    before, message = read_resident_memory(), f"{name}: "
    try:
        write_at_random(Constraint(name, value, tok.Bytes()).start(), random.Random(0), tokens=60)
    except InputError as error:
        message = str(error)
    assert message.startswith(f"{name}: ") and len(message) < 500
    assert read_resident_memory() - before < 300 << 20
