"""anyformer sample with a schema, a regex, a grammar or choices."""

import json
import re
from pathlib import Path

import jsonschema
import pytest

from cli_kit import assert_refused, call, train, write

pytest.importorskip("llguidance", reason="structure: pip install 'anyformer[structure]'")
SCHEMA = {
    "type": "array",
    "items": {"type": "string", "maxLength": 3},
    "minItems": 1,
    "maxItems": 2,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of bytes, which write any text."""
    folder = tmp_path_factory.mktemp("bytes")
    write(folder / "text.txt", b"the cat sat on the mat. the dog sat on the log.\n" * 60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANYFORMER_CACHE", str(folder / "cache"))
        train(folder / "text.txt", folder / "run", "--tokenizer", "byte")
    return folder / "run"


def test_samples_of_each_structure(run: Path, tmp_path: Path):
    schema = write(tmp_path / "schema.json", json.dumps(SCHEMA).encode())
    lark, gbnf = write(tmp_path / "a.lark", b'start: "x" /[0-9]/ "y"'), write(tmp_path / "a.gbnf", b'root ::= "a" [bc]')
    flags = ("--prompt", "the ", "--samples", 5, "--tokens", 200, "--json")
    samples = call("sample", run, *flags, "--json-schema", schema).ok().json["samples"]
    for sample in samples:
        jsonschema.validate(json.loads(sample["text"]), SCHEMA)
        assert sample["finish_reason"] == "stop" and sample["log_kept_mass"] < 0
    structures = [("--regex", r"\d{3}"), ("--grammar", lark), ("--grammar", gbnf), ("--choices", "cat", "a dog")]
    for structure, pattern in zip(structures, (r"[0-9]{3}", "x[0-9]y", "a[bc]", "cat|a dog"), strict=True):
        for extra in ((), ("--exact",)):
            samples = call("sample", run, *flags, "--tokens", 9, *structure, *extra).ok().json["samples"]
            assert all(re.fullmatch(pattern, sample["text"]) for sample in samples)
            assert ("log_grammar_mass" in samples[0]) == bool(extra)


def test_what_masking_kept_is_said(run: Path):
    result = call("sample", run, "--prompt", "the ", "--choices", "cat", "dog").ok()
    assert re.fullmatch("the (cat|dog)\n", result.out)
    assert re.search(r"3 tokens \(the text ended\)\nkept mass: [0-9.e-]+ \(over all tokens", result.err)
    assert "is cut" not in result.err
    result = call("sample", run, "--prompt", "the ", "--regex", "[a-z]{9}", "--tokens", 4).ok()
    assert "its structure is not complete: allow more tokens" in result.err
    assert "kept mass" not in call("sample", run, "--prompt", "the ", "--tokens", 4).ok().err


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (("--regex", "(a"), ["regex: unclosed group"]),
        (("--regex", ""), ["regex: its only answer is the empty text"]),
        (("--regex", "a", "--choices", "b"), ["regex and choices exclude each other"]),
        (("--json-schema", "missing.json"), ["missing.json"]),
        (("--json-schema", "list.json"), ["list.json: should hold a JSON object, found list"]),
        (("--json-schema", "broken.json"), ["broken.json: not JSON"]),
        (("--json-schema", "misspelt.json"), ["json_schema: # has 'maxlength'", "did you mean 'maxLength'"]),
        (("--grammar", "bad.lark"), ["grammar: line 2, column 4: unknown name"]),
        (("--choices",), ["--choices needs a value"]),
        (("--exact",), ["exact needs a json_schema, a regex, a grammar or choices"]),
        (("--exact", "--choices", "a", "--temperature", "0"), ["exact needs a temperature above 0"]),
    ],
)
def test_what_makes_no_sense_gets_one_line(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], parts: list[str]
):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "list.json", b"[]"), write(tmp_path / "broken.json", b"{")
    write(tmp_path / "misspelt.json", b'{"maxlength": 3}'), write(tmp_path / "bad.lark", b"start: a\na: b\n")
    assert_refused(call("sample", run, "--prompt", "the ", "--tokens", 9, *flags), *parts)
