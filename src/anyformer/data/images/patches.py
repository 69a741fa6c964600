"""Images as patches, which become numbers of a codebook, and orders in which they are drawn.

Shapes: B images, N patches of an image (row by row), D = p * p * C numbers of a patch.
"""

from typing import Any

import numpy as np


def cut_patches(images: Any, patch: int) -> Any:
    """Cut arrays or tensors (B, H, W, C) into patches of p x p pixels: (B, N, D)"""
    B, H, W, C = images.shape
    grid = images.reshape(B, H // patch, patch, W // patch, patch, C).swapaxes(2, 3)
    return grid.reshape(B, -1, patch * patch * C)


def join_patches(patches: Any, height: int, width: int, patch: int) -> Any:
    """Put patches together again: (B, N, D) -> (B, H, W, C)"""
    grid = patches.reshape(len(patches), height // patch, width // patch, patch, patch, -1).swapaxes(2, 3)
    return grid.reshape(len(patches), height, width, -1)


def draw_orders(grid: tuple[int, int], rows: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """Draw orders of the cells of a grid: row by row, but in a share of them a rectangle comes last: (rows, N)"""
    orders = np.tile(np.arange(grid[0] * grid[1]), (rows, 1))
    for i in np.flatnonzero(rng.random(rows) < share):
        (top, bottom), (left, right) = (np.sort(rng.permutation(side + 1)[:2]) for side in grid)
        is_last = np.zeros(grid, bool)
        is_last[top:bottom, left:right] = True
        orders[i] = np.argsort(is_last.reshape(-1), kind="stable")
    return orders
