"""`anyformer serve` as a process of its own, asked by curl."""

import json
import shutil
import signal
import subprocess
from pathlib import Path

import httpx
import pytest

import anyformer
from anyformer.cli.serve import Command, read_key
from anyformer.serve.models import split_name
from anyformer.trained_model import Model
from serve_kit import PATIENCE, serve_in_process, wait_for


def curl(*words: str) -> str:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    command = ["curl", "--silent", "--max-time", str(PATIENCE), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_curl_gets_the_answer_of_python(run_once: Path, tmp_path: Path):
    key = tmp_path / "key"
    key.write_text("secret\n")
    with serve_in_process(f"cats={run_once}", "--api-key-file", key, "--weights", "int8") as (process, url, start):
        assert start["models"] == ["cats"]
        body = json.dumps({"model": "cats", "prompt": "the cat", "max_tokens": 6, "seed": 3})
        words = ("-H", "Authorization: Bearer secret", "-H", "Content-Type: application/json", "-d", body)
        answer = json.loads(curl(f"{url}/v1/completions", *words))
        model = anyformer.load(run_once, "cpu", weights="int8")
        (expected,) = model.predict(prompt="the cat", tokens=6, seed=3, temperature=1.0)["samples"]
        assert answer["choices"][0]["text"] == expected["text"]
        body = body.replace("{", '{"stream": true, ', 1)
        events = curl("-N", f"{url}/v1/completions", *words[:-1], body).split("\n\n")
        assert events[-2:] == ["data: [DONE]", ""]
        texts = [json.loads(event.removeprefix("data: "))["choices"][0]["text"] for event in events[:-2]]
        assert "".join(texts) == expected["text"]
        assert json.loads(curl(f"{url}/v1/models"))["error"]["code"] == "invalid_api_key"
        assert curl("-o", "/dev/null", "-w", "%{http_code}", f"{url}/health") == "200"
        end_in_the_middle(process, url, model)
        assert process.stdout.read() == f"serving cats on {url} (Ctrl-C stops)\n"


def end_in_the_middle(process: subprocess.Popen, url: str, model: Model) -> None:
    """Send a signal while a stream is open: it is answered to its end, new requests are refused."""
    end = str(model.module.tokenizer.end_id)
    body = {"prompt": "the", "max_tokens": 300, "stream": True, "logit_bias": {end: -100}}
    headers = {"authorization": "Bearer secret"}
    with httpx.Client(base_url=url, headers=headers, timeout=PATIENCE) as client:
        with client.stream("POST", "/v1/completions", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            wait_for(lambda: client.get("/health").status_code == 503, "it says that it ends")
            assert client.post("/v1/completions", json=body).status_code == 503
            chunks = [line for line in lines if line]
        assert len(chunks) == 300 and chunks[-1] == "data: [DONE]" and '"finish_reason":"length"' in chunks[-2]
        assert process.wait(PATIENCE) == 0
        with pytest.raises(httpx.ConnectError):
            client.get("/health")


def test_where_the_key_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "key").write_text(" from-file\n")
    monkeypatch.delenv("ANYFORMER_API_KEY", raising=False)
    assert read_key(Command(run=())) is None
    monkeypatch.setenv("ANYFORMER_API_KEY", "from-environment")
    assert read_key(Command(run=())) == "from-environment"
    assert read_key(Command(run=(), api_key="given-here")) == "given-here"
    assert read_key(Command(run=(), api_key_file=tmp_path / "key")) == "from-file"


def test_names_of_models(tmp_path: Path):
    (tmp_path / "a=b").mkdir()
    assert split_name("runs/a") == ("", "runs/a")
    assert split_name("cats=runs/a") == ("cats", "runs/a")
    assert split_name(f"{tmp_path}/a=b") == ("", f"{tmp_path}/a=b")
    assert split_name("=runs/a") == ("", "=runs/a")
