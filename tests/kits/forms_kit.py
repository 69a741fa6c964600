"""Small sets in the forms that people bring, for tests: each builder writes one below a folder."""

# ruff: noqa: E501 (one line for each form)

import io
import json
import shutil
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

WORDS = """the quick brown fox jumps over a lazy dog while seven wizards brew strange potions in an old tower""".split()  # noqa: SIM905
Build = Callable[[Path], Path | None]


def sentence(i: int, n: int = 9) -> str:
    return " ".join(WORDS[(i * 7 + j * (i % 5 + 1)) % len(WORDS)] for j in range(n)).capitalize() + "."


def table(name: str, header: str, row: Callable[[int], str], rows: int = 60) -> Build:
    def build(folder: Path) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(line + "\n" for line in ([header] if header else []) + [row(i) for i in range(rows)]))
        return path

    return build


def files(*names: str, content: Callable[[int], str] = sentence) -> Build:
    def build(folder: Path) -> None:
        for i, name in enumerate(names):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content(i))

    return build


def jsonl(name: str, row: Callable[[int], dict]) -> Build:
    return table(name, "", lambda i: json.dumps(row(i)))


def both(*builds: Build) -> Build:
    def build(folder: Path) -> None:
        for part in builds:
            part(folder)

    return build


CLASSES = ("red", "green", "blue")
SPOKEN = ("one", "two", "six")


def image(i: int) -> bytes:
    pixels = np.random.default_rng(i).integers(0, 90, (12, 12, 3)).astype(np.uint8)
    pixels[..., i % 3] += 150
    buffer = io.BytesIO()
    pytest.importorskip("PIL.Image").fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def sound(i: int) -> bytes:
    pytest.importorskip("soundfile"), pytest.importorskip("soxr")
    samples = 8000 * np.sin(np.arange(3000) * (0.1 + 0.1 * (i % 3)))
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(samples.astype("<i2").tobytes())
    return buffer.getvalue()


def media(name: Callable[[int], str], content: Callable[[int], bytes], count: int = 24) -> Build:
    def build(folder: Path) -> None:
        for i in range(count):
            path = folder / name(i)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content(i))

    return build


def parquet(name: str, row: Callable[[int], dict], count: int = 40) -> Build:
    def build(folder: Path) -> None:
        pyarrow, writer = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        writer.write_table(pyarrow.Table.from_pylist([row(i) for i in range(count)]), folder / name)

    return build


def json_list(name: str, row: Callable[[int], dict]) -> Build:
    return files(name, content=lambda _: json.dumps([row(i) for i in range(60)]))


def steps(folder: Path) -> None:
    """Ten episodes of six steps under the names of gym."""
    observations, is_last = np.random.default_rng(0).normal(size=(60, 4)), np.arange(60) % 6 == 5
    np.savez(folder / "gym.npz", obs=observations, action=np.arange(60) % 2, reward=np.ones(60), done=is_last)


def archive(build: Build, kind: str) -> Build:
    def pack(folder: Path) -> Path:
        (folder / "in").mkdir()
        build(folder / "in")
        return Path(shutil.make_archive(str(folder / "packed"), kind, folder / "in"))

    return pack


def chat(names: tuple[str, str]) -> Callable[[int], list[dict]]:
    return lambda i: [{names[0]: who, names[1]: sentence(i + j)} for j, who in enumerate(("user", "gpt"))]


def format_spaced(i: int) -> str:
    return f"  {i % 7}.{i % 9}   {i % 5}.5 {'abc'[i % 3]}"


