"""Sudoku: one model that fills gaps in any order, beside an autoregressive model of the same body and time.

    python -m bench.recipes.sudoku                      6 x 6, ten CPU minutes of training each: five of two cores
    python -m bench.recipes.sudoku --size 9 --cpu-minutes 20 --no-language

`diffusion` is trained on solved grids, one a line, and asked with every order of filling; `language` on rows of a
puzzle and its solution, with a share of the cells hidden that is drawn from (0, 1) too. The puzzles of the test have
one solution, and their grids are no symmetric form of any that was trained on. Solved grids of the test, some of whose
cells are wrong, are then edited: how many cells are wrong after each revision.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from bench._common import make_parser, train_for

ORDERS: dict[str, dict[str, Any]] = {
    "surest first": {},
    "by margin": {"order": "margin"},
    "by entropy": {"order": "entropy"},
    "left to right": {"order": "left"},
    "random": {"order": "random"},
    "all at once": {"passes": 1},
    "surest, revised 3 times": {"revise": 3},
}
CLUES = {6: (18, 12), 9: (50, 40, 30)}
N_BASES, N_GRIDS = {6: 2000, 9: 400}, {6: 20_000, 9: 100_000}
PLANTED, REVISIONS = (1, 2, 4), 4  # wrong cells of a grid; how often it is revised


class Shape(NamedTuple):
    """A grid of `size` x `size` cells in boxes of `rows` x `columns`."""

    size: int
    rows: int
    columns: int

    def list_peers(self) -> list[list[int]]:
        """Return for each cell those that must differ from it."""
        n = self.size

        def units(cell: int) -> tuple[int, ...]:
            row, column = divmod(cell, n)
            return row, n + column, 2 * n + row // self.rows * self.rows + column // self.columns

        cells = range(n * n)
        return [[b for b in cells if b != a and set(units(a)) & set(units(b))] for a in cells]


SHAPES = {6: Shape(6, 2, 3), 9: Shape(9, 3, 3)}


class Solver:
    """Finds the solutions of puzzles, lists of digits with 0 for a gap, by trying the cell with the fewest options."""

    def __init__(self, shape: Shape, rng: np.random.Generator):
        self.shape, self.peers, self.rng = shape, shape.list_peers(), rng

    def solve(self, grid: list[int], most: int, shuffles: bool = False) -> list[list[int]]:
        """Return up to so many solutions."""
        gaps = [cell for cell, digit in enumerate(grid) if not digit]
        if not gaps:
            return [list(grid)]
        options = {cell: self.list_options(grid, cell) for cell in gaps}
        cell = min(gaps, key=lambda gap: len(options[gap]))
        digits = self.rng.permutation(options[cell]).tolist() if shuffles else options[cell]
        solutions: list[list[int]] = []
        for digit in digits:
            grid[cell] = digit
            solutions += self.solve(grid, most - len(solutions), shuffles)
            grid[cell] = 0
            if len(solutions) >= most:
                break
        return solutions

    def list_options(self, grid: list[int], cell: int) -> list[int]:
        taken = {grid[peer] for peer in self.peers[cell]}
        return [digit for digit in range(1, self.shape.size + 1) if digit not in taken]

    def hide_cells(self, grid: list[int], clues: int) -> list[int] | None:
        """Return a puzzle with one solution and so many clues, None if the cells that were tried do not allow it."""
        puzzle, left = list(grid), len(grid)
        for cell in self.rng.permutation(len(grid)).tolist():
            if left == clues:
                return puzzle
            digit, puzzle[cell] = puzzle[cell], 0
            if len(self.solve(puzzle, 2)) == 1:
                left -= 1
            else:
                puzzle[cell] = digit
        return puzzle if left == clues else None


def transform(grids: np.ndarray, shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """Return random symmetric forms of grids (N, cells): digits renamed, rows and columns moved within their bands, and
    bands moved."""
    n, results = shape.size, []
    for grid in grids.reshape(-1, n, n):
        rows = move_lines(n, shape.rows, rng)
        columns = move_lines(n, shape.columns, rng)
        digits = np.concatenate([[0], rng.permutation(n) + 1])
        results.append(digits[grid][rows][:, columns].reshape(-1))
    return np.array(results)


def move_lines(n: int, band: int, rng: np.random.Generator) -> np.ndarray:
    starts = rng.permutation(n // band) * band
    return np.concatenate([start + rng.permutation(band) for start in starts])


def write_grid(grid: Any, gap: str = "_") -> str:
    return "".join(str(digit) if digit else gap for digit in grid)


def make_data(shape: Shape, folder: Path, n_tests: int) -> dict[int, list[tuple[str, str]]]:
    """Write grids.txt and puzzles.jsonl. Returns puzzles to test with and their solutions, by the number of clues."""
    rng = np.random.default_rng(0)
    solver, cells = Solver(shape, rng), shape.size**2
    bases = np.array([solver.solve([0] * cells, 1, shuffles=True)[0] for _ in range(N_BASES[shape.size])])
    n_train = len(bases) * 19 // 20
    grids = transform(bases[rng.integers(n_train, size=N_GRIDS[shape.size])], shape, rng)
    (folder / "grids.txt").write_text("\n".join(map(write_grid, grids)) + "\n")
    is_hidden = rng.random(grids.shape) < rng.random((len(grids), 1))
    pairs = (f"{write_grid(np.where(hidden, 0, grid))}={write_grid(grid)}" for grid, hidden in zip(grids, is_hidden))
    (folder / "puzzles.jsonl").write_text("".join(json.dumps({"text": pair}) + "\n" for pair in pairs))
    tests: dict[int, list[tuple[str, str]]] = {clues: [] for clues in CLUES[shape.size]}
    for clues, rows in tests.items():
        while len(rows) < n_tests:
            (grid,) = transform(bases[rng.integers(n_train, len(bases), size=1)], shape, rng)
            if (puzzle := solver.hide_cells(grid.tolist(), clues)) is not None:
                rows.append((write_grid(puzzle), write_grid(grid)))
    return tests


def count_solved(texts: list[str], rows: list[tuple[str, str]]) -> float:
    return sum(text == solution for text, (_, solution) in zip(texts, rows, strict=True)) / len(rows)


def ask_drafts(model: Any, texts: list[str], **settings: Any) -> list[str]:
    return [result["text"] for result in model.predict(texts, **settings)["results"]]


def ask_language(model: Any, rows: list[tuple[str, str]]) -> list[str]:
    """Let a language model write the solution behind each puzzle."""
    cells, tokenizer = len(rows[0][0]), model.module.tokenizer
    prompts = [[tokenizer.end_id, *tokenizer.encode(f"{puzzle}=").tolist()] for puzzle, _ in rows]
    samples = model.predict(prompt=prompts, tokens=cells, temperature=0)["samples"]
    return [sample["text"] for sample in samples]


def revise_grids(model: Any, solutions: list[str], n_wrong: int, seed: int = 0) -> list[dict[str, float]]:
    """Plant so many wrong cells in solved grids and revise them. Returns the mean number of wrong cells and the share
    of grids without any, before and after each revision."""
    rng, texts = np.random.default_rng(seed), []
    for solution in solutions:
        digits, size = np.array(list(map(int, solution))), int(len(solution) ** 0.5)
        cells = rng.choice(len(digits), n_wrong, replace=False)
        digits[cells] = (digits[cells] - 1 + rng.integers(1, size, n_wrong)) % size + 1
        texts.append(write_grid(digits))
    drafts = [texts, *(ask_drafts(model, texts, edit=True, revise=n + 1) for n in range(REVISIONS))]
    wrong = np.array([[sum(map(str.__ne__, *pair)) for pair in zip(rows, solutions)] for rows in drafts])
    return [{"wrong cells": float(row.mean()), "solved": float((row == 0).mean())} for row in wrong]


def train(shape: Shape, folder: Path, options: Any) -> tuple[Any, Any]:
    """Train both models, of the same body, for the same CPU time each."""
    time, out = (options.cpu_minutes,), options.out or folder
    fields = {"seed": options.seed, "data": str(folder / "grids.txt")}
    drafts = train_for(*time, "diffusion", "grid", out / "drafts", **fields)
    if options.no_language:
        return drafts, None
    body = drafts.config.model
    same = ("dim", "n_layer", "n_head", "position", "norm", "activation", "qk_norm", "bias", "init")
    row, n_rows = 2 * (shape.size**2 + 1), 4  # most rows are whole in their window
    model = {name: getattr(body, name) for name in same} | {"context": n_rows * row}
    fields |= {"data": str(folder / "puzzles.jsonl"), "model": model, "tied": False}
    batch = drafts.config.train.batch // (2 * n_rows)  # as many tokens
    return drafts, train_for(*time, "language", "small", out / "language", train={"batch": batch}, **fields)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--size", type=int, choices=SHAPES, default=6)
    parser.add_argument("--cpu-minutes", type=float, default=10)
    parser.add_argument("--tests", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-language", action="store_true")
    parser.add_argument("--out", type=Path, help="keep the runs here; those that are finished are not trained again")
    options = parser.parse_args()
    shape, results = SHAPES[options.size], {}
    with TemporaryDirectory() as name:
        tests = make_data(shape, Path(name), options.tests)
        drafts, language = train(shape, Path(name), options)
        for clues, rows in tests.items():
            puzzles = [puzzle for puzzle, _ in rows]
            solved = {
                order: count_solved(ask_drafts(drafts, puzzles, **settings), rows) for order, settings in ORDERS.items()
            }
            solved |= {"language, left to right": count_solved(ask_language(language, rows), rows)} if language else {}
            results[f"{clues} clues"] = solved
        solutions = [solution for rows in tests.values() for _, solution in rows][: options.tests // 2]
        results["revised"] = {n_wrong: revise_grids(drafts, solutions, n_wrong) for n_wrong in PLANTED}
    if options.json:
        print(json.dumps(results))
    else:
        show(results)


def show(results: dict[str, Any]) -> None:
    for n_wrong, rows in results.pop("revised").items():
        cells = "  ".join(f"{row['wrong cells']:.2f} ({100 * row['solved']:.1f} %)" for row in rows)
        print(f"{n_wrong} wrong cells, after each revision (solved): {cells}")
    for clues, solved in results.items():
        print(f"\n{clues}: solved")
        for order, share in solved.items():
            print(f"  {order:<26}{100 * share:6.1f} %")


if __name__ == "__main__":
    main()
