"""Files of every form with something wrong in them: a command ends with success, or with one line and exit code 2."""

import hashlib
import random
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest

from anyformer import api, cli
from anyformer.recipe_loading import list_recipes, load_recipe
from anyformer.resolve_job import resolve_job
from anyformer.training.checksums import SUMS_FILE, write_checksums
from cli_kit import call
from data_kit import SMALL_DATA
from fuzz_corpus import CORPUS
from fuzz_kit import IS_FULL, Tally, copy_folder, count_attacks, harm_folder, run_limited

FORMS = sorted(CORPUS) if IS_FULL else sorted(CORPUS)[::9]
RECIPES = list_recipes() if IS_FULL else []  # besides the run of GPT2
GPT2 = ("language", "--model.activation", "gelu_tanh", "--model.context", "32")
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] | upper }}: {{ m['content'] }}{% if loop.last %}.{% endif %}{% endfor %}"
)
MESSAGES = '{"messages": [{"role": "user", "content": "hello"}], "tokens": 3}'
BuildForm = Callable[[str], tuple[Path, list[str]]]


@pytest.fixture(scope="module")
def build_form(tmp_path_factory: pytest.TempPathFactory) -> BuildForm:
    """Build a form of data once: returns its folder, and the words of a training, in which {} stands for the folder."""

    @cache
    def build(name: str) -> tuple[Path, list[str]]:
        folder, form = tmp_path_factory.mktemp("form"), CORPUS[name]
        path = form.build(folder)
        data = f"{{}}/{path.relative_to(folder)}" if path else "{}"
        fields = {"data": data, **form.fields}
        words = [form.recipe, "--data", fields["data"]] if form.recipe else [data]
        return folder, words + [word for key in fields if key != "data" for word in (f"--{key}", fields[key])]

    return build


@pytest.fixture(autouse=True, scope="module")
def import_recipes() -> None:
    """Every child needs them."""
    for name in list_recipes():
        load_recipe(name)


def fill(words: list[str], folder: Path) -> list[str]:
    return [word.replace("{}", str(folder)) for word in words]


def test_good_data_of_every_form(build_form: BuildForm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """An attack on files that would be refused anyway shows nothing."""
    monkeypatch.setattr("anyformer.training.estimate.count_flops", lambda *_: 0)
    monkeypatch.setattr("anyformer.training.estimate.estimate_memory", lambda *_: {"total": 0})
    refused = []
    for form in FORMS:
        folder, words = build_form(form)
        monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path / form))
        result = call("train", *fill(words, folder), "--dry-run")
        refused += [f"{form}: {result.err.splitlines()[-1]}"] if result.code else []
    assert not refused, "\n".join(refused)


@pytest.mark.slow
def test_data_of_every_form(build_form: BuildForm, monkeypatch: pytest.MonkeyPatch):
    """The step that a dry run would measure takes most of its time, and reads no file."""
    tally = Tally("data files")
    monkeypatch.setattr("anyformer.training.estimate.count_flops", lambda *_: 0)
    monkeypatch.setattr("anyformer.training.estimate.estimate_memory", lambda *_: {"total": 0})
    for seed in count_attacks(16):
        chance = random.Random(seed)
        form = chance.choice(FORMS)
        folder, words = build_form(form)
        with copy_folder(folder) as copy:
            what, data = harm_folder(copy, chance), fill(words, copy)
            monkeypatch.setenv("ANYFORMER_CACHE", str(copy.parent / "cache"))
            full = ["train", *data, "--train.steps", "1", "--train.batch", "4", "--train.eval_batches", "1"]
            commands = [["train", *data, "--dry-run"]] * 7 + [["detect", next(w for w in data if str(copy) in w)]] * 2
            command = chance.choice([*commands, [*full, "--out", str(copy.parent / "run"), "--yes"]])
            tally.add(f"seed {seed}, {form}, {command[0]}, {what}", run_limited(partial(cli.run, command)))
    tally.close()


def hash_batches(words: list[str]) -> str:
    """Return a hash of what a model is trained on."""
    fields: dict[str, Any] = {name.removeprefix("--"): value for name, value in zip(words[1::2], words[2::2])}
    fields = {name: int(value) if value.isdecimal() else value for name, value in fields.items()}
    module, preset, overrides = api.choose_recipe(words[0], None, fields)
    job = resolve_job(module, preset, overrides)
    model, digest = job.recipe.build(job.config), hashlib.sha256()
    batch, _ = next(job.recipe.batches(job.config, "train", None))
    for name, value in sorted(batch.items()):
        digest.update(f"{name}{tuple(value.shape)}".encode() + value.contiguous().numpy().tobytes())
    digest.update(repr(sorted(getattr(model, "files", {}).items())).encode())
    return digest.hexdigest()


