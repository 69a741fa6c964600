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

from fuzz_kit import VALUES, WORDS, Tally

pytest.importorskip("uvicorn", reason="the server's libraries: pip install 'anyformer[serve]'")
from serve_kit import RunningServer, build_chat_model, build_model, serve, wait_for

TALLY = Tally("bodies to a server")
EXPECTED = {200, 400, 403, 404, 405, 408, 413, 429, 504}
OTHERS = ("classify", "vision", "speech", "multimodal", "forecast", "control", "translation")
TEXTS = st.one_of(
    st.text(max_size=40), st.sampled_from(["to be", "/etc/passwd", "", "\0", "data:image/png;base64,AAAA"])
)
NUMBERS = st.one_of(st.integers(-3, 9), st.floats(-3, 3), st.sampled_from([2**31, 2**63, 10**30, 1e300, -1]))
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS, st.sampled_from([v for v in VALUES if v == v]))
JSON = st.recursive(SCALARS, lambda v: st.lists(v, max_size=4) | st.dictionaries(TEXTS, v, max_size=4), max_leaves=8)
WORDS_OF_TEXT = st.text("abcdefgh ijklé🌞\n", max_size=60)
SMALL = st.floats(0, 1)
IDS = st.lists(st.integers(0, 255), min_size=1, max_size=80)
# Fields and values that are right; some are then replaced.
SAMPLING = {
    "max_tokens": st.integers(0, 8), "temperature": SMALL, "top_p": SMALL, "n": st.integers(1, 4),
    "seed": st.integers(), "stop": WORDS_OF_TEXT | st.lists(WORDS_OF_TEXT, max_size=4), "stream": st.booleans(),
    "presence_penalty": SMALL,
    "frequency_penalty": SMALL, "logit_bias": st.dictionaries(st.integers(0, 255).map(str), SMALL, max_size=3),
    "top_k": st.integers(1, 400), "min_p": SMALL, "repetition_penalty": st.floats(1, 2), "keep": st.integers(1, 99),
    "guided_regex": st.sampled_from(["[ab]*", "(", ""]), "guided_choice": st.lists(WORDS_OF_TEXT, max_size=3),
    "guided_json": JSON, "response_format": st.sampled_from([{"type": "text"}, {"type": "json_object"}]),
    "truncate": st.booleans(), "stream_options": st.fixed_dictionaries({"include_usage": st.booleans()}), "user": TEXTS,
}  # fmt: skip
COMPLETION = SAMPLING | {"logprobs": st.integers(0, 6), "echo": st.booleans()}
PROMPTS = WORDS_OF_TEXT | st.lists(WORDS_OF_TEXT, min_size=1, max_size=3) | IDS | st.lists(IDS, min_size=1, max_size=3)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "tool", ""]), "content": WORDS_OF_TEXT}),
    min_size=1,
    max_size=3,
)
TOOLS = st.lists(st.fixed_dictionaries({"function": st.fixed_dictionaries({"name": WORDS_OF_TEXT})}), max_size=2)
CHAT = SAMPLING | {"logprobs": st.just(True), "tools": TOOLS, "tool_choice": st.sampled_from(["auto", "none"])}
EMBEDDING = {"encoding_format": st.sampled_from(["float", "base64"]), "truncate": st.booleans()}
ROW = st.fixed_dictionaries(
    {},
    optional={
        "device": TEXTS, "power": SMALL, "axes": st.lists(SMALL, min_size=3, max_size=3), "note": st.just("busy"),
        "motion": st.lists(st.lists(SMALL, min_size=2, max_size=2), min_size=1, max_size=20), "hum": st.lists(SMALL),
        "picture": st.just([[0, 255], [9, 3]]) | JSON,
    },
)  # fmt: skip
ROLLOUT = st.fixed_dictionaries(
    {}, optional={"episodes": st.integers(1, 3), "target_return": SMALL, "seed": st.just(1)}
)
INPUTS = {
    "chat": {"prompt": PROMPTS, "tokens": st.integers(1, 8)}, "classify": {"input": TEXTS | st.lists(TEXTS)},
    "vision": {"input": st.just({"base64": "AAAA"}) | TEXTS, "top": st.integers(1, 9)}, "speech": {"input": TEXTS},
    "multimodal": {"input": ROW | st.lists(ROW, max_size=3)}, "forecast": {"input": st.lists(NUMBERS) | JSON},
    "control": {"rollout": ROLLOUT},
    "translation": {"input": st.text("0123456789", max_size=9), "beam": st.integers(1, 4)},
}  # fmt: skip
PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==")
WAV = b"RIFF\x34\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0\x80\x3e\0\0\0\x7d\0\0\2\0\x10\0data\x10\0\0\0" + bytes(range(16))
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
    is_expected = response.status_code in EXPECTED
    TALLY.count(f"{response.request.url}", "" if is_expected else response.text, response.status_code == 200)
    assert is_expected, (response.status_code, response.text)
    if response.status_code != 200:
        error = response.json()["error"]
        assert error["message"] and "\n" not in error["message"] and "Traceback" not in error["message"]
    elif response.headers["content-type"].startswith("text/event-stream"):
        assert response.text.endswith("data: [DONE]\n\n")


