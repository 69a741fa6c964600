"""Checkpoints that were damaged, lie about their sizes or hold nan; runs that are removed or trained twice at once."""

import dataclasses
import json
import os
import re
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from anyformer import api
from anyformer.errors import InputError, TrainingError
from anyformer.parsing import to_json
from anyformer.recipe_loading import list_recipes, load_recipe
from anyformer.recipes import language
from anyformer.training import checkpoints, gradients, loop
from anyformer.training.building import SkipInit
from anyformer.training.checksums import write_checksums
from cli_kit import TINY, assert_refused, call, nothing_changes, read_folder, train
from data_kit import SMALL_DATA
from fault_kit import Child, limit_memory

QUICK = {
    "test_sizes_are_checked_before_memory_is_taken": {"language", "multimodal"},
}  # with which parameters a test runs each time; with all others it is slow (conftest.py)


FILES = ("model.safetensors", "optimizer.safetensors", "config.json", "state.json", "tokenizer.json")
RESUME = ("train", "language", "--resume", "--steps", 6)


@pytest.fixture(scope="module")
def two_checkpoints(run_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose best checkpoint, step 2, is not the last, step 4."""
    run = tmp_path_factory.mktemp("two") / "run"
    evaluate, losses = language.evaluate, iter([1.0, 2.0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language, "evaluate", lambda *a: evaluate(*a) | {"loss": next(losses, 3.0)})
        patch.setattr(os, "fsync", lambda handle: None)
        train(run_once.with_name("text.txt"), run)
    assert [path.name for path in checkpoints.list_checkpoints(run / "checkpoints")] == ["step-2", "step-4"]
    return run


@pytest.fixture
def run(two_checkpoints: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(two_checkpoints, tmp_path / "run"))


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


# --- damage ---


def test_sums_are_those_of_sha256sum(run: Path):
    folder = run / "checkpoints" / "step-4"
    listed = [line.split("  ")[1] for line in (folder / "SHA256SUMS").read_text().splitlines()]
    assert set(listed) == {path.name for path in folder.iterdir()} - {"SHA256SUMS"} >= set(FILES)
    if shutil.which("sha256sum"):
        assert os.system(f"cd '{folder}' && sha256sum --quiet -c SHA256SUMS") == 0


@pytest.mark.parametrize("name", [*FILES, "SHA256SUMS"])
@pytest.mark.parametrize("damage", [flip_byte, Path.unlink, Path.touch], ids=["flipped", "removed", "emptied"])
def test_a_damaged_file(run: Path, name: str, damage: Any):
    """Nothing damaged is loaded; a training goes on from the checkpoint before, with one line."""
    last = run / "checkpoints" / "step-4"
    if damage is Path.touch:
        (last / name).unlink()
    damage(last / name)
    if name == "SHA256SUMS" and not (last / name).exists():  # a checkpoint of an earlier version
        call("eval", last).ok()
        return
    if name not in ("optimizer.safetensors", "SHA256SUMS"):  # an evaluation needs neither
        with nothing_changes(run):
            assert call("eval", last).code == 2
    result = call(*RESUME, "--out", run).ok()
    message = r"^a damaged checkpoint is set aside as step-4\.damaged, going on from \S+step-2: \S+step-4/"
    assert re.search(message + (".*" if name == "SHA256SUMS" else name), result.err)
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [*range(1, 7)]
    assert not (run / "checkpoints" / "step-4.damaged").exists(), "step 4 has been saved again"


def test_every_checkpoint_is_damaged(run: Path):
    for folder in checkpoints.list_checkpoints(run / "checkpoints"):
        (folder / "state.json").unlink()
    with nothing_changes(run):
        assert_refused(call(*RESUME, "--out", run), "state.json", "has no other checkpoint: remove", "step 0")


def test_the_best_checkpoint_is_damaged(run: Path):
    flip_byte(run / "checkpoints" / "step-2" / "model.safetensors")
    assert_refused(call("eval", run), "step-2/model.safetensors is not the file that was saved", "another checkpoint")
    assert "going on from" in call(*RESUME, "--out", run).ok().err
    assert api.load(run, "cpu").step == 6, "the best of what is left"


def test_a_run_without_checkpoints_says_that_it_begins_again(run: Path):
    shutil.rmtree(run / "checkpoints")
    assert "run has no checkpoint: training begins at step 0\n" in call(*RESUME, "--out", run).ok().err


def test_names_that_are_no_checkpoints(run: Path):
    for name in ("step-²", "step-", "step-1x", f"step-{'9' * 200}"):
        (run / "checkpoints" / name).mkdir()
    call(*RESUME, "--out", run).ok()


# --- sizes ---


def list_numbers(tree: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from list_numbers(value, (*path, name))
        elif value is None or type(value) is int:
            yield (*path, name)


def replace_value(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    name, *inner = path
    return tree | {name: replace_value(tree[name], tuple(inner), value) if inner else value}


@pytest.mark.parametrize("name", list_recipes())
def test_sizes_are_checked_before_memory_is_taken(name: str, tmp_path: Path):
    """Every number of a stored config, made large, in a process that may take 1 GB and 60 s of the CPU."""
    recipe = load_recipe(name)
    config = recipe.PRESETS["tiny"]
    config = dataclasses.replace(config, data=str(SMALL_DATA.get(name, config.data)))
    content = {"recipe": name, "preset": "tiny", "config": to_json(config)}
    state = {"step": 0, "stream_state": {}, "best": {}}
    checkpoints.write_model(tmp_path, recipe.build(config), content, state)
    stored = api.load(tmp_path, "cpu").module.state_dict()

    def attack() -> str:
        limit_memory(1 << 30)
        resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
        failures = []
        for path in list_numbers({name: value for name, value in content["config"].items() if name != "train"}):
            for value in (80_000, 10**9, 10**30):
                changed = content | {"config": replace_value(content["config"], path, value)}
                (tmp_path / "config.json").write_text(json.dumps(changed))
                write_checksums(tmp_path)
                try:
                    loaded = api.load(tmp_path, "cpu").module.state_dict()
                    failures += [f"{path} {value}: other weights"] * (loaded.keys() != stored.keys())
                except InputError as error:
                    failures += [f"{path} {value}: {error}"] * ("\n" in str(error))
                except BaseException as error:
                    failures.append(f"{path} {value}: {type(error).__name__} {error}")
        return "\n".join(failures)

    assert Child(attack).wait() == ""


# --- nan and inf ---


def diverge_in(out: Path, text: Path, *flags: object) -> str:
    """Train, and return the only line of the error."""
    result = call(*TINY, "--data", text, "--out", out, "--steps", 8, *flags)
    assert result.code == 1 and "Traceback" not in result.err and result.err.count("anyformer: ") == 1, result.err
    return result.err.splitlines()[-1]


def test_weights_that_become_nan_in_a_step_that_validates(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    step = loop.Optimizer.step

    def diverge(self: Any, lr: float) -> None:
        step(self, lr)
        steps.append(lr)
        if len(steps) == 4:
            self.optimizers[0].param_groups[0]["params"][0].data[0, 0] = torch.nan

    steps: list[float] = []
    monkeypatch.setattr(loop.Optimizer, "step", diverge)
    result = diverge_in(tmp_path / "run", text, "--train.eval-every", 4, "--train.save-every", 2)
    assert re.search("holds nan or inf after step 4 with learning rate .* --train.lr .* --resume .*step-2$", result)


def test_weights_of_nan_are_not_saved(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A step that saves and does not validate."""
    first = lambda self: self.optimizers[0].param_groups[0]["params"][0].data  # noqa: E731
    monkeypatch.setattr(loop.Optimizer, "step", lambda self, lr: first(self).fill_(torch.inf))
    assert "holds nan or inf after step 1" in diverge_in(tmp_path / "run", text, "--train.save-every", 1)
    assert checkpoints.find_latest(tmp_path / "run" / "checkpoints") is None


def test_a_validation_loss_of_nan(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    evaluate = language.evaluate
    monkeypatch.setattr(language, "evaluate", lambda *a: evaluate(*a) | {"loss": torch.nan})
    result = diverge_in(tmp_path / "run", text, "--train.eval-every", 2)
    assert result.startswith("anyformer: the validation loss is nan at step 2: try a lower --train.lr")


def test_a_checkpoint_of_nan(run: Path, tmp_path: Path):
    folder = run / "checkpoints" / "step-2"
    tensors = load_file(folder / "model.safetensors")
    tensors["body.norm.weight"][0] = torch.nan
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    write_checksums(folder)
    for verb in ("eval", "sample", "predict"):
        assert_refused(call(verb, run), "step-2/model.safetensors: body.norm.weight holds nan or inf", "--train.lr")


def test_a_public_checkpoint_of_nan(run: Path, tmp_path: Path):
    call("export", run, "--to", "hf", tmp_path / "hf").ok()
    path = tmp_path / "hf" / "model.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values())).view(-1)[0] = torch.nan
    save_file(tensors, path, {"format": "pt"})
    assert_refused(call("import", tmp_path / "hf", "--out", tmp_path / "new"), "holds nan or inf")
    assert not (tmp_path / "new").exists()


def test_answers_of_a_model_in_memory(run: Path):
    model = api.load(run, "cpu")
    with torch.no_grad():
        model.module.get_parameter("body.norm.weight")[0] = torch.nan
    for ask in (lambda: model.generate("the", tokens=3), lambda: model.generate("the", tokens=3, temperature=0)):
        with pytest.raises(InputError, match="the model's logits are nan or inf"):
            ask()
    with pytest.raises(InputError, match=r"step-2: loss is nan: its training diverged"):
        model.evaluate()


def test_buffers_that_are_in_no_file_are_filled():
    class Projection(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)
            directions = torch.empty(64, 64).normal_(generator=torch.Generator().manual_seed(0))
            self.register_buffer("directions", directions, persistent=False)

    with SkipInit():
        assert torch.equal(Projection().directions, Projection().directions)
        assert Projection().directions.std() > 0.9


def test_nothing_is_drawn_on_the_meta_device():
    """There it would load torch's compiler, which takes seconds."""

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.append(str(func))
            return func(*args, **(kwargs or {}))

    names: list[str] = []
    with Watch(), torch.device("meta"), SkipInit():
        weight = nn.Parameter(torch.empty(2, 3).normal_(std=0.02))
    assert weight.shape == (2, 3) and names and not any("normal" in name for name in names)


def test_large_weights_are_finite():
    """Their norm overflows."""
    model = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(model.weight, 3e38)
    assert gradients.find_not_finite(model) is None
    model.weight.data[0, 0] = torch.inf
    with pytest.raises(TrainingError, match=r"weight holds nan or inf after step 7 with learning rate 0\.1: .*0\.03"):
        gradients.check_weights(model, 7, 0.1)


# --- removed runs ---


@pytest.mark.parametrize("how", ["removed", "moved", "remade", "logs"])
@pytest.mark.parametrize("step", [1, 4])
def test_a_run_that_is_removed_while_it_is_trained(text: Path, tmp_path: Path, how: str, step: int):
    out, elsewhere = tmp_path / "run", tmp_path / "elsewhere"

    def remove(record: dict[str, Any]) -> None:
        if record["step"] == step:
            if how == "logs":
                (out / "metrics.jsonl").unlink()
                return
            out.rename(elsewhere)
            if how == "removed":
                shutil.rmtree(elsewhere)
            if how == "remade":
                train(text, out)

    settings = {"steps": 6, "eval_every": 2, "save_every": 2, "device": "cpu", "dtype": "float32"}
    with pytest.raises(InputError, match=r"run was removed or moved while it was trained: restore it"):
        api.train("language", "tiny", data=str(text), out=out, on_record=remove, train=settings)
    if how == "remade":
        assert api.load(out, "cpu").step == 4
    elif how != "logs":
        assert not out.exists()
    if how == "moved":
        assert call(*RESUME, "--out", elsewhere).ok()


# --- one process at a time ---


@pytest.mark.slow
def test_several_processes_resume_at_once(run: Path):
    """One trains; the others say so. Nothing is logged twice."""
    barrier, start = os.pipe()
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            code = 9
            try:
                os.close(start)
                os.read(barrier, 1)  # until the parent closes its end
                result = call("train", "language", "--resume", "--steps", 40, "--out", run)
                is_refused = "is being trained by process" in result.err and result.err.count("\n") == 1
                code = result.code if result.code == 0 or is_refused else 8
            finally:
                os._exit(code)
        children.append(child)
    os.close(start)
    codes = sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
    assert codes[0] == 0 and set(codes) <= {0, 2}, codes
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [*range(1, 41)]
    assert not [name for name in read_folder(run) if "/." in f"/{name}"]
