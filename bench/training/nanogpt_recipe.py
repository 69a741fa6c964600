"""nanoGPT's CPU recipe and our preset `nanogpt-cpu` on the same text, as complete processes: time and loss.

    python -m bench.training.nanogpt_recipe --nanogpt ../nanoGPT

The loss is over the validation split at context 64, in consecutive windows, for both.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean

import torch

from anyformer.data.text.prepare import Corpus, prepare_corpus
from bench._common import run_training
from bench._nanogpt import (
    find_shakespeare,
    import_nanogpt,
    make_nanogpt_parser,
    print_report,
    split_loss,
    write_nanogpt_data,
)

RECIPE = (  # nanoGPT's README, "I only have a macbook (or other cheap computer)"
    "--device=cpu --compile=False --eval_iters=20 --log_interval=100 --block_size=64 --batch_size=12 --n_layer=4 "
    "--n_head=4 --n_embd=128 --max_iters={steps} --lr_decay_iters={steps} --dropout=0.0 --out_dir={out} --seed={seed}"
)


def train_nanogpt(checkout: Path, scratch: Path, corpus: Corpus, steps: int, seed: int) -> tuple[float, float]:
    """Return (seconds, loss) of nanoGPT; its text is prepared before the time starts."""
    folder = scratch / "nanoGPT"
    shutil.copytree(checkout, folder, ignore=shutil.ignore_patterns(".git", "out*"))
    write_nanogpt_data(corpus, folder / "data" / "shakespeare_char")
    command = [sys.executable, "train.py", "config/train_shakespeare_char.py"]
    train = (folder / "train.py").read_text().replace("torch.manual_seed(1337", "torch.manual_seed(seed")
    (folder / "train.py").write_text(train.replace("backend = 'nccl'", "seed = 1337\nbackend = 'nccl'", 1))
    command += RECIPE.format(steps=steps, out=scratch / "out", seed=seed).split()
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    module = import_nanogpt(folder)
    checkpoint = torch.load(scratch / "out" / "ckpt.pt", map_location="cpu", weights_only=False)
    gpt = module.GPT(module.GPTConfig(**checkpoint["model_args"])).eval()
    gpt.load_state_dict(checkpoint["model"])
    return seconds, split_loss(gpt, corpus.split("val"), 64)


def main() -> None:
    parser = make_nanogpt_parser(__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="one training of each for each seed")
    options = parser.parse_args()
    text, rows = find_shakespeare(options.nanogpt), {}
    runs: list[list[tuple[float, float]]] = [[], []]
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as name:
            scratch = Path(name)
            os.environ["ANYFORMER_CACHE"] = str(scratch / "cache")  # empty, so that preparing the text counts
            flags = ("--data", text, "--steps", options.steps, "--seed", seed)
            ours = run_training("language", "nanogpt-cpu", scratch / "run", *flags)
            runs[0].append((ours["seconds"], ours["loss"]))
            runs[1].append(train_nanogpt(options.nanogpt, scratch, prepare_corpus(str(text)), options.steps, seed))
        rows[f"seed {seed}: wall time"] = (runs[0][-1][0], runs[1][-1][0], "s")
        rows[f"seed {seed}: loss, validation split"] = (runs[0][-1][1], runs[1][-1][1], "nats")
    for i, (metric, unit) in enumerate((("wall time", "s"), ("loss, validation split", "nats"))):
        rows[f"mean: {metric}"] = (mean(run[i] for run in runs[0]), mean(run[i] for run in runs[1]), unit)
    print_report(f"tiny Shakespeare, {options.steps} steps, {torch.get_num_threads()} threads", rows, options.json)


if __name__ == "__main__":
    main()
