"""Several tasks share the blocks of one Transformer, and each is a model like any other."""

import json
from pathlib import Path

import pytest
import torch

from anyformer import api
from anyformer.recipes import generalist
from anyformer.serve.models import load_models
from anyformer.serve.options import ServerOptions
from anyformer.trained_model import Model
from cli_kit import call
from data_kit import refuses, write

TRAIN = {"steps": 3, "batch": 8, "eval_every": 3, "device": "cpu"}
TASKS = """
[walk]
recipe = "control"
preset = "tiny"
weight = 0.5
[talk]
recipe = "language"
preset = "tiny"
rows = 0.25
data = "{text}"
model.context = 16
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("generalist")


@pytest.fixture(scope="module")
def tasks(folder: Path) -> Path:
    text = write(folder / "text.txt", "the cat sat on the mat. the dog sat on the log.\n" * 60)
    return write(folder / "tasks.toml", TASKS.format(text=text))


@pytest.fixture(scope="module")
def model(tasks: Path, folder: Path) -> Model:
    return api.train("generalist", "tiny", data=tasks, out=folder / "run", train=TRAIN, progress=False)


def test_blocks_are_shared_and_everything_else_is_not(model: Model):
    walk, talk = (part.module for part in model.tasks.values())
    assert all(a is b for a, b in zip(walk.body.blocks.parameters(), talk.body.blocks.parameters(), strict=True))
    own = {name.split(".")[1] for name, _ in model.module.named_parameters() if name.startswith("tasks.")}
    assert own == {"walk", "talk"} and talk.body.config.context == 16 and walk.body.config.position == "none"
    config = generalist.load_tasks(model.config)
    assert [task.config.train.batch for task in config] == [8, 2]


def test_the_gradient_of_the_blocks_is_the_sum_of_the_tasks(model: Model):
    batch, _ = next(generalist.batches(model.config, "train"))
    block, gradients = model.module.body.blocks[0], []
    for parts in ("walk", "talk", "walk talk"):
        model.module.zero_grad()
        generalist.loss(model.module, {k: v for k, v in batch.items() if k.split("@")[0] in parts}).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in block.parameters()]))
    model.module.zero_grad()
    torch.testing.assert_close(gradients[0] + gradients[1], gradients[2], atol=1e-7, rtol=1e-5)
    assert gradients[0].abs().max() > 0 and gradients[1].abs().max() > 0


def test_a_task_is_a_model_like_any_other(model: Model, folder: Path):
    for name, part in model.tasks.items():
        loaded = api.load(f"{folder / 'run'}:{name}", "cpu")
        assert loaded.predict({}) == part.predict({}) == model.predict({"task": name})
        assert loaded.evaluate() == pytest.approx(
            {key.removeprefix(f"{name}_"): v for key, v in model.evaluate().items() if key.startswith(f"{name}_")}
        )
    text = call("sample", f"{folder / 'run'}:talk", "--prompt", "the", "--tokens", 4, "--json").ok()
    assert json.loads(text.out)["samples"][0]["prompt"] == "the"


def test_resumed_equals_uninterrupted(tasks: Path, folder: Path, model: Model):
    train = TRAIN | {"steps": 1, "save_every": 1}
    api.train("generalist", "tiny", data=tasks, out=folder / "part", train=train, progress=False)
    api.train("generalist", "tiny", out=folder / "part", resume=True, steps=3, progress=False)
    resumed = api.load(folder / "part" / "checkpoints" / "step-3", "cpu")
    uninterrupted = api.load(folder / "run" / "checkpoints" / "step-3", "cpu")
    for a, b in zip(resumed.module.parameters(), uninterrupted.module.parameters(), strict=True):
        assert torch.equal(a, b)
    first, second = (folder / name / "checkpoints/step-3/tasks.json" for name in ("part", "run"))
    assert first.read_text() == second.read_text(), "no file of a checkpoint that will be removed is named"


def test_a_resumed_run_ends_without_the_checkpoint_it_began_from(tmp_path: Path):
    """A table's schema is a file of the checkpoint, which is removed before the figures are drawn."""
    tasks = write(tmp_path / "tasks.toml", '[sensors]\nrecipe = "multimodal"\npreset = "tiny"\n')
    train = TRAIN | {"steps": 1, "save_every": 1, "average": 1}
    api.train("generalist", "tiny", data=tasks, out=tmp_path / "run", train=train, progress=False)
    api.train("generalist", "tiny", out=tmp_path / "run", resume=True, steps=4, progress=False)
    assert not (tmp_path / "run/checkpoints/step-1").exists() and (tmp_path / "run/report.html").exists()
    assert "sensors_loss" in api.load(tmp_path / "run").evaluate()


