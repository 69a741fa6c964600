"""Bad input, each with one clear answer; and clients that go away, wait or come too often."""

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from anyformer.serve import gate
from anyformer.serve import server as server_module
from anyformer.trained_model import Model
from cli_kit import assert_refused, call
from serve_kit import (
    PATIENCE,
    RunningServer,
    assert_error,
    build_model,
    format_request,
    serve,
    wait_for,
)

LONG = {"model": "chat", "prompt": "Now is", "max_tokens": 4096, "seed": 1}


@pytest.fixture(scope="module")
def models(chat_model: Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    folder = tmp_path_factory.mktemp("models")
    return {"chat": chat_model} | {name: build_model(name, folder) for name in ("vision", "control")}


@pytest.fixture(scope="module")
def server(models: dict[str, Model]) -> Iterator[RunningServer]:
    with serve(models) as running:
        yield running


# --- the command ---


def test_a_run_that_is_no_model(tmp_path: Path):
    assert_refused(call("serve", tmp_path / "none", "--port", 0), "there is no run at", "none")
    assert_refused(call("serve", tmp_path, "--port", 0), str(tmp_path), "has no checkpoint")
    assert_refused(call("serve"), "needs RUN")


def test_a_port_in_use(server: RunningServer, run_once: Path):
    result = call("serve", run_once, "--port", server.port)
    assert_refused(result, f"cannot listen on 127.0.0.1 port {server.port}", "another program uses it", "--port")
    assert_refused(call("serve", run_once, "--host", "no.such.host.invalid"), "cannot listen on no.such.host.invalid")


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--port", "70000"], ["--port is 70000", "at most 65535"]),
        (["--max-concurrent", "0"], ["--max-concurrent is 0", "at least 1"]),
        (["--timeout", "nan"], ["--timeout", "finite"]),
        (["--api-key", " "], ["API key must be printable"]),
        (["--api-key", "a", "--api-key-file", "b"], ["exclude each other"]),
        (["--api-key-file", "no_such_file"], ["no_such_file", "no such file"]),
    ],
    ids=str,
)
def test_flags_that_make_no_sense(run_once: Path, flags: list[str], parts: list[str]):
    assert_refused(call("serve", run_once, *flags), *parts)


def test_two_models_of_one_name(run_once: Path):
    assert_refused(call("serve", run_once, run_once, "--port", 0), "two models have the name 'run'", "run-2=")


# --- bodies ---


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        (b"", ["the body is empty"]),
        (b'{"model": "chat", "prompt": ', ["the body: not JSON", "column 29"]),
        (b"[1, 2]", ["should hold a JSON object, found list"]),
        (b'{"prompt": "\xff"}', ["not UTF-8 at byte 12"]),
        (b'{"prompt": "\\ud800"}', ["lone surrogate"]),
        (b'{"prompt": ' + b"[" * 100_000, ["not JSON"]),
        (b'{"n": ' + b"9" * 5000 + b"}", ["not JSON"]),
        (b'{"prompt": "a", "temperature": NaN}', ["temperature is nan", "finite number"]),
        (b'{"prompt": "a", "temperature": 1e999}', ["temperature is inf", "finite number"]),
        (b'{"prompt": "a", "max_tokens": "9"}', ["max_tokens is '9'", "whole number"]),
        (b'{"prompt": "a", "max_tokens": 9.5}', ["max_tokens is 9.5", "whole number"]),
        (b'{"prompt": "a", "max_tokens": 5000}', ["max_tokens is 5,000", "at most 4,096 (--max-tokens)"]),
        (b'{"prompt": "a", "max_token": 9}', ["unknown field 'max_token'", "did you mean 'max_tokens'?"]),
        (b'{"prompt": {"a": 1}}', ["prompt is {'a': 1}", "a text"]),
        (b'{"prompt": []}', ["prompt times n is 0"]),
        (b'{"prompt": "a", "n": 0}', ["n is 0", "at least 1"]),
        (b'{"prompt": "a", "stop": 3}', ["stop is 3"]),
        (b'{"prompt": "a", "suffix": "b"}', ["suffix is not supported"]),
        (b'{"prompt": "a", "best_of": 5}', ["best_of is 5"]),
        (b'{"prompt": "a", "logit_bias": {"a": 1}}', ["logit_bias"]),
        (b'{"prompt": "a", "logit_bias": {"99999": 1}}', ["logit_bias names token 99,999"]),
        (b'{"prompt": "a", "seed": 1e3}', ["seed is 1000.0"]),
    ],
    ids=lambda value: str(value)[:50],
)  # fmt: skip
def test_a_body_of_the_wrong_kind(server: RunningServer, body: bytes, parts: list[str]):
    if body.startswith(b'{"prompt"'):
        body = b'{"model": "chat", ' + body[1:]
    parts = [part.replace("byte 12", "byte 29") for part in parts]
    assert_error(server.post("/v1/completions", content=body), 400, *parts)


