"""A codebook: vectors as numbers of the nearest of a few centers, which k-means finds.

Shapes: n points, D numbers of a point, K entries.
"""

import numpy as np

MAX_FIT_POINTS = 50_000  # that a codebook is fitted to
MAX_ITERATIONS = 30


def fit_codebook(points: np.ndarray, size: int, seed: int = 0) -> np.ndarray:
    """Find `size` centers of points (n, D) by k-means, which starts from far apart ones (k-means++): (K, D) float32.

    Points that occur several times are one with a weight. Fewer distinct points than entries: each is one, and the last
    is repeated.
    """
    points, counts = np.unique(points, axis=0, return_counts=True)
    rng = np.random.Generator(np.random.Philox(key=seed))
    if len(points) > MAX_FIT_POINTS:
        kept = np.sort(rng.permutation(len(points))[:MAX_FIT_POINTS])
        points, counts = points[kept], counts[kept]
    points = points.astype(np.float32)
    if len(points) <= size:
        return np.concatenate([points, np.repeat(points[-1:], size - len(points), axis=0)])
    centers = points[choose_far_points(points, counts, size, rng)]
    for _ in range(MAX_ITERATIONS):
        nearest = find_nearest(points, centers)
        total = np.bincount(nearest, counts, size)
        sums = np.stack([np.bincount(nearest, counts * column, size) for column in points.T], axis=1)
        moved = np.where(total[:, None] > 0, sums / np.maximum(total, 1)[:, None], centers).astype(np.float32)
        if np.array_equal(moved, centers):
            break
        centers = moved
    return centers


def choose_far_points(points: np.ndarray, counts: np.ndarray, size: int, rng: np.random.Generator) -> list[int]:
    """Draw the first centers, each with a probability that grows with its squared distance to those before."""
    chosen = [int(np.argmax(counts))]
    distance = ((points - points[chosen[0]]) ** 2).sum(1)
    while len(chosen) < size:
        cumulative = np.cumsum(distance * counts)
        chosen.append(int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right")))
        distance = np.minimum(distance, ((points - points[chosen[-1]]) ** 2).sum(1))
    return chosen


def find_nearest(points: np.ndarray, centers: np.ndarray, rows: int = 8192) -> np.ndarray:
    """Return the index of the nearest center of each point: (n, D), (K, D) -> (n,)"""
    norms, nearest = (centers**2).sum(1), []
    for start in range(0, len(points), rows):
        part = points[start : start + rows].astype(np.float32)
        nearest.append(np.argmin(norms - 2 * part @ centers.T, axis=1))
    return np.concatenate(nearest)