COLOR_IMAGES = media(lambda i: f"images/{i:04}.png", image)
CLIPS = media(lambda i: f"clips/{i:04}.wav", sound)
FORMS: dict[str, tuple[Build, str, dict]] = {
    # name: (files, recipe, config fields that are handed down)
    "documents under any name": (jsonl("a.jsonl", lambda i: {"id": i, "passage": sentence(i, 30)}), "language", {"columns": "passage"}),
    "documents in csv": (table("a.csv", "url,story", lambda i: f"a.org/{i},{sentence(i, 30)}"), "language", {"columns": "story"}),
    "a title is no source": (json_list("a.json", lambda i: {"title": sentence(i, 5), "abstract": sentence(i, 50)}), "language", {"columns": "abstract"}),
    "documents in parquet": (parquet("a.parquet", lambda i: {"body": sentence(i, 30)}), "language", {"columns": "body"}),
    "rst": (files("a.rst", "b.rst", content=lambda i: sentence(i, 300)), "language", {}),
    "messages": (jsonl("a.jsonl", lambda i: {"messages": chat(("role", "content"))(i)}), "chat", {"too_long": "cut"}),
    "ShareGPT": (json_list("a.json", lambda i: {"id": i, "conversations": chat(("from", "value"))(i)}), "chat", {"too_long": "cut"}),
    "instructions": (json_list("a.json", lambda i: {"instruction": sentence(i), "input": "", "output": sentence(i + 1)}), "chat", {"too_long": "cut"}),
    "SMILES in csv": (table("a.csv", "smiles", lambda i: f"CC(=O)O{'C' * (i % 9)}", 300), "language", {"columns": "smiles"}),
    "tunes": (files("a.abc", "b.abc", content=lambda i: "".join(f"X:1\nT:A jig\nM:6/8\nK:D\nA2A {'ABcdefg'[j % 7]}B{'cdefga'[j % 6 + i - 1]}|\n" for j in range(42))), "music", {}),
    "languages as columns": (table("a.csv", "en,de", lambda i: f"{i} {i},{i} {i + 1} {i}"), "translation", {}),
    "pairs with an id": (table("a.csv", "id,en,de", lambda i: f"{i},{sentence(i, 5)},{sentence(i, 4)}"), "translation", {"columns": "en,de"}),
    "nested translations": (jsonl("a.jsonl", lambda i: {"translation": {"en": sentence(i, 3), "fr": sentence(i, 4)}}), "translation", {}),
    "articles in parquet": (parquet("a.parquet", lambda i: {"id": f"x{i}", "article": sentence(i, 60), "highlights": sentence(i, 4)}), "translation", {"columns": "article,highlights"}),
    "parallel files of any stem": (files("news.en", "news.fr", content=lambda i: "".join(f"{sentence(j, 4 + i)}\n" for j in range(50))), "translation", {}),
    "source and target files": (files(*[f"{s}-{n}.txt" for s in ("src", "tgt") for n in ("train", "val")], content=lambda i: "".join(f"{sentence(j, 4)}\n" for j in range(50))), "translation", {}),
    "pairs between numbers": (table("a.tsv", "", lambda i: f"{900 + i}\t{sentence(i, 4)}\t{7 * i}\t{sentence(i + 1, 4)}"), "translation", {"columns": "2,4"}),
    "class before text": (table("a.all", "", lambda i: f"{i * i % 3} {sentence(i, 4 + i % 6)} {i}"), "classify", {}),
    "words with tags": (table("a.conll", "", lambda i: f"{SPOKEN[i % 3]} {'ON'[i % 2]}" if i % 7 else "", 99), "tagging", {}),
    "news without header": (table("a.csv", "", lambda i: f'{i % 4 + 1},"{sentence(i, 5)}","{sentence(i, 20)}"'), "classify", {"columns": "3,1"}),
    "spam without extension": (table("SMS", "", lambda i: f"{['ham', 'spam'][i % 3 == 0]}\t{sentence(i)}"), "classify", {"columns": "2,1"}),
    "fastText": (table("train.txt", "", lambda i: f"__label__{'ab'[i % 2]} {sentence(i)} {i}"), "classify", {}),
    "labeled texts in parquet": (parquet("a.parquet", lambda i: {"utterance": f"{sentence(i)} {i}", "intent": i % 2}), "classify", {"columns": "utterance,intent"}),
    "a text in each file": (files(*[f"train/{c}/{i}" for c in ("neg", "pos") for i in range(9)], content=lambda i: f"{sentence(i)}\n\n{i}"), "classify", {}),
    "images by a table": (both(COLOR_IMAGES, table("labels.csv", "id,breed", lambda i: f"{i:04},{CLASSES[i % 3]}", 24)), "vision", {"columns": "id,breed"}),
    "images of several splits": (media(lambda i: f"seg_{'train' if i < 18 else 'test'}/seg/{CLASSES[i % 3]}/{i}.png", image), "vision", {}),
    "images in parquet": (parquet("train-0.parquet", lambda i: {"img": {"bytes": image(i), "path": None}, "fine_label": i % 3, "coarse_label": i % 2}), "vision", {"columns": "img,fine_label"}),
    "Common Voice": (both(CLIPS, table("train.tsv", "client_id\tpath\tsentence\tup_votes\tage", lambda i: f"ab{i}\t{i:04}.wav\tsay {SPOKEN[i % 3]} {i}\t{i % 3}\t", 24)), "speech", {"columns": "path,sentence"}),
    "LJ Speech": (both(CLIPS, table("metadata.csv", "", lambda i: f'{i:04}|"say {i}|say {SPOKEN[i % 3]} {i} now', 24)), "speech", {"columns": "1,3"}),
    "LibriSpeech": (both(media(lambda i: f"84/1/84-1-{i:04}.wav", sound), table("84/1/84-1.trans.txt", "", lambda i: f"84-1-{i:04} SAY {i}", 24)), "speech", {}),
    "texts beside sounds": (both(media(lambda i: f"{i}.wav", sound), media(lambda i: f"{i}.txt", lambda i: b"say %d" % i)), "speech", {}),
    "commands": (media(lambda i: f"{SPOKEN[i % 3]}/{i}.wav", sound), "multimodal", {"target": "label"}),
    "a table beside the folder of sounds": (both(CLIPS, files("meta/esc.csv", content=lambda _: "filename,fold,category\n" + "".join(f"{i:04}.wav,{i % 5},{SPOKEN[i % 3]}\n" for i in range(24)))), "multimodal", {"target": "category"}),
    "images and numbers": (both(COLOR_IMAGES, table("homes.csv", "photo,rooms,area,price", lambda i: f"images/{i:04}.png,{i % 6},{50 + i},{i % 3 * 1000 + i}", 24)), "multimodal", {"target": "price"}),
    "spaces and quotes": (table("spector.csv", "'GPA' 'TUCE' 'GRADE'", format_spaced), "multimodal", {"target": "GRADE"}),
    "spaces without header": (table("iris.dat", "", format_spaced), "multimodal", {"target": "3"}),
    "row names without a name": (table("cars.csv", '"speed","dist","grade"', lambda i: f'"{i}",{i % 7}.5,{i % 9},"{"abc"[i % 3]}"'), "multimodal", {"target": "grade"}),
    "commas without header": (table("iris.data", "", lambda i: f"{i % 7}.{i % 9},{i % 5}.5,Iris-{'abc'[i % 3]}"), "multimodal", {"target": "3"}),
    "rows as a JSON list": (json_list("iris.json", lambda i: {"a": i % 7 + 0.5, "b": i % 5, "species": "xyz"[i % 3]}), "multimodal", {"target": "species"}),
    "a series with spaces": (table("spots.dat", "year value", lambda i: f"{1700 + i} {i % 11}.5", 250), "forecast", {}),
    "gym's names": (steps, "control", {}),
    "an episode in each row": (jsonl("a.jsonl", lambda i: {"observations": [[i, 1.0, 0, 0]] * 5, "actions": [0, 1, 0, 1, 0], "rewards": [1.0] * 5}), "control", {}),
    "a step in each row": (table("a.csv", "episode,obs_0,obs_1,obs_2,obs_3,action,reward,done", lambda i: f"{i // 6},{i}.5,0,1,2,{i % 2},1.0,{i % 6 == 5}"), "control", {}),
    "steps with names": (table("a.csv", "episode,t,x,dx,angle,spin,action,reward", lambda i: f"{i // 6},{i % 6},{i}.5,0,1,2,{i % 2},1.0"), "control", {}),
    "one column": (table("a.csv", "x", lambda i: f"{i % 11 + 50}", 250), "forecast", {}),
    "aligned FASTA": (table("a.faa", "", lambda i: f">s{i}\n{'MK-V' * 20}{'ACDE'[i % 4]}A"), "msa", {}),
    "a3m": (table("a.a3m", "", lambda i: f">s{i}\n{'MKAV' * 20}{'abc' * (i % 2)}{'ACDE'[i % 4]}-"), "msa", {}),
    "Stockholm": (table("a.sto", "# STOCKHOLM 1.0", lambda i: f"s{i}/1-9 {'MK.V-' * 20}{'ACDE'[i % 4]}"), "msa", {}),
    "a zip of class folders": (archive(media(lambda i: f"{CLASSES[i % 3]}/{i}.png", image), "zip"), "vision", {}),
    "a tar of sounds with a table": (archive(both(CLIPS, table("a.csv", "file,transcript", lambda i: f"{i:04}.wav,say {i}", 24)), "gztar"), "speech", {"columns": "file,transcript"}),
}  # fmt: skip
