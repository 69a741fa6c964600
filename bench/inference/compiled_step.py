"""A step of writing as torch's compiler makes it (Inductor, C++), beside the same step without it, in turns.

    python -m bench.inference.compiled_step MODEL

MODEL is a run, a folder or a GGUF file of a language model. One row, one thread, float32 weights as they are stored:
what differs is how the operations between the matrix products are run. Printed are the seconds that compiling takes,
the CPU milliseconds of a step after a prompt, and whether both choose the same tokens.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from anyformer import api
from anyformer.inference.decode import new_cache, step
from anyformer.inference.prompt_reading import prefill
from anyformer.labs.benchmark import load_documentation
from anyformer.report.doctor import processor_name
from bench._common import make_parser


def write_tokens(model: Any, prompt: list[int], tokens: int, run_step: Callable[..., Any]) -> tuple[list[int], float]:
    """Return the tokens, greedily, and the median CPU milliseconds of a step."""
    cache, chosen, times = new_cache(model, 1, len(prompt) + tokens), [], []
    logits = prefill(model, [prompt], cache)
    for _ in range(tokens):
        chosen.append(int(logits.argmax()))
        start = time.process_time()
        logits = run_step(model, torch.tensor(chosen[-1:]), cache)
        times.append(1000 * (time.process_time() - start))
    return chosen, statistics.median(times)


@torch.inference_mode()
def main(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    model = api.load(options.model, "cpu").module
    ids = [int(i) for i in model.tokenizer.encode(load_documentation()[:20_000])]
    compiled = torch.compile(step, dynamic=True)
    start = time.perf_counter()
    write_tokens(model, ids[: options.prompt], 3, compiled)
    seconds = time.perf_counter() - start
    rows: dict[str, list[float]] = {"plain": [], "compiled": []}
    n_same = 0
    for turn in range(options.rounds):
        prompt = ids[turn * options.prompt : (turn + 1) * options.prompt]
        plain, milliseconds = write_tokens(model, prompt, options.new, step)
        rows["plain"].append(milliseconds)
        other, milliseconds = write_tokens(model, prompt, options.new, compiled)
        rows["compiled"].append(milliseconds)
        n_same += plain == other
    result = {name: round(statistics.median(times), 2) for name, times in rows.items()}
    result |= {"compiling_seconds": round(seconds, 1), "rounds_with_equal_tokens": f"{n_same}/{options.rounds}"}
    print(json.dumps(result) if options.json else f"{processor_name()}: CPU ms a step {result}")


if __name__ == "__main__":
    parser = make_parser(__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--new", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    main(parser.parse_args())
