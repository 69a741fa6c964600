"""Small models, a server in a thread of this process, and its clients."""

import contextlib
import dataclasses
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import torch

from anyformer.data.tokenizers import build as tok
from anyformer.recipe_loading import load_recipe
from anyformer.serve.app import build_app
from anyformer.serve.models import ModelSet, ServedModel
from anyformer.serve.options import ServerOptions
from anyformer.serve.server import Server, bind_socket
from anyformer.trained_model import Model
from data_kit import SAMPLE, SMALL_DATA

PATIENCE = 60.0  # seconds until something that should have happened has not
TEMPLATE = (
    "{% if tools %}tools: {% for tool in tools %}{{ tool.function.name }} {% endfor %}\n{% endif %}"
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def build_model(name: str, folder: Path) -> Model:
    """Build the tiny model of a recipe, with noise for weights."""
    recipe = load_recipe(name)
    config: Any = recipe.PRESETS["tiny"]
    config = dataclasses.replace(config, data=str(SMALL_DATA.get(name, config.data)))
    torch.manual_seed(0)
    return Model(recipe, config, add_noise(recipe.build(config)), {"step": 0}, folder)


def add_noise(module: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return module


def build_chat_model(folder: Path, context: int = 64, template: str = TEMPLATE) -> Model:
    """Build a small language model of subwords with a chat template. Its text is noise, and never ends by itself."""
    from anyformer.recipes._shared.language import LanguageModel

    recipe = load_recipe("language")
    config: Any = recipe.PRESETS["tiny"]
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, context=context))
    files = {"tokenizer_config.json": json.dumps({"chat_template": template} if template else {})}
    tokenizer = tok.Subwords(tok.train_bpe([SAMPLE], 300).to_json(), files)
    torch.manual_seed(0)
    return Model(recipe, config, add_noise(LanguageModel(config, tokenizer)), {"step": 0}, folder)


def wait_for(condition: Any, what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.01)


class RunningServer:
    """A server in a thread, at `url`."""

    def __init__(self, models: dict[str, Model], **options: Any):
        self.options = ServerOptions(port=0, **options)
        self.models = ModelSet([ServedModel(name, model, self.options) for name, model in models.items()])
        self.gate = build_app(self.models, self.options)
        self.listener = bind_socket("127.0.0.1", 0)
        self.port = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = Server(self.gate, self.options)
        self.thread = threading.Thread(target=self.server.run, args=([self.listener],), daemon=True)
        self.thread.start()
        wait_for(lambda: self.server.started, "the server starts")
        limits = httpx.Limits(max_keepalive_connections=0)  # on a slow machine the server may close one just before use
        self.client = httpx.Client(base_url=self.url, timeout=PATIENCE, verify=False, limits=limits)  # no certificates

    def post(self, path: str, body: Any = None, **arguments: Any) -> httpx.Response:
        if body is not None:
            arguments["json"] = body
        return self.client.post(path, **arguments)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)

    def running(self, name: str) -> float:
        """How many requests a model is answering, and has waiting."""
        return sum(self.models.find(name).gauges().values())

    def close(self) -> None:
        self.client.close()
        self.server.should_exit = True
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()
        for model in self.models:
            model.close()


@contextlib.contextmanager
def serve(models: dict[str, Model], **options: Any) -> Iterator[RunningServer]:
    server = RunningServer(models, **options)
    try:
        yield server
    finally:
        server.close()


def format_request(path: str, body: bytes, length: int | None = None, kind: str = "application/json") -> bytes:
    """A request of HTTP/1.1 as bytes; `length` is what its header says of the body."""
    length = len(body) if length is None else length
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
    return head.encode() + body


def assert_error(response: httpx.Response, status: int, *parts: str, code: str | None = None) -> dict[str, Any]:
    """Check for an error of OpenAI's shape whose message has these parts in this order."""
    error = response.json()["error"]
    assert response.status_code == status and error.keys() == {"message", "type", "param", "code"}, response.text
    assert code is None or error["code"] == code, error
    remaining = error["message"]
    assert "\n" not in remaining
    for part in parts:
        assert part in remaining, (part, error)
        remaining = remaining.split(part, 1)[1]
    return error


@contextlib.contextmanager
def serve_in_process(*words: object, **environment: str) -> Iterator[tuple[subprocess.Popen, str, dict[str, Any]]]:
    """Run `anyformer serve WORDS` and wait until it listens. Yields the process, its URL, and its first line."""
    command = [sys.executable, "-m", "anyformer", "serve", *map(str, words), "--port", "0", "--device", "cpu"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=os.environ | environment)
    try:
        assert process.stderr is not None
        start = json.loads(process.stderr.readline())
        assert start["event"] == "start"
        yield process, start["url"], start
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()
