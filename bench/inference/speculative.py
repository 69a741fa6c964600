"""Decoding with drafts beside decoding without: tokens a CPU second, greedy and sampled.

    python -m bench.inference.speculative SmolLM2-135M-Instruct.Q4_1.gguf RUN

The public model copies a text, continues code and writes freely, with prompts as drafts; RUN, a run of `language`,
writes freely, with prompts and with the counts of the text that it was trained on. In turns; the median of --rounds. In
float32 all tokens are the same; in bfloat16 a pass over several tokens rounds otherwise than one over each, so that
nearly equal tokens may change places.
"""

import json
import statistics
import time
from pathlib import Path
from typing import Any

from anyformer import api
from bench._common import make_parser

COPY = "Repeat this text word by word.\n\n{text}\n\nRepeated:\n\n{start}"
STORY = (
    "In the spring of 1843 the harbor master of a small town on the coast kept a book in which he wrote the name of "
    "every ship, the tonnage, the cargo of salt, timber or herring, and the weather at the hour of its arrival. "
)
FREE = "The old man looked at the sea and"
TEMPERATURES = {"greedy": 0.0, "sampled": 0.8}


def measure(models: dict[str, Any], prompt: str, temperature: float, tokens: int, rounds: int) -> dict[str, float]:
    """Return the tokens a CPU second of each model; as "same", how many tokens are the same with all drafts."""
    rates: dict[str, list[float]] = {name: [] for name in models}
    texts = {}
    for _ in range(rounds):
        for name, model in models.items():
            start = time.process_time()
            (sample,) = model.generate(prompt, tokens=tokens, temperature=temperature, seed=1)["samples"]
            rates[name].append(len(sample["tokens"]) / (time.process_time() - start))
            texts[name] = sample["tokens"]
    n_same = next((i for i, tokens in enumerate(zip(*texts.values())) if len(set(tokens)) > 1), len(texts["None"]))
    return {name: statistics.median(values) for name, values in rates.items()} | {"same": n_same}


def show(title: str, rates: dict[str, float]) -> None:
    own, n_same = rates["None"], rates["same"]
    ratios = ", ".join(f"{d} {rate / own:.2f}" for d, rate in rates.items() if d not in ("None", "same"))
    print(f"{title}: {own:.1f} tokens a CPU second; times that: {ratios}; the first {n_same} tokens are the same")


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("public", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--weights", default="bfloat16")
    parser.add_argument("--tokens", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    public, own = (
        {str(draft): api.load(path, "cpu", weights=weights, draft=draft) for draft in drafts}
        for path, weights, drafts in (
            (options.public, options.weights, (None, "prompt")),
            (options.run, None, (None, "prompt", "counts")),
        )
    )
    code = Path(__file__).read_text()[:1500]
    cases = {"copying": (public, COPY.format(text=2 * STORY, start=STORY[:20])), "code": (public, code)}
    cases |= {"free": (public, FREE), "free, of the run": (own, "\n")}
    results = {}
    for name, (models, prompt) in cases.items():
        for title, temperature in TEMPERATURES.items():
            rates = measure(models, prompt, temperature, options.tokens, options.rounds)
            results[f"{name}, {title}"] = rates
            if not options.json:
                show(f"{name}, {title}", rates)
    if options.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