def dump(body: dict[str, Any]) -> bytes:
    """JSON with what Python's own writer takes: NaN, lone surrogates."""
    return json.dumps(body).encode()


def make_bodies(model: str, required: dict[str, Any], optional: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """Bodies that are right, and in half of them a few fields that are not."""
    names = st.sampled_from(["model", "x", *required, *optional])
    wrong = st.just({}) | st.dictionaries(names, JSON | NUMBERS, min_size=1, max_size=2)
    good = st.fixed_dictionaries({"model": st.just(model)} | required, optional=optional)
    return st.tuples(good, wrong).map(lambda pair: dump(pair[0] | pair[1]))


@given(make_bodies("chat", {"prompt": PROMPTS}, COMPLETION))
def test_completions(server: RunningServer, body: bytes):
    check(server.post("/v1/completions", content=body))


@given(make_bodies("chat", {"messages": MESSAGES}, CHAT))
def test_chats(server: RunningServer, body: bytes):
    check(server.post("/v1/chat/completions", content=body))


@given(make_bodies("classify", {"input": TEXTS | st.lists(TEXTS, min_size=1, max_size=3)}, EMBEDDING))
def test_embeddings(server: RunningServer, body: bytes):
    check(server.post("/v1/embeddings", content=body))


@given(st.one_of(*(make_bodies(name, fields, {}) for name, fields in INPUTS.items())))
def test_predictions(server: RunningServer, body: bytes):
    check(server.post("/v1/predict", content=body))


FORMS = st.sampled_from(
    [
        ("/v1/predict", "vision", ("file", ("a.png", PNG))),
        ("/v1/audio/transcriptions", "speech", ("file", ("a.wav", WAV))),
        ("/v1/predict", "speech", ("input", ("a.wav", WAV))),
        ("/v1/predict", "multimodal", ("input.picture", ("a.png", PNG))),
        ("/v1/predict", "multimodal", ("file", ("a.csv", b"device,power\na,1\nb,2\n"))),
        ("/v1/predict", "forecast", ("file", ("a.csv", b"date,shop,sales\n2023-01-01,a,1\n"))),
    ]
)


@given(
    FORMS,
    st.just({}) | st.dictionaries(NAMES | TEXTS, TEXTS, max_size=2),
    st.just([]) | st.lists(st.tuples(NAMES, st.tuples(TEXTS, CONTENTS)), max_size=2),
)
def test_forms(server: RunningServer, form: tuple[str, str, Any], fields: dict[str, str], files: list[Any]):
    route, model, file = form
    fields = {name: value.encode("utf-8", "surrogatepass").decode("utf-8", "replace") for name, value in fields.items()}
    check(server.post(route, data={"model": model} | fields, files=[file, *files]))


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
