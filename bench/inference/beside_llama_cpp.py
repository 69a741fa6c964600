"""Answers on a CPU beside llama.cpp (xllamacpp) from the same weights, by CPU time and by wall time.

    python -m bench.inference.beside_llama_cpp MODEL      needs xllamacpp: pip install -e '.[test]'

MODEL is a GGUF file, a folder or a run of a language model; --shape replaces it by random weights of another shape with
its vocabulary, and --peers adds other libraries. The files for llama.cpp are written by our own
`export --to gguf --quantize`; with --files FOLDER they are kept for the next time. Both sides continue the same prompts
greedily to a fixed length, in this process and in turns, so that load on the machine affects all; every round has
prompts of its own. Reading a prompt and writing are measured apart: ours by the first token, llama.cpp's by a request
of one token, whose keys and values the next request finds in its cache. CPU seconds are those of all threads of the
process; llama.cpp's threads wait for each other busily, so that with several threads the wall time counts.

The floor is the memory: a step of writing reads every weight once, at any batch size. `floor` is what reading alone
would allow, by the bytes that a CPU second reads in this run; `share` is the fraction of it that is reached. `same`
counts the first tokens that agree with those of the first contender.
"""

import argparse
import json
import math
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import xllamacpp

from anyformer import api
from anyformer.inference.decode import generate
from anyformer.inference.sampling import SamplingParams
from anyformer.labs.benchmark import count_linear_bytes, load_documentation
from anyformer.report.doctor import processor_name
from bench._common import make_parser
from bench.inference._peers import (
    PEERS,
    SHAPES,
    Rows,
    Times,
    load_peer,
    now,
    subtract,
    time_apart,
    write_random_model,
)

OURS, LLAMA_CPP = ("float32", "bfloat16", "int8", "int4"), ("f32", "bf16", "q8_0", "q4_0")


@dataclass
class Contender:
    name: str
    weight_bytes: int
    """That a step reads."""
    generate_rows: Callable[[Rows, int], tuple[Rows, Times, Times]]
    """Prompts, number of new tokens -> new tokens of each row, times of reading and of writing all but the first."""
    read: list[Times] = field(default_factory=list)
    write: list[Times] = field(default_factory=list)
    n_same: int = 0


def measure_reading() -> float:
    """Return the GB that a CPU second reads from memory: the sum of 256 MiB, the best of some."""
    values, times = torch.ones(1 << 26), []
    for _ in range(12):
        start = time.process_time()
        values.sum()
        times.append(time.process_time() - start)
    return values.numel() * 4 / min(times) / 1e9


def load_ours(path: Path, weights: Any) -> Contender:
    model = api.load(path, "cpu", weights=weights).module

    def generate_rows(prompts: Rows, tokens: int) -> tuple[Rows, Times, Times]:
        sampling, start = SamplingParams(temperature=0), now()
        steps = generate(model, prompts, tokens=tokens, sampling=sampling, seeds=[0] * len(prompts))
        first, middle = next(steps), now()
        rows = [list(row) for row in zip(first, *steps)]
        return rows, subtract(middle, start), subtract(now(), middle)

    return Contender(f"anyformer {weights}", count_linear_bytes(model), generate_rows)


def load_llama_cpp(path: Path, kind: str, rows: int, context: int, threads: int) -> Contender:
    import gguf

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.verbosity = str(path), rows * context, rows, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)

    def ask(row: int, prompt: list[int], tokens: int) -> list[int]:
        request = {"prompt": prompt, "n_predict": tokens, "temperature": 0, "id_slot": row, "cache_prompt": True}
        answer = server.handle_completions(request | {"ignore_eos": True, "n_probs": 1, "return_tokens": True})
        answer = json.loads(answer) if isinstance(answer, str | bytes) else answer
        ids = [token["id"] for token in answer["choices"][0]["logprobs"]["content"]]
        n_hidden = answer["usage"]["completion_tokens"] - len(ids)  # half of a character at the end
        return ids + n_hidden * [ids[-1] if ids else prompt[-1]]

    def ask_all(prompts: Rows, tokens: int) -> tuple[Rows, Times]:
        start = now()
        with ThreadPoolExecutor(len(prompts)) as pool:
            answers = list(pool.map(ask, range(len(prompts)), prompts, [tokens] * len(prompts)))
        return answers, subtract(now(), start)

    def generate_rows(prompts: Rows, tokens: int) -> tuple[Rows, Times, Times]:
        first, reading = ask_all(prompts, 1)
        further, writing = ask_all([prompt + row for prompt, row in zip(prompts, first)], tokens - 1)
        return [row + new for row, new in zip(first, further)], reading, writing

    weight_bytes = sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors)
    return Contender(f"llama.cpp {kind.upper()}", weight_bytes, generate_rows)


def load_other(name: str, folder: Path) -> Contender:
    """Load a peer of bench/inference/_peers.py, of which a step reads the bytes of the file of weights, or half."""
    share = {"float32": 1.0, "bfloat16": 0.5, "int8": 0.25}[name.split()[1]]
    weight_bytes = share * 4 * count_parameters(folder)
    return Contender(name, round(weight_bytes), partial(time_apart, load_peer(name, folder)))


def count_parameters(folder: Path) -> int:
    """Return how many numbers the weights of a folder have, by the headers of its files."""
    from safetensors import safe_open

    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return total


