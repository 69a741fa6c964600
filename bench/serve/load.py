"""Load on a server: many clients for some minutes. Errors, latencies, tokens a second, and the memory of the server.

    python -m bench.serve.load --run runs/language-plays-1 --clients 64 --minutes 2
    python -m bench.serve.load --url http://127.0.0.1:8000 --model mine --clients 8

Each client asks again as soon as it has its answer, by turns: a stream, a whole answer, two choices, a stream that it
leaves half way, and a body that is wrong. Anything but the answer that is due is an error.
"""

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from typing import Any

import httpx

from bench._common import make_parser

PROMPT = "the quick brown fox jumps over the lazy dog and the cat sat on the mat by the log in the sun "
TURNS = ("stream", "whole", "two", "leave", "wrong")


class Load:
    """What clients have done so far."""

    def __init__(self, url: str, model: str, tokens: int, seconds: float):
        self.url, self.model, self.tokens, self.ends_at = url, model, tokens, time.monotonic() + seconds
        self.counts: Counter[str] = Counter()
        self.errors: list[str] = []
        self.seconds: list[float] = []
        self.first_seconds: list[float] = []
        self.n_tokens = 0
        self.memory: list[int] = []

    async def run_client(self, client: httpx.AsyncClient, number: int) -> None:
        chance = random.Random(number)
        while time.monotonic() < self.ends_at:
            turn = chance.choice(TURNS)
            body = {"model": self.model, "prompt": PROMPT[chance.randrange(80) :], "max_tokens": self.tokens}
            try:
                await getattr(self, f"ask_{turn}")(client, body | {"seed": chance.randrange(1 << 30)})
            except (httpx.HTTPError, AssertionError, ValueError, KeyError) as error:
                self.errors.append(f"{turn}: {type(error).__name__} {str(error)[:200]}")
            self.counts[turn] += 1

    async def post(self, client: httpx.AsyncClient, body: dict[str, Any]) -> httpx.Response:
        return await client.post("/v1/completions", json=body)

    async def ask_whole(self, client: httpx.AsyncClient, body: dict[str, Any]) -> None:
        start = time.monotonic()
        response = await self.post(client, body)
        assert response.status_code == 200, response.text
        self.n_tokens += response.json()["usage"]["completion_tokens"]
        self.seconds.append(time.monotonic() - start)

    async def ask_two(self, client: httpx.AsyncClient, body: dict[str, Any]) -> None:
        await self.ask_whole(client, body | {"n": 2})

    async def ask_wrong(self, client: httpx.AsyncClient, body: dict[str, Any]) -> None:
        response = await self.post(client, body | {"temperature": "hot"})
        assert response.status_code == 400, response.text

    async def ask_leave(self, client: httpx.AsyncClient, body: dict[str, Any]) -> None:
        await self.ask_stream(client, body, most_lines=5)

    async def ask_stream(self, client: httpx.AsyncClient, body: dict[str, Any], most_lines: int = 0) -> None:
        start, n_lines, last = time.monotonic(), 0, ""
        body = body | {"stream": True, "stream_options": {"include_usage": True}}
        async with client.stream("POST", "/v1/completions", json=body) as response:
            assert response.status_code == 200, response.status_code
            async for line in response.aiter_lines():
                if not line:
                    continue
                if not n_lines:
                    self.first_seconds.append(time.monotonic() - start)
                n_lines += 1
                if n_lines == most_lines:
                    return
                if line == "data: [DONE]":
                    break
                last = line
        if not most_lines or line == "data: [DONE]":
            self.n_tokens += json.loads(last.removeprefix("data: "))["usage"]["completion_tokens"]
            self.seconds.append(time.monotonic() - start)

    async def watch_memory(self, client: httpx.AsyncClient) -> None:
        """Note the memory of the server now and then."""
        while time.monotonic() < self.ends_at:
            for line in (await client.get("/metrics")).text.splitlines():
                if line.startswith("process_resident_memory_bytes "):
                    self.memory.append(int(float(line.split()[1])))
            await asyncio.sleep(2)


async def run_load(load: Load, clients: int) -> None:
    limits = httpx.Limits(max_connections=clients + 2, max_keepalive_connections=clients + 2)
    async with httpx.AsyncClient(base_url=load.url, timeout=600, limits=limits) as client:
        await asyncio.gather(load.watch_memory(client), *(load.run_client(client, i) for i in range(clients)))


def describe(load: Load, clients: int, seconds: float) -> dict[str, Any]:
    def quantiles(values: list[float]) -> dict[str, float]:
        values = sorted(values) or [0.0]
        return {name: round(values[int(q * (len(values) - 1))], 3) for name, q in (("p50", 0.5), ("p95", 0.95))}

    memory = [size >> 20 for size in load.memory]
    facts = {"clients": clients, "seconds": round(seconds, 1), "requests": sum(load.counts.values())}
    facts |= {"errors": len(load.errors), "first_errors": load.errors[:5], "turns": dict(load.counts)}
    facts |= {"tokens_per_second": round(load.n_tokens / seconds, 1), "answer_seconds": quantiles(load.seconds)}
    facts |= {"first_token_seconds": quantiles(load.first_seconds)}
    return facts | {"memory_MiB": memory[:: max(1, len(memory) // 8)][:8] + memory[-1:]}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--run", help="a run or a public checkpoint, served for as long as this takes")
    parser.add_argument("--url", help="a server that runs already")
    parser.add_argument("--model", default="")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--tokens", type=int, default=64)
    options, process = parser.parse_args(), None
    url = options.url
    if url is None:
        command = [sys.executable, "-m", "anyformer", "serve", options.run, "--port", "0"]
        log = open(os.devnull, "w")  # noqa: SIM115 (until the end)
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert process.stdout is not None
        url = process.stdout.readline().split(" on ")[1].split()[0]
    try:
        for _ in range(600):
            try:
                httpx.get(f"{url}/health")
                break
            except httpx.ConnectError:
                time.sleep(0.1)
        start, load = time.monotonic(), Load(url, options.model, options.tokens, 60 * options.minutes)
        asyncio.run(run_load(load, options.clients))
        facts = describe(load, options.clients, time.monotonic() - start)
    finally:
        if process is not None:
            process.terminate()
            process.wait()
    print(json.dumps(facts) if options.json else "\n".join(f"{name}: {value}" for name, value in facts.items()))


if __name__ == "__main__":
    main()
