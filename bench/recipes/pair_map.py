"""A map of pairs: the nodes are all pairs of columns, and a Transformer along rows and columns corrects a contact map.

    python -m bench.recipes.pair_map                              two families by name, each the other's test
    python -m bench.recipes.pair_map --families dhfr s1a my.toml  TOML: data = "my.fasta", structure = "my.pdb"

Node (i, j) holds the scores of mutual information and of mean-field DCA for columns i and j, and how far apart the
residues are. It reads the pairs (i, k) of its row in one layer and the pairs (k, j) of its column in the next, so that
after two layers it knows of all triangles i, k, j: what AlphaFold's triangles are for, by edges alone. It is trained on
the structures of all families but one, in crops of maps of subsets of the rows, and judged on that one, which it has
never seen; mean-field DCA and mutual information stand beside it. A family is a single example, so there are few.

Shapes: M columns with a residue in the structure, F scores of a pair, S pairs on a side of a crop.
"""

import json
import time
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyformer.data.sequences.alignment import Alignment
from anyformer.data.sequences.structure import SEPARATION, Structure
from anyformer.model import Transformer, TransformerConfig, initialize, same
from anyformer.recipes import msa
from anyformer.recipes._shared.contacts import measure_direct_couplings, measure_mutual_information, measure_precision
from bench._common import make_parser

SCORES = {"mutual information": measure_mutual_information, "mean-field DCA": measure_direct_couplings}
CROP, BATCH, MAX_SEPARATION = 40, 4, 64
SHARES = (1.0, 0.5, 0.25)  # of the rows of an alignment: three maps of each family, for noisier scores
SHAPE = TransformerConfig(dim=32, n_layer=4, n_head=4, mlp_dim=64, position="none", norm="rmsnorm", init="zero")


class Family(NamedTuple):
    """An alignment with its structure, and its maps, the first one of all rows: (F, L, L) each."""

    name: str
    structure: Structure
    maps: list[dict[str, np.ndarray]]


class PairMap(nn.Module):
    """Scores of pairs (B, S, S, F), separations (B, S, S) -> logits of a contact (B, S, S)."""

    def __init__(self, config: TransformerConfig, n_scores: int):
        super().__init__()
        self.scores, self.separation = nn.Linear(n_scores, config.dim), nn.Embedding(MAX_SEPARATION, config.dim)
        self.config, self.body, self.head = config, Transformer(config), nn.Linear(config.dim, 1)
        self.plain = nn.Linear(n_scores, 1)  # what the scores of the pair alone say, which all else corrects
        initialize(self, config)
        nn.init.zeros_(self.head.weight)

    def forward(self, scores: Tensor, separation: Tensor) -> Tensor:
        rows, columns = separation.shape[1:]
        row, column = torch.arange(rows).repeat_interleave(columns), torch.arange(columns).repeat(rows)
        edges = [same(row) if layer % 2 == 0 else same(column) for layer in range(self.config.n_layer)]
        x = self.scores(scores) + self.separation(separation.clamp(max=MAX_SEPARATION - 1))
        correction = self.head(self.body(x.flatten(1, 2), edges)).view(separation.shape)
        return self.plain(scores)[..., 0] + correction


def load_family(name: str, seed: int) -> Family:
    fields = tomllib.loads(Path(name).read_text()) if name.endswith(".toml") else {"data": name}
    config = replace(msa.PRESETS["small"], **fields)
    alignment, structure = msa.load_alignment(config), msa.find_structure(config)
    if structure is None:
        raise SystemExit(f"{name}: no structure to compare with")
    rng = np.random.default_rng(seed)
    return Family(name, structure, [measure_scores(alignment, share, rng) for share in SHARES])


def measure_scores(alignment: Alignment, share: float, rng: np.random.Generator) -> dict[str, np.ndarray]:
    rows = rng.permutation(len(alignment.ids))[: round(share * len(alignment.ids))]
    part = replace(alignment, ids=alignment.ids[rows], weights=alignment.weights[rows], is_val=alignment.is_val[rows])
    return {name: measure(part) for name, measure in SCORES.items()}


def make_inputs(family: Family, number: int) -> tuple[Tensor, Tensor]:
    """Return the scores (M, M, F), in standard deviations of a map, and the separations (M, M)."""
    columns, numbers = family.structure.columns, family.structure.numbers
    maps = [scores[np.ix_(columns, columns)] for scores in family.maps[number].values()]
    scores = np.stack([(scores - scores.mean()) / scores.std() for scores in maps], -1)
    return torch.from_numpy(scores).float(), torch.from_numpy(np.abs(numbers[:, None] - numbers))


def train(families: list[Family], steps: int, seed: int) -> PairMap:
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = PairMap(SHAPE, len(SCORES))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    inputs = [[make_inputs(family, i) for i in range(len(SHARES))] for family in families]
    truths = [torch.from_numpy(family.structure.contacts).float() for family in families]
    for _ in range(steps):
        crops = [draw_crop(inputs, truths, rng) for _ in range(BATCH)]
        scores, separation, truth = (torch.stack(parts) for parts in zip(*crops))
        losses = F.binary_cross_entropy_with_logits(model(scores, separation), truth, reduction="none")
        is_far = separation >= SEPARATION
        (losses * is_far).sum().div(is_far.sum()).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model.eval()


def draw_crop(inputs: list[list[tuple[Tensor, Tensor]]], truths: list[Tensor], rng: np.random.Generator) -> Any:
    """Return the scores, separations and contacts of two stretches of a chain, either way around."""
    family = rng.integers(len(inputs))
    scores, separation = inputs[family][rng.integers(len(SHARES))]
    a, b = (slice(start, start + CROP) for start in rng.integers(len(scores) - CROP + 1, size=2))
    return scores[a, b], separation[a, b], truths[family][a, b]


@torch.no_grad()
def judge(model: PairMap, family: Family) -> dict[str, dict[str, float]]:
    """Return the precisions of the corrected map and of the maps that it was made of."""
    scores, separation = make_inputs(family, 0)
    logits = model(scores[None], separation[None])[0].double().numpy()
    corrected = np.full_like(next(iter(family.maps[0].values())), -1e9)
    corrected[np.ix_(family.structure.columns, family.structure.columns)] = logits + logits.T
    maps = family.maps[0] | {"map of pairs": corrected}
    return {name: measure_precision(scores, family.structure) for name, scores in maps.items()}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--families", nargs="+", default=["dhfr", "s1a"])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    families = [load_family(name, seed=0) for name in options.families]
    results = []
    for seed in options.seeds:
        for held_out in families:
            start = time.process_time()
            model = train([family for family in families if family is not held_out], options.steps, seed)
            results.append({"family": held_out.name, "seed": seed, "precision": judge(model, held_out)})
            results[-1]["cpu_seconds"] = round(time.process_time() - start, 1)
            if not options.json:
                parts = [
                    f"{name} {' / '.join(f'{x:.3f}' for x in values.values())}"
                    for name, values in results[-1]["precision"].items()
                ]
                seconds = f"{results[-1]['cpu_seconds']:.0f} CPU s"
                print(f"{held_out.name}, seed {seed}, {seconds}: {'; '.join(parts)}", flush=True)
    if options.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