def test_another_task_is_added(model: Model, folder: Path, tasks: Path):
    """The blocks and the old tasks begin as they are; a task of weight 0 is evaluated, and not trained."""
    text = tasks.read_text().replace("0.5", "0") + '[feel]\nrecipe = "multimodal"\npreset = "tiny"\n'
    further, start = write(folder / "more.toml", text), {"init": folder / "run", "train": TRAIN | {"lr": 1e-9}}
    added = api.train("generalist", "tiny", data=further, out=folder / "more", progress=False, **start)
    assert [*added.tasks] == ["walk", "talk", "feel"] and "walk_loss" in added.evaluate()
    block, old = added.module.body.blocks[0].mlp.up.weight, model.module.body.blocks[0].mlp.up.weight
    torch.testing.assert_close(block, old, atol=1e-5, rtol=0)
    head, old = (part.tasks["walk"].module.action.weight for part in (added, model))
    assert torch.equal(head, old)


def test_the_server_has_a_model_for_each_task(folder: Path, model: Model):
    served = {part.name: part for part in load_models([str(folder / "run")], ServerOptions(), device="cpu")}
    assert [*served] == ["run:walk", "run:talk"] and served["run:talk"].batcher is not None
    blocks = [part.model.module.body.blocks[0].mlp.up.weight for part in served.values()]
    assert torch.equal(*blocks) and blocks[0] is not blocks[1]
    assert served["run:walk"].model.predict({}) == model.predict({"task": "walk"})
    assert served["run:talk"].model.describe_request()["title"] == "language"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ["has 0 tables", "at most 100"]),
        ("[a", ["tasks.toml", "table declaration"]),
        ("a = 1", ["task a", "expected a table"]),
        ("[A]\n", ["task A", "small letters"]),
        ('[a]\nrecipe = "languag"', ["task a: recipe is 'languag'", "language"]),
        ('[a]\nrecipe = "translation"', ["task a", "not one stack"]),
        ('[a]\nrecipe = "generalist"', ["recipe is 'generalist'"]),
        ('[a]\nrecipe = "control"\nweight = -1', ["weight is -1"]),
        ('[a]\nrecipe = "control"\nrows = 0', ["rows is 0"]),
        ('[a]\nrecipe = "control"\nmodel.dim = 3', ["its own context and position"]),
        ('[a]\nrecipe = "control"\ntrain.lr = 3', ["its own context and position"]),
        ('[a]\nrecipe = "control"\nenvy = "x"', ["task a", "unknown field 'envy'", "env"]),
        ('[a]\nrecipe = "control"\npreset = "smal"', ["there is no preset 'smal'", "small"]),
        ('[a]\nrecipe = "control"\nweight = 0', ["every task has weight 0"]),
    ],
)
def test_bad_tasks_are_refused_in_one_line(text: str, message: list[str], tmp_path: Path):
    file = write(tmp_path / "tasks.toml", text)
    result = call("train", "generalist", "--preset", "tiny", "--data", file, "--out", tmp_path / "run")
    assert result.code == 2 and len(result.err.strip().splitlines()) == 1
    with refuses(*message):
        api.train("generalist", "tiny", data=file, out=tmp_path / "run", train=TRAIN, progress=False)


def test_a_task_that_is_not_there(model: Model, folder: Path):
    with refuses("has no task 'tolk'", "talk"):
        api.load(f"{folder / 'run'}:tolk")
    with refuses("is of one task", "leave out :x"):
        api.load(f"{folder / 'run' / 'checkpoints' / 'step-3'}:walk").tasks or api.load(f"{write_run(folder)}:x")
    with refuses("there is no task 'x'"):
        model.predict({"task": "x"})
    result = call("sample", folder / "run", "--prompt", "a")
    assert result.code == 2 and "name one of its tasks" in result.err and ":talk" in result.err


def write_run(folder: Path) -> Path:
    api.train("control", "tiny", out=folder / "single", train=TRAIN | {"steps": 1}, progress=False)
    return folder / "single"
