"""Bodies of every kind to every route of a server: an answer or one clear error, never a failure, and never a model
that answers no more."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz_kit import VALUES, WORDS

pytest.importorskip("uvicorn", reason="the server's libraries: pip install 'anyformer[serve]'")
from serve_kit import RunningServer, build_chat_model, build_model, serve, wait_for

EXPECTED = {200, 400, 403, 404, 405, 408, 413, 429, 504}
OTHERS = ("classify", "vision", "speech", "multimodal", "forecast", "control", "translation")
NUMBERS = st.one_of(st.integers(-3, 9), st.floats(-3, 3), st.sampled_from([2**31, 2**63, 10**30, 1e300, -1]))
TEXTS = st.one_of(
    st.text(max_size=40), st.sampled_from(["to be", "/etc/passwd", "", "\0", "data:image/png;base64,AAAA"])
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS, st.sampled_from([v for v in VALUES if v == v]))
JSON = st.recursive(SCALARS, lambda v: st.lists(v, max_size=4) | st.dictionaries(TEXTS, v, max_size=4), max_leaves=8)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "tool", ""]), "content": TEXTS | JSON}),
    max_size=3,
)
SAMPLING = {
    "max_tokens": st.integers(0, 8), "temperature": NUMBERS, "top_p": NUMBERS, "n": st.integers(0, 4), "stop": JSON,
    "seed": NUMBERS, "stream": st.booleans(), "presence_penalty": NUMBERS, "frequency_penalty": NUMBERS,
    "logit_bias": st.dictionaries(st.integers(-2, 400).map(str) | TEXTS, NUMBERS, max_size=3), "top_k": NUMBERS,
    "min_p": NUMBERS, "repetition_penalty": NUMBERS, "keep": NUMBERS, "truncate": st.booleans(), "stream_options": JSON,
}  # fmt: skip
COMPLETION = SAMPLING | {
    "prompt": TEXTS | st.lists(TEXTS, max_size=3) | st.lists(st.integers(-2, 400), max_size=80) | JSON,
    "logprobs": st.integers(-1, 6), "echo": st.booleans(), "best_of": NUMBERS, "suffix": JSON, "user": JSON,
}  # fmt: skip
CHAT = SAMPLING | {
    "messages": MESSAGES | JSON, "logprobs": st.booleans(), "top_logprobs": st.integers(-1, 21), "tools": JSON,
    "tool_choice": JSON, "response_format": JSON, "max_completion_tokens": NUMBERS,
}  # fmt: skip
EMBEDDING = {"input": TEXTS | st.lists(TEXTS, max_size=3) | JSON, "encoding_format": JSON, "dimensions": NUMBERS}
ROW = st.dictionaries(st.sampled_from(["device", "power", "axes", "motion", "note", "picture", "hum", "state"]), JSON)
PREDICT = {
    "input": TEXTS | ROW | st.lists(ROW | TEXTS | NUMBERS, max_size=3) | JSON, "top": NUMBERS, "beam": NUMBERS,
    "rollout": st.fixed_dictionaries({}, optional={"episodes": st.integers(0, 3), "env": TEXTS, "target_return": JSON}),
    "horizon": NUMBERS, "embed": JSON, "prompt": TEXTS, "tokens": st.integers(-1, 9), "cut": JSON,
}  # fmt: skip
PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==")
CONTENTS = st.one_of(st.binary(max_size=60), st.sampled_from([PNG, PNG[:40], b"RIFF\0\0\0\0WAVE", *WORDS]))
NAMES = st.sampled_from(["file", "input", "input.picture", "input.hum", "model", "x", ""])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("models")
    models = {"chat": build_chat_model(folder)} | {name: build_model(name, folder) for name in OTHERS}
    with serve(models, max_tokens=8, timeout=5.0) as running:
        yield running
        wait_for(lambda: not any(sum(model.gauges().values()) for model in running.models), "all requests end")
        assert running.post("/v1/completions", {"model": "chat", "prompt": "a", "max_tokens": 1}).status_code == 200
        for name, value in (("classify", "a"), ("control", None), ("translation", "1")):
            body = {"model": name} | ({"rollout": {"episodes": 1}} if value is None else {"input": value})
            assert running.post("/v1/predict", body).status_code == 200


def check(response: httpx.Response) -> None:
    assert response.status_code in EXPECTED, (response.status_code, response.text)
    if response.status_code != 200:
        error = response.json()["error"]
        assert error["message"] and "\n" not in error["message"] and "Traceback" not in error["message"]
    elif response.headers["content-type"].startswith("text/event-stream"):
        assert response.text.endswith("data: [DONE]\n\n")


def dump(body: dict[str, Any]) -> bytes:
    """JSON with what Python's own writer takes: NaN, lone surrogates."""
    return json.dumps(body).encode()


def body_of(fields: dict[str, Any], models: tuple[str, ...]) -> st.SearchStrategy[bytes]:
    required = {"model": st.sampled_from([*models, *models, *models, "none", None, 3])}
    return st.fixed_dictionaries(required, optional=fields).map(dump)


@given(body_of(COMPLETION, ("chat",)))
def test_completions(server: RunningServer, body: bytes):
    check(server.post("/v1/completions", content=body))


@given(body_of(CHAT, ("chat",)))
def test_chats(server: RunningServer, body: bytes):
    check(server.post("/v1/chat/completions", content=body))


@given(body_of(EMBEDDING, ("classify",)))
def test_embeddings(server: RunningServer, body: bytes):
    check(server.post("/v1/embeddings", content=body))


@given(body_of(PREDICT, ("chat", *OTHERS)))
def test_predictions(server: RunningServer, body: bytes):
    check(server.post("/v1/predict", content=body))


@given(
    st.sampled_from(["/v1/predict", "/v1/audio/transcriptions"]),
    st.dictionaries(NAMES | TEXTS, TEXTS, max_size=3),
    st.lists(st.tuples(NAMES, st.tuples(TEXTS, CONTENTS)), max_size=3),
    st.sampled_from(["speech", "vision", "multimodal", "forecast", "classify"]),
)
def test_forms(server: RunningServer, route: str, fields: dict[str, str], files: list[Any], model: str):
    fields = {name: value.encode("utf-8", "surrogatepass").decode("utf-8", "replace") for name, value in fields.items()}
    check(server.post(route, data=fields | {"model": model}, files=files or None))


@given(
    st.sampled_from(["GET", "POST", "PUT", "DELETE"]),
    st.sampled_from(
        ["completions", "chat/completions", "embeddings", "audio/transcriptions", "predict", "models/a", "x"]
    ),
    st.binary(max_size=80) | st.sampled_from(WORDS) | JSON.map(json.dumps).map(str.encode),
    st.sampled_from(
        ["application/json", "multipart/form-data; boundary=x", "multipart/form-data", "text/plain", "\xff"]
    ),
)
def test_raw_bodies(server: RunningServer, method: str, route: str, body: bytes, kind: str):
    headers = {"content-type": kind.encode("latin-1")}
    check(server.client.request(method, f"/v1/{route}", content=body, headers=headers))
