"""Keys and values in float32, bfloat16 and int8: the memory of a token, the cost in quality, and the time of a step.

    python -m bench.inference.cache_formats SmolLM2-135M-Instruct.Q4_1.gguf

The text is Python's documentation (`pydoc_data`): --rows windows of --window tokens, read through the cache in pieces
of 128. "same token": how often the likeliest next token is that of float32. Then prompts are continued greedily, and
counted is how many tokens are the same as in float32 before the first that is not. A step is one token after --window
others, CPU time, in turns, the median of --steps.
"""

import json
import math
import statistics
import time
from pathlib import Path
from pydoc_data import topics
from typing import Any

import torch
import torch.nn.functional as F

from anyformer import api
from anyformer.inference.decode import new_cache, step
from anyformer.inference.prompt_reading import prefill
from anyformer.model.compact_cache import count_node_bytes, set_cache_format
from bench._common import make_parser

FORMATS: tuple[Any, ...] = ("float32", "bfloat16", "int8")
PIECE = 128


@torch.inference_mode()
def read_windows(decoder: Any, windows: torch.Tensor) -> torch.Tensor:
    """The logits of all tokens of windows, read in pieces: (B, T) -> (B, T, V)"""
    cache = new_cache(decoder, *windows.shape)
    return torch.cat([decoder.head(decoder.hidden(piece, cache)) for piece in windows.split(PIECE, 1)], 1)


@torch.inference_mode()
def time_steps(decoder: Any, ids: list[int], n_steps: int) -> dict[str, float]:
    """CPU seconds of a step after these ids, of each format."""
    caches, seconds = {}, {form: list[float]() for form in FORMATS}
    for form in FORMATS:
        set_cache_format(decoder, form)
        caches[form] = new_cache(decoder, 1, len(ids) + n_steps + 1)
        prefill(decoder, [ids], caches[form])
    for _ in range(n_steps):
        for form, cache in caches.items():
            start = time.process_time()
            step(decoder, torch.tensor(ids[:1]), cache)
            seconds[form].append(time.process_time() - start)
    return {form: statistics.median(values) for form, values in seconds.items()}


def count_same(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("model", type=Path, help="a language model: a run, or a public checkpoint")
    parser.add_argument("--weights", default="float32")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--rows", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--steps", type=int, default=15)
    options = parser.parse_args()
    model = api.load(options.model, "cpu", weights=options.weights)
    decoder: Any = model.module
    text = "\n\n".join(topics.topics[name] for name in sorted(topics.topics))
    ids = decoder.tokenizer.encode(text[: 8 * options.window * options.rows]).tolist()
    windows = torch.tensor(ids[: options.rows * options.window]).view(options.rows, -1)
    prompts = [decoder.tokenizer.decode(row) for row in windows[:, :64].tolist()]
    likeliest, written, rows = torch.empty(0), [], []
    for form in FORMATS:
        set_cache_format(decoder, form)
        logits = read_windows(decoder, windows)[:, :-1].flatten(0, 1)
        loss = F.cross_entropy(logits.float(), windows[:, 1:].flatten()).item()
        samples = model.generate(prompts, tokens=options.tokens, temperature=0)["samples"]
        if form == "float32":
            likeliest, written = logits.argmax(-1), samples
        same = [count_same(a["tokens"], b["tokens"]) for a, b in zip(samples, written)]
        row = {"format": form, "bytes_a_token": count_node_bytes(decoder.body.config, form)}
        row |= {"perplexity": math.exp(loss), "same_token": (logits.argmax(-1) == likeliest).float().mean().item()}
        rows.append(row | {"same_greedy": same})
    seconds = time_steps(decoder, windows[0].tolist(), options.steps)
    rows = [row | {"step_seconds": seconds[row["format"]]} for row in rows]
    if options.json:
        print(json.dumps(rows))
        return
    for row in rows:
        rise = row["perplexity"] / rows[0]["perplexity"] - 1
        print(
            f"{row['format']:<9}{row['bytes_a_token']:>7,} bytes a token, perplexity {row['perplexity']:.3f} "
            f"({rise:+.2%}), {row['same_token']:.2%} the same token, "
            f"greedily the first {row['same_greedy']} of {options.tokens}, a step {1000 * row['step_seconds']:.1f} ms"
        )


if __name__ == "__main__":
    main()
