"""Alignments: what a place may read, planted couplings that are recovered, formats, structures, and errors of users.

Shapes: R rows, L columns.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anyformer.data.sequences.alignment import STATES, prepare_alignment, read_alignment, weigh_rows
from anyformer.data.sequences.structure import load_structure
from anyformer.recipes import msa
from anyformer.recipes._shared.contacts import (
    correct_average_product,
    measure_direct_couplings,
    measure_mutual_information,
    measure_precision,
    rank_pairs,
)
from anyformer.training import loop
from cli_kit import assert_refused, call
from data_kit import SMALL_DATA, refuses, write

FAMILY = SMALL_DATA["msa"]
PLANTED = {(2, 14), (5, 20), (8, 17)}  # columns of the family whose residues depend on each other


def configure(preset: str = "tiny", **changes: Any) -> Any:
    return dataclasses.replace(msa.PRESETS[preset], data=str(FAMILY), **changes)


def build(**changes: Any) -> msa.AlignmentModel:
    """A model whose weights are large enough to matter."""
    torch.manual_seed(0)
    model = msa.build(configure(**changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def replace_residue(residues: torch.Tensor, row: int, column: int) -> torch.Tensor:
    changed = residues.clone()
    changed[0, row, column] = (residues[0, row, column] + 5) % len(STATES)
    return changed


# --- the model ---


@torch.no_grad()
def test_a_place_reads_all_but_what_it_holds():
    """Two layers: the rest of its row, the rest of the other rows, and never its own residue."""
    model = build().double()
    residues = torch.randint(len(STATES), (1, 4, 24), generator=torch.Generator().manual_seed(1))
    before = model(residues)
    for row, column in ((0, 0), (3, 20)):
        change = (model(replace_residue(residues, row, column)) - before)[0].abs().amax(-1)  # (R, L)
        reached = change > 0
        own_row, own_column = torch.arange(4) == row, torch.arange(24) == column
        assert not reached[:, own_column].any(), "no row's prediction of a column reads that column"
        assert reached[own_row][:, ~own_column].all()
        assert reached[~own_row][:, ~own_column].all(), "by way of the columns"
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(model(residues[:, order]), before[:, order], msg="rows are a set")


@torch.no_grad()
def test_with_one_layer_rows_are_apart():
    small = dataclasses.replace(msa.PRESETS["tiny"].model, n_layer=1)
    model, residues = build(model=small), torch.randint(len(STATES), (1, 4, 24))
    torch.testing.assert_close(model(residues), model(residues.transpose(0, 1)).transpose(0, 1))


@torch.no_grad()
def test_training_has_a_penalty_on_couplings():
    model, batch = build(penalty=3.0), next(iter(msa.batches(configure(), "train")))[0]
    without = msa.loss(model, batch)
    expected = 3.0 * model.pairs.sum_couplings() / (24 * model.reference.weight)
    torch.testing.assert_close(msa.loss(model.train(), batch) - without, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_planted_couplings_are_recovered():
    """By the model, which has never seen a pair, and by what came before; the map is symmetric."""
    shape = dataclasses.replace(msa.make_alignment_config(32, 1, 4))
    train = dataclasses.replace(msa.TRAIN, steps=60, lr=6e-3, eval_every=60, device="cpu", dtype="float32")
    config = configure("small", model=shape, train=train)
    state = loop.init_state(msa, config)
    records = list(loop.train(msa, config, state))
    baselines = msa.baselines(config)["loss"]
    assert records[-1]["val_loss"] < baselines["frequencies of columns"] - 0.1 < baselines["guessing evenly"]
    data = msa.load_alignment(config)
    maps = msa.measure_couplings(state.model), measure_direct_couplings(data), measure_mutual_information(data)
    for scores in maps:
        assert scores.shape == (24, 24) and np.allclose(scores, scores.T) and not scores.diagonal().any()
        assert set(map(tuple, rank_pairs(scores, np.arange(24))[:3].tolist())) == PLANTED


def test_average_product_and_precision():
    rng = np.random.default_rng(0)
    background = rng.random(30)
    scores = np.outer(background, background)
    np.fill_diagonal(scores, 0)
    assert np.abs(correct_average_product(scores)).max() < 0.25 * scores.max(), "what two columns explain is taken"
    alignment = prepare_alignment(FAMILY, 0.3, 0.1)
    structure = place_in_line(alignment)
    scores = -np.abs(np.subtract.outer(np.arange(24), np.arange(24))).astype(float)  # near pairs first
    assert measure_precision(scores, structure) == {"L": 0.75, "L/2": 1.0, "L/5": 1.0}  # 18 pairs are six apart


def place_in_line(alignment: Any) -> Any:
    """Residues 1.3 Angstrom apart: those up to six apart touch."""
    from anyformer.data.sequences.structure import Structure

    line = np.arange(24)[:, None] * np.array([[1.3, 0, 0]])
    return Structure("A", np.arange(24), np.arange(24), line, line)


# --- data ---


def test_rows_of_all_formats_are_the_same(tmp_path: Path):
    rows = ["MK-VLA", "MKC-LA", "MRCVLA"]
    fasta = write(tmp_path / "a.fasta", "".join(f">{i}\n{row[:3]}\n{row[3:]}\n" for i, row in enumerate(rows)))
    a3m = write(tmp_path / "b.a3m", f">0\nMKgg-VLA\n>1\nMKC-LA\n>2\n{rows[2]}x\n")
    sto = write(tmp_path / "c.sto", "# STOCKHOLM 1.0\n" + "".join(f"s{i} {row[:4]}\n" for i, row in enumerate(rows)))
    sto.write_text(sto.read_text() + "".join(f"s{i} {row[4:]}\n" for i, row in enumerate(rows)) + "//\n")
    dots = write(tmp_path / "d.fasta", ">0\nmk.vla\n>1\nmkc.la\n>2\nmrcvla\n")
    expected = [list(row) for row in rows]
    for path in (fasta, a3m, sto, dots):
        assert [[chr(letter) for letter in row] for row in read_alignment(path)] == expected, path.name


def test_gappy_columns_and_repeated_rows_are_left_out():
    alignment = prepare_alignment(FAMILY, 0.3, 0.1)
    assert alignment.width == 26 and alignment.columns.tolist() == [*range(7), *range(9, 26)]
    assert len(alignment.split("train")) + len(alignment.split("val")) == len(alignment.ids) <= 300
    family = np.array([[1, 2, 3, 4, 5], [1, 2, 3, 4, 6], [7, 8, 9, 1, 2]])
    assert weigh_rows(family).tolist() == [0.5, 0.5, 1.0]  # 80 % of five columns are four


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.fasta", ">a\nMKVL\n>b\nMKV\n", ["sequence 2 has 3 columns, the first has 4", "aligned"]),
        ("a.fasta", ">a\nMKVL\n", ["single sequence is no alignment"]),
        ("a.fasta", ">a\nMKVL\n>b\nMKVL\n", ["1 different rows"]),
        ("a.fasta", ">a\n----\n>b\n----\n", ["fewer than 2 columns"]),
        ("a.fasta", ">a\nA---\n>b\n-A--\n", ["fewer than 2 columns", "--max-gaps"]),
        ("a.fasta", ">a\nMK1L\n>b\nMKVL\n", ["line 2", "'1' is no residue"]),
        ("a.txt", "To be, or not to be\n", ["is no alignment", ".sto"]),
    ],
)
def test_bad_alignments_are_refused_in_one_line(tmp_path: Path, name: str, content: str, parts: list[str]):
    with refuses(*parts):
        prepare_alignment(write(tmp_path / name, content), 0.3, 0.1)


def test_an_alignment_that_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from anyformer.data.sequences import alignment

    monkeypatch.setattr(alignment, "MAX_CELLS", 100)
    with refuses("held in memory"):
        prepare_alignment(FAMILY, 0.3, 0.1)
    monkeypatch.setattr(alignment, "MAX_CELLS", 1 << 20)
    monkeypatch.setattr(alignment, "MAX_COLUMNS", 10)
    with refuses("24 columns are kept, at most 10", "--max-gaps"):
        prepare_alignment(FAMILY, 0.3, 0.1)
    monkeypatch.setattr(alignment, "MAX_COLUMNS", 1024)
    monkeypatch.setattr(alignment, "MAX_ROWS", 50)
    assert len(prepare_alignment(FAMILY, 0.3, 0.1).ids) == 50


# --- structures ---


def write_structure(path: Path, sequence: str) -> Path:
    gemmi = pytest.importorskip("gemmi")
    names = gemmi.expand_one_letter_sequence(sequence, gemmi.ResidueKind.AA)
    lines = [
        f"ATOM  {2 * i + k + 1:5}  {atom}  {name} A{i + 1:4}    {1.3 * i:8.3f}{k:8.3f}   0.000  1.00  0.00           C"
        for i, name in enumerate(names)
        for k, atom in enumerate(("CA", "CB"))
    ]
    return write(path, "\n".join([*lines, "TER", "END\n"]))


def test_a_structure_belongs_to_the_columns_of_its_row(tmp_path: Path):
    alignment = prepare_alignment(FAMILY, 0.3, 0.1)
    row = "".join(STATES[i] for i in alignment.ids[5])
    path = write_structure(tmp_path / "a.pdb", "GG" + row.replace("-", "") + "G")
    structure = load_structure(path, alignment)
    assert structure.columns.tolist() == [i for i, letter in enumerate(row) if letter != "-"]
    assert structure.numbers.tolist() == [2 + i for i in range(len(structure.columns))]
    assert structure.beta[0].tolist() == [2.6, 1.0, 0.0] and len(structure.alpha) == len(row.replace("-", "")) + 3
    assert structure.contacts[0, 6] and not structure.contacts[0, 7]
    with refuses("does not match the alignment", "chain A has", "at least 50%"):
        load_structure(write_structure(tmp_path / "b.pdb", "PTPTYVYVHQHQMNMNPTPT"), alignment)
    for name, content, parts in (
        ("c.pdb", "no atoms\n", ["c.pdb"]),
        ("d.txt", "", ["is no structure", ".cif"]),
        ("e.cif", "data_\n", ["e.cif"]),
    ):
        with refuses(*parts):
            load_structure(write(tmp_path / name, content), alignment)
    with refuses("no such file"):
        load_structure(tmp_path / "f.pdb", alignment)


# --- a run ---


def test_from_an_alignment_to_a_map_of_contacts(tmp_path: Path):
    """Train, write the map, list pairs, judge a sequence, compare with a structure."""
    alignment = prepare_alignment(FAMILY, 0.3, 0.05)
    row = "".join(STATES[i] for i in alignment.ids[5])
    structure = write_structure(tmp_path / "a.pdb", row.replace("-", ""))
    run, out = tmp_path / "run", tmp_path / "contacts.npy"
    flags = ("--preset", "tiny", "--steps", 2, "--device", "cpu", "--structure", structure)
    call("train", "msa", "--data", FAMILY, *flags, "--out", run).ok()
    report = (run / "report.html").read_text("utf-8")
    assert "Best pairs that touch" in report and "mean-field DCA" in report and "data:image/png" in report
    result = call("predict", run, "--out", out, "--pairs", 5).ok()
    lines, scores = [json.loads(line) for line in result.out.splitlines()], np.load(out)
    assert len(lines) == 5 and scores.shape == (26, 26) and (scores == scores.T).all()
    assert not scores[7:9].any() and scores.any()
    first, second = lines[0]["columns"]
    assert lines[0]["score"] == pytest.approx(scores[first, second], abs=1e-6) and second - first >= 6
    metrics = json.loads(call("eval", run, "--scores", "--json").ok().out)
    assert {
        f"precision at L{name}" for name in ("", ", attention", ", mean-field DCA", ", mutual information")
    } <= metrics.keys()
    judged = json.loads(call("predict", run, row).ok().out)
    assert len(judged["text"]) == 24 and judged["score"] < 0
    assert_refused(call("predict", run, "MKV"), "input has 3 columns; the alignment has 26, or 24")
    assert_refused(call("predict", run, "1" * 24), "'1' is no residue")
    assert_refused(call("predict", run, row, "--out", out), "leave --file and the inputs out")
    assert_refused(call("predict", run, "--out", tmp_path / "no" / "a.npy"), "there is no folder")


def test_a_damaged_alignment_file_of_a_model_is_refused(tmp_path: Path):
    for content in (
        {"width": 3, "columns": [0, 5], "rows": ["AC"], "weight": 2.0},
        {"width": 3, "columns": [0, 1], "rows": ["A"], "weight": 2.0},
        {"width": 3, "columns": [0, 1], "rows": ["AC"], "weight": 0.0},
    ):
        path = write(tmp_path / "alignment.json", json.dumps(content))
        with refuses("no alignment.json of a model"):
            msa.build(configure(alignment=str(path)))
    with refuses("model.position is learned", "must be none"):
        msa.build(configure(model=dataclasses.replace(msa.PRESETS["tiny"].model, position="learned")))
    with refuses("compared with a structure"):
        msa.score(build(), configure())
