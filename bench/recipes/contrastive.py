"""Images and texts in one space: recall, zero-shot classes, and combinations that were never seen together.

    python -m bench.recipes.contrastive --cpu-minutes 4 --out runs/fashion --sheet sheet.png

`contrastive` is trained on Fashion-MNIST with composed captions (class, brightness, place), a quarter of the
combinations of all three held out. Beside each figure is what guessing reaches. A run that is there already is measured
as it is.
"""

import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from anyformer.data.images import compose
from anyformer.data.images.captioned import ALL_COMPOSITIONS, CaptionedImages
from anyformer.data.images.read import import_pillow, tile_images
from anyformer.data.sampling import sample_evenly
from anyformer.recipes._shared.towers import embed_images, embed_texts
from bench._common import make_parser, train_for

ROWS, SEARCHED, NEAREST = 1000, 2000, 8


def measure_combinations(model: Any, data: CaptionedImages) -> dict[str, float]:
    """Return how often the right caption is the nearest of all: of images in combinations that the training showed, and
    of the same images in those that it did not."""
    captions = list(data.list_captions())
    texts, rows = embed_texts(model, captions, cut=True), sample_evenly(data.images.split("val"), ROWS)
    labels, pairs, rng = data.images.labels[rows], np.array(ALL_COMPOSITIONS), np.random.default_rng(0)
    both = pairs[(pairs > 0).all(1)]
    results: dict[str, float] = {}
    for name, is_out in (("trained", False), ("held_out", True)):
        options = [both[compose.find_held_out(np.full(len(both), label), both) == is_out] for label in labels]
        usable = [i for i, choices in enumerate(options) if len(choices)]
        chosen = np.array([options[i][rng.integers(len(options[i]))] for i in usable])
        pixels, truths = data.compose(rows[usable], chosen)
        nearest = (embed_images(model, pixels) @ texts.T).argmax(1).tolist()
        results |= {name: float(np.mean([captions[i] == text for i, text in zip(nearest, truths)]))}
        results |= {f"{name}_images": len(usable)}
    return results | {"captions": len(captions)}


def write_sheet(model: Any, data: CaptionedImages, path: Path) -> list[str]:
    """Write the nearest test images to a caption of each class, a row each. Returns the captions."""
    rows = sample_evenly(data.images.split("val"), SEARCHED)
    pixels, _ = data.compose(rows, data.validation_compositions[rows])
    pairs = [ALL_COMPOSITIONS[(4 * i + 3) % len(ALL_COMPOSITIONS)] for i in range(len(data.images.classes))]
    captions = [compose.compose_caption(text, *pair) for text, pair in zip(data.images.classes, pairs)]
    similarity = embed_texts(model, captions, cut=True) @ embed_images(model, pixels).T
    order = similarity.argsort(1, descending=True)[:, :NEAREST].numpy()
    sheet = tile_images(pixels[order.reshape(-1)], 2, columns=NEAREST)
    import_pillow().fromarray(sheet[..., 0]).save(path)
    return captions


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--cpu-minutes", type=float, default=4, help="of the training")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="the run, which is kept")
    parser.add_argument("--sheet", type=Path, help="a .png of images that captions find")
    options = parser.parse_args()
    start = time.process_time()
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        out = options.out or Path(folder) / "run"
        model = train_for(options.cpu_minutes, "contrastive", "small", out, options.seed)
        data = model.recipe.load_data(model.config)
        stored = json.loads((out / "result.json").read_text())
        results: dict[str, Any] = {"parameters": model.n_parameters, "step": model.step, "result": stored}
        results |= {"zero_shot": model.score(), "combinations": measure_combinations(model.module, data)}
        if options.sheet:
            results |= {"sheet": write_sheet(model.module, data, options.sheet)}
    results |= {"seed": options.seed, "cpu_minutes": round((time.process_time() - start) / 60, 1)}
    print(json.dumps(results, indent=None if options.json else 1))


if __name__ == "__main__":
    main()