def compare_batches(words: list[str], expected: Path) -> int:
    """Store a hash of the batches, or compare it with the one that is stored."""
    content = hash_batches(words)
    if expected.exists() and expected.read_text() != content:
        print("anyformer: the batches differ", file=sys.stderr)
        return 3
    expected.write_text(content)
    return 0


def test_caches(build_form: BuildForm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A damaged cache is made again: the batches are the same."""
    tally = Tally("caches", codes=())
    for seed in count_attacks(4):
        chance = random.Random(seed)
        form = chance.choice(FORMS)
        folder, words = build_form(form)
        task = partial(compare_batches, fill(words, folder), tmp_path / f"{form}.sha256")
        monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path / form))
        if not (tmp_path / f"{form}.sha256").exists():
            assert (outcome := run_limited(task)).code == 0, (form, outcome.errors)
        if not any(path.is_file() for path in (tmp_path / form).rglob("*")):
            continue
        with copy_folder(tmp_path / form) as copy:
            what = harm_folder(copy, chance)
            monkeypatch.setenv("ANYFORMER_CACHE", str(copy))
            tally.add(f"seed {seed}, {form}, {what}", run_limited(task))
    tally.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Small runs of the recipes, and all public folders and files that can be written of them."""
    folder = tmp_path_factory.mktemp("runs")
    flags = ("--preset", "tiny", "--steps", 2, "--train.eval_batches", 1)
    for recipe in RECIPES:
        data = ("--data", SMALL_DATA[recipe]) if recipe in SMALL_DATA else ()
        call("train", recipe, *flags, *data, "--out", folder / recipe, "--train.final_every", 1000).ok()
    (text := tmp_path_factory.mktemp("text") / "a.txt").write_text("the cat sat on the mat. " * 150)
    call("train", *GPT2, *flags, "--out", folder / "gpt2", "--data", text).ok()
    for run in sorted(folder.iterdir()):
        for kind in ("hf", "gguf"):
            call("export", run, folder / f"{run.name}-{kind}", "--to", kind)
    (folder / "gpt2-hf" / "chat_template.jinja").write_text(TEMPLATE)
    call("import", folder / "gpt2-hf", "--out", folder / "templated").ok()
    return sorted(folder.iterdir())


def reseal(folder: Path) -> None:
    """Make the checksums of harmed checkpoints fit, as somebody would who harms them on purpose."""
    for path in folder.rglob(SUMS_FILE):
        if all(other.is_file() and not other.is_symlink() for other in path.parent.iterdir()):
            write_checksums(path.parent)


def choose_command(copy: Path, source: Path, chance: random.Random) -> list[Any]:
    is_run = (source / "config.json").is_file() and (source / "checkpoints").is_dir()
    if not is_run:
        data = next(iter(sorted(copy.glob("*.gguf"))), copy)
        return ["import", data, "--out", f"{copy}2"]
    question = ["--request", MESSAGES] if source.name == "templated" else []
    recipe = "language" if source.name in ("gpt2", "templated") else source.name
    commands = [
        ["predict", copy, *question], ["predict", copy, *question], ["runs", copy.parent], ["eval", copy],
        ["train", recipe, "--out", copy, "--resume", "--steps", 3], ["compare", copy, source],
        ["runs", "prune", copy.name, "--folder", copy.parent],
        ["export", copy, f"{copy}2", "--to", chance.choice(("hf", "gguf"))], ["predict", copy, "--weights", "int8"],
    ]  # fmt: skip
    return chance.choice(commands)


def test_runs_and_public_checkpoints(runs: list[Path]):
    tally = Tally("runs and checkpoints")
    for seed in count_attacks(8):
        chance = random.Random(seed)
        source = chance.choice(runs)
        with copy_folder(source) as copy:
            what = harm_folder(copy, chance)
            if chance.random() < 0.6:
                reseal(copy)
            command = [str(word) for word in choose_command(copy, source, chance)]
            tally.add(f"seed {seed}, {command[0]} {source.name}, {what}", run_limited(partial(cli.run, command)))
    tally.close()
