"""Sums: a small chat model that gets a few of them right is trained on its own answers, by whether they are right.

    python -m bench.recipes.grpo --out build/grpo          about 10 minutes of CPU

A question is a sum of two numbers from 0 to 99, 10,000 in all. The weak start is `chat` on 800 of them with their
answers, for few steps. `grpo` then reads the others without any answer being shown: the reward is 1 for the right one.
1,000 sums are in neither, and give the figures: the share of right answers, of the likeliest tokens and of samples. The
first seed chose the settings. As comparisons: the weak start trained for longer on its own 800 sums, and the best of 8
samples by the model's own likelihood, which is a reward that needs no answers.
"""

import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyformer
from anyformer import api
from anyformer.inference.likelihood import Pair, score_pairs
from anyformer.recipes._shared.rollouts import Answers, draw_answers
from bench._common import make_parser

N_TEST, N_VAL, N_WEAK, N_BEST = 1000, 200, 800, 8
SHAPE = {"dim": 64, "n_layer": 3, "n_head": 4, "context": 32}
Sum = tuple[int, int]


def split_sums(seed: int) -> dict[str, list[Sum]]:
    sums = [(a, b) for a in range(100) for b in range(100)]
    random.Random(seed).shuffle(sums)
    stops = [0, N_TEST, N_TEST + N_VAL, N_TEST + N_VAL + N_WEAK, len(sums)]
    return {
        name: sums[i:j] for name, i, j in zip(("test", "val", "weak", "prompts"), stops[:-1], stops[1:], strict=True)
    }


def write_rows(folder: Path, parts: dict[str, list[Sum]]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        rows = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a, b in part]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def count_right(sums: Sequence[Sum], answers: Sequence[str]) -> float:
    return sum(answer == str(a + b) for answer, (a, b) in zip(answers, sums, strict=True)) / len(sums)


def measure(model: Any, sums: Sequence[Sum]) -> dict[str, float]:
    """Return the share of right answers, of the likeliest tokens and of samples, each with a seed of its own."""
    greedy = model.predict([f"{a}+{b}=" for a, b in sums], temperature=0.0, tokens=6)["samples"]
    sampled = sample(model, sums)
    return {
        "greedy": count_right(sums, [answer["text"] for answer in greedy]),
        "sampled": count_right(sums, sampled.texts),
    }


def sample(model: Any, sums: Sequence[Sum]) -> Answers:
    tokenizer = model.module.tokenizer
    chats = [tokenizer.apply_chat_template([{"role": "user", "content": f"{a}+{b}="}]) for a, b in sums]
    prompts = [tokenizer.encode_parsing_special(chat).tolist() for chat in chats]
    return draw_answers(model.module, tokenizer, prompts, list(range(len(sums))), tokens=6)


def count_best(model: Any, sums: Sequence[Sum]) -> float:
    """Return the share of right answers of the likeliest of several samples."""
    answers = []
    for seed, (a, b) in enumerate(sums):
        request = {"messages": [{"role": "user", "content": f"{a}+{b}="}], "tokens": 6, "temperature": 1.0}
        answers.append(model.generate(**request, seed=seed, best_of=N_BEST)["samples"][0]["text"])
    return count_right(sums, answers)


def estimate_divergence(tuned: Any, before: Any, sums: Sequence[Sum]) -> float:
    """Return the mean log-ratio of samples of the tuned model, in nats an answer."""
    answers = sample(tuned, sums)
    pairs = [Pair(prompt, tokens) for prompt, tokens in zip(answers.prompts, answers.tokens, strict=True)]
    scores = [score_pairs(model.recipe.decoder(model.module), pairs) for model in (tuned, before)]
    return sum(a.logprob - b.logprob for a, b in zip(*scores, strict=True)) / len(pairs)


def load_or_train(out: Path, recipe: str, **fields: Any) -> tuple[Any, float]:
    started_at = time.process_time()
    if not (out / "result.json").is_file():
        api.train(recipe, "small", out=out, progress=False, **fields)
    return anyformer.load(out, "cpu"), time.process_time() - started_at


def run(out: Path, seed: int, options: Any) -> dict[str, float]:
    parts = split_sums(seed)
    weak = write_rows(out / "weak", {"train": parts["weak"], "val": parts["val"]})
    prompts = write_rows(out / "prompts", {"train": parts["prompts"], "val": parts["val"]})
    train: dict[str, Any] = {"seed": seed, "device": "cpu", "batch": 64, "steps": options.weak_steps}
    train |= {"eval_every": max(1, options.weak_steps // 4), "save_every": options.weak_steps}
    before, weak_seconds = load_or_train(out / "before", "chat", data=weak, tokenizer="char", model=SHAPE, train=train)
    longer, _ = load_or_train(out / "longer", "chat", data=weak, init=out / "before", train=train)
    settings = {"seed": seed, "device": "cpu", "steps": options.steps, "lr": options.lr, "batch": options.batch}
    settings |= {"save_every": options.steps, "dtype": "float32", "warmup": options.steps // 10}
    settings |= {"eval_every": max(1, options.steps // 3), "eval_batches": 2}
    tuned, seconds = load_or_train(
        out / f"tuned-{options.steps}", "grpo", data=prompts, init=out / "before", reward="exact", tokens=6,
        group=options.group, updates=options.updates, kl_weight=options.kl_weight, train=settings,
    )  # fmt: skip
    result = {f"{name}_before": value for name, value in measure(before, parts["test"]).items()}
    result |= {f"{name}_after": value for name, value in measure(tuned, parts["test"]).items()}
    result |= {f"{name}_trained_for_longer": value for name, value in measure(longer, parts["test"]).items()}
    result["best_of_8_before"] = count_best(before, parts["test"][: options.best])
    result["divergence_nats"] = estimate_divergence(tuned, before, parts["test"])
    return result | {"cpu_seconds_weak": weak_seconds, "cpu_seconds_grpo": seconds}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="a folder for the runs; those that are there are used")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--weak-steps", type=int, default=200)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--updates", type=int, default=1)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--kl-weight", type=float, default=0.0)
    parser.add_argument("--best", type=int, default=200, help="test sums of which the best of 8 is taken")
    options = parser.parse_args()
    results = {}
    for seed in options.seeds:
        results[seed] = run(options.out / f"seed-{seed}", seed, options)
        print(seed, json.dumps(results[seed]), flush=True)
    if options.json:
        print(json.dumps(results))
        return
    for name in next(iter(results.values())):
        print(f"{name:<28}" + "".join(f"{result[name]:>10.3f}" for result in results.values()))


if __name__ == "__main__":
    main()
