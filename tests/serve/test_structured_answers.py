"""Guaranteed structure over HTTP: OpenAI's response_format and vLLM's guided fields, through OpenAI's own client."""

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from anyformer.trained_model import Model
from serve_kit import RunningServer, assert_error

openai = pytest.importorskip("openai")
pytest.importorskip("llguidance", reason="structure: pip install 'anyformer[structure]'")

# ruff: noqa: E501 (one line for each request)
TALK: list[Any] = [{"role": "user", "content": "Now is"}]
SCHEMA = {
    "type": "object",
    "properties": {"mood": {"enum": ["good", "bad"]}, "score": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["mood", "score"],
    "additionalProperties": False,
}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "review", "schema": SCHEMA, "strict": True}}


@pytest.fixture
def client(server: RunningServer) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_schema_whole_and_streamed(client: Any, chat_model: Model):
    create: Any = client.chat.completions.create
    request = {"model": "chat", "messages": TALK, "response_format": FORMAT, "max_tokens": 400, "seed": 3}
    answer = create(**request, n=3)
    texts = [choice.message.content for choice in answer.choices]
    for text in texts:
        jsonschema.validate(json.loads(text), SCHEMA)
    assert {choice.finish_reason for choice in answer.choices} == {"stop"}
    chunks = list(create(**request, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == texts[0]
    expected = chat_model.predict(messages=TALK, json_schema=SCHEMA, tokens=400, seed=3, temperature=1.0, samples=3)
    assert texts == [sample["text"] for sample in expected["samples"]]


def test_clients_parse_answers_into_their_own_classes(client: Any):
    pydantic = pytest.importorskip("pydantic")
    fields: Any = {"mood": (str, pydantic.Field(pattern="^(good|bad)$")), "score": (int, pydantic.Field(ge=0, le=9))}
    Review = pydantic.create_model("Review", **fields)
    parse: Any = client.chat.completions.parse
    answer = parse(model="chat", messages=TALK, response_format=Review, max_tokens=400, seed=1)
    assert answer.choices[0].message.parsed.mood in ("good", "bad")
    with pytest.raises(openai.LengthFinishReasonError):
        parse(model="chat", messages=TALK, response_format=Review, max_tokens=3)


def test_any_json_object_and_any_text(client: Any, chat_model: Any):
    create: Any = client.chat.completions.create
    brace = chat_model.module.tokenizer.token_to_id("}")  # likely, so that the object ends
    request = {"model": "chat", "messages": TALK, "max_tokens": 300, "logit_bias": {str(brace): 50}}
    answer = create(**request, response_format={"type": "json_object"})
    assert json.loads(answer.choices[0].message.content) == {} and answer.choices[0].finish_reason == "stop"
    assert create(model="chat", messages=TALK, response_format={"type": "text"}, max_tokens=1)


@pytest.mark.parametrize(
    ("field", "value", "pattern"),
    [
        ("guided_regex", "[0-9]{4}-[0-9]{2}", "[0-9]{4}-[0-9]{2}"),
        ("guided_choice", ["yes", "no"], "yes|no"),
        ("guided_grammar", 'root ::= "a" | "b" [0-9] "c"', "a|b[0-9]c"),
        ("guided_json", {"enum": [1, "a"]}, '1|"a"'),
        ("guided_json", '{"type": "boolean"}', "true|false"),
    ],
)
def test_guided_fields(client: Any, field: str, value: Any, pattern: str):
    answer = client.completions.create(
        model="chat", prompt=["Now", "is"], n=2, max_tokens=20, extra_body={field: value}
    )
    assert all(re.fullmatch(pattern, choice.text) for choice in answer.choices), answer
    chat = client.chat.completions.create(model="chat", messages=TALK, max_tokens=20, extra_body={field: value})
    assert re.fullmatch(pattern, chat.choices[0].message.content)


def test_the_plain_route_has_them_too(server: RunningServer):
    answer = server.post(
        "/v1/predict", {"model": "chat", "prompt": "Now", "choices": ["yes", "no"], "tokens": 9}
    ).json()
    assert answer["samples"][0]["text"] in ("yes", "no")
    fields = {"prompt": "Now", "choices": ["yes"], "tokens": 9, "exact": True}
    assert_error(server.post("/v1/predict", {"model": "chat"} | fields), 400, "exact: only Python and the command line")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"response_format": {"type": "xml"}}, "response_format is {'type': 'xml'}; it must be"),
    ({"response_format": {"type": "json_schema"}}, "response_format is"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}, "response_format.json_schema.schema is missing"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}, "x": 1}}}, "unknown field 'x'"),
    ({"response_format": "json"}, "response_format is 'json'; it must be an object"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"uniqueItems": True}}}}, "json_schema: # has 'uniqueItems'"),
    ({"response_format": FORMAT, "guided_regex": "a"}, "response_format and guided_regex exclude each other"),
    ({"guided_json": {"enum": []}}, "json_schema: nothing can meet it"),
    ({"guided_regex": "(a"}, "regex: unclosed group"),
    ({"guided_grammar": 'start: "a" b'}, "grammar: line 1, column 8: unknown name"),
    ({"guided_choice": []}, "choices: expected at least one text"),
    ({"guided_choice": "yes"}, "guided_choice is 'yes'; it must be a list"),
    ({"guided_choise": ["yes"]}, "unknown field 'guided_choise': did you mean 'guided_choice'"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "message"), REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_what_makes_no_sense_is_one_clear_error(server: RunningServer, fields: dict[str, Any], message: str):
    body = {"model": "chat", "messages": TALK, "max_tokens": 9} | fields
    assert_error(server.post("/v1/chat/completions", body), 400, message)


BOMBS: list[dict[str, Any]] = [
    {"guided_regex": "((a{1000}){1000}){1000}"}, {"guided_regex": "(((a?){50}){50}){50}"},
    {"guided_regex": "(.*a.{20}|.*b.{20}|.*c.{20})*"}, {"guided_regex": "(" * 50_000 + "a" + ")" * 50_000},
    {"guided_grammar": 'start: s\ns: s s s | s s | "a" s | "a"'}, {"guided_json": '{"items":' * 3000 + "{}" + "}" * 3000},
    {"guided_json": {"type": "string", "pattern": "^(a+)+$", "minLength": 5000}},
    {"guided_choice": [f"{i:05}" for i in range(20_000)]},
]  # fmt: skip


def test_a_bomb_neither_hangs_the_server_nor_harms_the_others(server: RunningServer):
    """Each is answered or refused, and a request beside it has its usual answer."""
    body = {"model": "chat", "prompt": "Now is", "max_tokens": 6, "seed": 2}
    expected = server.post("/v1/completions", body).json()["choices"][0]["text"]
    for bomb in BOMBS:
        response = server.post("/v1/completions", body | {"max_tokens": 24} | bomb)
        assert response.status_code in (200, 400), response.text
        if response.status_code == 400:
            assert_error(response, 400)
        assert server.post("/v1/completions", body).json()["choices"][0]["text"] == expected
    assert server.running("chat") == 0
