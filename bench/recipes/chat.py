"""Instructions: a small language model that is tuned to answer, beside unmasked loss and beside its base with examples.

    python -m bench.recipes.chat --out build/chat          about 20 minutes of CPU

A dozen requests about a word, each with one right answer (`data/text/instructions.py`). The words are those of the
plays, of 3 to 8 letters: 1,000 are held out for the figures, 500 others choose the checkpoint. The base is a language
model of the plays; it is asked with 8 solved requests of the same kind before each question.
"""

import json
import os
import random
import re
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anyformer import api
from anyformer.data.io.resolve import resolve
from anyformer.data.text.instructions import TASKS, generate_instructions
from bench._common import make_parser

N_TEST, N_VAL, REQUESTS_A_WORD, SHOTS = 1000, 500, 4, 8
Pair = tuple[str, str]  # a request and its answer


def split_words(seed: int = 0) -> dict[str, list[str]]:
    text = "".join(path.read_text(encoding="utf-8") for path in resolve("plays")).lower()
    words = sorted({word for word in re.findall(r"[a-z]+", text) if 3 <= len(word) <= 8})
    random.Random(seed).shuffle(words)
    return {"test": words[:N_TEST], "val": words[N_TEST : N_TEST + N_VAL], "train": words[N_TEST + N_VAL :]}


def pick_requests(words: Sequence[str], count: int, seed: int) -> list[Pair]:
    """Return some of the requests about each word."""
    rng, pairs = random.Random(seed), list(generate_instructions(words, seed))
    groups = [pairs[i : i + len(TASKS)] for i in range(0, len(pairs), len(TASKS))]
    return [pair for group in groups for pair in rng.sample(group, count)]


def write_data(folder: Path, words: dict[str, list[str]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("train", REQUESTS_A_WORD), ("val", 1)):
        rows = [{"prompt": request, "completion": answer} for request, answer in pick_requests(words[name], count, 1)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def count_exact(pairs: Sequence[Pair], answers: Sequence[str]) -> dict[str, float]:
    """Return the share of exact answers of each task, and of all."""
    names = list(TASKS)
    rights: dict[str, list[bool]] = defaultdict(list)
    for i, ((_, truth), answer) in enumerate(zip(pairs, answers, strict=True)):
        rights[names[i % len(names)]].append(answer.strip() == truth)
    shares = {name: sum(values) / len(values) for name, values in rights.items()}
    return {"all": sum(map(sum, rights.values())) / len(pairs), **shares}


def ask(model: Any, pairs: Sequence[Pair], batch: int = 480) -> list[str]:
    parts = [[request for request, _ in pairs[i : i + batch]] for i in range(0, len(pairs), batch)]
    return [result["text"] for part in parts for result in model.predict(part, temperature=0.0, tokens=24)["samples"]]


def ask_base(model: Any, pairs: Sequence[Pair], words: Sequence[str], batch: int = 120) -> list[str]:
    """Ask with 8 solved requests of the same kind, about other words, before each question."""
    rng, prompts = random.Random(2), []
    for i, (request, _) in enumerate(pairs):
        solved = [list(generate_instructions([word]))[i % len(TASKS)] for word in rng.sample(words, SHOTS)]
        prompts.append("".join(f"{question} {answer}\n" for question, answer in solved) + request)
    answers = []
    for i in range(0, len(prompts), batch):
        answer = model.generate(prompts[i : i + batch], temperature=0.0, tokens=24, stop="\n")
        answers += [sample["text"] for sample in answer["samples"]]
    return answers


def count_cpu() -> float:
    """Return the CPU seconds of this process and of those that it started."""
    return sum(os.times()[:4])


def run(out: Path, steps: int, base_steps: int, seed: int, lr: float) -> dict[str, Any]:
    words, result = split_words(), dict[str, Any]()
    write_data(out / "data", words)
    test = list(generate_instructions(words["test"][: N_TEST // 5], 3))
    shape = {"n_layer": 5, "context": 512}
    train: dict[str, Any] = {"steps": base_steps, "batch": 4, "seed": seed, "device": "cpu"}
    if not (out / "base" / "result.json").exists():
        started_at = count_cpu()
        api.train("language", "small", data="plays", out=out / "base", model=shape, train=train, progress=False)
        print(f"base: {count_cpu() - started_at:.0f} CPU seconds", flush=True)
    base = api.load(out / "base", "cpu")
    result["parameters"] = base.n_parameters
    every = {"eval_every": max(1, steps // 8), "save_every": steps}
    for loss_on in ("answers", "all"):
        folder, started_at = out / loss_on, count_cpu()
        train = {"steps": steps, "seed": seed, "device": "cpu", "lr": lr, **every}
        init: dict[str, Any] = {"init": out / "base", "loss_on": loss_on, "data": str(out / "data"), "train": train}
        if not (folder / "result.json").exists():
            api.train("chat", "small", out=folder, progress=False, **init)
            print(f"{loss_on}: {count_cpu() - started_at:.0f} CPU seconds", flush=True)
        result[loss_on] = count_exact(test, ask(api.load(folder, "cpu"), test))
        print(loss_on, json.dumps(result[loss_on]), flush=True)
    few = [pair for i, pair in enumerate(test) if i // len(TASKS) < 20]
    result["8 examples"] = count_exact(few, ask_base(base, few, words["train"]))
    return result


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--base-steps", type=int, default=450)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    started_at = time.process_time()
    result = run(options.out, options.steps, options.base_steps, options.seed, options.lr)
    result["seconds"] = round(time.process_time() - started_at)
    if options.json:
        print(json.dumps(result))
        return
    columns = ("answers", "all", "8 examples")
    print(f"{result['parameters']:,} parameters; exact answers about words that were held out")
    print(f"{'':<46}{'loss on answers':>16}{'on everything':>16}{'8 examples':>12}")
    for name in ("all", *TASKS):
        print(f"{name:<46}" + "".join(f"{result[c][name]:>{w}.1%}" for c, w in zip(columns, (16, 16, 12))))


if __name__ == "__main__":
    main()
