"""Text to speech of spoken digits: does a recogniser that was trained on recordings hear what was asked for?

    python -m bench.recipes.tts --cpu-minutes 10          and about 5 more for the judge

`tts` is trained on the set fsdd without one of its six speakers. Its sounds are heard by `speech`, which is trained
apart on recordings, and a support vector machine on MFCC says whose voice it is. Takes 0 to 4 of each digit and speaker
are in neither training; beside what is said stand these recordings as they are, and after the codebook and Griffin-Lim:
nothing that is said can be better. The speaker that was left out is a voice never heard: its recordings after the
codebook, and digits that go on from one of them.
"""

import csv
import json
import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from anyformer import api
from anyformer.data.audio.datasets import DIGIT_WORDS, AudioEntry, list_entries
from anyformer.data.audio.features import HOP_LENGTH, SAMPLE_RATE
from anyformer.data.audio.read import read_audio
from anyformer.data.audio.utterances import PromptIds
from anyformer.data.audio.vocoder import compute_frames, encode_wav, invert_frames
from anyformer.inference.speaking import SpeakingRequest, synthesize
from anyformer.metrics import error_rates
from anyformer.recipes import tts
from anyformer.training import checkpoints
from bench._common import make_parser, train_for, train_to_end
from bench.recipes.speech import N_TEST_TAKES, mfcc

JUDGE_STEPS, VOICE_STRENGTH = 1000, 10.0
Entries = list[AudioEntry]


def take_of(entry: AudioEntry) -> int:
    return int(entry.path.stem.split("_")[2])


def write_table(entries: Entries, path: Path) -> Path:
    """Write recordings as a table, takes 0 to 4 for validation."""
    rows = [(e.path.resolve(), e.text, e.speaker, "val" if take_of(e) < N_TEST_TAKES else "train") for e in entries]
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "text", "speaker", "split"), *rows])
    os.environ["ANYFORMER_FILES"] = str(rows[0][0].parent)
    return path


def train_judge(entries: Entries, folder: Path, steps: int, seed: int) -> Any:
    """Train `speech` on recordings of takes 5 and above; where the folder holds a finished run, return that one."""
    if (folder / "result.json").exists():
        return api.load(checkpoints.list_checkpoints(folder / "checkpoints")[-1], "cpu")
    table = write_table(entries, folder.with_suffix(".csv"))
    return train_to_end("speech", "digits", folder, steps, seed, data=str(table))


class Judges:
    """What is said, and by whom, as those hear it that were trained on recordings."""

    def __init__(self, recogniser: Any, entries: Entries, folder: Path):
        self.recogniser, self.folder = recogniser, folder
        training = [entry for entry in entries if take_of(entry) >= N_TEST_TAKES]
        self.voices = make_pipeline(StandardScaler(), SVC(C=VOICE_STRENGTH))
        self.voices.fit([describe_voice(read_audio(e.path)) for e in training], [e.speaker for e in training])

    def hear(self, sounds: list[np.ndarray], texts: list[str], speakers: list[str]) -> dict[str, Any]:
        """Return the share of sounds of which the whole text is heard, the word error rate, and the share of which the
        speaker is recognised."""
        paths = [self.folder / f"{i}.wav" for i in range(len(sounds))]
        for path, sound in zip(paths, sounds, strict=True):
            path.write_bytes(encode_wav(sound))
        answers = [r["text"] for r in self.recogniser.predict(list(map(str, paths)))["results"]]
        voices = self.voices.predict([describe_voice(read_audio(path)) for path in paths]).tolist()
        facts = {"heard": float(np.mean([a == b for a, b in zip(answers, texts, strict=True)]))}
        facts |= {"wer": error_rates(texts, answers)["wer"], "sounds": len(sounds)}
        by_word = {word: [a == b for a, b in zip(answers, texts) if b == word] for word in sorted(set(texts))}
        return facts | {
            "voice": float(np.mean([a == b for a, b in zip(voices, speakers, strict=True)])),
            "voices": {name: voices.count(name) for name in sorted(set(voices))},
            "worst": min((float(np.mean(rights)), word) for word, rights in by_word.items()),
        }


def describe_voice(sound: np.ndarray) -> np.ndarray:
    """Return the features of a voice, whatever its loudness: as those of a WAV file at its peak."""
    return mfcc(0.9 * sound / max(1e-6, float(np.abs(sound).max())))


def decode_recordings(model: Any, entries: Entries, with_codebook: bool) -> list[np.ndarray]:
    """Return recordings as Griffin-Lim makes them of their frames, maybe of those of the codebook."""
    sounds = []
    for entry in entries:
        frames = compute_frames(read_audio(entry.path), model.codebook.shape[1])
        if with_codebook:
            frames = model.codebook[model.encode(torch.from_numpy(frames))].numpy()
        sounds.append(invert_frames(frames))
    return sounds


def say(model: Any, speakers: list[str], samples: int, **request: Any) -> tuple[list[np.ndarray], list[str], list[str]]:
    """Say every digit in the voice of each speaker, some samples of each: sounds, texts and speakers."""
    sounds: list[np.ndarray] = []
    for speaker in speakers:
        sounds += synthesize(
            model, SpeakingRequest(input=list(DIGIT_WORDS), speaker=speaker, samples=samples, **request)
        )
    texts = [word for word in DIGIT_WORDS for _ in range(samples)]
    return sounds, texts * len(speakers), [speaker for speaker in speakers for _ in texts]


