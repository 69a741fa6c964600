"""Drafts of text: the bound beside an autoregressive model, gaps that are filled, drafts that are revised.

    python -m bench.recipes.drafts --cpu-minutes 5 --out runs/drafts

Four models of about the same size are trained on the plays of Shakespeare, as characters, for the same CPU time:

    language    the next character
    diffusion   any characters from any others
    fim         `language` on windows in which a gap is marked and its text follows the window (2207.14255)
    spans       `spans`, with an encoder and a decoder of half the layers each

Gaps are of held-out text, between 20 and more characters on both sides. `fim` and `diffusion` see how long a gap is,
`spans` does not. Nats are those of the truth, from left to right, its end not counted.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from math import log
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch

from anyformer.inference.logprobs import score_tokens
from anyformer.model.edges import within
from anyformer.recipes import diffusion, spans
from bench._common import make_parser, train_for

LENGTHS = (1, 2, 5, 10, 20)  # of gaps
WINDOW, SIDE = 100, 20  # characters around a gap, and at least on each side
GAP, FILL = "~", "|"  # neither is in the plays
MAX_MIDDLE, N_FIM = 24, 60_000  # of the training of `fim`
PLANTED, ABOVE = (0.05, 0.1), (0.0, 4.0)  # share of wrong characters; `remask_above` of their revisions
REVISIONS, PASSES = (0, 1, 2, 4), 32  # of a sample of 128 characters


class Gap(NamedTuple):
    before: str
    truth: str
    after: str

    def write(self) -> str:
        return self.before + GAP * len(self.truth) + self.after


class Filler(NamedTuple):
    """How a model fills gaps, and the log-probability that it gives to the truth."""

    fill: Callable[[Sequence[Gap]], list[str]]
    score: Callable[[Gap], float]


# --- gaps ---


def choose_gaps(text: str, lengths: np.ndarray, rng: np.random.Generator) -> list[Gap]:
    """Choose windows of a text, each with a gap of one of these lengths (N,)."""
    starts, gaps = rng.integers(len(text) - WINDOW, size=len(lengths)), []
    for start, n in zip(starts.tolist(), lengths.tolist()):
        window, cut = text[start : start + WINDOW], int(rng.integers(SIDE, WINDOW - SIDE - n + 1))
        gaps.append(Gap(window[:cut], window[cut : cut + n], window[cut + n :]))
    return gaps


def write_fim(text: str, path: Path) -> None:
    """Write windows with a gap, and what fills it, one document each."""
    rng = np.random.default_rng(1)
    gaps = choose_gaps(text, rng.integers(1, MAX_MIDDLE + 1, N_FIM), rng)
    path.write_text("".join(json.dumps({"text": f"{gap.write()}{FILL}{gap.truth}"}) + "\n" for gap in gaps))


def fill_with_drafts(model: Any, **settings: Any) -> Filler:
    module = model.module
    tokenizer, mask_id = module.masked_tokenizer.tokenizer, module.masked_tokenizer.require_mask_id()

    def fill(gaps: Sequence[Gap]) -> list[str]:
        results = model.predict([gap.write() for gap in gaps], gap=GAP, **settings)["results"]
        return [r["text"][len(gap.before) : len(gap.before) + len(gap.truth)] for r, gap in zip(results, gaps)]

    @torch.inference_mode()
    def score(gap: Gap) -> float:
        n, start, truth = len(gap.truth), len(gap.before), tokenizer.encode(gap.truth)
        ids = torch.tensor(tokenizer.encode("".join(gap)).tolist()).repeat(n, 1)
        for step in range(n):  # row `step` is read before character `step` is written
            ids[step, start + step : start + n] = mask_id
        logprobs = module(ids).float().log_softmax(-1)
        return sum(float(logprobs[step, start + step, token]) for step, token in enumerate(truth.tolist()))

    return Filler(fill, score)


def fill_with_language(model: Any) -> Filler:
    tokenizer = model.module.tokenizer

    def encode(text: str) -> list[int]:
        return [tokenizer.end_id, *tokenizer.encode(text).tolist()]  # a document begins after the end of another one

    def fill(gaps: Sequence[Gap]) -> list[str]:
        prompts, tokens = [encode(gap.write() + FILL) for gap in gaps], max(len(gap.truth) for gap in gaps)
        samples = model.predict(prompt=prompts, tokens=tokens, temperature=0)["samples"]
        return [sample["text"][: len(gap.truth)] for sample, gap in zip(samples, gaps)]

    def score(gap: Gap) -> float:
        scores = score_tokens(model.module, encode(gap.write() + FILL + gap.truth))
        return sum(token.logprob for token in scores[-len(gap.truth) :])

    return Filler(fill, score)


def fill_with_spans(model: Any) -> Filler:
    module, tokenizer = model.module, model.module.pair_tokenizer.target

    def fill(gaps: Sequence[Gap]) -> list[str]:
        results = model.predict([spans.GAP.join((gap.before, gap.after)) for gap in gaps], beam=1)["results"]
        return [result["gaps"][0] for result in results]

    @torch.inference_mode()
    def score(gap: Gap) -> float:
        source = torch.tensor([spans.encode_gaps(module, "", [gap.before, gap.after])])
        truth, sentinel = tokenizer.encode(gap.truth).tolist(), module.target.token.num_embeddings - 1
        target = torch.tensor([[module.pair_tokenizer.start_id, sentinel, *truth]])
        mask = within(torch.tensor([source.shape[1]]))
        decoder = module.condition(module.encode(source, mask), mask, source)
        logprobs = decoder.head(decoder.hidden(target)).float().log_softmax(-1)[0]
        return sum(float(logprobs[step + 1, token]) for step, token in enumerate(truth))

    return Filler(fill, score)


def measure_gaps(fillers: dict[str, Filler], text: str, n_tests: int) -> dict[int, dict[str, dict[str, float]]]:
    """Return for each length and model the share of gaps that are filled with the truth, and the nats of a character of
    it."""
    rng, results = np.random.default_rng(2), {}
    for n in LENGTHS:
        gaps = choose_gaps(text, np.full(n_tests, n), rng)
        results[n] = {}
        for name, filler in fillers.items():
            exact = sum(filled == gap.truth for filled, gap in zip(filler.fill(gaps), gaps)) / n_tests
            nats = -sum(map(filler.score, gaps)) / (n * n_tests)
            results[n][name] = {"exact": exact, "nats": nats}
    return results


# --- revision ---


def judge(model: Any, texts: Sequence[str]) -> float:
    """Return the nats of a character of texts under a language model, but for the first of each."""
    scores = [score_tokens(model.module, model.module.tokenizer.encode(text).tolist()) for text in texts]
    return -float(np.mean([token.logprob for row in scores for token in row]))


def describe_texts(language: Any, texts: Sequence[str]) -> dict[str, float]:
    """Return the loss under a judge beside what shows that texts repeat themselves: the entropy of their characters,
    and the share of different ones among their sequences of four."""
    counts = Counter("".join(texts))
    total = sum(counts.values())
    fours = [text[i : i + 4] for text in texts for i in range(len(text) - 3)]
    entropy = -sum(n / total * log(n / total) for n in counts.values())
    return {"judge": judge(language, texts), "entropy": entropy, "distinct": len(set(fours)) / len(fours)}


def revise_samples(model: Any, language: Any, text: str, n_tests: int, seed: int) -> dict[str, dict[str, float]]:
    context, rng = model.config.model.context, np.random.default_rng(3)
    starts = rng.integers(len(text) - context, size=n_tests).tolist()
    rows = {"held-out text": describe_texts(language, [text[start : start + context] for start in starts])}
    settings = {"samples": n_tests, "temperature": 1.0, "passes": PASSES, "order": "random", "seed": seed}
    for n in REVISIONS:
        samples = [result["text"] for result in model.predict(revise=n, **settings)["results"]]
        rows[f"{PASSES} passes, {n} revisions"] = describe_texts(language, samples)
    return rows


def revise_errors(
    model: Any, language: Any, text: str, share: float, above: float, n_tests: int
) -> list[dict[str, float]]:
    """Plant wrong characters in held-out windows, drawn from those of the text, and revise them where another one is
    more probable by so many nats."""
    rng, context = np.random.default_rng(4), model.config.model.context
    truths, drafts = [], []
    for start in rng.integers(len(text) - context, size=n_tests).tolist():
        truths.append(text[start : start + context])
        characters = list(truths[-1])
        for i in rng.choice(context, round(share * context), replace=False).tolist():
            characters[i] = next(c for c in iter(lambda: text[rng.integers(len(text))], "") if c != characters[i])
        drafts.append("".join(characters))
    rows = []
    for n in REVISIONS:
        settings = {"edit": True, "revise": n, "remask": 0.03, "remask_above": above, "gap": GAP}
        texts = [r["text"] for r in model.predict(drafts, **settings)["results"]] if n else drafts
        wrong = np.mean([sum(a != b for a, b in zip(*pair)) for pair in zip(texts, truths)])
        rows.append({"wrong": float(wrong), "judge": judge(language, texts)})
    return rows


# --- the whole ---


def train(text: str, out: Path, options: Any) -> dict[str, Any]:
    write_fim(text, out / "fim.jsonl")
    shared: dict[str, Any] = {"seed": options.seed, "data": "plays"}
    models = {"language": train_for(options.cpu_minutes, "language", "small", out / "language", **shared)}
    models["diffusion"] = train_for(options.cpu_minutes, "diffusion", "small", out / "diffusion", **shared)
    body = models["language"].config.model
    rows = {"data": str(out / "fim.jsonl"), "model": {"context": 4 * body.context}, "train": {"batch": 4}}
    models["fim"] = train_for(options.cpu_minutes, "language", "small", out / "fim", **(shared | rows))
    names = ("dim", "n_head", "context", "position", "norm", "activation", "qk_norm", "bias")
    stack = {name: getattr(body, name) for name in names} | {"n_layer": body.n_layer // 2}
    names = ("lr", "batch", "warmup", "weight_decay", "clip", "optimizer", "schedule", "min_lr")
    same = {name: getattr(models["language"].config.train, name) for name in names}
    fields = {"encoder": stack, "decoder": stack, "padded_vocab": 256, "rate": 0.15, "span": 8.0, "train": same}
    models["spans"] = train_for(options.cpu_minutes, "spans", "tiny", out / "spans", **(shared | fields))
    return models


def measure(options: Any, out: Path) -> dict[str, Any]:
    corpus = diffusion.load_corpus(diffusion.PRESETS["small"])
    training, text = (corpus.tokenizer.decode(np.asarray(corpus.split(name)).tolist()) for name in ("train", "val"))
    models = train(training, out, options)
    results: dict[str, Any] = {name: models[name].evaluate() for name in ("language", "diffusion")}
    fillers = {
        "diffusion, surest first": fill_with_drafts(models["diffusion"]),
        "diffusion, left to right": fill_with_drafts(models["diffusion"], order="left"),
        "fim": fill_with_language(models["fim"]),
        "spans": fill_with_spans(models["spans"]),
    }
    results["gaps"] = measure_gaps(fillers, text, options.tests)
    pair = models["diffusion"], models["language"], text
    results["samples"] = revise_samples(*pair, options.tests // 4, options.seed)
    results["errors"] = {
        f"{100 * share:.0f} % wrong, above {above} nats": revise_errors(*pair, share, above, options.tests // 4)
        for share in PLANTED
        for above in ABOVE
    }
    return results


def show(results: dict[str, Any]) -> None:
    for name in ("language", "diffusion"):
        print(f"{name}: {', '.join(f'{key} {value:.4f}' for key, value in results[name].items())}")
    for n, rows in results["gaps"].items():
        texts = (f"{name} {100 * row['exact']:.1f} % ({row['nats']:.3f})" for name, row in rows.items())
        print(f"gaps of {n}, exact (nats): {'; '.join(texts)}")
    for name, row in results["samples"].items():
        print(f"{name}: judge {row['judge']:.3f}, entropy {row['entropy']:.3f}, distinct {row['distinct']:.3f}")
    for name, rows in results["errors"].items():
        texts = (f"{row['wrong']:.2f} ({row['judge']:.3f})" for row in rows)
        print(f"{name}: wrong after {REVISIONS} revisions (judge): {', '.join(texts)}")


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--cpu-minutes", type=float, default=5)
    parser.add_argument("--tests", type=int, default=200, help="gaps of each length")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="keep the runs here; those that are finished are not trained again")
    options = parser.parse_args()
    with TemporaryDirectory() as name:
        out = options.out or Path(name)
        out.mkdir(parents=True, exist_ok=True)
        results = measure(options, out)
    print(json.dumps(results)) if options.json else show(results)


if __name__ == "__main__":
    main()
