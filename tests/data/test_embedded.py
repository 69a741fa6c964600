"""Images and sounds in the cells of a table are read as files are."""

import io
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anyformer.data.audio.datasets import load_audio
from anyformer.data.io.embedded import find_extension, save_embedded
from anyformer.data.io.manifest import read_rows
from anyformer.data.tables.encode import resolve_row_paths
from anyformer.data.tables.infer_schema import make_field
from anyformer.data.tables.read import find_media
from anyformer.data.tables.schema import Schema, Target
from anyformer.detection import detect_recipe

pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")


def wav(pitch: int) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes((9000 * np.sin(np.arange(3200) * pitch / 99)).astype("<i2").tobytes())
    return buffer.getvalue()


def write_parquet(path: Path, **columns: list[Any]) -> Path:
    parquet.write_table(pyarrow.table(columns), path)
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "embedded"


def test_sounds_with_texts_are_read(tmp_path: Path):
    sounds = [{"bytes": wav(i + 1), "path": None} for i in range(12)]
    path = write_parquet(tmp_path / "train.parquet", audio=sounds, text=[f"say the number {i}" for i in range(12)])
    assert detect_recipe(path).fields == {"columns": "audio,text", "data": str(path)}
    clips = load_audio(str(path), columns="audio,text")
    assert len(clips.texts) == 12 and len(clips.read_clip(3)) == 3200


def test_sounds_with_classes_are_sounds_by_their_bytes(tmp_path: Path):
    sounds = [{"bytes": wav(i + 1), "path": f"{i}.wav"} for i in range(40)]
    path = write_parquet(tmp_path / "train.parquet", recording=sounds, label=[i % 2 for i in range(40)])
    detection = detect_recipe(path)
    assert (detection.recipe, detection.target, detection.kind) == ("multimodal", "label", "sounds with a class each")


def test_a_file_is_saved_once_and_other_values_stay(tmp_path: Path, cache: Path):
    same = {"bytes": wav(1), "path": "a.wav"}
    path = write_parquet(tmp_path / "t.parquet", x=[same, same, {"bytes": b"no sound", "path": ""}], y=[b"\x89PNG"] * 3)
    rows = [row for _, row in read_rows(path)]
    assert rows[0] == rows[1] and Path(rows[0]["x"]).read_bytes() == same["bytes"]
    assert rows[2]["x"]["bytes"] == b"no sound" and rows[2]["y"].endswith(".png")
    assert len(list(cache.iterdir())) == 2
    assert save_embedded("text") == "text" and find_extension(b"RIFF1234WEBP") == ".webp"


def test_files_are_found_for_predictions_where_training_finds_them(tmp_path: Path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.wav").write_bytes(wav(1))
    field, target = make_field("sound", "audio", seconds=1.0), Target("label", "class", values=("x", "y"))
    row = resolve_row_paths(Schema((field,), (target,)), {"sound": "a.wav"}, tmp_path)
    assert row == {"sound": str(tmp_path / "clips" / "a.wav")}
    assert find_media(tmp_path, "a") == row["sound"]
    assert find_media(tmp_path, "b.wav") == str(tmp_path / "b.wav") and find_media(tmp_path, "b" * 5000)
