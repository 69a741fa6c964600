"""Pictures from captions: is what was asked for in them, as a judge that is trained apart sees it?

    python -m bench.recipes.text2image --cpu-minutes 15 --sheet sheet.png

`text2image` is trained on Fashion-MNIST with composed captions (class, brightness, place), a quarter of the
combinations of all three held out. Its pictures are read by a convolutional network trained on real images, composed in
every way, and a second one is trained on pictures of the model alone and tested on real images (classification accuracy
score, 1905.10887), beside one that is trained on Gaussians in the principal components of each class.
"""

import base64
import json
import time
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyformer.data.images import compose
from anyformer.data.images.captioned import CaptionedImages
from anyformer.data.images.read import encode_png, tile_images
from anyformer.inference.drawing import DrawingRequest, draw, paint_cells, select_part
from anyformer.recipes._shared.picture_figures import encode_and_decode, find_nearest_images
from bench._common import make_parser, train_for

SIZES = (10, len(compose.BRIGHTNESSES), len(compose.PLACES))
COMBINATIONS = np.array([*product(*map(range, SIZES))])
ROWS, BATCH, MAX_BATCH, COMPONENTS = 5000, 128, 500, 64
REPAINTED = 200


class Judge(nn.Module):
    """pixels (B, H, W, 1) -> logits of class, brightness and place"""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((1, 24), (24, 48), (48, 96)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(96 * 9, 128), nn.ReLU())
        self.heads = nn.ModuleList(nn.Linear(128, size) for size in SIZES)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        nodes = self.body(pixels.permute(0, 3, 1, 2).float() / 128 - 0.5)
        return [head(nodes) for head in self.heads]