def test_a_body_that_is_too_large(server: RunningServer):
    with server.connect() as connection:  # refused by its header, before it is sent
        connection.sendall(format_request("/v1/completions", b"", length=gate.JSON_BYTES + 1))
        assert connection.recv(100).startswith(b"HTTP/1.1 413")
    chunks = (b" " * (1 << 20) for _ in range(18))  # without a length
    assert_error(server.post("/v1/completions", content=chunks), 413, "more than 16 MiB", code="body_too_large")
    prompt = "a" * ((1 << 22) + 1)
    assert_error(server.post("/v1/completions", {"model": "chat", "prompt": prompt}), 400, "4,194,305 characters")


def test_an_unknown_model(server: RunningServer):
    for route in ("completions", "predict"):
        body = {"model": "visio", "prompt" if route == "completions" else "input": "a"}
        assert_error(server.post(f"/v1/{route}", body), 404, "no model 'visio'", "'vision'", code="model_not_found")
    assert_error(server.post("/v1/predict", {"input": "a"}), 400, "model is missing", "chat, vision, control")
    assert_error(server.post("/v1/predict", {"model": 3, "input": "a"}), 400, "model is 3")


def test_unknown_routes_and_methods(server: RunningServer):
    assert_error(server.client.get("/v1/chats"), 404, "no such route")
    assert_error(server.client.get("/v1/completions"), 405, "another method")
    assert_error(server.client.get("/page/../app.py"), 404)


def test_a_prompt_longer_than_the_context(server: RunningServer, chat_model: Model):
    prompt = "Now is the winter of our discontent " * 20
    n = len(chat_model.module.tokenizer.encode(prompt))
    body = {"model": "chat", "prompt": prompt, "max_tokens": 3, "temperature": 0}
    response = server.post("/v1/completions", body)
    warning = f"the prompt has {n:,} tokens and the context holds 64: its start was dropped"
    assert response.json()["warning"] == response.headers["x-anyformer-warning"] == warning
    assert response.json()["usage"]["prompt_tokens"] == 64, "as many as were read"
    (expected,) = chat_model.predict(prompt=prompt, tokens=3, temperature=0)["samples"]
    assert response.json()["choices"][0]["text"] == expected["text"]
    refused = server.post("/v1/completions", body | {"truncate": False})
    assert assert_error(refused, 400, f"{n:,} tokens", "64", code="context_length_exceeded")["param"] == "prompt"
    talk = {"model": "chat", "messages": [{"role": "user", "content": prompt}], "truncate": False, "max_tokens": 3}
    assert assert_error(server.post("/v1/chat/completions", talk), 400)["param"] == "messages"
    wait_for(lambda: not server.running("chat"), "refused requests leave the batch")


def test_an_image_that_is_none(server: RunningServer):
    files = {"file": ("cat.png", b"no image", "image/png")}
    response = server.post("/v1/predict", data={"model": "vision"}, files=files)
    message = assert_error(response, 400, "cat.png is not an image of a known format: ")["message"]
    assert message.startswith("cat.png"), "not the path at which it was stored"
    assert_error(server.post("/v1/predict", {"model": "vision", "input": "data:image/png;base64,$"}), 400, "no base64")
    file = {"base64": "AAAA", "name": "dog.png"}
    assert_error(server.post("/v1/predict", {"model": "vision", "input": file}), 400, message.replace("cat", "dog"))
    assert_error(server.post("/v1/predict", {"model": "vision"}), 400, "the request is empty")


