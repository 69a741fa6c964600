"""Multi30k, English to French: drafts (mask_predict) beside beam search (translation), of the same body and steps.

    python -m bench.recipes.mask_predict                                        twice 35 minutes of one core
    python -m bench.recipes.mask_predict --steps 700 --layers 2 --dim 128       twice 5 minutes

The number of lengths that are tried is chosen on the validation split; BLEU is of test 2016, milliseconds are of the
process, all sentences together and one at a time.
"""

import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from anyformer import api
from anyformer.data.text.pairs import read_pairs
from anyformer.metrics import score_translations
from bench._common import make_parser, train_to_end

TEST = "multi30k/test_2016_flickr"
PASSES = (4, 10)
LENGTHS = (1, 3, 5)
N_VALIDATION = 200  # pairs that choose the number of lengths
N_TIMED = 50  # sentences that are translated one at a time


def load_or_train(recipe: str, out: Path, steps: int, seed: int, **options: Any) -> tuple[Any, float]:
    """Return the model at `out`, trained where there is none, and the CPU minutes of its training."""
    start = time.process_time()
    if (out / "checkpoints").is_dir():
        return api.load(out, "cpu"), 0.0
    model = train_to_end(recipe, "multi30k", out, steps, seed, **options)
    return model, (time.process_time() - start) / 60


def translate(model: Any, sources: list[str], **request: Any) -> tuple[list[str], float]:
    """Return the translations and the seconds of the process for each."""
    start = time.process_time()
    texts = [result["text"] for result in model.predict({"input": sources} | request)["results"]]
    return texts, (time.process_time() - start) / len(sources)


def measure(model: Any, name: str, pairs: list[tuple[str, str]], **request: Any) -> dict[str, Any]:
    sources, targets = map(list, zip(*pairs))
    texts, together = translate(model, sources, **request)
    alone = sum(translate(model, [source], **request)[1] for source in sources[:N_TIMED]) / N_TIMED
    values = {"bleu": round(score_translations(texts, targets)["bleu"], 2)}
    values |= {"ms_together": round(1000 * together, 1), "ms_alone": round(1000 * alone, 1)}
    print(f"{name:<44} {values}", file=sys.stderr, flush=True)
    return values


def measure_drafts(model: Any, name: str, val: list[tuple[str, str]], test: list[tuple[str, str]]) -> dict[str, Any]:
    """Measure a model of drafts for each number of passes, with the number of lengths that is best on validation."""
    sources, targets = map(list, zip(*val[:N_VALIDATION]))
    results = {}
    for passes in PASSES:
        scores = {
            lengths: score_translations(translate(model, sources, passes=passes, lengths=lengths)[0], targets)["bleu"]
            for lengths in LENGTHS
        }
        lengths = max(scores, key=lambda n: scores[n])
        label = f"{name}, {passes} passes, {lengths} lengths"
        results[label] = measure(model, label, test, passes=passes, lengths=lengths)
    return results


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--layers", type=int, default=3, help="of the encoder, and of the decoder")
    parser.add_argument("--dim", type=int, default=192, help="a multiple of 64")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--runs", type=Path, help="where the runs are kept, and taken from if they are there")
    options = parser.parse_args()
    val, test = read_pairs("multi30k").split("val"), read_pairs(TEST).split("all")
    with TemporaryDirectory() as name:
        runs, minutes = options.runs or Path(name), {}
        run = (options.steps, options.seed)
        stack = {"dim": options.dim, "n_head": options.dim // 64, "n_layer": options.layers}
        body = {"encoder": stack, "decoder": stack}
        translator, minutes["translation"] = load_or_train("translation", runs / "translation", *run, **body)
        results = {f"translation, beam {beam}": {"beam": beam} for beam in (1, 4)}
        results = {label: measure(translator, label, test, **request) for label, request in results.items()}
        drafts, minutes["mask_predict"] = load_or_train("mask_predict", runs / "mask_predict", *run, **body)
        results |= measure_drafts(drafts, "mask_predict", val, test)
    minutes = {name: round(value, 1) for name, value in minutes.items()}
    print(json.dumps({"minutes": minutes, "results": results}) if options.json else f"CPU minutes: {minutes}")


if __name__ == "__main__":
    main()