def fit_judge(read_batch: Any, steps: int, seed: int) -> Judge:
    """Train on batches (pixels, labels (B, 3)); a label below 0 is not learned."""
    torch.manual_seed(seed)
    judge = Judge()
    optimizer = torch.optim.AdamW(judge.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    for step in range(steps):
        pixels, labels = read_batch(np.random.default_rng((seed, step)))
        targets = torch.from_numpy(labels).T
        losses = [
            F.cross_entropy(logits, y, ignore_index=-1) for logits, y in zip(judge(pixels), targets) if y.max() >= 0
        ]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()
        schedule.step()
    return judge.eval()


@torch.no_grad()
def read(judge: Judge, pictures: np.ndarray) -> np.ndarray:
    """Return class, brightness and place as the judge sees them: (N, 3)"""
    parts = [judge(torch.from_numpy(pictures[i : i + MAX_BATCH])) for i in range(0, len(pictures), MAX_BATCH)]
    return np.stack([torch.cat(logits).argmax(-1).numpy() for logits in zip(*parts)], axis=1)


def compare(readings: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return which of what was asked for is seen, (N, 3) bool; a brightness that was not asked for is right."""
    return (readings == targets) | ((targets == 0) & np.array([False, True, False]))


def compose_any(data: CaptionedImages, rows: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return images composed in every way, held out or not, and class, brightness and place of each."""
    pairs = rng.integers(0, SIZES[1:], (len(rows), 2))
    return data.compose(rows, pairs)[0], np.column_stack([data.images.labels[rows], pairs])


def fit_composed(data: CaptionedImages, steps: int, seed: int) -> Judge:
    def read_batch(rng: np.random.Generator) -> tuple[Tensor, np.ndarray]:
        pixels, labels = compose_any(data, rng.choice(data.images.split("train"), BATCH), rng)
        labels[labels[:, 1] == 0, 1] = -1  # an image as it is may be dark or bright
        return torch.from_numpy(pixels), labels

    return fit_judge(read_batch, steps, seed)


def score_training_set(data: CaptionedImages, pictures: np.ndarray, labels: np.ndarray, steps: int, seed: int) -> float:
    """Return the accuracy on the test images of a classifier that is trained on pictures alone."""

    def read_batch(rng: np.random.Generator) -> tuple[Tensor, np.ndarray]:
        rows = rng.integers(0, len(pictures), BATCH)
        others = np.full((BATCH, 2), -1)
        return torch.from_numpy(pictures[rows]), np.column_stack([labels[rows], others])

    test = data.images.split("val")
    readings = read(fit_judge(read_batch, steps, seed), np.asarray(data.images.pixels[test]))
    return float((readings[:, 0] == data.images.labels[test]).mean())


def draw_gaussians(data: CaptionedImages, count: int, seed: int) -> np.ndarray:
    """Draw pictures of each class from a Gaussian in its principal components: (10 * count, H, W, 1)"""
    rng, pictures = np.random.default_rng(seed), []
    for label in range(SIZES[0]):
        images = select_class(data, label, 3000).reshape(-1, 28 * 28).astype(np.float64)
        mean = images.mean(0)
        _, scales, components = np.linalg.svd(images - mean, full_matrices=False)
        draws = rng.normal(size=(count, COMPONENTS)) * scales[:COMPONENTS] / np.sqrt(len(images))
        pictures.append((mean + draws @ components[:COMPONENTS]).clip(0, 255).astype(np.uint8))
    return np.concatenate(pictures).reshape(-1, 28, 28, 1)


def select_class(data: CaptionedImages, label: int, count: int) -> np.ndarray:
    rows = data.images.split("train")
    return np.asarray(data.images.pixels[rows[data.images.labels[rows] == label][:count]])


def draw_combinations(model: Any, data: CaptionedImages, count: int, guidance: float, seed: int) -> np.ndarray:
    names = data.images.classes
    captions = [compose.compose_caption(names[label], *pair) for label, *pair in COMBINATIONS.tolist()]
    request = {"samples": count, "guidance": guidance, "seed": seed}
    half = len(captions) // 2
    return np.concatenate(
        [draw(model, DrawingRequest(input=part, **request)) for part in (captions[:half], captions[half:])]
    )


def measure_captions(model: Any, data: CaptionedImages, judge: Judge, count: int, seed: int) -> dict[str, Any]:
    """Return the shares of pictures in which class, brightness, place and all of them are seen, by guidance."""
    targets = COMBINATIONS.repeat(count, 0)
    is_out, results = compose.find_held_out(targets[:, 0], targets[:, 1:]), {}
    for guidance in (1.0, 2.0, 3.0):
        right = compare(read(judge, draw_combinations(model, data, count, guidance, seed)), targets)
        for name, rows in (("trained", ~is_out), ("held out", is_out)):
            results[f"guidance {guidance:g}, {name}"] = {
                "all": float(right[rows].all(1).mean()),
                **{key: float(share) for key, share in zip(("class", "brightness", "place"), right[rows].mean(0))},
                "pictures": int(rows.sum()),
            }
    return results


def measure_codebook(model: Any, data: CaptionedImages, judge: Judge) -> dict[str, float]:
    """Return what the judge reads of composed test images, before and after the codebook, and its error."""
    rng = np.random.default_rng(0)
    pictures, targets = compose_any(data, data.images.split("val")[:ROWS], rng)
    decoded = encode_and_decode(model, pictures)
    rights = [compare(read(judge, images), targets).all(1).mean() for images in (pictures, decoded)]
    error = ((pictures.astype(np.float32) - decoded) ** 2).mean() / 255**2
    return {"judge on images": float(rights[0]), "judge on decoded images": float(rights[1]), "mse": float(error)}


def measure_copies(data: CaptionedImages, pictures: np.ndarray, decoded: Any) -> dict[str, float]:
    """Return the mean distance to the nearest training image, of pictures and of test images after the codebook."""
    test = decoded(np.asarray(data.images.pixels[data.images.split("val")[: len(pictures)]]))
    sets = {"pictures": pictures, "decoded test images": test}
    distances = {}
    for name, images in sets.items():
        nearest = find_nearest_images(data.images, images).astype(np.float32)
        distances[name] = float(np.sqrt(((images - nearest) ** 2).mean((1, 2, 3))).mean() / 255)
    return distances


def measure_repainting(model: Any, data: CaptionedImages, judge: Judge) -> dict[str, float]:
    """Return in how many test images the judge reads the class, after their lower half is painted anew with their
    caption or without it, and as it would be black."""
    rows = data.images.split("val")[:REPAINTED]
    images, labels = np.asarray(data.images.pixels[rows]), data.images.labels[rows]
    is_hidden = select_part(model.grid, "bottom")
    mask = np.kron(is_hidden, np.ones((model.patch, model.patch), bool))[..., None]
    sets = {"as they are": images, "half of them black": np.where(mask, np.uint8(0), images)}
    for name, words in (("painted after the caption", data.images.classes), ("painted without it", [""] * SIZES[0])):
        painted = [
            paint_cells(model, [words[label]], [i], image, is_hidden, DrawingRequest())
            for i, (image, label) in enumerate(zip(images, labels))
        ]
        sets[name] = np.concatenate(painted)
    return {name: float((read(judge, pictures)[:, 0] == labels).mean()) for name, pictures in sets.items()}


def measure(model: Any, data: CaptionedImages, options: Any) -> dict[str, Any]:
    seed, count, steps = options.seed, options.pictures, options.judge_steps
    judge = fit_composed(data, 2 * steps, seed)
    results: dict[str, Any] = {"codebook": measure_codebook(model, data, judge)}
    results["captions"] = measure_captions(model, data, judge, options.samples, seed)
    labels = np.arange(SIZES[0]).repeat(count)
    request = {"samples": count, "guidance": options.guidance, "seed": seed}
    drawn = [draw(model, DrawingRequest(input=name, **request)) for name in data.images.classes]
    real = np.concatenate([select_class(data, label, count) for label in range(SIZES[0])])
    sets = {
        "pictures of the model": np.concatenate(drawn),
        "Gaussians of each class": draw_gaussians(data, count, seed),
        "as many real images": real,
        "these after the codebook": encode_and_decode(model, real),
    }
    results["accuracy score"] = {name: score_training_set(data, x, labels, steps, seed) for name, x in sets.items()}
    pictures = np.concatenate([part[:20] for part in drawn])
    results["distance to the nearest"] = measure_copies(data, pictures, lambda x: encode_and_decode(model, x))
    results["repainting"] = measure_repainting(model, data, judge)
    return results


def write_sheet(model: Any, data: CaptionedImages, path: Path, seed: int) -> None:
    """Write pictures: below each class plain ones, then held-out combinations."""
    names, held_out = data.images.classes, compose.find_held_out(COMBINATIONS[:, 0], COMBINATIONS[:, 1:])
    captions = [compose.compose_caption(names[label], *pair) for label, *pair in COMBINATIONS[held_out].tolist()]
    plain = draw(model, DrawingRequest(input=list(names), samples=4, seed=seed))
    composed = draw(model, DrawingRequest(input=captions, samples=2, seed=seed))
    sheet = tile_images(np.concatenate([order_by_class(plain), order_by_class(composed)]), 3, columns=SIZES[0])
    path.write_bytes(base64.b64decode(encode_png(sheet, len(sheet))))


def order_by_class(pictures: np.ndarray) -> np.ndarray:
    """Four pictures of each class -> four rows, each with one of every class."""
    shape = pictures.shape[1:]
    return pictures.reshape(SIZES[0], 4, *shape).swapaxes(0, 1).reshape(-1, *shape)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--cpu-minutes", type=float, default=15, help="of the training")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--samples", type=int, default=8, help="pictures of each combination of class, brightness, place"
    )
    parser.add_argument("--pictures", type=int, default=400, help="of each class, to train a classifier on")
    parser.add_argument("--guidance", type=float, default=1.5, help="of these")
    parser.add_argument("--judge-steps", type=int, default=400, help="half of those of the judge of captions")
    parser.add_argument("--out", type=Path, help="the run, which is kept")
    parser.add_argument("--sheet", type=Path, help="a .png of pictures")
    options = parser.parse_args()
    start = time.process_time()
    with TemporaryDirectory() as folder:
        out = options.out or Path(folder) / "run"
        model = train_for(options.cpu_minutes, "text2image", "small", out, options.seed)
        data = model.recipe.load_data(model.config)
        if options.sheet:
            write_sheet(model.module, data, options.sheet, options.seed)
        results = {"loss": model.describe()["val_loss"], "parameters": model.n_parameters}
        results |= measure(model.module, data, options)
    results |= {"seed": options.seed, "cpu_minutes": round((time.process_time() - start) / 60, 1)}
    print(json.dumps(results, indent=None if options.json else 1))


if __name__ == "__main__":
    main()
