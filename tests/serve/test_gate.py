"""Who may ask, what is logged and counted, and what a failure says."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from anyformer.serve import app, gate
from anyformer.serve.metrics import Metrics
from anyformer.trained_model import Model
from serve_kit import RunningServer, assert_error, build_chat_model, serve, wait_for

SECRET = "my very private prompt"


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example:8000", "127.0.0.2", "[::2]:1", "["])
def test_other_names_of_this_machine_are_refused(server: RunningServer, host: str):
    """A page whose name was made to point here (DNS rebinding) has its own name in the Host header."""
    assert_error(server.client.get("/v1/models", headers={"host": host}), 403, "Host header", code="wrong_host")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:8000"])
def test_its_own_names_are_accepted(server: RunningServer, host: str):
    assert server.client.get("/v1/models", headers={"host": host}).status_code == 200


def test_other_pages_may_not_ask(server: RunningServer, chat_model: Model):
    body = {"prompt": "Now", "max_tokens": 1}
    for origin in ("https://evil.example", "null"):
        refused = server.post("/v1/completions", body, headers={"origin": origin})
        assert_error(refused, 403, "--cors-origin", code="wrong_origin")
        assert not any(name.startswith("access-control") for name in refused.headers)
    own = {"origin": server.url, "host": f"127.0.0.1:{server.port}"}
    assert server.post("/v1/completions", body, headers=own).status_code == 200
    with serve({"chat": chat_model}, cors_origin=("https://good.example",)) as other:
        headers = {"origin": "https://good.example"}
        response = other.post("/v1/completions", body, headers=headers)
        assert response.headers["access-control-allow-origin"] == "https://good.example"
        preflight = headers | {"access-control-request-method": "POST"}
        assert other.client.options("/v1/completions", headers=preflight).status_code == 200
        wrong = other.post("/v1/completions", {"n": 0}, headers=headers)
        assert wrong.status_code == 400 and "access-control-allow-origin" in wrong.headers, "the page can read errors"
        assert_error(other.post("/v1/completions", body, headers={"origin": "https://evil.example"}), 403)


def read_log(capfd: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]


def test_a_line_for_each_request_without_its_texts(server: RunningServer, capfd: pytest.CaptureFixture[str]):
    responses = [server.post("/v1/completions", {"prompt": SECRET, "max_tokens": 3, "seed": 1})]
    responses.append(server.post("/v1/completions", {"prompt": SECRET, "max_tokens": SECRET}))
    responses.append(server.client.get(f"/{SECRET}"))
    entries: dict[str, dict[str, Any]] = {}
    ids = [response.headers["x-request-id"] for response in responses]

    def has_all() -> bool:  # an answer is there a moment before its line
        entries.update((entry["id"], entry) for entry in read_log(capfd) if "id" in entry)
        return entries.keys() >= set(ids)

    wait_for(has_all, "a line for each request")
    first, second, third = (entries[name] for name in ids)
    assert first["completion_tokens"] == 3 and first["seconds"] >= first["first_seconds"] > 0
    assert (first["route"], first["model"], first["status"]) == ("/v1/completions", "chat", 200)
    assert (second["status"], second["error"], third["route"]) == (400, "invalid_value", "other")
    assert SECRET not in json.dumps(entries)


def test_metrics_are_those_of_prometheus(server: RunningServer):
    def read() -> dict[str, float]:
        text = server.client.get("/metrics").text
        lines = [line for line in text.splitlines() if not line.startswith("# TYPE ")]
        assert all(re.fullmatch(r'[a-z_]+(\{([a-z]+="[^"]*",?)+\})? [\d.e+-]+', line) for line in lines), text
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}

    route = 'route="/v1/completions",model="chat"'
    before = read()
    usage = server.post("/v1/completions", {"prompt": "Now is", "max_tokens": 7}).json()["usage"]
    after = read()
    for name, count in (
        (f'anyformer_requests_total{{{route},status="200"}}', 1),
        (f'anyformer_request_seconds_bucket{{{route},le="+Inf"}}', 1),
        (f"anyformer_first_token_seconds_count{{{route}}}", 1),
        ('anyformer_tokens_total{model="chat",kind="completion"}', 7),
        ('anyformer_tokens_total{model="chat",kind="prompt"}', usage["prompt_tokens"]),
    ):
        assert after[name] - before.get(name, 0) == count, name
    assert after['anyformer_waiting{model="chat"}'] == after['anyformer_running{model="chat"}'] == 0
    assert after["process_resident_memory_bytes"] > 1e7


def test_what_a_chat_has_said_before_is_not_read_again(tmp_path: Path):
    def ask(server: RunningServer, messages: list[dict[str, str]]) -> tuple[str, dict[str, Any]]:
        body = {"messages": messages, "max_tokens": 8, "temperature": 0, "seed": 1, "n": 2}
        answer = server.post("/v1/chat/completions", body).json()
        return answer["choices"][0]["message"]["content"], answer["usage"]

    def count(server: RunningServer) -> dict[str, float]:
        lines = [line.rpartition(" ") for line in server.client.get("/metrics").text.splitlines()]
        return {name: float(value) for name, _, value in lines if name.startswith("anyformer_prefix_cache")}

    messages = [{"role": "user", "content": "Now is the winter of our discontent made glorious"}]
    model = build_chat_model(tmp_path, context=256)
    with serve({"chat": model}, prefix_cache=64) as server, serve({"chat": model}, prefix_cache=0) as plain:
        answer, first = ask(server, messages)
        messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "And?"}]
        text, second = ask(server, messages)
        expected, read = ask(plain, messages)
        totals = count(server)
        assert not count(plain)
    assert text == expected and read["prompt_tokens_details"] == first["prompt_tokens_details"] == {"cached_tokens": 0}
    n_cached = second["prompt_tokens_details"]["cached_tokens"]
    assert first["prompt_tokens"] - 16 < n_cached < second["prompt_tokens"] == read["prompt_tokens"]
    name = 'anyformer_prefix_cache_{}{{model="chat"}}'
    assert totals[name.format("hits_total")] == 3 and totals[name.format("bytes")] > 0
    assert totals[name.format("tokens_total")] >= 2 * n_cached


def test_labels_are_escaped():
    metrics = Metrics()
    metrics.add_request("/", 'a"b\\c\nd', 200, 0.05, None)
    assert 'model="a\\"b\\\\c\\nd",status="200"} 1\n' in metrics.format({})


def test_a_failure_says_nothing_of_the_request(server: RunningServer, monkeypatch: Any, capfd: Any):
    def fail(*arguments: Any) -> None:
        raise ZeroDivisionError(SECRET)

    monkeypatch.setattr(app, "list_facts", fail)
    response = server.client.get("/v1/models")
    error = assert_error(response, 500, response.headers["x-request-id"], code="failed")
    assert error["type"] == "server_error" and SECRET not in response.text
    entry = next(entry for entry in read_log(capfd) if entry["event"] == "error")
    assert entry["kind"] == "ZeroDivisionError" and "fail" in entry["frames"][-1] and SECRET not in json.dumps(entry)
    monkeypatch.undo()
    assert server.client.get("/v1/models").status_code == 200


def test_a_model_that_fails_does_not_stop_the_server(server: RunningServer, monkeypatch: Any):
    batcher = server.models.find("chat").batcher
    monkeypatch.setattr(batcher.model.body, "forward", lambda *_, **__: 1 / 0)
    assert_error(server.post("/v1/completions", {"prompt": "Now"}), 500)
    monkeypatch.undo()
    assert server.post("/v1/completions", {"prompt": "Now", "max_tokens": 2}).status_code == 200


def test_a_page_that_is_there_is_served(server: RunningServer, tmp_path: Any, monkeypatch: Any):
    page = tmp_path / "page"
    page.mkdir()
    for name, text in (("index.html", "<title>é</title>"), ("page.js", "1"), ("page.css", "a{}")):
        (page / name).write_text(text, encoding="utf-8")
    (tmp_path / "secret.txt").write_text("no")
    monkeypatch.setattr(app, "files", lambda package: tmp_path)
    kinds = {"/": "text/html", "/page/page.js": "javascript", "/page/page.css": "text/css"}
    for path, kind in kinds.items():
        response = server.client.get(path)
        assert response.status_code == 200 and kind in response.headers["content-type"]
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"
    for path in ("/page/secret.txt", "/page/..%2Fsecret.txt", "/page/.", "/page/"):
        assert server.client.get(path).status_code == 404
    assert gate.is_open("/page/page.js") and not gate.is_open("/v1/models") and not gate.is_open("/pages")
