"""Time and memory of turning a large text into tokens; BPE is compared with `tokenizers` and `tiktoken`.

    python -m bench.data.text_to_tokens
    python -m bench.data.text_to_tokens --bpe-gigabytes 0.05 --tokenizers bpe --rounds 3

The text repeats --text FILE, or random words. Each case runs in a new process, so that its peak resident memory is its
own. Rates are in MB/s of text (10^6 bytes) and cover hashing, vocabulary or BPE training, encoding and writing. For
BPE, `encode` covers the encoding alone, as the figures of the libraries do: they read the same file and encode it in
batches on all cores with the same vocabulary, and write nothing.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""  # GPT-2's pattern
MAX_MEGABYTES = 600  # of resident memory, for 2 GB of text


def write_text(path: Path, size: int, source: Path | None) -> None:
    """Write a file of `size` bytes in blocks of about 2 MB, each with a line of its own so that no two are equal."""
    block = source.read_bytes()[: 2 << 20] if source else random_words(2 << 20)
    with open(path, "wb") as file:
        number = 0
        while (remaining := size - file.tell()) > 0:
            piece = block + b"\nblock %d\n" % (number := number + 1)
            if len(piece) > remaining:
                piece = piece[:remaining].decode("utf-8", "ignore").encode().ljust(remaining)
            file.write(piece)


def random_words(size: int) -> bytes:
    """Return random words with the frequencies of natural text (Zipf), 12 a line."""
    rng = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    words = ["".join(rng.choices(letters, range(26, 0, -1), k=rng.randint(2, 9))) for _ in range(20_000)]
    frequencies = list(accumulate(1 / (i + 1) for i in range(len(words))))
    lines = (" ".join(rng.choices(words, cum_weights=frequencies, k=12)) + ".\n" for _ in range(size // 60))
    return "".join(lines).encode()[:size]


def peak_megabytes() -> float:
    """Return the peak resident memory of this process in MB."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def measure_anyformer(path: Path, spec: str) -> dict:
    """Time `prepare_corpus` with an empty cache: seconds in all and of each stage, MB, and counts."""
    from anyformer.data.text.prepare import prepare_corpus
    from anyformer.events import listen

    stages: dict[str, float] = {}
    last = ["checking", time.perf_counter()]

    def progress(what: str, done: int, total: int) -> None:
        now = time.perf_counter()
        stages[what] = stages.get(what, 0) + now - last[1]
        last[:] = [what, now]

    before, start = peak_megabytes(), time.perf_counter()
    with listen(progress):
        corpus = prepare_corpus(str(path), spec, vocab_size=1024)
    seconds = time.perf_counter() - start
    result = {"seconds": seconds, "stages": stages, "peak_mb": peak_megabytes(), "imports_mb": before}
    tokenizer = next(Path(os.environ["ANYFORMER_CACHE"]).rglob("tokenizer.json"))
    return result | {"n_tokens": len(corpus.tokens), "tokenizer": str(tokenizer)}


def measure_tokenizers(path: Path, tokenizer: str) -> dict:
    """Time the library's encode_batch on the same bytes: texts of about 64 KiB of complete lines, 4 MiB a batch."""
    import tokenizers

    encoder = tokenizers.Tokenizer.from_file(tokenizer)
    n_tokens, start = 0, time.perf_counter()
    for batch in _line_batches(path):
        n_tokens += sum(len(e.ids) for e in encoder.encode_batch(batch, add_special_tokens=False))
    return {"seconds": time.perf_counter() - start, "peak_mb": peak_megabytes(), "n_tokens": n_tokens}


