"""Generate with a model of GPT-2's 124M shape on a CPU: transformers, CTranslate2 and ours, the very same weights.

    python bench/answering.py             # needs the packages transformers and ctranslate2 (pip install -e '.[bench]')

A prompt of 32 tokens, 128 new ones, always the likeliest; float32 must agree on every token before anything is timed.
The floor is what reading all weights once a step would take at the memory's measured speed.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ctranslate2
import torch
import transformers

from anyformer import api
from anyformer.generate.decode import generate
from anyformer.generate.sampling import Rules
from anyformer.training.ceilings import read_speed

PROMPT, NEW = 32, 128
BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}
Say = Callable[[list[list[int]], int], list[list[int]]]


def write_checkpoint(folder: Path) -> int:
    """GPT-2's shape with random weights, sharper than at birth so that the likeliest token is clear. Returns how many
    weights are read for each token."""
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


def by_transformers(folder: Path, dtype: torch.dtype) -> Say:
    model = transformers.GPT2LMHeadModel.from_pretrained(folder, dtype=dtype).eval()

    def say(prompts: list[list[int]], tokens: int) -> list[list[int]]:
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            more = {"attention_mask": torch.ones_like(ids), "do_sample": False, "min_new_tokens": tokens}
            return model.generate(ids, max_new_tokens=tokens, pad_token_id=0, **more)[:, ids.shape[1] :].tolist()

    return say


def by_ctranslate2(folder: Path, weights: str) -> Say:
    out = folder / f"ctranslate2-{weights}"
    ctranslate2.converters.TransformersConverter(str(folder)).convert(str(out), quantization=weights)
    threads = torch.get_num_threads()
    model = ctranslate2.Generator(str(out), device="cpu", compute_type=weights, intra_threads=threads)

    def say(prompts: list[list[int]], tokens: int) -> list[list[int]]:
        words = [[f"t{i}" for i in prompt] for prompt in prompts]
        length = {"max_length": tokens, "min_length": tokens, "include_prompt_in_result": False, "end_token": []}
        return [one.sequences_ids[0] for one in model.generate_batch(words, max_batch_size=len(words), **length)]

    return say


def by_us(folder: Path, weights: Any) -> Say:
    model: Any = api.load(folder, "cpu", weights=weights).module

    def say(prompts: list[list[int]], tokens: int) -> list[list[int]]:
        rounds = generate(model, prompts, tokens=tokens, rules=Rules(temperature=0), seeds=[0] * len(prompts))
        return [list(row) for row in zip(*rounds)]

    return say


def speed(say: Say, batch: int, rounds: int) -> float:
    """Tokens a second, the median of some rounds; the prompt is part of the time."""
    torch.manual_seed(1)
    prompts = torch.randint(1, 50000, (batch, PROMPT)).tolist()
    say(prompts, 4)
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        said = say(prompts, NEW)
        times.append(time.perf_counter() - began)
        assert [len(row) for row in said] == [NEW] * batch
    return batch * NEW / statistics.median(times)


def main(batches: list[int], rounds: int, as_json: bool) -> None:
    found: dict[str, Any] = {"threads": torch.get_num_threads(), "read_gb_per_s": read_speed("cpu")}
    with TemporaryDirectory() as name:
        folder = Path(name)
        size = write_checkpoint(folder)
        prompts = [list(range(10, 10 + PROMPT))]
        wanted = by_transformers(folder, torch.float32)(prompts, 32)
        assert by_us(folder, "float32")(prompts, 32) == wanted, "the two do not say the same"
        makers: dict[str, Callable[[], Say]] = {
            "transformers float32": lambda: by_transformers(folder, torch.float32),
            "transformers bfloat16": lambda: by_transformers(folder, torch.bfloat16),
            "CTranslate2 float32": lambda: by_ctranslate2(folder, "float32"),
            "CTranslate2 int8": lambda: by_ctranslate2(folder, "int8"),
        }
        makers |= {f"anyformer {w}": (lambda w=w: by_us(folder, w)) for w in BYTES}
        for side, make in makers.items():
            say = make()
            found[side] = {batch: round(speed(say, batch, rounds), 1) for batch in batches}
            floor = found["read_gb_per_s"] * 1e9 / (size * BYTES[side.split()[1]])
            found[side]["floor, batch 1"] = round(floor, 1)
            if not as_json:
                shares = "   ".join(f"batch {batch} {found[side][batch]:8.1f}" for batch in batches)
                print(f"{side:<24} tok/s  {shares}   floor at batch 1 {floor:6.1f}", flush=True)
    if as_json:
        print(json.dumps(found))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    asked = parser.parse_args()
    main(asked.batches, asked.rounds, asked.json)
