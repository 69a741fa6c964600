"""Music: tunes of a collection that training never saw, beside n-gram counts and an LSTM of the same time.

    python -m bench.recipes.music --out build/music          about 20 minutes of CPU

Both collections of the set `tunes` together with their validation split, and each of them alone with the other one as
the test, without the tunes that begin with the same notes as one of the training. All figures are of tunes in normal
form, in bits a token (a character, or the end of a tune).
"""

import dataclasses
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from anyformer import api
from anyformer.data.music.tunes import Tunes, format_tune, list_beginning, read_tunes
from anyformer.data.text.batches import IGNORE_INDEX
from anyformer.recipes import music
from bench._common import make_parser

COLLECTIONS = ("tunes-ryan", "tunes-oneill")
LSTM_BATCH, LSTM_CONTEXT, LSTM_RATE = 12, 320, 5e-3


class LSTM(nn.Module):
    """ids (B, T) -> logits (B, T, V)"""

    def __init__(self, vocab_size: int, dim: int = 256, n_layer: int = 1):
        super().__init__()
        self.nodes, self.head = nn.Embedding(vocab_size, dim), nn.Linear(dim, vocab_size)
        self.body = nn.LSTM(dim, dim, n_layer, batch_first=True)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.nodes(ids))[0])


def train_lstm(config: Any, cpu_seconds: float) -> dict[str, float]:
    """Train for so many seconds, and return the loss on the validation split in bits."""
    text, start, step = music.load_text(config, "train"), time.process_time(), 0
    torch.manual_seed(config.train.seed)
    model = LSTM(text.tokenizer.vocab_size)
    optimizer = torch.optim.AdamW(model.parameters(), LSTM_RATE, weight_decay=0.01)
    best, n_parts = math.inf, 8
    for part in range(n_parts):
        while (share := (time.process_time() - start) / cpu_seconds) < (part + 1) / n_parts:
            ids, labels = map(torch.from_numpy, text.train_windows(LSTM_CONTEXT, LSTM_BATCH, config.train.seed, step))
            loss = nn.functional.cross_entropy(model(ids).flatten(0, 1), labels.flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = LSTM_RATE * min(1.0, 2 * (1 - share))
            optimizer.step()
            step += 1
        best = min(best, measure_lstm(model, text, config))
    return {"bits": best, "steps": step, "parameters": sum(p.numel() for p in model.parameters())}


@torch.no_grad()
def measure_lstm(model: LSTM, text: Any, config: Any) -> float:
    model.eval()
    nats = count = 0.0
    for _, ids, labels in text.eval_windows("val", config.model.context, LSTM_BATCH):
        targets = torch.from_numpy(labels).flatten()
        nats += float(nn.functional.cross_entropy(model(torch.from_numpy(ids)).flatten(0, 1), targets, reduction="sum"))
        count += float((targets != IGNORE_INDEX).sum())
    model.train()
    return nats / count / math.log(2)


def count_cpu() -> float:
    """Return the CPU seconds of this process and of those that it started."""
    return sum(os.times()[:4])


def train(data: str, out: Path, options: Any) -> tuple[Any, float]:
    settings = {"seed": options.seed} | ({"steps": options.steps} if options.steps else {})
    start = count_cpu()
    model = api.train("music", data=data, out=out, train=settings, progress=False, device="cpu")
    return model, count_cpu() - start


def measure_both(out: Path, options: Any) -> dict[str, Any]:
    """Train on both collections."""
    model, seconds = train("tunes", out / "tunes", options)
    config = model.config
    facts = {"cpu_minutes": seconds / 60, "bits": model.evaluate()["loss"] / math.log(2)}
    facts |= {"counts": music.baselines(config)["loss"][f"counts of {music.COUNT_ORDER + 1} characters"] / math.log(2)}
    facts |= music.score(model.module, config)
    facts["complete without the rule"] = music.score(model.module, config, keep_metre=False)["complete"]
    if not options.no_lstm:
        facts["lstm"] = train_lstm(config, seconds)
    return facts


def measure_unseen(train_name: str, test_name: str, out: Path, options: Any) -> dict[str, Any]:
    """Train on one collection, and test on the other one's tunes that begin otherwise."""
    model, seconds = train(train_name, out / train_name, options)
    tunes, others = music.load_tunes(model.config), read_tunes(test_name)
    beginnings = {list_beginning(tune) for tune in tunes.texts}
    unseen = [tune for tune in others.texts if list_beginning(tune) not in beginnings]
    path = out / f"unseen-{test_name}.abc"
    path.write_text("\n".join(format_tune(tune, i + 1) for i, tune in enumerate(unseen)), encoding="utf-8")
    test = music.load_text(dataclasses.replace(model.config, data=str(path)), "all")
    facts = {"cpu_minutes": seconds / 60, "bits": model.evaluate(str(path))["loss"] / math.log(2)}
    facts |= {
        "counts": music.score_counts(music.load_text(model.config, "train"), test, "all", model.config.model.context)
        / math.log(2)
    }
    facts |= {"tunes": len(others.texts), "unseen": len(unseen), "identical": count_identical(tunes, others)}
    chosen = unseen[:: max(1, len(unseen) // 100)][:100]
    return facts | {"written": music.compare_tunes(model.module, chosen, list(tunes.texts), {})}


def count_identical(tunes: Tunes, others: Tunes) -> int:
    return len(set(tunes.texts) & set(others.texts))


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/music"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="default: those of the preset")
    parser.add_argument("--only", choices=("tunes", *COLLECTIONS), help="what is trained on; default: all three")
    parser.add_argument("--no-lstm", action="store_true", help="without the LSTM of the same time")
    parser.add_argument("--lstm-seconds", type=float, help="train the LSTM alone, for so many seconds of CPU")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.lstm_seconds:
        config = dataclasses.replace(music.PRESETS["small"], data=options.only or "tunes")
        print(json.dumps(train_lstm(config, options.lstm_seconds)))
        return
    names = [options.only] if options.only else ["tunes", *COLLECTIONS]
    for name in names:
        test = next(other for other in COLLECTIONS if other != name)
        if name == "tunes":
            facts = measure_both(options.out, options)
        else:
            facts = measure_unseen(name, test, options.out, options)
        print(json.dumps({"trained on": name} | facts, indent=None if options.json else 1), flush=True)


if __name__ == "__main__":
    main()
