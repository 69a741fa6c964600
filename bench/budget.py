"""Which size of a Transformer is best for how much time: the sizes of a language model side by side.

    python bench/budget.py --minutes 0.5 1 2 4 --data shakespeare eltec

One training of each size for each time and text; loss in bits a byte over the whole validation split.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from anyformer import api, recipe
from anyformer.model.config import TransformerConfig
from anyformer.recipes import language
from anyformer.recipes.language.config import MINUTE, MODERN, sized
from anyformer.training.config import TrainConfig


def grown(dim: int, n_layer: int, context: int, batch: int, lr: float) -> tuple[TransformerConfig, TrainConfig]:
    return sized(dim, n_layer, dim // 32, context, **MODERN), replace(MINUTE, batch=batch, lr=lr, eval_every=250)


SIZES = (
    grown(64, 2, 64, 32, 6e-3),
    grown(96, 3, 128, 16, 5e-3),
    grown(128, 4, 256, 8, 4e-3),
    grown(192, 6, 256, 8, 3e-3),
    grown(256, 8, 256, 16, 2.5e-3),
    grown(384, 8, 512, 16, 2e-3),
)


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