def write_files(model: Path, folder: Path, kinds: list[str], shape: str | None) -> dict[str, Path]:
    """Write what is not there yet. Returns {"run", "hf" or kind of GGUF: path}; all are made from the run."""
    paths = {"run": folder / "run", "hf": folder / "hf"} | {kind: folder / kind for kind in kinds}
    if not paths["run"].exists():
        api.import_checkpoint(model, paths["run"])
    if not paths["hf"].exists():
        api.export_checkpoint(paths["run"], "hf", paths["hf"])
    if shape:
        return write_files(write_shape(folder / shape, shape, paths["hf"]), folder / shape / "files", kinds, None)
    for kind in kinds:
        if not (folder / kind).exists():
            api.export_checkpoint(paths["run"], "gguf", folder / kind, quantize=None if kind == "f32" else kind)
        (paths[kind],) = (folder / kind).glob("*.gguf")
    return paths


def write_shape(folder: Path, shape: str, tokenizer: Path) -> Path:
    if not (folder / "model").exists():
        write_random_model(folder / "model", shape, tokenizer)
    return folder / "model"


def cut_prompts(ids: list[int], batch: int, length: int, seed: int) -> Rows:
    """Parts of a text, at places of their own in every round."""
    starts = random.Random(seed).sample(range(len(ids) - length), batch)
    return [ids[start : start + length] for start in starts]


def measure(contenders: list[Contender], ids: list[int], batch: int, length: int, options: argparse.Namespace) -> None:
    """Fill the times of each contender; the first round warms up and counts the equal tokens."""
    for contender in contenders:
        contender.read, contender.write = [], []
    for number in range(options.rounds + 1):
        prompts, expected = cut_prompts(ids, batch, length, number), None
        for contender in contenders:
            rows, reading, writing = contender.generate_rows(prompts, options.new)
            assert [len(row) for row in rows] == [options.new] * batch, contender.name
            expected = expected or rows[0]
            if number:
                contender.read.append(reading)
                contender.write.append(writing)
            else:
                pairs = enumerate(zip(expected, rows[0]))
                contender.n_same = next((i for i, (a, b) in pairs if a != b), options.new)


def summarize(contenders: list[Contender], batch: int, length: int, new: int, ceiling: float) -> dict[str, Any]:
    """Return {name: tokens a second of the median round, read and written, by CPU and by wall time}."""
    table: dict[str, Any] = {}
    for c in contenders:
        row = {}
        for i, clock in enumerate(("cpu", "wall")):
            row[f"read_{clock}"] = batch * length / statistics.median(times[i] for times in c.read)
            row[f"written_{clock}"] = batch * (new - 1) / statistics.median(times[i] for times in c.write)
        row["floor"] = batch * ceiling * 1e9 / c.weight_bytes
        row["share"] = row["written_cpu"] / row["floor"]
        table[c.name] = row | {"mb_a_step": round(c.weight_bytes / 1e6), "same": c.n_same}
    return table


def show(table: dict[str, Any], stream: Any) -> None:
    heads = ["MB a step", "read/CPU s", "written/CPU s", "read/s", "written/s", "floor/CPU s", "share", "same"]
    print(f"{'':<22}" + "".join(f"{head:>15}" for head in heads), file=stream)
    for name, row in table.items():
        speeds = [row[key] for key in ("read_cpu", "written_cpu", "read_wall", "written_wall", "floor")]
        cells = [f"{row['mb_a_step']}", *(f"{speed:.1f}" for speed in speeds), f"{row['share']:.0%}", f"{row['same']}"]
        print(f"{name:<22}" + "".join(f"{cell:>15}" for cell in cells), file=stream, flush=True)


def main(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    stream, ceiling = sys.stderr if options.json else sys.stdout, measure_reading()
    print(f"{processor_name()}, {torch.backends.cpu.get_cpu_capability()}, {platform.machine()}", file=stream)
    print(f"{options.threads} threads; a CPU second reads {ceiling:.1f} GB", file=stream, flush=True)
    results = []
    with TemporaryDirectory() as temporary:
        paths = write_files(options.model, options.files or Path(temporary), options.kinds, options.shape)
        context = max(options.prompts) + options.new + 1
        contenders = [
            load_llama_cpp(paths[kind], kind, max(options.batches), context, options.threads) for kind in options.kinds
        ]
        contenders += [load_other(name, paths["hf"]) for name in options.peers]
        contenders += [load_ours(paths["run"], weights) for weights in options.weights]
        text = load_documentation()[:200_000]
        ids = [int(i) for i in api.load(paths["run"], "cpu").module.tokenizer.encode(text)]
        for length in options.prompts:
            for batch in options.batches if length == min(options.prompts) else [1]:
                measure(contenders, ids, batch, length, options)
                table = summarize(contenders, batch, length, options.new, ceiling)
                print(f"\nbatch {batch}, prompts of {length} tokens, {options.new} new ones", file=stream)
                show(table, stream)
                results.append({"batch": batch, "prompt": length, "contenders": table})
    if options.json:
        print(json.dumps({"threads": options.threads, "read_gb_per_cpu_s": ceiling, "results": results}))


if __name__ == "__main__":
    parser = make_parser(__doc__)
    parser.add_argument("model", type=Path, help="a GGUF file or a folder")
    parser.add_argument("--files", type=Path, help="where to keep the converted files")
    parser.add_argument("--weights", nargs="*", default=list(OURS), choices=OURS, help="formats of anyformer")
    parser.add_argument("--kinds", nargs="*", default=list(LLAMA_CPP), choices=LLAMA_CPP, help="formats of llama.cpp")
    parser.add_argument("--peers", nargs="*", default=[], choices=PEERS, help="other libraries")
    parser.add_argument("--shape", choices=SHAPES, help="random weights of this shape in place of the model's")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="long prompts: 1 only")
    parser.add_argument("--prompts", type=int, nargs="+", default=[32, 1000], help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=48, help="tokens that are written")
    parser.add_argument("--rounds", type=int, default=3)
    main(parser.parse_args())
