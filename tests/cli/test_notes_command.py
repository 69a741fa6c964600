"""anyformer sample RUN --notes: prompts of any length, notes in the answer, and runs that have none."""

import json
from pathlib import Path

import pytest

import anyformer
from anyformer.answer_text import format_prediction
from cli_kit import assert_refused, call

LINE = "Mary went out.\n[Mary = out]\nIt rained.\n"
FIELDS = ("--documents", "rows", "--note-start", "[", "--note-end", "]\n", "--note-tokens", "16", "--no-tied")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned one text by heart, notes and all."""
    folder = tmp_path_factory.mktemp("notes")
    (folder / "texts.jsonl").write_text((json.dumps({"text": 3 * LINE}) + "\n") * 40)
    shape = ("--model.context", 64, "--model.position", "rotary", "--train.batch", 8, "--train.lr", 1e-2)
    flags = ("--preset", "tiny", "--data", folder / "texts.jsonl", "--steps", 45, "--train.warmup", 5, *shape)
    call("train", "language", *flags, *FIELDS, "--out", folder / "run", "--device", "cpu").ok()
    return folder / "run"


@pytest.mark.slow
def test_a_long_prompt_is_read_with_notes(run: Path):
    """The start of the prompt leaves the context; those that the model writes on the way are shown."""
    prompt = "Mary went out.\n" + 30 * "It rained.\n"
    result = call("sample", run, "--notes", "--prompt", prompt, "--tokens", 4, "--temperature", 0, "--json").ok().json
    assert result["samples"][0]["notes"] == ["Mary = out"]
    shown = call("sample", run, "--notes", "--prompt", prompt, "--tokens", 4, "--temperature", 0).ok()
    assert shown.out.startswith(prompt) and "notes\n  Mary = out\n" in shown.err
    plain = call("sample", run, "--prompt", prompt, "--tokens", 4, "--temperature", 0, "--json").ok().json
    assert plain["samples"][0]["notes"] == [], "without --notes the start of the prompt is dropped"


@pytest.mark.slow
def test_notes_in_a_prompt_are_stored(run: Path):
    model = anyformer.load(run, "cpu")
    answer = model.generate("[tea = in]\n" + 20 * "It rained.\n", tokens=1, temperature=0)
    assert answer["samples"][0]["notes"] == ["tea = in"]
    assert format_prediction(answer)[0].endswith("\nnote: tea = in"), "as in the samples of the report"


def test_what_is_refused(run: Path, tmp_path: Path):
    flags = ("train", "language", "--preset", "tiny", "--data", run.parent / "texts.jsonl", "--out", tmp_path / "run")
    assert_refused(call(*flags, "--note-start", "["), "--note-start is what begins a note, and note_end what ends it")
    assert_refused(
        call(*flags, *FIELDS, "--note-tokens", 9), "note_tokens is 9 and the context 32: a note may have a quarter"
    )
    assert_refused(
        call(*flags, *FIELDS, "--note-start", "{", "--note-tokens", 8), "note_start or note_end: the vocabulary of"
    )
    call(*flags, "--steps", 1, "--device", "cpu").ok()
    hint = "train on texts with notes in them, with --note-start and --note-end"
    assert_refused(
        call("sample", tmp_path / "run", "--notes", "--prompt", "Mary"), "notes: this model was trained without", hint
    )
