"""Tokens per second out of shards, from a cold and a warm cache, beside what training the `nanogpt-gpu` preset eats.

    python -m bench.data.shards
    python -m bench.data.shards --shards 4 --shard-tokens 1000000 --train-steps 0

Random ids, an epoch of the training batches of `nanogpt-gpu` (context 256, 64 rows). Cold: an empty cache, the shards
come from an HTTP server on this machine (another process), each is fetched, verified and mapped. Warm: a new process
could not do better: they are in the cache, and are verified again. The same tokens in one file (`tokens.bin`) are
measured beside. Training is one process on the CPU with 4 rows a batch; --train-tokens-per-second replaces it by the
speed of a GPU.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench._common import make_parser

AIM = 10  # times what training eats
VOCAB_SIZE, CONTEXT, BATCH = 50_257, 256, 64


def write_corpus(folder: Path, n_shards: int, shard_tokens: int) -> np.ndarray:
    """Write random ids as shards. Returns them as one file, mapped into memory."""
    from anyformer.data.text.shard_writer import ShardWriter
    from anyformer.data.tokenizers.base import ids_json
    from anyformer.data.tokenizers.build import Subwords

    writer, rng = (
        ShardWriter(str(folder), lambda: Subwords(ids_json(VOCAB_SIZE)), shard_tokens),
        np.random.default_rng(0),
    )
    path = folder.with_suffix(".bin")
    with open(path, "wb") as file:
        for _ in range(n_shards):
            content = rng.integers(0, VOCAB_SIZE, shard_tokens, np.uint16).tobytes()
            file.write(content)
            writer.write(content)
    writer.finish(n_shards * shard_tokens, 1)
    return np.asarray(np.memmap(path, np.uint16, "r"))


def measure_epoch(tokens: object, n_tokens: int) -> float:
    """Return the tokens per second of the batches of an epoch."""
    from anyformer.data.text.batches import train_windows

    steps, start = n_tokens // (BATCH * CONTEXT), time.perf_counter()
    for step in range(steps):
        train_windows(tokens, CONTEXT, BATCH, 0, step)
    return steps * BATCH * CONTEXT / (time.perf_counter() - start)


def measure_loader(folder: Path, n_shards: int, shard_tokens: int, port: int) -> dict[str, float]:
    from anyformer.data.text.shards import open_shards

    rates, n_tokens = {}, n_shards * shard_tokens
    rates["one file"] = measure_epoch(write_corpus(folder / "corpus", n_shards, shard_tokens), n_tokens)
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(folder)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        time.sleep(2)
        os.environ["ANYFORMER_CACHE"] = str(folder / "cache")
        for name in ("shards, cold cache", "shards, warm cache"):
            rates[name] = measure_epoch(open_shards(f"http://127.0.0.1:{port}/corpus", "char")[0], n_tokens)
    finally:
        server.terminate()
        server.wait()
    rates["shards, local folder"] = measure_epoch(open_shards(str(folder / "corpus"), "char")[0], n_tokens)
    return rates


def measure_training(steps: int) -> float:
    """Return the tokens per second of training the preset, of the fastest update but the first."""
    from anyformer import recipe_loading
    from anyformer.recipes import language
    from anyformer.training import loop

    config, module = language.PRESETS["nanogpt-gpu"], recipe_loading.load_recipe("language")
    train = replace(config.train, steps=steps + 1, eval_every=1 << 30, batch=4, device="cpu", compile=False)
    times = [time.perf_counter()]
    for record in loop.train(module, replace(config, data="plays", train=train)):
        times.append(time.perf_counter())
        if record["step"] == steps:  # the last one would validate
            break
    return 4 * CONTEXT / min(np.diff(times)[1:])


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--shard-tokens", type=int, default=8_000_000)
    parser.add_argument("--train-steps", type=int, default=4, help="0: training is not measured")
    parser.add_argument("--train-tokens-per-second", type=float, default=0.0)
    parser.add_argument("--port", type=int, default=18_733)
    args = parser.parse_args()
    eaten = args.train_tokens_per_second or (measure_training(args.train_steps) if args.train_steps else 0.0)
    with tempfile.TemporaryDirectory() as folder:
        rates = measure_loader(Path(folder), args.shards, args.shard_tokens, args.port)
    if args.json:
        print(json.dumps({"tokens_per_second": rates, "training": eaten}))
    else:
        print(f"{args.shards} shards of {args.shard_tokens:,} tokens; training eats {eaten:,.0f} tokens/s")
        for name, rate in rates.items():
            print(f"{name:<22} {rate / 1e6:7.1f} M tokens/s" + (f"  x {rate / eaten:,.0f}" if eaten else ""))
    return int(min(rates.values()) < AIM * eaten)


if __name__ == "__main__":
    sys.exit(main())
