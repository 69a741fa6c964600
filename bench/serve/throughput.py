"""Tokens a second of a server under 1, 8 and 32 clients: llama.cpp's (xllamacpp) and anyformer's, on the same weights.

    python -m bench.serve.throughput MODEL.gguf      needs xllamacpp and openai: pip install -e '.[test]'

Both read the same GGUF file, use the same number of threads and are asked the same prompts over HTTP, in turns, so that
load on the machine affects all. Every client sends one request after the other: a prompt of its own, greedily
continued to a fixed length (the end of the text is excluded). What is counted is new tokens by wall time, prompts
included. llama.cpp computes with the weights of the file as they are; anyformer in the format that is named.
"""

import json
import os
import random
import re
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from bench._common import make_parser

LLAMA_CPP = """
import sys, time, xllamacpp
path, threads, rows, context = sys.argv[1], *map(int, sys.argv[2:])
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.verbosity = path, rows * context, rows, -1
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
time.sleep(1e9)
"""
WORDS = ("river", "old", "house", "ran", "over", "green", "and", "slowly", "book", "when", "light", "door")


@dataclass
class Contender:
    name: str
    address: str
    rates: dict[int, list[float]] = field(default_factory=dict)
    """Clients -> tokens a second of each round."""


@contextmanager
def start(command: list[str], name: str) -> Generator[Contender]:
    """Start a server that prints its address first."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        line = process.stdout.readline() if process.stdout else ""
        (address,) = re.findall(r"http://[^ /]+:[0-9]+", line)
        yield Contender(name, address)
    finally:
        process.kill()
        process.wait()


def ask(address: str, prompt: str, tokens: int, end_id: int) -> int:
    """Return how many tokens were written."""
    body: dict[str, Any] = {"model": "m", "prompt": prompt, "max_tokens": tokens, "temperature": 0}
    body |= {"logit_bias": {str(end_id): -100}}
    request = urllib.request.Request(
        f"{address}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.load(answer)["usage"]["completion_tokens"]


def measure(contender: Contender, clients: int, requests: int, tokens: int, end_id: int, seed: int) -> float:
    """Return the tokens a second of a round in which every client sends so many requests."""
    chance = random.Random(seed)
    prompts = [" ".join(chance.choices(WORDS, k=48)) for _ in range(clients * requests)]

    def run(client: int) -> int:
        own = prompts[client::clients]
        return sum(ask(contender.address, prompt, tokens, end_id) for prompt in own)

    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        total = sum(pool.map(run, range(clients)))
    assert total == clients * requests * tokens, (contender.name, total)
    return total / (time.perf_counter() - began)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("model", type=Path, help="a GGUF file of a language model")
    parser.add_argument("--weights", nargs="+", default=["int8", "bfloat16"], help="formats of anyformer")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--end-id", type=int, default=2, help="the token that ends a text")
    options = parser.parse_args()
    path, threads = str(options.model), str(options.threads)
    commands = {"llama.cpp": [sys.executable, "-c", LLAMA_CPP, path, threads, "32", "256"]}
    for weights in options.weights:
        flags = ["--weights", weights, "--port", "0", "--max-concurrent", "32"]
        commands[f"anyformer {weights}"] = [sys.executable, "-m", "anyformer", "serve", f"m={path}", *flags]
    os.environ["OMP_NUM_THREADS"] = threads
    with ExitStack() as stack:
        contenders = [stack.enter_context(start(command, name)) for name, command in commands.items()]
        for number in range(-1, options.rounds):  # the first round warms up
            for clients, contender in product(options.clients, contenders):
                rate = measure(contender, clients, 2 if clients == 1 else 1, options.tokens, options.end_id, number)
                print(f"round {number}, {clients} clients, {contender.name}: {rate:.0f}", file=sys.stderr)
                if number >= 0:
                    contender.rates.setdefault(clients, []).append(rate)
    medians = {c.name: {n: statistics.median(rates) for n, rates in c.rates.items()} for c in contenders}
    if options.json:
        print(json.dumps({"median": medians, "rounds": {c.name: c.rates for c in contenders}}))
        return
    print("new tokens a second, median of rounds (lowest to highest)")
    for contender in contenders:
        cells = [
            f"{n} clients {medians[contender.name][n]:.0f} ({min(r):.0f} to {max(r):.0f})"
            for n, r in contender.rates.items()
        ]
        print(f"{contender.name:<20}" + ", ".join(cells))


if __name__ == "__main__":
    main()