def measure_nats(model: Any, entries: Entries, is_named: bool) -> float:
    """Return the nats of a frame of recordings."""
    ids: PromptIds = model.ids
    examples = []
    for entry in entries:
        frames = compute_frames(read_audio(entry.path), model.codebook.shape[1])
        examples.append((ids.encode(entry.text, entry.speaker if is_named else ""), frames))
    batches = (tts.collate(ids, examples[i : i + 32]) for i in range(0, len(examples), 32))
    with torch.inference_mode():
        return tts.evaluate(model, batches)["loss"]


def measure_recordings(model: Any, judges: Judges, entries: Entries) -> dict[str, Any]:
    texts, speakers = [e.text for e in entries], [e.speaker for e in entries]
    sets = {
        "recordings": [read_audio(e.path) for e in entries],
        "after Griffin-Lim": decode_recordings(model, entries, with_codebook=False),
        "after codebook and Griffin-Lim": decode_recordings(model, entries, with_codebook=True),
    }
    return {name: judges.hear(sounds, texts, speakers) for name, sounds in sets.items()}


def measure_spoken(model: Any, judges: Judges, options: Any) -> dict[str, Any]:
    """Say every digit in every known voice, and in anyone's."""
    names, results = list(model.ids.voices.speakers), {}
    for guidance in options.guidance:
        sounds, texts, speakers = say(model, names, options.samples, guidance=guidance, seed=options.seed)
        seconds = float(np.median([len(sound) for sound in sounds])) / SAMPLE_RATE
        results[f"guidance {guidance:g}"] = judges.hear(sounds, texts, speakers) | {"seconds": seconds}
    results["no speaker named"] = judges.hear(*say(model, [""], 5 * options.samples, seed=options.seed))
    return results


def measure_continued(model: Any, judges: Judges, entries: Entries, seed: int) -> dict[str, Any]:
    """Say a digit after each recording, in its voice; the voice alone is in the recording, no speaker is named."""
    rng, sounds, texts = np.random.default_rng(seed), [], []
    for i, entry in enumerate(entries):
        texts.append(DIGIT_WORDS[int(rng.integers(10))])
        request = SpeakingRequest(input=texts[-1], voice=str(entry.path), voice_text=entry.text, seed=seed + i)
        sounds += synthesize(model, request)
    return judges.hear(sounds, texts, [e.speaker for e in entries])


def measure(model: Any, judges: Judges, entries: Entries, held_out: str, options: Any) -> dict[str, Any]:
    test = [e for e in entries if take_of(e) < options.takes]
    old, new = ([e for e in test if (e.speaker == held_out) == is_new] for is_new in (False, True))
    results: dict[str, Any] = {"known voices": measure_recordings(model, judges, old)}
    results["spoken"] = measure_spoken(model, judges, options)
    results["nats"] = {
        "known voices, named": measure_nats(model, old, True),
        "known voices, not named": measure_nats(model, old, False),
        "the voice never heard, not named": measure_nats(model, new, False),
    }
    results["the voice never heard"] = measure_recordings(model, judges, new)
    if options.preset == "strings":
        results["continued"] = {
            "known voices": measure_continued(model, judges, old, options.seed),
            "the voice never heard": measure_continued(model, judges, new, options.seed),
        }
    return results


def print_results(results: dict[str, Any], indent: str = "") -> None:
    for name, value in results.items():
        if isinstance(value, dict) and "heard" in value:
            facts = f"heard {value['heard']:.3f}  WER {value['wer']:.3f}  voice {value['voice']:.3f}"
            print(f"{indent}{name:<34} {facts}  {value['sounds']} sounds, worst {value['worst']}, {value['voices']}")
        elif isinstance(value, dict):
            print(f"{indent}{name}")
            print_results(value, indent + "  ")
        else:
            print(f"{indent}{name:<34} {value if isinstance(value, int | str) else round(value, 4)}")


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--preset", default="small", choices=("small", "strings"))
    parser.add_argument("--cpu-minutes", type=float, default=10, help="of the training")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--held-out", default="yweweler", help="a speaker that training does not hear")
    parser.add_argument("--samples", type=int, default=4, help="sounds of each digit and voice")
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, SpeakingRequest.guidance, 3.0])
    parser.add_argument("--takes", type=int, default=N_TEST_TAKES, help="recordings of each digit and speaker")
    parser.add_argument("--judge-steps", type=int, default=JUDGE_STEPS)
    parser.add_argument("--out", type=Path, help="the runs, which are kept, and found again")
    options = parser.parse_args()
    start, entries = time.process_time(), list_entries("fsdd")
    with TemporaryDirectory() as folder:
        out = options.out or Path(folder)
        out.mkdir(parents=True, exist_ok=True)
        name = f"{options.preset}-{options.held_out}-{options.seed}"
        table = write_table([e for e in entries if e.speaker != options.held_out], out / f"{options.held_out}.csv")
        model = train_for(
            options.cpu_minutes, "tts", options.preset, out / name, options.seed, data=str(table)
        ).module.eval()
        judges = Judges(train_judge(entries, out / "judge", options.judge_steps, 0), entries, Path(folder))
        results = measure(model, judges, entries, options.held_out, options)
    results |= {"held out": options.held_out, "seed": options.seed, "frame_ms": 1000 * HOP_LENGTH / SAMPLE_RATE}
    results["cpu_minutes"] = round((time.process_time() - start) / 60, 1)
    if options.json:
        print(json.dumps(results))
    else:
        print_results(results)


if __name__ == "__main__":
    sys.exit(main())
