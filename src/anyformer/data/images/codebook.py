"""Images as tokens: each patch is the number of the nearest entry of a codebook, which k-means finds.

Shapes: B images, N patches of an image (row by row), D = p * p * C numbers of a patch, K entries.
"""

from typing import Any

import numpy as np

MAX_FIT_PATCHES = 50_000  # that a codebook is fitted to
MAX_ITERATIONS = 30


def cut_patches(images: Any, patch: int) -> Any:
    """Cut arrays or tensors (B, H, W, C) into patches of p x p pixels: (B, N, D)"""
    B, H, W, C = images.shape
    grid = images.reshape(B, H // patch, patch, W // patch, patch, C).swapaxes(2, 3)
    return grid.reshape(B, -1, patch * patch * C)


def join_patches(patches: Any, height: int, width: int, patch: int) -> Any:
    """Put patches together again: (B, N, D) -> (B, H, W, C)"""
    grid = patches.reshape(len(patches), height // patch, width // patch, patch, patch, -1).swapaxes(2, 3)
    return grid.reshape(len(patches), height, width, -1)


def fit_codebook(patches: np.ndarray, size: int, seed: int = 0) -> np.ndarray:
    """Find `size` centers of patches (n, D) by k-means, which starts from far apart ones (k-means++): (K, D) float32.

    Patches that occur several times are one point with a weight. Fewer distinct patches than entries: each is one, and
    the last is repeated.
    """
    points, counts = np.unique(patches, axis=0, return_counts=True)
    rng = np.random.Generator(np.random.Philox(key=seed))
    if len(points) > MAX_FIT_PATCHES:
        kept = np.sort(rng.permutation(len(points))[:MAX_FIT_PATCHES])
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


def draw_orders(grid: tuple[int, int], rows: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """Draw orders of the cells of a grid: row by row, but in a share of them a rectangle comes last: (rows, N)"""
    orders = np.tile(np.arange(grid[0] * grid[1]), (rows, 1))
    for i in np.flatnonzero(rng.random(rows) < share):
        (top, bottom), (left, right) = (np.sort(rng.permutation(side + 1)[:2]) for side in grid)
        is_last = np.zeros(grid, bool)
        is_last[top:bottom, left:right] = True
        orders[i] = np.argsort(is_last.reshape(-1), kind="stable")
    return orders
