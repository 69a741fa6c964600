"""Contacts from single sequences: `masked` on the members of a family without gaps, beside DCA on the alignment.

    python -m bench.recipes.protein_contacts dhfr --cpu-minutes 10

A protein language model never sees which residues share a column. It is trained on the sequences of the family without
their gaps; then each residue of a few of them is exchanged for every other one, and how much the logits at all other
places change (the categorical Jacobian, Zhang et al. 2024) is a score for each pair of residues: norms, made symmetric,
less what both places explain by themselves (APC), like those of `msa`. The place of a residue in its sequence is its
only tie to a column; the scores of several sequences are averaged, column by column.

Shapes: L columns, T residues of a sequence, V residues that there are.
"""

import json
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anyformer.data.sequences.alignment import STATES
from anyformer.recipes import msa
from anyformer.recipes._shared.contacts import correct_average_product, measure_precision, score_baselines
from bench._common import make_parser, train_for

RESIDUES = STATES.replace("-", "")
MODEL = {"dim": 96, "n_layer": 3, "n_head": 4, "context": 256}
BATCH = 64


@torch.inference_mode()
def measure_changes(model: Any, sequence: str) -> np.ndarray:
    """Return how much the prediction at each place depends on the residue at each other one: (T, T)"""
    tokenizer = model.masked_tokenizer
    (ids,) = (torch.tensor(row) for row in tokenizer.encode_batch([sequence], model.context, False))
    first, letters = len(tokenizer.prefix_ids), torch.tensor(tokenizer.tokenizer.encode(RESIDUES).tolist())
    rows = ids.repeat(len(sequence), len(letters), 1)  # (T, V, with the ends)
    for place in range(len(sequence)):
        rows[place, :, first + place] = letters
    parts = [read_logits(model, part, first, len(sequence), letters) for part in rows.flatten(0, 1).split(BATCH)]
    changes = torch.cat(parts).view(len(sequence), len(letters), len(sequence), len(letters))
    changes = changes - changes.mean(1, keepdim=True)
    changes -= changes.mean(3, keepdim=True)
    return changes.square().sum((1, 3)).sqrt().double().numpy()


def read_logits(model: Any, ids: Tensor, first: int, length: int, letters: Tensor) -> Tensor:
    """Return the logits of the residues at all places of some sequences: (B, T, V)"""
    return model(ids).float()[:, first : first + length, letters]


def map_contacts(model: Any, rows: list[str]) -> np.ndarray:
    """Average the scores of some rows of an alignment: (L, L)"""
    length = len(rows[0])
    totals, counts = np.zeros((length, length)), np.zeros((length, length))
    for row in rows:
        columns = [i for i, letter in enumerate(row) if letter in RESIDUES]
        scores = correct_average_product(measure_changes(model, "".join(row[i] for i in columns)))
        totals[np.ix_(columns, columns)] += scores / scores.std()
        counts[np.ix_(columns, columns)] += 1
    return totals / np.maximum(counts, 1)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("family", nargs="?", default="dhfr", choices=("dhfr", "s1a"))
    parser.add_argument("--cpu-minutes", type=float, default=10)
    parser.add_argument("--sequences", type=int, default=8, help="whose residues are exchanged")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="the run, which is kept, and found again")
    options = parser.parse_args()
    config = replace(msa.PRESETS["small"], data=options.family)
    alignment, structure = msa.load_alignment(config), msa.find_structure(config)
    if structure is None:
        raise SystemExit(f"{options.family}: no structure to compare with")
    texts = [msa.spell(ids) for ids in alignment.ids]
    start = time.process_time()
    with TemporaryDirectory() as folder:
        fasta = Path(folder) / "family.fasta"
        fasta.write_text("".join(f">{i}\n{text.replace('-', '')}\n" for i, text in enumerate(texts)))
        out = options.out or Path(folder) / "run"
        model = train_for(options.cpu_minutes, "masked", "protein", out, options.seed, data=str(fasta), model=MODEL)
        loss = model.describe()["val_loss"]
    rng = np.random.default_rng(options.seed)
    shares = alignment.weights / alignment.weights.sum()
    chosen = rng.choice(len(texts), options.sequences, replace=False, p=shares)
    maps = {"masked": map_contacts(model.module, [texts[i] for i in chosen])} | score_baselines(alignment)
    results: dict[str, Any] = {name: measure_precision(scores, structure) for name, scores in maps.items()}
    results |= {"family": options.family, "loss": loss, "cpu_minutes": round((time.process_time() - start) / 60, 1)}
    print(json.dumps(results, indent=None if options.json else 1))


if __name__ == "__main__":
    main()
