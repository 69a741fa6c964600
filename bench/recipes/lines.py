"""Images and proteins as lines of characters: `diffusion` with `--lines`, nothing else.

    python -m bench.recipes.lines images --cpu-minutes 2 --figure docs/drafts-images.png
    python -m bench.recipes.lines proteins --cpu-minutes 2

Images are those of Fashion-MNIST at 14 x 14 in eight grays, a digit for each pixel; the lower half of held-out ones is
filled. Proteins are of up to 128 residues; one in eight of held-out ones is filled.
"""

import gzip
import json
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from anyformer.data.io.resolve import resolve
from bench._common import make_parser, train_for

SIDE, GRAYS, MAX_RESIDUES = 14, 8, 128
GAP = "_"
SHAPES = {"images": (SIDE**2, 16), "proteins": (MAX_RESIDUES, 24)}  # context and batch


def read_images(name: str) -> np.ndarray:
    """Return images in eight grays: (N, 14, 14)"""
    (path,) = (path for path in resolve("fashion-mnist") if path.name.startswith(f"{name}-images"))
    raw = gzip.decompress(path.read_bytes())
    pixels = np.frombuffer(raw, np.uint8, offset=16).reshape(-1, SIDE, 2, SIDE, 2)
    return (pixels.mean((2, 4)) * GRAYS / 256).astype(int)


def list_lines(kind: str) -> tuple[list[str], list[str]]:
    """Return lines for training and for the test."""
    if kind == "images":
        training, test = ([as_text(image) for image in read_images(name)] for name in ("train", "t10k"))
        return training, test
    (path,) = resolve("protein")
    records = gzip.decompress(path.read_bytes()).decode().split(">")[1:]
    sequences = ["".join(record.split("\n")[1:]) for record in records]
    short = list(dict.fromkeys(row for row in sequences if 30 <= len(row) <= MAX_RESIDUES))
    return short[: len(short) * 9 // 10], short[len(short) * 9 // 10 :]


def as_text(image: np.ndarray) -> str:
    return "".join(map(str, image.reshape(-1).tolist()))


def hide(kind: str, line: str, rng: np.random.Generator) -> str:
    if kind == "images":
        return line[: len(line) // 2] + GAP * (len(line) - len(line) // 2)
    hidden = set(rng.choice(len(line), -(-len(line) // 8), replace=False).tolist())
    return "".join(GAP if i in hidden else c for i, c in enumerate(line))


def measure(kind: str, model: Any, training: list[str], test: list[str]) -> dict[str, float]:
    """Return the share of hidden characters that are filled with the truth, beside the likeliest one of each place
    (of proteins: of all places), and of images the mean absolute error of the gray."""
    puzzles = [hide(kind, line, np.random.default_rng(i)) for i, line in enumerate(test)]
    filled = [result["text"] for result in model.predict(puzzles, passes=SIDE)["results"]]
    places = zip(*training) if kind == "images" else [training]
    usual = [Counter("".join(place)).most_common(1)[0][0] for place in places]
    triples = [
        (truth, new, usual[i % len(usual)])
        for line, puzzle, text in zip(test, puzzles, filled)
        for i, (truth, gap, new) in enumerate(zip(line, puzzle, text, strict=True))
        if gap == GAP
    ]
    results = {"bound": model.evaluate()["loss"]}
    results |= {name: float(np.mean([row[0] == row[i] for row in triples])) for i, name in ((1, "right"), (2, "usual"))}
    if kind == "images":
        median = np.median([list(map(int, line)) for line in training], 0)
        errors = [[abs(int(a) - int(b)) for a, b in zip(line, text)] for line, text in zip(test, filled)]
        results["gray error"] = float(np.mean(np.array(errors)[:, SIDE**2 // 2 :]))
        truths = np.array([list(map(int, line)) for line in test])
        results["gray error of the median"] = float(np.abs(truths - median)[:, SIDE**2 // 2 :].mean())
    return results


def draw(model: Any, lines: list[str], path: Path) -> None:
    """Draw how the lower halves of images are filled, one image a row: five drafts, then the truth."""
    puzzles = [hide("images", line, np.random.default_rng(0)) for line in lines]
    results = model.predict(puzzles, passes=SIDE, drafts=True)["results"]
    rows = []
    for puzzle, line, result in zip(puzzles, lines, results):
        drafts = [puzzle, *result["drafts"]]
        picked = [drafts[round(i * (len(drafts) - 1) / 5)] for i in range(6)]
        cells = [np.array([-1 if c == GAP else int(c) for c in text]).reshape(SIDE, SIDE) for text in (*picked, line)]
        rows.append(np.concatenate([np.pad(cell, 1, constant_values=GRAYS) for cell in cells], 1))
    grays = np.concatenate(rows).repeat(4, 0).repeat(4, 1)
    pixels = np.stack([grays * 255 // (GRAYS - 1)] * 3, -1).clip(0, 255)
    pixels[grays < 0] = (192, 77, 23)  # not yet filled
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("kind", choices=SHAPES)
    parser.add_argument("--cpu-minutes", type=float, default=2)
    parser.add_argument("--tests", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="keep the run here; a finished one is not trained again")
    parser.add_argument("--figure", type=Path, help="of images: write their drafts as a PNG")
    options = parser.parse_args()
    training, test = list_lines(options.kind)
    with TemporaryDirectory() as name:
        data = Path(name) / f"{options.kind}.txt"
        data.write_text("\n".join(training) + "\n")
        context, batch = SHAPES[options.kind]
        fields: dict[str, Any] = {"data": str(data), "model": {"context": context}, "train": {"batch": batch}}
        out = options.out or Path(name) / "run"
        model = train_for(options.cpu_minutes, "diffusion", "grid", out, options.seed, **fields)
        results = measure(options.kind, model, training, test[: options.tests])
        if options.figure:
            draw(model, test[:6], options.figure)
        elif options.kind == "proteins":
            example = hide("proteins", test[0], np.random.default_rng(0))
            results["example"] = [example, *model.predict(example, passes=4, drafts=True)["results"][0]["drafts"]]
    print(json.dumps(results) if options.json else "\n".join(f"{name}: {value}" for name, value in results.items()))


if __name__ == "__main__":
    main()
