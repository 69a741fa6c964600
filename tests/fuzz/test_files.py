"""Files of every form with something wrong in them: a command ends with success, or with one line and exit code 2."""

import random
from functools import partial
from pathlib import Path

import pytest

from anyformer import cli
from cli_kit import call
from forms_kit import FORMS
from fuzz_kit import Tally, copied, count_attacks, harm_folder, run_limited

RECIPES = ("language", "classify", "vision", "multimodal", "translation")  # whose runs are harmed


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, str]]:
    """A folder of each form of data, and what `train` takes of it."""
    built = []
    for i, (build, _, _) in enumerate(FORMS.values()):
        folder = tmp_path_factory.mktemp(f"form{i}")
        path = build(folder)
        built.append((folder, str(path.relative_to(folder)) if path else "."))
    return built


def test_data_of_every_form(forms: list[tuple[Path, str]], monkeypatch: pytest.MonkeyPatch):
    tally = Tally("data files")
    for seed in count_attacks(24):
        chance = random.Random(seed)
        folder, name = chance.choice(forms)
        with copied(folder) as copy:
            what = harm_folder(copy, chance)
            monkeypatch.setenv("ANYFORMER_CACHE", str(copy.parent / "cache"))
            command = (
                ["train", str(copy / name), "--dry-run"] if chance.random() < 0.7 else ["detect", str(copy / name)]
            )
            tally.add(f"seed {seed}, {folder.name}, {what}", run_limited(partial(cli.run, command)))
    tally.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Small runs of several recipes, and public folders of a language model."""
    folder = tmp_path_factory.mktemp("runs")
    for recipe in RECIPES:
        call("train", recipe, "--preset", "tiny", "--out", folder / recipe, "--steps", 2).ok()
    call(
        "train",
        "language",
        "--preset",
        "tiny",
        "--out",
        folder / "gpt2",
        "--steps",
        2,
        "--model.activation",
        "gelu_tanh",
    )
    for kind in ("hf", "gguf"):
        call("export", folder / "gpt2", folder / kind, "--to", kind).ok()
    return sorted(folder.iterdir())


def test_runs_and_public_checkpoints(runs: list[Path]):
    tally = Tally("runs and checkpoints")
    for seed in count_attacks(24):
        chance = random.Random(seed)
        source = chance.choice(runs)
        with copied(source) as copy:
            what = harm_folder(copy, chance)
            commands = [["predict", str(copy)], ["runs", str(copy.parent)], ["train", "--resume", str(copy)]]
            commands += [
                ["eval", str(copy)],
                ["compare", str(copy), str(source)],
                ["import", str(copy), "--out", str(copy) + "2"],
            ]
            command = chance.choice(commands)
            tally.add(f"seed {seed}, {command[0]} {source.name}, {what}", run_limited(partial(cli.run, command)))
    tally.close()
