"""The prefix cache: CPU time to the first token of a prompt that begins as an earlier one, with the cache and without.

    python -m bench.inference.shared_prefix SmolLM2-135M-Instruct.Q4_1.gguf

Every round has a beginning of its own, which a first prompt brings into the cache; the second prompt has another end
of --end tokens. Then a chat of --turns, whose history is the beginning of each next prompt: the CPU time of all first
tokens but the first one's. Last the first tokens of --samples of one prompt, which is read once or in each row. Both
sides in turns, in one process; the median of --rounds.
"""

import json
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from anyformer import api
from anyformer.inference import prompt_reading
from anyformer.inference.batching import Batcher, Piece
from anyformer.inference.completion import CompletionRequest
from bench._common import generate_greedy, make_parser

SIDES = {"without": 0, "with": None}  # bytes of the cache; None: the default


def answer(batcher: Batcher, ids: list[int], tokens: int) -> tuple[float, list[int]]:
    """Return the CPU seconds to the first token, and the tokens."""
    seconds: list[float] = []
    new: list[int] = []
    is_over = threading.Event()

    def add(piece: Piece) -> None:
        seconds.append(time.process_time() - start)
        new.extend(piece.tokens)

    start = time.process_time()
    request = CompletionRequest(prompt=[ids], tokens=tokens, temperature=0.0)
    batcher.submit(request, add, lambda error: is_over.set())
    is_over.wait()
    return seconds[0], new


def time_second_prompt(batcher: Batcher, first: list[int], second: list[int]) -> tuple[float, list[int]]:
    answer(batcher, first, 1)
    return answer(batcher, second, 8)


def time_chat(batcher: Batcher, messages: list[list[int]]) -> tuple[float, list[int]]:
    """Return the CPU seconds to the first tokens of all turns but the first, and what was answered."""
    history, total, answers = [], 0.0, []
    for turn, message in enumerate(messages):
        history += message
        seconds, new = answer(batcher, history, 24)
        history, answers = history + new, answers + new
        total += seconds if turn else 0.0
    return total, answers


def time_samples(decoder: Any, ids: list[int], samples: int, min_shared: int) -> tuple[float, list[list[int]]]:
    """Return the CPU seconds to the first tokens of all samples, and eight tokens of each."""
    with patch.object(prompt_reading, "MIN_SHARED", min_shared):
        start = time.process_time()
        generate_greedy(decoder, [ids] * samples, 1)
        return time.process_time() - start, generate_greedy(decoder, [ids] * samples, 8)


def measure(sides: dict[str, Any], time_case: Any, inputs: list[tuple]) -> dict[str, Any]:
    """Return the median of each side, and whether both have given the same tokens."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    is_same = True
    for arguments in inputs:
        tokens = []
        for name, side in sides.items():
            value, new = time_case(side, *arguments)
            seconds[name].append(value)
            tokens.append(new)
        is_same = is_same and tokens[0] == tokens[1]
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return medians | {"ratio": medians["without"] / medians["with"], "same_tokens": is_same}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--weights", default="float32")
    parser.add_argument("--shared", type=int, nargs="+", default=[200, 500])
    parser.add_argument("--end", type=int, default=20)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    model = api.load(options.model, "cpu", weights=options.weights)
    decoder: Any = model.module
    batchers = {name: Batcher(decoder, prefix_bytes=size) for name, size in SIDES.items()}
    text = Path(__file__).with_name("speculative.py").read_text() + Path(__file__).read_text()
    source, random = decoder.tokenizer.encode(text).tolist(), np.random.default_rng(0)

    def draw(n: int) -> list[int]:
        start = int(random.integers(len(source) - n))
        return source[start : start + n]

    time_second_prompt(batchers["without"], draw(50), draw(50))  # the first forward is slower
    results = {}
    for n in options.shared:
        stems = [draw(n) for _ in range(options.rounds)]
        inputs = [(stem + draw(options.end), stem + draw(options.end)) for stem in stems]
        results[f"{n} shared tokens"] = measure(batchers, time_second_prompt, inputs)
    chats = [([draw(60) for _ in range(options.turns)],) for _ in range(options.rounds)]
    results[f"chat of {options.turns} turns"] = measure(batchers, time_chat, chats)
    for batcher in batchers.values():
        batcher.close()
    shared = {"without": sys.maxsize, "with": prompt_reading.MIN_SHARED}
    prompts = [(draw(max(options.shared)), options.samples) for _ in range(options.rounds)]
    results[f"{options.samples} samples of {max(options.shared)} tokens"] = measure(
        shared, lambda least, ids, samples: time_samples(decoder, ids, samples, least), prompts
    )
    if options.json:
        print(json.dumps(results))
        return
    for name, row in results.items():
        same = "the same tokens" if row["same_tokens"] else "other tokens"
        sides = ", ".join(f"{side} {row[side]:.3f} s" for side in SIDES)
        print(f"{name}: CPU time to the first token {sides}: {row['ratio']:.1f} times less, {same}")


if __name__ == "__main__":
    main()
