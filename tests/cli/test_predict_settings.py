"""Flags of `anyformer predict` that are fields of the recipe's request."""

from pathlib import Path

import pytest

from anyformer.cli.predict import split_settings
from anyformer.errors import InputError
from cli_kit import assert_refused, call


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grids")
    (folder / "grids.txt").write_text("123456\n234561\n345612\n456123\n" * 9)
    flags = ("--lines", "--preset", "tiny", "--steps", 2, "--data", folder / "grids.txt", "--out", folder / "run")
    call("train", "diffusion", *flags).ok()
    return folder / "run"


def test_flags_of_the_recipe_are_fields_of_the_request():
    words = ["r", "__5", "--order", "left", "--json", "--passes=4", "--cut", "true", "--no-json", "--", "--x"]
    assert split_settings(words) == (
        ["r", "__5", "--json", "--no-json", "--", "--x"],
        {"order": "left", "passes": 4, "cut": True},
    )
    words = ["r", "--choices", "a cat", "--choices", "a dog", "--choices=a hen", "--top", "1"]
    assert split_settings(words) == (["r"], {"choices": ["a cat", "a dog", "a hen"], "top": 1})
    with pytest.raises(InputError, match="--passes needs a value"):
        split_settings(["r", "--passes", "--json"])


def test_a_draft_is_written_as_the_flags_say(run: Path):
    answer = call("predict", run, "12____", "--order", "left", "--passes", 2, "--json").json
    (result,) = answer["results"]
    assert result["passes"] == 2 and result["text"].startswith("12") and len(result["text"]) == 6


def test_flags_that_nobody_knows(run: Path):
    assert_refused(call("predict", run, "1_", "--ordr", "left"), "unknown field 'ordr': did you mean 'order'?")
    assert_refused(call("predict", run, "1_", "--jsn"), "has no flag --jsn: did you mean --json?")
    assert_refused(call("predict", run, "1_", "--order", "best"), "order is 'best': did you mean 'surest'?")
