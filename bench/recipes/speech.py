"""Spoken digits: isolated ones, compared with a support vector machine on MFCC, and strings of two to six.

    python -m bench.recipes.speech                                    4 and 20 minutes of training
    python -m bench.recipes.speech --only strings --minutes 20 --json

The set is fsdd; its official test split (takes 0 to 4 of each digit and speaker) is used only at the end. Of the
others, takes 5 and 6 are the validation split, on which the best checkpoint and the regularization of the SVM are
chosen. Strings are concatenated test clips, with up to half a second of silence around each and up to 6 dB softer or
louder.
"""

import csv
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from scipy.fft import dct
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from anyformer import api
from anyformer.data.audio import datasets as audio_sets
from anyformer.data.audio import features
from bench._common import make_parser

VAL_TAKES, N_TEST_TAKES = (5, 6), 5  # takes for validation; takes below this are the test split
MINUTES = {"digits": 4.0, "strings": 20.0}  # by preset
CEPSTRA = 13


def write_tables(folder: Path) -> dict[str, Path]:
    """Write fsdd as tables: "train", with the validation rows marked, and "test"."""
    rows: dict[str, list[tuple[str, str, str]]] = {"train": [], "test": []}
    for entry in audio_sets.list_entries("fsdd"):
        take = int(entry.path.stem.split("_")[2])
        name, split = ("test", "") if take < N_TEST_TAKES else ("train", "val" if take in VAL_TAKES else "train")
        rows[name].append((str(entry.path.resolve()), entry.text, split))
    for name, lines in rows.items():
        with open(folder / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("path", "text", "split"), *lines])
    return {name: folder / f"{name}.csv" for name in rows}


def measure_ours(preset: str, minutes: float, table: dict[str, Path], folder: Path, seed: int) -> dict[str, Any]:
    """Train, and evaluate on the test split."""
    start = time.monotonic()
    data, out = str(table["train"]), folder / preset
    model = api.train("speech", preset, data=data, minutes=minutes, out=out, train={"seed": seed})
    seconds = time.monotonic() - start
    metrics = model.evaluate(str(table["test"]))
    parameters = sum(parameter.numel() for parameter in model.module.parameters())
    facts = {"steps": model.config.train.steps, "parameters": parameters, "seconds": seconds}
    return {"wer": metrics["wer"], "cer": metrics["cer"]} | facts


def mfcc(sound: np.ndarray) -> np.ndarray:
    """Return mean and deviation of the cepstra and of their differences between frames: (4 * CEPSTRA,)."""
    frames = dct(features.log_mel(sound, 40), axis=0, norm="ortho")[:CEPSTRA]
    deltas = np.diff(frames, axis=1)
    return np.concatenate([frames.mean(1), frames.std(1), deltas.mean(1), deltas.std(1)])


def measure_svm(table: dict[str, Path], seed: int) -> dict[str, Any]:
    """Classify isolated digits; the error rate of a single word is its word error rate."""
    start = time.monotonic()
    clips, test = audio_sets.load_audio(str(table["train"])), audio_sets.load_audio(str(table["test"]))
    x, y = np.stack([mfcc(clips.read_clip(i)) for i in range(len(clips.texts))]), np.array(clips.texts)
    candidates = []
    for strength in (1.0, 3.0, 10.0, 30.0, 100.0):
        model = make_pipeline(StandardScaler(), SVC(C=strength, random_state=seed))
        model.fit(x[~clips.is_val], y[~clips.is_val])
        candidates.append((model.score(x[clips.is_val], y[clips.is_val]), -strength, model))
    _, strength, model = max(candidates, key=lambda candidate: candidate[:2])
    accuracy = model.score(np.stack([mfcc(test.read_clip(i)) for i in range(len(test.texts))]), np.array(test.texts))
    return {"wer": 1 - accuracy, "C": -strength, "seconds": time.monotonic() - start}


def compare(presets: list[str], minutes: float | None, seed: int, out: Path | None) -> dict[str, Any]:
    results = {}
    with TemporaryDirectory() as folder:
        table = write_tables(Path(folder))
        for preset in presets:
            if preset == "digits":
                results["digits: MFCC and SVM"] = measure_svm(table, seed)
            budget = minutes or MINUTES[preset]
            results[f"{preset}: ours"] = measure_ours(preset, budget, table, out or Path(folder), seed)
    return results


if __name__ == "__main__":
    parser = make_parser(__doc__)
    parser.add_argument("--only", choices=MINUTES, help="digits or strings; by default both")
    parser.add_argument("--minutes", type=float, help="of each training; by default 4 and 20")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="keep the runs here")
    options = parser.parse_args()
    results = compare([options.only] if options.only else list(MINUTES), options.minutes, options.seed, options.out)
    for name, result in results.items():
        cer = f"  CER {result['cer']:.4f}" if "cer" in result else ""
        print(f"{name:<24} WER {result['wer']:.4f}{cer}  {result['seconds']:,.0f} s")
    if options.json:
        print(json.dumps(results))
