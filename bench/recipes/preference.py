"""Sentiment as a preference: a model that writes reviews, half of them positive, is tuned to prefer positive ones.

    ANYFORMER_DATA=path/to/data python -m bench.recipes.preference       needs scikit-learn

`chat` learns to write sentences of the set `sentence-polarity`. Two of its samples, of which a judge finds one
clearly positive and one clearly not, are a pair; `preference` is trained on those. Another judge, which has seen other
sentences, says how many of the new samples are positive, beside the model before, and beside the best of 16 of its
samples by the first judge. The divergence is estimated on the samples; that of the best of n is at most
log n - (n - 1) / n.
"""

import json
import math
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import anyformer
from anyformer import api
from anyformer.data.io.resolve import resolve
from anyformer.inference.likelihood import Pair, score_pairs
from bench._common import make_parser

PROMPT = "Write a review."
BATCH = 100


def read_sentences() -> tuple[list[str], np.ndarray]:
    """Return the sentences of both classes, and which are positive."""
    texts, labels = [], []
    for path in resolve("sentence-polarity"):
        if "neg" in path.name or "pos" in path.name:
            lines = path.read_text("latin-1").splitlines()
            texts += lines
            labels += ["pos" in path.name] * len(lines)
    return texts, np.array(labels)


def train_judge(texts: list[str], labels: np.ndarray) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    judge = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), min_df=2), LogisticRegression(C=10, max_iter=1000))
    return judge.fit(texts, labels)


def write_samples(model: Any, count: int, seed: int) -> list[dict[str, Any]]:
    """Return different samples of the model."""
    samples: list[dict[str, Any]] = []
    while len(samples) < count:
        request = {"input": PROMPT, "samples": BATCH, "tokens": 60, "temperature": 1.0, "seed": seed + len(samples)}
        samples += model.predict(request)["samples"]
    return samples[:count]


def estimate_divergence(tuned: Any, before: Any, samples: list[dict[str, Any]]) -> float:
    """Return the mean log-ratio of the samples of the tuned model, in nats."""
    tokenizer = tuned.module.tokenizer
    prompt = tokenizer.encode_parsing_special(tokenizer.apply_chat_template([{"role": "user", "content": PROMPT}]))
    ends = [[tokenizer.end_id] if sample["finish_reason"] == "stop" else [] for sample in samples]
    pairs = [Pair(prompt.tolist(), [*sample["tokens"], *end]) for sample, end in zip(samples, ends)]
    scores = [score_pairs(model.recipe.decoder(model.module), pairs) for model in (tuned, before)]
    return float(np.mean([a.logprob - b.logprob for a, b in zip(*scores, strict=True)]))


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--out", type=Path, help="a folder for the runs; those that are there are used")
    parser.add_argument("--steps", type=int, default=1200, help="of the model that writes reviews")
    parser.add_argument("--preference-steps", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with TemporaryDirectory() as name:
        results = compare(options, options.out or Path(name))
    if options.json:
        print(json.dumps(results))
        return
    for key, value in results.items():
        print(f"{key.replace('_', ' '):<44}{value:,.3f}")


def compare(options: Any, folder: Path) -> dict[str, float]:
    folder.mkdir(parents=True, exist_ok=True)
    texts, labels = read_sentences()
    order = np.random.default_rng(options.seed).permutation(len(texts))
    halves = order[: len(order) // 2], order[len(order) // 2 :]
    first, second = (train_judge([texts[i] for i in half], labels[half]) for half in halves)
    start = time.process_time()
    before = load_or_train(
        folder / "before", "chat", "small", data=write_rows(folder / "reviews.jsonl", to_rows(texts)),
        seed=options.seed, steps=options.steps, tokenizer="bpe", vocab_size=2048,
    )  # fmt: skip
    writer_seconds, start = time.process_time() - start, time.process_time()
    pairs = make_pairs(write_samples(before, 4 * options.pairs, options.seed), first, options.pairs)
    tuned = load_or_train(
        folder / "tuned", "preference", "small", data=write_rows(folder / "pairs.jsonl", pairs), seed=options.seed,
        steps=options.preference_steps, init=folder / "before", beta=options.beta, lr=options.lr,
    )  # fmt: skip
    tuning_seconds = time.process_time() - start
    samples = {model: write_samples(model, options.samples, 10**6 + options.seed) for model in (before, tuned)}
    many = write_samples(before, 16 * options.samples, 10**7 + options.seed)
    values = first.predict_proba([sample["text"] for sample in many])[:, 1].reshape(options.samples, 16)
    best = [many[16 * i + j] for i, j in enumerate(values.argmax(1).tolist())]

    def share(of: list[dict[str, Any]]) -> float:
        return float(second.predict([sample["text"] for sample in of]).mean())

    return {
        "accuracy_of_the_judge_on_the_other_half": float(
            second.score([texts[i] for i in halves[0]], labels[halves[0]])
        ),
        "positive_before": share(samples[before]),
        "positive_best_of_16": share(best),
        "positive_after_one_sample": share(samples[tuned]),
        "different_texts_after": len({sample["text"] for sample in samples[tuned]}) / options.samples,
        "divergence_nats": estimate_divergence(tuned, before, samples[tuned]),
        "divergence_of_the_best_of_16_at_most": math.log(16) - 15 / 16,
        "pair_accuracy": tuned.evaluate()["accuracy"],
        "cpu_seconds_to_write": writer_seconds,
        "cpu_seconds_to_prefer": tuning_seconds,
    }


def to_rows(texts: list[str]) -> list[dict[str, Any]]:
    return [{"prompt": PROMPT, "completion": text.strip()} for text in texts if text.strip()]


def make_pairs(samples: list[dict[str, Any]], judge: Any, count: int) -> list[dict[str, Any]]:
    """Join the samples that are positive for the judge to those that are not, the surest first, each of them once."""
    texts = list(dict.fromkeys(sample["text"].strip() for sample in samples if sample["text"].strip()))
    values = judge.predict_proba(texts)[:, 1]
    order = values.argsort(kind="stable").tolist()
    count = min(count, int((values > 0.5).sum()), int((values <= 0.5).sum()))
    return [{"prompt": PROMPT, "chosen": texts[order[-1 - i]], "rejected": texts[order[i]]} for i in range(count)]


def load_or_train(
    out: Path, recipe: str, preset: str, seed: int, steps: int, lr: float | None = None, **fields: Any
) -> Any:
    if not (out / "result.json").is_file():
        train: dict[str, Any] = {"steps": steps, "seed": seed} | ({} if lr is None else {"lr": lr})
        api.train(recipe, preset, out=out, train=train, progress=False, **fields)
    return anyformer.load(out)


if __name__ == "__main__":
    main()
