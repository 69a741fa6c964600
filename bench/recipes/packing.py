"""Packing of short documents: joined in one stream, or kept apart. What each is worth.

    python -m bench.recipes.packing --data multi30k --steps 1000 --seeds 1 2 3
    python -m bench.recipes.packing --data sentence-polarity

Both sides train the same model for the same number of steps on the same windows of the same documents; only the field
`documents` differs. Then held-out documents are scored one by one, each after an end-of-text token: nats per token, the
end of the document included. Lower is better. The seconds of a training step show what the mask costs.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F

from anyformer.data.io.resolve import resolve
from anyformer.data.text.batches import IGNORE_INDEX
from anyformer.data.text.pairs import read_pairs
from anyformer.inference.prompt_reading import pad_rows
from anyformer.recipes import language
from anyformer.training import loop
from bench._common import make_parser

MODES = ("joined", "apart")


def read_documents(data: str) -> tuple[list[str], list[str]]:
    """Return the documents for training and the held-out ones: captions, or sentences of film reviews."""
    if data == "sentence-polarity":
        lines = [line.strip() for path in resolve(data) for line in path.read_text("utf-8").splitlines()]
        documents = [line for line in dict.fromkeys(lines) if line]
        return [d for i, d in enumerate(documents) if i % 10], documents[::10]
    pairs = read_pairs(data)
    train = dict.fromkeys(source for source, _ in pairs.split("train"))
    return list(train), [source for source, _ in pairs.split("val") if source not in train]


def make_config(documents: Sequence[str], folder: Path, steps: int, vocab_size: int) -> language.Config:
    path = folder / "documents.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
    config = language.PRESETS["small"]
    train = replace(config.train, steps=steps, eval_every=steps, eval_batches=1)
    return replace(config, data=str(path), tokenizer="bpe", vocab_size=vocab_size, val_fraction=0.01, train=train)


@torch.inference_mode()
def score_separately(model: language.LanguageModel, documents: Sequence[str]) -> float:
    """Return the nats per token of documents, each scored alone after an end-of-text token."""
    end, context = model.tokenizer.end_id, model.body.config.context
    rows = [[end, *model.tokenizer.encode(text).tolist(), end][: context + 1] for text in documents]
    rows.sort(key=len)
    nats, tokens = 0.0, 0
    for start in range(0, len(rows), 64):
        ids, lengths = pad_rows(rows[start : start + 64])
        is_label = torch.arange(1, ids.shape[1]) < lengths[:, None]
        labels = ids[:, 1:].masked_fill(~is_label, IGNORE_INDEX)
        logits = model(ids[:, :-1]).flatten(0, 1).float()
        nats += F.cross_entropy(logits, labels.flatten(), reduction="sum").item()
        tokens += int(is_label.sum())
    return nats / tokens


def measure(config: language.Config, seed: int, held_out: Sequence[str]) -> dict[str, float]:
    """Train once, and return the loss on separate documents and the seconds of a step."""
    config = replace(config, train=replace(config.train, seed=seed))
    state = loop.init_state(language, config)
    start = time.perf_counter()
    for _ in loop.train(language, config, state):
        pass
    seconds = (time.perf_counter() - start) / config.train.steps
    return {"loss": score_separately(state.model.cpu().eval(), held_out), "seconds": seconds}


def main(data: str, steps: int, seeds: list[int], vocab_size: int, as_json: bool) -> None:
    documents, held_out = read_documents(data)
    results: dict[str, Any] = {"data": data, "documents": len(documents), "held_out": len(held_out), "steps": steps}
    with TemporaryDirectory() as folder:
        config = make_config(documents, Path(folder), steps, vocab_size)
        runs: dict[str, list[dict[str, float]]] = {mode: [] for mode in MODES}
        for seed in seeds:
            for mode in MODES:  # in turn, so that a change of the machine's speed hits both
                runs[mode].append(measure(replace(config, documents=mode), seed, held_out))
    for mode in MODES:
        losses = [run["loss"] for run in runs[mode]]
        spread = stdev(losses) if len(losses) > 1 else 0.0
        seconds = mean(run["seconds"] for run in runs[mode])
        results[mode] = {"losses": losses, "loss": mean(losses), "stdev": spread, "seconds_per_step": seconds}
        if not as_json:
            figures = f"{mean(losses):.4f} ± {spread:.4f} nats per token ({', '.join(f'{x:.4f}' for x in losses)})"
            print(f"{mode:<8} {figures}, {seconds * 1e3:.1f} ms a step")
    if as_json:
        print(json.dumps(results))


if __name__ == "__main__":
    parser = make_parser(__doc__)
    what = "a set of pairs, of which the first side is used, or sentence-polarity"
    parser.add_argument("--data", default="multi30k", help=what)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--vocab-size", type=int, default=2048)
    options = parser.parse_args()
    main(options.data, options.steps, options.seeds, options.vocab_size, options.json)
