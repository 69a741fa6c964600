"""Figures of contacts: the map of scores beside the structure's own, how many pairs are right, and the fold."""

from typing import Any

import numpy as np

from ...data.images.read import encode_png, import_pillow
from ...data.sequences.structure import Structure
from ...errors import InputError
from ...recipe import Figure
from .contacts import check_pairs, measure_precision, rank_pairs

SIDE = 480  # pixels of a picture
RIGHT, WRONG = (30, 150, 80), (205, 60, 60)


def draw_contacts(maps: dict[str, np.ndarray], structure: Structure | None) -> list[Figure]:
    """Draw maps of scores (L, L), by the names of the methods, the model's first. Without Pillow, only curves."""
    name, scores = next(iter(maps.items()))
    curves = [] if structure is None else [draw_precision(maps, structure)]
    try:
        pictures = [{"png": encode_png(draw_map(scores, structure), SIDE), "caption": f"scores of {name}"}]
        if structure is not None:
            pictures.append({"png": encode_png(draw_fold(scores, structure), SIDE), "caption": "the fold"})
    except InputError:  # no Pillow
        return curves
    note = "above the diagonal: scores, darker for more"
    if structure is not None:
        note += "; below: the best L pairs, green where the structure has a contact, red where not, over its contacts"
        note += " in gray. Beside it the chain, from blue to orange, with the best L/2 pairs as lines"
    return [*curves, {"kind": "images", "title": "Contacts", "note": note, "images": pictures}]


def draw_precision(maps: dict[str, np.ndarray], structure: Structure) -> Figure:
    length, lines, texts = len(structure.columns), [], []
    for name, scores in maps.items():
        hits = check_pairs(scores, structure)[: 2 * length]
        counts = np.arange(1, len(hits) + 1)
        shares, picks = np.cumsum(hits) / counts, range(9, len(hits), 5)
        lines.append({"name": name, "x": counts[picks].tolist(), "y": shares[picks].round(4).tolist()})
        values = measure_precision(scores, structure)
        texts.append(f"{name} " + " / ".join(f"{value:.3f}" for value in values.values()))
    note = f"share of contacts among the best pairs; L = {length}; at L, L/2 and L/5: {'; '.join(texts)}"
    return {"kind": "lines", "title": "Best pairs that touch", "note": note, "x_label": "pairs", "lines": lines}


def draw_map(scores: np.ndarray, structure: Structure | None) -> np.ndarray:
    """(L, L) -> (L, L, 3) uint8"""
    top = np.quantile(scores, 0.998)
    gray = 255 - (225 * np.clip(scores / max(top, 1e-12), 0, 1)).astype(np.uint8)
    pixels = np.repeat(gray[:, :, None], 3, 2)
    pixels[np.tril_indices(len(scores), -1)] = 255
    if structure is not None:
        columns = structure.columns
        lower, upper = np.nonzero(np.tril(structure.contacts, -6))
        pixels[columns[lower], columns[upper]] = 205
        for i, j in rank_pairs(scores[np.ix_(columns, columns)], structure.numbers)[: len(columns)].tolist():
            pixels[columns[j], columns[i]] = RIGHT if structure.contacts[i, j] else WRONG
    return pixels


def draw_fold(scores: np.ndarray, structure: Structure) -> np.ndarray:
    """The trace of C-alpha from the side on which it is widest, and the best pairs as lines: (SIDE, SIDE, 3) uint8"""
    import_pillow()
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (SIDE, SIDE), "white")
    canvas: Any = ImageDraw.Draw(picture)
    middle = structure.alpha.mean(0)
    _, _, axes = np.linalg.svd(structure.alpha - middle, full_matrices=False)
    flat = (structure.alpha - middle) @ axes[:2].T
    points = SIDE / 2 + flat / np.abs(flat).max() * (SIDE / 2 - 12)
    pairs = rank_pairs(scores[np.ix_(structure.columns, structure.columns)], structure.numbers)
    for i, j in pairs[: len(structure.columns) // 2].tolist():
        ends = [tuple(points[structure.numbers[k]]) for k in (i, j)]
        canvas.line(ends, fill=RIGHT if structure.contacts[i, j] else WRONG, width=1)
    for k in range(len(points) - 1):
        share = k / len(points)
        color = (int(40 + 200 * share), int(90 + 50 * share), int(220 - 190 * share))
        canvas.line([tuple(points[k]), tuple(points[k + 1])], fill=color, width=3)
    return np.asarray(picture)