def test_a_wrong_or_missing_key(chat_model: Model):
    with serve({"chat": chat_model}, api_key="secret") as server:
        assert_error(server.client.get("/v1/models"), 401, "a key is needed", code="invalid_api_key")
        for header in ("Bearer wrong", "Basic secret", "Bearer s\u00e9cret".encode()):
            refused = server.client.get("/v1/models", headers={"authorization": header})
            assert_error(refused, 401, "the key is wrong", code="invalid_api_key")
        assert server.client.get("/v1/models", headers={"authorization": "Bearer secret"}).status_code == 200
        assert_error(server.client.get("/metrics"), 401)
        assert server.client.get("/health").status_code == 200


# --- clients that go away ---


def test_an_upload_that_stops_half_way(server: RunningServer, capfd: pytest.CaptureFixture[str]):
    form = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n' + b"a" * 5000
    with server.connect() as connection:
        connection.sendall(format_request("/v1/predict", form, 50_000, "multipart/form-data; boundary=x"))
    wait_for(lambda: not server.gate.n_open, "the request ends")
    wait_for(lambda: '"status": 499' in capfd.readouterr().err, "it is logged")
    incomplete = server.post("/v1/predict", content=form, headers={"content-type": "multipart/form-data; boundary=x"})
    assert_error(incomplete, 400)


def test_a_client_that_vanishes_frees_its_place(server: RunningServer):
    for stream in (False, True):
        with server.connect() as connection:
            connection.sendall(format_request("/v1/completions", json.dumps(LONG | {"stream": stream}).encode()))
            wait_for(lambda: server.running("chat"), "it is answered")
        n_tokens = server.models.find("chat").batcher.n_tokens
        wait_for(lambda: not server.running("chat"), "its place is free")
        assert server.models.find("chat").batcher.n_tokens - n_tokens < LONG["max_tokens"] // 2


def test_a_client_that_vanishes_frees_a_worker(server: RunningServer):
    body = {"model": "control", "rollout": {"episodes": 10_000}}
    with server.connect() as connection:
        connection.sendall(format_request("/v1/predict", json.dumps(body).encode()))
        wait_for(lambda: server.running("control"), "it is answered")
    start = time.monotonic()
    wait_for(lambda: not server.running("control"), "the worker is free")
    print(f"free after {time.monotonic() - start:.2f} s")
    assert server.post("/v1/predict", {"model": "control", "rollout": {"episodes": 2}}).status_code == 200


def test_a_client_that_reads_nothing_does_not_hold_others(server: RunningServer):
    with server.connect() as connection:
        body = json.dumps(LONG | {"stream": True, "n": 4, "max_tokens": 1000}).encode()
        connection.sendall(format_request("/v1/completions", body))
        wait_for(lambda: server.running("chat"), "it is answered")
        assert server.post("/v1/completions", LONG | {"max_tokens": 3}).status_code == 200
    wait_for(lambda: not server.gate.n_open, "it ends")


def test_a_client_that_sends_slowly_is_let_go(server: RunningServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gate, "BODY_SECONDS", 0.1)
    with server.connect() as connection:
        connection.sendall(format_request("/v1/completions", b'{"model"', 50))
        assert connection.recv(100).startswith(b"HTTP/1.1 408")


# --- limits ---


def test_too_many_requests(models: dict[str, Model]):
    with serve({name: models[name] for name in ("chat", "control")}, max_concurrent=1, max_queue=1) as server:
        connections = [server.connect() for _ in range(2)]
        for connection in connections:
            connection.sendall(format_request("/v1/completions", json.dumps(LONG).encode()))
        wait_for(lambda: server.running("chat") == 2, "one runs and one waits")
        refused = server.post("/v1/completions", LONG)
        assert_error(refused, 429, "too many completions wait for the model 'chat'", code="overloaded")
        assert refused.headers["retry-after"] == "1"
        assert_error(server.post("/v1/completions", LONG | {"n": 3}), 400, "3 completions; at most 2 fit")
        for connection in connections:
            connection.close()
        wait_for(lambda: not server.gate.n_open, "they end")
        body = json.dumps({"model": "control", "rollout": {"episodes": 10_000}}).encode()
        connections = [server.connect() for _ in range(2)]
        for connection in connections:
            connection.sendall(format_request("/v1/predict", body))
        wait_for(lambda: server.models.find("control").worker.pending == 2, "one runs and one waits")
        refused = server.post("/v1/predict", {"model": "control", "rollout": {"episodes": 2}})
        assert_error(refused, 429, "the model 'control' has 1 requests waiting")
        for connection in connections:
            connection.close()


