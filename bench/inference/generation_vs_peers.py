"""Generation with GPT-2's 124M shape on a CPU: transformers, CTranslate2, onnxruntime and anyformer.

    python -m bench.inference.generation_vs_peers      needs transformers and ctranslate2: pip install -e '.[bench]'

All have the same weights; onnxruntime runs the graph with keys and values that `export --to onnx --cache` writes.
All decode greedily; in float32 anyformer must agree with transformers on every token before anything is timed. Prefill
and decoding are separated: generating one token is prefill, and the additional time of further tokens is decoding. The
libraries are measured in turns, so that load on the machine affects all. The ceiling is the memory bandwidth: a
decoding step reads every weight once, at any batch size, and `share` is the fraction of that limit.
"""

import argparse
import json
import statistics
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ctranslate2
import torch
import transformers

from anyformer import api
from anyformer.training.hardware import measure_read_bandwidth
from bench._common import generate_greedy, make_parser
from bench.inference._peers import PEERS, Generate, load_peer

BYTES_PER_WEIGHT = {"float32": 4, "bfloat16": 2, "int8": 1}


@dataclass
class Contender:
    """A library with a weight format, and the seconds of its rounds."""

    name: str
    generate_rows: Generate
    prefill_seconds: list[float] = field(default_factory=list)
    decode_seconds: list[float] = field(default_factory=list)

    def measure_round(self, prompts: list[list[int]], new_tokens: int) -> None:
        prefill, total = (time_generation(self.generate_rows, prompts, tokens) for tokens in (1, new_tokens))
        self.prefill_seconds.append(prefill)
        self.decode_seconds.append(total - prefill)


def write_checkpoint(folder: Path) -> int:
    """Write random weights of GPT-2's shape, larger than at initialization so that the largest logit is clear.

    Returns:
        The number of weights that are read for each token.
    """
    torch.manual_seed(0)
    config = transformers.GPT2Config(bos_token_id=0, eos_token_id=0)
    model = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3) if parameter.ndim > 1 else None
    model.save_pretrained(folder)
    words = {"<|endoftext|>": 0} | {f"t{i}": i for i in range(1, config.vocab_size)}
    (folder / "vocab.json").write_text(json.dumps(words))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    transformers.GPT2Tokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    return sum(p.numel() for name, p in model.named_parameters() if p.ndim > 1 and "wpe" not in name)


def load_anyformer(folder: Path, weights: Any) -> Generate:
    return partial(generate_greedy, api.load(folder, "cpu", weights=weights).module)


def time_generation(generate_rows: Generate, prompts: list[list[int]], new_tokens: int) -> float:
    start = time.perf_counter()
    rows = generate_rows(prompts, new_tokens)
    seconds = time.perf_counter() - start
    assert [len(row) for row in rows] == [new_tokens] * len(prompts)
    return seconds


def load_contenders(folder: Path) -> list[Contender]:
    """Load all contenders from the same weights. Raises AssertionError if anyformer and transformers disagree."""
    supported = ctranslate2.get_supported_compute_types("cpu")
    names = [name for name in PEERS if not name.startswith("CTranslate2") or name.split()[1] in supported]
    generators = {name: load_peer(name, folder) for name in names}
    generators |= {f"anyformer {w}": load_anyformer(folder, w) for w in BYTES_PER_WEIGHT}
    prompts = [list(range(10, 42))]
    expected = generators["transformers float32"](prompts, 32)
    assert generators["anyformer float32"](prompts, 32) == expected, "the two disagree"
    return [Contender(name, generate_rows) for name, generate_rows in generators.items()]


def measure(contenders: list[Contender], batch: int, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return the median tokens per second of each contender in prefill ("read") and decoding ("written")."""
    torch.manual_seed(1)
    prompts = torch.randint(1, 50000, (batch, options.prompt)).tolist()
    for contender in contenders:
        contender.generate_rows(prompts, 4)
        contender.prefill_seconds, contender.decode_seconds = [], []
    for _ in range(options.rounds):
        for contender in contenders:
            contender.measure_round(prompts, options.new)
    return {
        contender.name: {
            "read": batch * options.prompt / statistics.median(contender.prefill_seconds),
            "written": batch * (options.new - 1) / statistics.median(contender.decode_seconds),
        }
        for contender in contenders
    }


def format_comparison(results: dict[str, dict[str, float]], batch: int, weights: int, ceiling: float) -> str:
    """Format the speeds, shares of the ceiling and ratios to the fastest peer; adds the latter two to `results`."""
    peers = [name for name in results if not name.startswith("anyformer")]
    best = max(peers, key=lambda name: results[name]["written"])
    lines = [f"\n{f'batch {batch}':<24}{'read':>8}{'written':>10} tok/s{'share':>9}   ratio to {best}"]
    for name, row in results.items():
        row["share"] = row["written"] / batch * weights * BYTES_PER_WEIGHT[name.split()[1]] / (ceiling * 1e9)
        row["beside the best peer"] = row["written"] / results[best]["written"]
        ratio = "" if name in peers else f"{row['beside the best peer']:.2f}"
        lines.append(f"{name:<24}{row['read']:>8.0f}{row['written']:>10.1f}{row['share']:>15.0%}   {ratio}")
    return "\n".join(lines)


def main(options: argparse.Namespace) -> None:
    ceiling, results = measure_read_bandwidth("cpu"), {}
    stream = sys.stderr if options.json else sys.stdout
    print(f"{torch.get_num_threads()} threads, memory bandwidth {ceiling} GB/s", file=stream, flush=True)
    with TemporaryDirectory() as name:
        weights = write_checkpoint(Path(name))
        contenders = load_contenders(Path(name))
        for batch in options.batches:
            results[batch] = measure(contenders, batch, options)
            print(format_comparison(results[batch], batch, weights, ceiling), file=stream, flush=True)
    if options.json:
        print(json.dumps({"threads": torch.get_num_threads(), "read_gb_per_s": ceiling, "batches": results}))


if __name__ == "__main__":
    parser = make_parser(__doc__)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompt", type=int, default=32, help="tokens of each prompt")
    parser.add_argument("--new", type=int, default=128, help="tokens that are generated")
    parser.add_argument("--rounds", type=int, default=3)
    main(parser.parse_args())
