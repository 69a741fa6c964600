"""Guaranteed structure: what a mask takes at 50,000 tokens, answers that validate, and what masking distorts.

    ANYFORMER_DATA=... python -m bench.inference.structure                  # GPT-2's vocabulary in tokenizers/gpt2
    ... python -m bench.inference.structure --model build/weights/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

masks    of GPT-2's vocabulary (50,257 tokens), along documents of each structure in GPT-2's own tokens ("text"), and
         along tokens drawn evenly from those that may follow ("random"). "mask" is what it takes to find which may come
         next, "exclude" what torch takes to exclude the others and to add up their mass, between any two masks.
         The first walk along a structure fills llguidance's caches, and is a line of its own.
answers  of an untrained model, each checked by `jsonschema` or `re`. Those that the limit of tokens cuts are counted.
exact    answers among three choices: masked, exact, and the model's own distribution, with the model calls that exact
         answers take, and the total variation distances. With --model, of that chat model.

Times are CPU time of one thread, those of a token the fastest of five walks, but for the first.
"""

import json
import math
import os
import random
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import torch

from anyformer import load
from anyformer.data.tokenizers import build as tok
from anyformer.inference.completion import CompletionRequest, encode_prompts
from anyformer.inference.exact_sampling import ExactSampler, Predictor
from anyformer.inference.structure import Constraint, Matcher, constrain, load_vocabulary
from anyformer.model.config import TransformerConfig
from anyformer.model.init import initialize
from anyformer.recipes import language
from bench._common import make_parser

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 30},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 4},
        "score": {"type": "integer", "minimum": 0, "maximum": 100},
        "ok": {"type": "boolean"},
    },
    "required": ["name", "age", "tags", "ok"],
    "additionalProperties": False,
}
NESTED = {
    "type": "object",
    "properties": {
        "id": {"type": "string", "pattern": "^[a-f0-9]{8}$"},
        "born": {"type": "string", "format": "date"},
        "friends": {"type": "array", "items": PERSON, "maxItems": 2},
        "kind": {"anyOf": [{"type": "null"}, {"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 500}]},
    },
    "required": ["id", "friends", "kind"],
    "additionalProperties": False,
}
EMAIL, LIST = r"[a-z]{1,12}(\.[a-z]{1,12})?@[a-z]{2,9}\.(com|org)", r"- [a-z ]{3,20}(\n- [a-z ]{3,20}){0,5}"
GRAMMAR = 'root ::= term (" + " term){0,3}\nterm ::= [0-9]{1,3} | "(" root ")"\n'
STRUCTURES: dict[str, tuple[str, Any]] = {
    "person": ("json_schema", PERSON), "nested": ("json_schema", NESTED),
    "any object": ("json_schema", {"type": "object"}), "email": ("regex", EMAIL), "list": ("regex", LIST),
    "sum": ("grammar", GRAMMAR), "choices": ("choices", [f"choice {i}" for i in range(200)]),
}  # fmt: skip
REPEATS = 5
WORDS = ["quick", "brown", "fox", "jumps", "over", "lazy", "dog", "while", "seven", "wizards", "brew", "potions"]


def make_document(name: str, rng: random.Random) -> str:
    """Return a text of a structure, as a person would write it."""

    def word() -> str:
        return rng.choice(WORDS)

    person = {"name": f"{word()} {word()}", "age": rng.randint(0, 99), "tags": rng.sample(["red", "green", "blue"], 2)}
    person |= {"score": rng.randint(0, 100), "ok": True}
    nested = {"id": f"{rng.getrandbits(32):08x}", "born": "1987-04-23", "friends": [person, person], "kind": 45}
    texts = {"person": person, "nested": nested, "any object": {word(): [word(), rng.random()], "b": {word(): None}}}
    if name in texts:
        return json.dumps(texts[name])
    others = {"email": f"{word()}.{word()}@{word()}.com", "sum": f"{rng.randint(0, 999)} + (12 + 7)"}
    return (others | {"list": f"- {word()} {word()}\n- {word()}", "choices": f"choice {rng.randint(0, 199)}"})[name]


# --- masks ---


def walk_often(constraint: Constraint, tokens: list[int] | None, seed: int, logits: torch.Tensor) -> np.ndarray:
    """Return the fastest times of each token, since other processes share the caches of the processor."""
    return np.min([walk(constraint.start(), tokens, seed, logits) for _ in range(REPEATS)], axis=0)


def walk(matcher: Matcher, tokens: list[int] | None, seed: int, logits: torch.Tensor) -> list[tuple[float, float]]:
    """Follow tokens, or some at random, and return the microseconds of each: of its mask, and of torch."""
    times, rng = [], random.Random(seed)
    for step in range(len(tokens) if tokens is not None else 100):
        start = time.thread_time()
        constrain(logits, [matcher])
        excluded = time.thread_time()
        token = tokens[step] if tokens is not None else rng.choice(np.flatnonzero(matcher.mask).tolist())
        assert matcher.mask[token], (tokens, step)
        if token in matcher.constraint.end_ids:
            break
        matcher.advance(token)
        appended = time.thread_time()
        matcher.look_ahead()
        times.append((1e6 * (time.thread_time() - appended), 1e6 * (excluded - start)))
        if matcher.is_complete:
            break
    return times


def measure_masks(tokenizer: tok.Tokenizer, walks: int) -> list[dict[str, Any]]:
    start = time.thread_time()
    vocabulary = load_vocabulary(tokenizer)
    print(f"vocabulary of {vocabulary.size:,} tokens compiled in {time.thread_time() - start:.2f} s\n")
    print(f"microseconds of a token {'mask: median':>10}{'mean':>8}{'p99':>10}{'exclude':>12}{'tokens':>10}")
    rows, logits = [], torch.randn(1, vocabulary.size)
    for name, (field, value) in STRUCTURES.items():
        start = time.thread_time()
        constraint, rng = Constraint(field, value, tokenizer), random.Random(0)
        seconds = time.thread_time() - start
        documents = [tokenizer.encode(make_document(name, rng)).tolist() for _ in range(walks)]
        groups = {"first": [walk(constraint.start(), documents[0], 0, logits)]}
        groups["text"] = [walk_often(constraint, document, 0, logits) for document in documents]
        groups["random"] = [walk_often(constraint, None, seed, logits) for seed in range(walks)]
        for kind, walks_times in groups.items():
            times = np.array([pair for times in walks_times for pair in times])
            median, p99, mean = np.median(times[:, 0]), np.quantile(times[:, 0], 0.99), times[:, 0].mean()
            rows.append({"structure": name, "walk": kind, "compile_ms": 1e3 * seconds, "tokens": len(times)})
            rows[-1] |= {"median": median, "mean": mean, "p99": p99, "exclude": float(np.median(times[:, 1]))}
            note = f"compiled in {1e3 * seconds:.1f} ms" if kind == "first" else ""
            figures = f"{median:10.1f}{mean:10.1f}{p99:10.1f}{rows[-1]['exclude']:12.1f}{len(times):10,}"
            print(f"{name:12}{kind:8}{figures}  {note}", flush=True)
    return rows


# --- answers ---


def build_untrained(tokenizer: tok.Tokenizer, context: int = 256) -> language.LanguageModel:
    torch.manual_seed(0)
    shape = TransformerConfig(dim=32, n_layer=1, n_head=2, context=context, position="rotary")
    model = language.LanguageModel(language.Config(model=shape), tokenizer)
    initialize(model, shape)
    return model.eval()


def is_valid(name: str, text: str) -> bool:
    field, value = STRUCTURES[name]
    if field == "json_schema":
        draft = jsonschema.Draft202012Validator
        return draft(value, format_checker=draft.FORMAT_CHECKER).is_valid(json.loads(text))
    if field == "choices":
        return text in value
    if field == "regex":
        return re.fullmatch(value, text) is not None
    return is_sum(text)


def is_sum(text: str) -> bool:
    """Whether the text is of `GRAMMAR`: the innermost brackets become a number, until none is left."""
    plain = r"\d{1,3}( \+ \d{1,3}){0,3}"
    while "(" in text and (shorter := re.sub(rf"\({plain}\)", "1", text)) != text:
        text = shorter
    return re.fullmatch(plain, text) is not None


def count_valid(tokenizers: dict[str, tok.Tokenizer], answers: int, tokens: int) -> list[dict[str, Any]]:
    rows = []
    print("\nanswers of an untrained model: valid, of those that ended; cut at the limit of tokens")
    for vocabulary, tokenizer in tokenizers.items():
        model = build_untrained(tokenizer)
        for name, (field, value) in STRUCTURES.items():
            if name == "any object":  # any depth and length
                continue
            request = {"prompt": "a", field: value, "samples": answers, "tokens": tokens, "temperature": 1.0}
            samples = language.predict(model, request)["samples"]
            ended = [sample["text"] for sample in samples if sample["finish_reason"] == "stop"]
            valid = sum(is_valid(name, text) for text in ended)
            rows.append({"vocabulary": vocabulary, "structure": name, "valid": valid, "ended": len(ended)})
            print(f"{vocabulary:12}{name:12}{valid:8,} of {len(ended):,}, cut {answers - len(ended):,}", flush=True)
    total, ended = (sum(row[key] for row in rows) for key in ("valid", "ended"))
    print(f"all: {total:,} of {ended:,}")
    return rows


# --- exact sampling ---


def measure_exact(model: Any, request: CompletionRequest, answers: int) -> dict[str, Any]:
    """Compare the distributions of a few choices: the model's own, by a whole trie; masked; and drawn exactly."""
    field, choices = request.structure
    constraint = Constraint(field, choices, model.tokenizer)
    ((_, prompt),) = encode_prompts(request, model.tokenizer)
    predictor, n_calls = Predictor(model, prompt, request, request.tokens), 0

    def predict(tokens: list[int]) -> np.ndarray:
        nonlocal n_calls
        n_calls += 1
        return predictor(tokens)

    sampler = ExactSampler(lambda: constraint.start(prompt[-8:]), predict, request.tokens)
    calls, counts, masses = [], Counter(), {}
    for seed in range(answers):
        tokens, log_mass = sampler.draw(torch.Generator().manual_seed(seed))
        calls.append(n_calls)
        text = model.tokenizer.decode(tokens).strip()
        counts[text] += 1
        masses[text] = max(masses.get(text, -math.inf), log_mass)
    own, masked = enumerate_choices(sampler, choices, model.tokenizer)
    print(f"\nexact: {answers:,} answers in {calls[-1]} model calls, {calls[0]} of them for the first answer")
    total = sum(own.values())
    print(f"p(structure) = {total:.3g}\n{'':14}own      exact    masked   kept mass")
    for text in choices:
        row = (own[text] / total, counts[text] / answers, masked[text], math.exp(masses.get(text, -math.inf)))
        print(f"{text:12}{row[0]:9.4f}{row[1]:9.4f}{row[2]:9.4f}{row[3]:12.2g}")
    distances = [
        0.5 * sum(abs(own[text] / total - other[text]) for text in choices)
        for other in ({text: counts[text] / answers for text in choices}, masked)
    ]
    print(f"total variation distance to the model's own: exact {distances[0]:.4f}, masked {distances[1]:.4f}")
    return {"answers": answers, "calls": calls[-1], "exact": distances[0], "masked": distances[1]}


def enumerate_choices(sampler: ExactSampler, choices: list[str], tokenizer: tok.Tokenizer) -> tuple[Counter, Counter]:
    """Return p(text) by the model, and q(text) by masking, of each choice, over all of its tokenizations."""
    own, masked = Counter(dict.fromkeys(choices, 0.0)), Counter(dict.fromkeys(choices, 0.0))

    def visit(node: Any, tokens: list[int], p: float, q: float) -> None:
        for index, (token, probability) in enumerate(zip(node.tokens.tolist(), node.probabilities)):
            path, p_next, q_next = [*tokens, token], p * probability, q * probability / node.next_mass
            matcher = sampler.start()
            for earlier in tokens:
                matcher.advance(earlier)
            is_end = token in sampler.end_ids
            allowed = matcher.mask
            if not is_end:
                matcher.advance(token)
                matcher.look_ahead()
                allowed = matcher.mask
            if is_end or matcher.is_complete:
                text = tokenizer.decode(tokens if is_end else path).strip()
                own[text], masked[text] = own[text] + p_next, masked[text] + q_next
            elif len(path) < sampler.max_tokens:
                child = node.children.get(index) or sampler.build_node(path, allowed)
                visit(child, path, p_next, q_next)

    visit(sampler.root, [], 1.0, 1.0)
    return own, masked


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--walks", type=int, default=20, help="documents of each structure, for the masks")
    parser.add_argument(
        "--answers", type=int, default=150, help="of each structure and vocabulary, and exact ones; 0: masks only"
    )
    parser.add_argument("--tokens", type=int, default=800, help="the most of an answer")
    parser.add_argument("--model", help="a chat model for the exact answers, instead of an untrained one")
    options = parser.parse_args()
    torch.set_num_threads(1)
    gpt2 = tok.load_tokenizer(Path(os.environ["ANYFORMER_DATA"]) / "tokenizers" / "gpt2")
    masks = measure_masks(gpt2, options.walks)
    if not options.answers:
        return
    text = json.dumps(PERSON) * 20
    tokenizers = {"characters": tok.Characters(map(chr, [10, *range(32, 127)])), "bytes": tok.Bytes()}
    tokenizers |= {"bpe of 512": tok.train_bpe([text], 512)}
    valid = count_valid(tokenizers, options.answers, options.tokens)
    question = "What is the capital of France?"  # a model that would begin with "The capital" is led to The Hague
    values: dict[str, Any] = {"choices": ["The Hague", "Paris", "Berlin"], "tokens": 12, "temperature": 1.0}
    if options.model:
        model = load(options.model).module
        request = CompletionRequest(messages=[{"role": "user", "content": question}], exact=True, **values)
    else:
        model, request = (
            build_untrained(tokenizers["bpe of 512"]),
            CompletionRequest(prompt=question, exact=True, **values),
        )
    exact = measure_exact(model, request, options.answers)
    if options.json:
        print(json.dumps({"masks": masks, "answers": valid, "exact": exact}))


if __name__ == "__main__":
    main()
