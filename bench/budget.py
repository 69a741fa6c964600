"""Which size of a Transformer is best for how much time: the sizes of a language model side by side.

    python bench/budget.py --minutes 0.5 1 2 4 --data shakespeare eltec

One training of each size for each time and text; loss in bits a byte over the whole validation split. What
`anyformer train --minutes` chooses by, and what it promises, is fitted to such a table.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from anyformer import api, recipe
from anyformer.recipes import language
from anyformer.recipes.language.config import SIZES


def one(data: str, which: int, minutes: float, tokenizer: str, seed: int) -> dict[str, Any]:
    model, train = SIZES[which]
    config = language.Config(data=data, tokenizer=tokenizer, model=model, train=replace(train, seed=seed))
    overrides = recipe.to_json(config)
    with TemporaryDirectory() as folder:
        found = api.train("language", "small", minutes=minutes, out=Path(folder) / "run", **overrides)
        result = json.loads((Path(folder) / "run" / "result.json").read_text())
        tokens = found.config.train.steps * train.batch * model.context
        return {
            "data": data,
            "size": which,
            "minutes": minutes,
            "parameters": sum(p.numel() for p in found.module.parameters()),
            "tokens": tokens,
            "bits_per_byte": result["val_bits_per_byte"],
            "seconds": result["seconds"],
        }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", nargs="+", default=["shakespeare", "eltec"])
    parser.add_argument("--minutes", type=float, nargs="+", default=[0.5, 1, 2, 4])
    parser.add_argument("--sizes", type=int, nargs="+", default=list(range(len(SIZES))))
    parser.add_argument("--tokenizer", default="char")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    for minutes in asked.minutes:
        for data in asked.data:
            for which in asked.sizes:
                print(json.dumps(one(data, which, minutes, asked.tokenizer, asked.seed)), flush=True)
