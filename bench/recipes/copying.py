"""Help texts of programs, English to French: a translator that can copy tokens of the source, the same without, and
the translation of the nearest training text.

    pip download --no-deps --dest wheels django wagtail pretix weblate sphinx django-allauth mercurial trytond
    for wheel in wheels/*.whl; do unzip -qo "$wheel" '*/fr/LC_MESSAGES/*' -d catalogs/"$(basename "$wheel" .whl)"; done
    python -m bench.recipes.copying catalogs --steps 800 --seeds 1

The pairs are the entries of the packages' message catalogs (.mo) that are one line of at least two words; a tenth of
them is held out. BLEU and chrF of sacreBLEU on the held-out pairs, and the share of their placeholders, such as
%(name)s, that the translation has.
"""

import gettext
import json
import random
import re
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from anyformer import api
from anyformer.metrics import score_translations
from bench._common import make_parser

PLACEHOLDER = re.compile(r"%\(\w+\)[sd]|%[sd]|\{\w*\}|<[^>]+>")
Pair = tuple[str, str]


def collect_pairs(folder: Path) -> list[Pair]:
    """Return the pairs of all catalogs, in random order, always the same."""
    pairs: dict[str, str] = {}
    for path in sorted(folder.rglob("fr/LC_MESSAGES/*.mo")):
        with path.open("rb") as file:
            catalog = gettext.GNUTranslations(file)._catalog
        for key, target in catalog.items():
            source = (key if isinstance(key, str) else key[0]).split("\x04")[-1].strip()
            is_text = " " in source and source != target and len(source) < 240 and len(target) < 280
            if is_text and not re.search(r"[\n\t]", source + target.strip()):
                pairs.setdefault(source, target.strip())
    rows = list(pairs.items())
    random.Random(0).shuffle(rows)
    return rows


def translate_by_nearest(train: list[Pair], sources: list[str]) -> list[str]:
    """Return for each source the translation of the training text with the most similar words."""
    words = TfidfVectorizer(token_pattern=r"\S+").fit([source for source, _ in train])
    similarity = words.transform(sources) @ words.transform([source for source, _ in train]).T
    return [train[i][1] for i in np.asarray(similarity.argmax(1)).ravel()]


def score(translations: list[str], pairs: list[Pair]) -> dict[str, float]:
    scores = score_translations(translations, [target for _, target in pairs])
    marks = [(mark, text) for text, (source, _) in zip(translations, pairs) for mark in PLACEHOLDER.findall(source)]
    return {
        "bleu": round(scores["bleu"], 1),
        "chrf": round(scores["chrf"], 1),
        "placeholders": round(sum(mark in text for mark, text in marks) / max(1, len(marks)), 3),
    }


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("folder", type=Path, help="message catalogs")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--held-out", type=int, default=500, help="how many of the held-out pairs are translated")
    options = parser.parse_args()
    pairs = collect_pairs(options.folder)
    test, train = pairs[: len(pairs) // 10][: options.held_out], pairs[len(pairs) // 10 :]
    sources = [source for source, _ in test]
    results: dict[str, dict[str, float]] = {}

    def report(name: str, translations: list[str]) -> None:
        results[name] = score(translations, test)
        if not options.json:
            print(name, json.dumps(results[name]), flush=True)

    report("nearest training text", translate_by_nearest(train, sources))
    with TemporaryDirectory() as folder:
        data = Path(folder) / "pairs.tsv"
        data.write_text("".join(f"{source}\t{target}\n" for source, target in train), encoding="utf-8")
        for seed in options.seeds:
            for copy in (False, True):
                settings = {"steps": options.steps, "seed": seed, "eval_every": 200}
                fields = {"vocab_size": 4000, "val_fraction": 0.02, "copy": copy, "train": settings}
                model = api.train(
                    "translation", "sentences", data=str(data), out=Path(folder) / f"{seed}{copy}", **fields
                )
                answers = model.predict({"input": sources, "cut": True})["results"]
                name = f"seed {seed}, {'with' if copy else 'without'} copying"
                report(name, [answer["text"] for answer in answers])
    if options.json:
        print(json.dumps({"train": len(train), "held_out": len(test), "scores": results}))


if __name__ == "__main__":
    main()