def measure_tiktoken(path: Path, tokenizer: str) -> dict:
    """Time tiktoken's encode_ordinary_batch with GPT-2's pattern and our vocabulary as its ranks."""
    import tiktoken

    from anyformer.data.tokenizers.base import byte_alphabet

    byte_of = {letter: i for i, letter in enumerate(byte_alphabet())}
    vocab = json.loads(Path(tokenizer).read_text())["model"]["vocab"]
    # 0 is the end-of-text token
    ranks = {bytes(byte_of[letter] for letter in word): i - 1 for word, i in vocab.items() if i}
    encoder = tiktoken.Encoding("ours", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
    n_tokens, start = 0, time.perf_counter()
    for batch in _line_batches(path):
        n_tokens += sum(map(len, encoder.encode_ordinary_batch(batch, num_threads=os.cpu_count() or 1)))
    return {"seconds": time.perf_counter() - start, "peak_mb": peak_megabytes(), "n_tokens": n_tokens}


def _line_batches(path: Path) -> Iterator[list[str]]:
    with open(path, encoding="utf-8", newline="") as file:
        while batch := ["".join(lines) for _ in range(64) if (lines := file.readlines(64 << 10))]:
            yield batch


def run_child(case: str, path: Path, detail: str, cache: Path) -> dict:
    """Run a case in a new process and return its report."""
    command = [sys.executable, __file__, "--child", case, str(path), detail]
    environment = os.environ | {"ANYFORMER_CACHE": str(cache)}
    return json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout)


def measure(folder: Path, spec: str, gigabytes: float, source: Path | None, rounds: int) -> dict:
    """Measure a tokenizer on a text of this size."""
    path, size = folder / "text.txt", int(gigabytes * 1e9)
    write_text(path, size, source)
    result = run_child("ours", path, spec, folder / "cache-0")
    result |= {"case": spec, "gigabytes": gigabytes, "mb_per_s": size / 1e6 / result["seconds"]}
    if spec == "bpe":
        encode_seconds, libraries = [result["stages"]["encoding"]], {"tokenizers": [], "tiktoken": []}
        for i in range(1, rounds + 1):  # in turn, so that load on the machine affects all
            for library, results in libraries.items():
                results.append(run_child(library, path, result["tokenizer"], folder))
            if i < rounds:
                encode_seconds.append(run_child("ours", path, spec, folder / f"cache-{i}")["stages"]["encoding"])
        result["encode_mb_per_s"] = size / 1e6 / min(encode_seconds)
        for library, results in libraries.items():
            best = min(results, key=lambda r: r["seconds"])
            rate = {"mb_per_s": size / 1e6 / best["seconds"], "ratio": best["seconds"] / min(encode_seconds)}
            result[library] = rate | {"n_tokens": best["n_tokens"], "peak_mb": best["peak_mb"]}
    del result["tokenizer"]
    return result


def main() -> int:
    """Measure, print, and return 1 if the memory limit is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2)
    parser.add_argument("--bpe-gigabytes", type=float, default=0.05)
    parser.add_argument("--tokenizers", default="char,byte,bpe")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--rounds", type=int, default=3, help="repetitions for BPE; the best counts")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        case, path, detail = args.child
        cases = {"ours": measure_anyformer, "tokenizers": measure_tokenizers, "tiktoken": measure_tiktoken}
        print(json.dumps(cases[case](Path(path), detail)))
        return 0
    results = []
    for spec in args.tokenizers.split(","):
        with tempfile.TemporaryDirectory() as folder:
            size = args.bpe_gigabytes if spec == "bpe" else args.gigabytes
            results.append(measure(Path(folder), spec, size, args.text, args.rounds))
    print(json.dumps(results) if args.json else "\n".join(map(format_result, results)))
    return int(any(r["peak_mb"] > MAX_MEGABYTES for r in results))


def format_result(r: dict) -> str:
    text = f"{r['case']}: {r['gigabytes']} GB, {r['mb_per_s']:.1f} MB/s, "
    text += f"peak {r['peak_mb']:.0f} MB (limit {MAX_MEGABYTES})"
    if "tokenizers" in r:
        text += f"; encoding {r['encode_mb_per_s']:.1f} MB/s"
        for name, library in ((name, r[name]) for name in ("tokenizers", "tiktoken")):
            text += f", {name} {library['mb_per_s']:.1f} MB/s (anyformer is {library['ratio']:.2f} times as fast)"
    return text


if __name__ == "__main__":
    sys.exit(main())
