"""A trained run reads 2 and 4 times its context: the loss by position, for each way to scale rotary positions.

    anyformer train language --preset fast --data eltec --steps 1200 --out runs/novels
    python -m bench.inference.longer_context runs/novels

Without training. "as trained" turns channels further than they ever were; "window" reads the last context only. The
same characters are predicted in each row of a table: the second half and the last quarter of each long window.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from anyformer import api
from anyformer.longer_context import ContextChange
from anyformer.model.edges import causal, window
from anyformer.recipes._shared.text import load_mixture
from anyformer.trained_model import change_model
from bench._common import make_parser

SCALINGS = ("as trained", "window", "linear", "ntk", "dynamic", "yarn")


@torch.inference_mode()
def measure(trained: api.Model, scaling: str, times: int, rows: int) -> dict[str, Any]:
    """Return the loss within the trained context, beyond it, and in the last quarter of the long one."""
    context = trained.config.model.context
    choice = None if scaling in ("as trained", "window") else scaling
    model = change_model(trained, ContextChange(context=times * context, rope_scaling=choice))
    if scaling == "window":
        model.module.edges = [causal & window(context)] * len(model.module.edges)
    windows = load_mixture(trained.config).eval_windows("val", times * context, 1)
    losses = []
    for _, (_, ids, labels) in zip(range(rows), windows):
        ids, labels = (torch.from_numpy(np.asarray(array).astype(np.int64)) for array in (ids, labels))
        losses.append(F.cross_entropy(model.module(ids).float().flatten(0, 1), labels.flatten(), reduction="none"))
    loss, end = torch.stack(losses).mean(0), times * context
    parts = {"within": loss[:context], "beyond": loss[context:], "last quarter": loss[3 * end // 4 :]}
    return {"scaling": scaling, "context": end} | {name: part.mean().item() for name, part in parts.items()}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--rows", type=int, default=48, help="long windows of the validation split")
    options = parser.parse_args()
    torch.set_num_threads(1)
    trained, results = api.load(options.run, "cpu"), []
    if not options.json:
        print("context   scaling      within the trained one   beyond it   last quarter")
    for times in (2, 4):
        for scaling in SCALINGS:
            row = measure(trained, scaling, times, options.rows)
            results.append(row)
            if not options.json:
                text = f"{row['within']:.4f}                   {row['beyond']:.4f}      {row['last quarter']:.4f}"
                print(f"{row['context']:>7}   {scaling:<11}  {text}", flush=True)
    if options.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