def test_an_answer_that_takes_too_long(chat_model: Model):
    with serve({"chat": chat_model}, timeout=0.6) as server:
        refused = server.post("/v1/completions", LONG | {"n": 8})
        assert_error(refused, 504, "longer than 0.6 seconds (--timeout)", code="timeout")
        assert refused.headers["x-should-retry"] == "false", "OpenAI's client would ask again"
        response = server.post("/v1/completions", LONG | {"n": 8, "stream": True})
        if response.status_code == 200:  # it has begun in time, also on a busy machine
            *_, last, end = [line for line in response.text.split("\n\n") if line]
            assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout" and end == "data: [DONE]"
        wait_for(lambda: not server.running("chat"), "its place is free")


@pytest.mark.slow
def test_a_prediction_that_takes_too_long(models: dict[str, Model]):
    with serve({"control": models["control"]}, timeout=0.1) as server:
        assert_error(server.post("/v1/predict", {"rollout": {"episodes": 10_000}}), 504, code="timeout")
        wait_for(lambda: not server.running("control"), "the worker is free")


# --- the end ---


def test_a_shutdown_in_the_middle(chat_model: Model):
    """`test_command` does the same with a process and a signal."""
    with serve({"chat": chat_model}) as server:
        body = json.dumps(LONG | {"stream": True, "max_tokens": 400}).encode()
        with server.connect() as connection:
            connection.sendall(format_request("/v1/completions", body))
            wait_for(lambda: server.running("chat"), "it is answered")
            server.server.handle_exit(signal.SIGTERM, None)
            assert server.client.get("/health").status_code == 503
            refused = server.post("/v1/completions", LONG)
            assert_error(refused, 503, "the server is shutting down", code="shutting_down")
            assert refused.headers["retry-after"] == "10"
            received = b"".join(iter(lambda: connection.recv(1 << 16), b""))
        assert b'"finish_reason":"length"' in received and b"data: [DONE]" in received, "the answer is whole"
        server.thread.join(PATIENCE)
        assert not server.thread.is_alive()


def test_a_second_signal_ends_at_once(chat_model: Model):
    with serve({"chat": chat_model}) as server, server.connect() as connection:
        connection.sendall(format_request("/v1/completions", json.dumps(LONG | {"n": 8}).encode()))
        wait_for(lambda: server.running("chat"), "it is answered")
        for _ in range(2):
            server.server.handle_exit(signal.SIGINT, None)
        server.thread.join(PATIENCE)
        assert not server.thread.is_alive() and b"finish_reason" not in connection.recv(1 << 16)
        wait_for(lambda: not server.running("chat"), "its place is free")


def test_a_connection_that_sends_no_request_is_closed(chat_model: Model, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(server_module, "HEADER_SECONDS", 0.1)
    with serve({"chat": chat_model}) as server, server.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: lo")
        assert connection.recv(100) == b""
    with serve({"chat": chat_model}) as server, server.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        while not connection.recv(1 << 16).endswith(b"}"):
            pass
        connection.sendall(b"GET /health HTTP/1.1\r\nHo")
        assert connection.recv(100) == b"", "the second request is incomplete"


def test_bodies_share_a_budget(server: RunningServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gate, "OPEN_BYTES", 1000)
    assert_error(server.post("/v1/completions", LONG | {"prompt": "a" * 2000}), 429, "too many large requests")
    assert server.post("/v1/completions", LONG | {"max_tokens": 1}).status_code == 200
    assert server.gate.open_bytes == 0
