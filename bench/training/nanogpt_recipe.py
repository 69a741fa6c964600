"""Train nanoGPT's CPU recipe and our `nanogpt-cpu` preset on the same text, as whole processes: time and loss of both.

    python -m bench.training.nanogpt_recipe --nanogpt ../nanoGPT

The loss is over the whole validation split at context 64, in windows side by side, for both.
"""

import json
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
from bench._common import arguments, nanogpt, report, shakespeare, whole_split_loss, write_nanogpt_data

RECIPE = (  # nanoGPT's README, "I only have a macbook (or other cheap computer)"
    "--device=cpu --compile=False --eval_iters=20 --log_interval=100 --block_size=64 --batch_size=12 --n_layer=4 "
    "--n_head=4 --n_embd=128 --max_iters={steps} --lr_decay_iters={steps} --dropout=0.0 --out_dir={out} --seed={seed}"
)


def theirs(path: Path, scratch: Path, text: Corpus, steps: int, seed: int) -> tuple[float, float]:
    """(seconds, loss) of nanoGPT. The text is ready before the clock starts."""
    room = scratch / "nanoGPT"
    shutil.copytree(path, room, ignore=shutil.ignore_patterns(".git", "out*"))
    write_nanogpt_data(text, room / "data" / "shakespeare_char")
    command = [sys.executable, "train.py", "config/train_shakespeare_char.py"]
    train = (room / "train.py").read_text().replace("torch.manual_seed(1337", "torch.manual_seed(seed")
    (room / "train.py").write_text(train.replace("backend = 'nccl'", "seed = 1337\nbackend = 'nccl'", 1))
    command += RECIPE.format(steps=steps, out=scratch / "out", seed=seed).split()
    began = time.perf_counter()
    subprocess.run(command, cwd=room, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - began
    model = nanogpt(room)
    saved = torch.load(scratch / "out" / "ckpt.pt", map_location="cpu", weights_only=False)
    gpt = model.GPT(model.GPTConfig(**saved["model_args"])).eval()
    gpt.load_state_dict(saved["model"])
    return seconds, whole_split_loss(gpt, text.split("val"), 64)


def ours(text: Path, scratch: Path, steps: int, seed: int) -> tuple[float, float]:
    """(seconds, loss) of anyformer."""
    command = [sys.executable, "-m", "anyformer", "train", "language", "--preset", "nanogpt-cpu", "--json"]
    command += ["--data", str(text), "--steps", str(steps), "--seed", str(seed), "--out", str(scratch / "run")]
    began = time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return time.perf_counter() - began, json.loads(done.stdout)["val_loss"]


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="a run of each side for each seed")
    asked = parser.parse_args()
    text, rows = shakespeare(asked.nanogpt), {}
    sides: list[list[tuple[float, float]]] = [[], []]
    for seed in asked.seeds:
        with tempfile.TemporaryDirectory() as name:
            scratch = Path(name)
            os.environ["ANYFORMER_CACHE"] = str(
                scratch / "cache"
            )  # prepare the text within the time, as a newcomer would
            sides[0].append(ours(text, scratch, asked.steps, seed))
            sides[1].append(theirs(asked.nanogpt, scratch, prepare_corpus(str(text)), asked.steps, seed))
        rows[f"seed {seed}: wall time"] = (sides[0][-1][0], sides[1][-1][0], "s")
        rows[f"seed {seed}: loss, whole split"] = (sides[0][-1][1], sides[1][-1][1], "nats")
    for i, (what, unit) in enumerate((("wall time", "s"), ("loss, whole split", "nats"))):
        rows[f"mean: {what}"] = (mean(run[i] for run in sides[0]), mean(run[i] for run in sides[1]), unit)
    report(f"tiny Shakespeare, {asked.steps} steps, {torch.get_num_threads()} threads", rows, asked.json)


if __name__ == "__main__":
    main()
