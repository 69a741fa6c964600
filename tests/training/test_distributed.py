"""One process = several: the same losses, gradients and checkpoints, with copies of the model and with shards of it."""

import dataclasses
import math
import os
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from anyformer import recipe as recipes
from anyformer import recipe_loading
from anyformer.errors import HangError, InputError, TrainingError
from anyformer.training import checkpoints, distributed, loop
from anyformer.training.muon import Muon, OwnedMuon, choose_owners
from process_kit import find_free_port, run_processes, start_process

QUICK = {
    "test_several_processes_compute_what_one_does": {"2-2"},
    "test_muon_gives_the_bits_of_one_process": {"2-1", "3-3"},
}  # with which parameters a test runs each time; with all others it is slow (conftest.py)


LAYOUTS = [(2, 1), (2, 2), (4, 2)]  # processes, and how many of them share a copy of the model
LAYOUTS += [pytest.param(*layout, marks=pytest.mark.slow) for layout in ((4, 1), (4, 4))]
MACHINE = {"device": "cpu", "dtype": "float32", "eval_batches": 1}


def configure(name: str, **train: Any) -> tuple[Any, Any]:
    """A recipe and its tiny config, with dropout."""
    recipe = recipe_loading.load_recipe(name)
    config = recipe.PRESETS["tiny"]
    stacks = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    stacks = {
        key: dataclasses.replace(value, dropout=0.2) for key, value in stacks.items() if hasattr(value, "n_layer")
    }
    settings = {"steps": 3, "batch": 3, "accumulate": 4, "eval_every": 2} | MACHINE | train
    return recipe, dataclasses.replace(config, train=dataclasses.replace(config.train, **settings), **stacks)


def train(name: str, initialize: Callable[[Any], Any] = lambda model: None, **settings: Any) -> list[list[float]]:
    """Train, and return the numbers of each step: loss, norm of the gradient, tokens, validation loss."""
    recipe, config = configure(name, **settings)
    state = loop.init_state(recipe, config, initialize)
    keys = ("loss", "grad_norm", "tokens", "val_loss")
    return [[record.get(key, 0.0) for key in keys] for record in loop.train(recipe, config, state)]


# --- one = several ---


@pytest.mark.parametrize(("size", "shard"), LAYOUTS)
def test_several_processes_compute_what_one_does(size: int, shard: int):
    """With dropout, accumulation and batches of different numbers of tokens; in float64: rounding would blur it."""
    expected = train("translation", lambda model: model.double())
    results = run_processes(size, lambda: train("translation", lambda model: model.double(), shard=shard))
    assert all(result == results[0] for result in results)
    for (loss, norm, tokens, val_loss), reference in zip(results[0], expected, strict=True):
        assert loss == pytest.approx(reference[0], abs=1e-6)
        assert norm == pytest.approx(reference[1], rel=1e-12)
        assert tokens == reference[2]
        assert val_loss == pytest.approx(reference[3], abs=1e-6)
    assert len({tokens for _, _, tokens, _ in expected}) == 3


@pytest.mark.slow
def test_every_recipe_deals_out_its_batches():
    """The batches of two processes, in turn, are those of one."""
    for name in recipe_loading.list_recipes():
        recipe, config = configure(name, accumulate=1)
        _, state = next(recipe.batches(config, "train", None))
        expected = [batch for batch, _ in islice(recipe.batches(config, "train", None), 6)]
        for rank in range(2):
            start = state | {"step": rank, "tokens": 0, "stride": 2}
            for number, (batch, after) in zip((0, 2, 4), recipe.batches(config, "train", start)):
                assert after["step"] == number + rank + 2, name
                reference = expected[number + rank]
                assert all(torch.equal(value, reference[key]) for key, value in batch.items()), (name, number)


@pytest.mark.slow
@pytest.mark.parametrize("name", recipe_loading.list_recipes())
def test_every_recipe_trains_in_several_processes(name: str):
    expected, is_sampling = train(name), isinstance(recipe_loading.load_recipe(name), recipes.SupportsRollouts)
    for size, shard in ((2, 1), (2, 2), (4, 2)):
        if shard > 1 and is_sampling:
            continue
        result = run_processes(size, lambda shard=shard: train(name, shard=shard))[0]
        torch.testing.assert_close(torch.tensor(result), torch.tensor(expected), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_batches_that_predict_nothing(monkeypatch: pytest.MonkeyPatch):
    """A process whose batches have no labels takes part with a weight of zero."""
    recipe = recipe_loading.load_recipe("language")
    batches = recipe.batches

    def some_empty(config: Any, split: str, state: Any = None) -> Any:
        for batch, after in batches(config, split, state):
            if split == "train" and (after["step"] - after.get("stride", 1)) % 2:
                batch["labels"][:] = -100
            yield batch, after

    monkeypatch.setattr(recipe, "batches", some_empty)
    expected = train("language", accumulate=2, batch=2)
    for shard in (1, 2):
        result = run_processes(2, lambda shard=shard: train("language", accumulate=2, batch=2, shard=shard))[0]
        torch.testing.assert_close(torch.tensor(result), torch.tensor(expected), rtol=1e-5, atol=1e-6)


# --- Muon ---


def move_matrices(shard: int) -> list[list[list[float]]]:
    """Three updates by Muon with fixed gradients."""
    from anyformer.training.sharding import make_mesh

    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=generator) for shape in ((6, 5), (3, 8), (7, 7))]
    gradients = [[torch.randn(w.shape, generator=generator) for w in weights] for _ in range(3)]
    size = distributed.get_size()
    kind = OwnedMuon if size > 1 else Muon
    if shard > 1:
        from torch.distributed.tensor import Replicate, Shard, distribute_tensor

        mesh = make_mesh(size, shard, torch.device("cpu"))
        placements = [Replicate()] * (mesh.ndim - 1) + [Shard(0)]
        weights = [distribute_tensor(w, mesh, placements) for w in weights]
        gradients = [[distribute_tensor(g, mesh, placements) for g in step] for step in gradients]
    parameters = [torch.nn.Parameter(w) for w in weights]
    optimizer = kind(parameters, 0.1, 0.1, adjust_lr_fn="match_rms_adamw")
    for step in gradients:
        for parameter, gradient in zip(parameters, step):
            parameter.grad = gradient
        optimizer.step()
    return [distributed.get_full(p.detach()).tolist() for p in parameters]


@pytest.mark.parametrize(("size", "shard"), [(2, 1), (3, 1), (2, 2), (3, 3), (4, 2)])
def test_muon_gives_the_bits_of_one_process(size: int, shard: int):
    assert run_processes(size, lambda: move_matrices(shard)) == [move_matrices(1)] * size


def test_owners_share_the_work():
    owners = choose_owners([4, 4, 4, 4, 16, 16], 2)
    assert [sum(cost for cost, owner in zip([4, 4, 4, 4, 16, 16], owners) if owner == rank) for rank in (0, 1)] == [
        24,
        24,
    ]


# --- resumed, and moved to another number of processes ---


def train_and_save(folder: Path, end: int, shard: int = 1, optimizer: str = "adamw") -> list[float]:
    """Train up to a step from the last checkpoint, if there is one, and save. Returns the losses."""
    recipe, config = configure("language", steps=10, shard=shard, optimizer=optimizer, warmup=1, lr=1e-3)
    state = loop.init_state(recipe, config)
    if (latest := checkpoints.find_latest(folder)) is not None:
        checkpoints.load_checkpoint(latest, state)
    losses = [record["loss"] for record in islice(loop.train(recipe, config, state), end - state.step)]
    checkpoints.save_checkpoint(folder, state, {})
    return losses


def read_weights(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


@pytest.mark.parametrize(("shard", "optimizer"), [(1, "muon"), pytest.param(2, "muon", marks=pytest.mark.slow)])
def test_resumed_equals_uninterrupted(tmp_path: Path, shard: int, optimizer: str):
    """Bit for bit with four processes: DDP, left to itself, adds gradients in another order after the first step."""
    run_processes(4, lambda: train_and_save(tmp_path / "a", 4, shard, optimizer))
    for end in (2, 4):
        run_processes(4, lambda end=end: train_and_save(tmp_path / "b", end, shard, optimizer))
    assert read_weights(tmp_path / "a" / "step-4") == read_weights(tmp_path / "b" / "step-4") != {}


@pytest.mark.slow
def test_a_run_moves_between_numbers_of_processes(tmp_path: Path):
    expected = train_and_save(tmp_path / "a", 4, optimizer="muon")
    losses = run_processes(4, lambda: train_and_save(tmp_path / "b", 1, 2, "muon"))[0]
    losses += run_processes(2, lambda: train_and_save(tmp_path / "b", 2, 2, "muon"))[0]
    losses += run_processes(2, lambda: train_and_save(tmp_path / "b", 3, 1, "muon"))[0]
    losses += train_and_save(tmp_path / "b", 4, 1, "muon")
    assert losses == pytest.approx(expected, rel=1e-4)


# --- what goes wrong ---


def catch(function: Callable[[], Any]) -> str:
    """Return the type and the text of the error of a function."""
    try:
        function()
    except (InputError, TrainingError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def test_one_fails_all_fail():
    def work() -> str:
        with distributed.fail_together():
            if distributed.get_rank() == 1:
                raise InputError("no such file")

    first, second = run_processes(2, lambda: catch(work))
    assert first.startswith("InputError: process 1 on ") and first.endswith(": no such file")
    assert second == "InputError: no such file"


def test_errors_of_any_kind_end_all():
    def work() -> None:
        with distributed.fail_together():
            if distributed.get_rank() == 1:
                raise OSError("the disk refuses")

    def catch_any() -> str:
        try:
            work()
        except (OSError, HangError) as error:
            return f"{type(error).__name__}: {error}"

    first, second = run_processes(2, catch_any)
    assert first.startswith("HangError: process 1 on ") and second == "OSError: the disk refuses"


def test_processes_that_see_different_data():
    texts = run_processes(2, lambda: catch(lambda: distributed.check_agreement({"the data": os.environ["RANK"]})))
    assert texts[0] == texts[1]
    assert texts[0].startswith("InputError: the data must be the same: process 1 on ")


def test_a_loss_that_is_not_finite_names_the_process(monkeypatch: pytest.MonkeyPatch):
    recipe, config = configure("language", accumulate=2)
    loss = recipe.loss
    monkeypatch.setattr(
        recipe, "loss", lambda model, batch: loss(model, batch) * (math.nan if os.environ.get("RANK") == "1" else 1)
    )
    texts = run_processes(2, lambda: catch(lambda: list(loop.train(recipe, config))))
    assert texts[0] == texts[1]
    assert texts[0].startswith("TrainingError: the loss is nan (first on process 1 on ")
    assert "at step 1" in texts[0]


@pytest.mark.slow
def test_a_process_that_hangs_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ANYFORMER_TIMEOUT", "3")

    def work() -> None:
        with distributed.name_hanging():
            distributed.report_place(7 + (distributed.get_rank() == 0), "data")
            if distributed.get_rank() == 1:
                time.sleep(8)
            distributed.total(torch.ones(1))

    text = run_processes(2, lambda: catch(work))[0]
    assert text.startswith("HangError: process 1 on ") and "hangs: it is at the data of step 7" in text


@pytest.mark.slow
def test_a_process_that_never_joins_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ANYFORMER_JOIN_TIMEOUT", "2")
    port, texts = find_free_port(), []

    def work() -> str:
        def join() -> None:
            with distributed.join_processes("cpu"):
                pass

        return catch(join)

    readers = [start_process(rank, 4, port, work)[1] for rank in (0, 2)]
    for reader in readers:
        with os.fdopen(reader) as file:
            texts.append(file.read())
    assert "2 of 4 processes did not join in 2 s: number 1, 3" in texts[0]


def test_a_port_in_use(monkeypatch: pytest.MonkeyPatch):
    import socket

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        _, reader = start_process(0, 2, port, lambda: catch(lambda: distributed.open_store(0, 2)))
        with os.fdopen(reader) as file:
            text = file.read()
    assert f"port {port} of 127.0.0.1 is in use: set MASTER_PORT" in text


def test_what_several_processes_cannot_do():
    from anyformer.training.updates import count_own

    with pytest.raises(InputError, match=r"accumulate 3: .* 2 processes; 2 or 4 could"):
        count_own(3, 2)
    with pytest.raises(InputError, match=r"accumulate 1: .* 8, with a smaller --train.batch, could"):
        count_own(1, 8)
    with pytest.raises(InputError, match=r"--train.shard 3 does not divide .* 4: it can be 1, 2, 4"):
        distributed.check_shard(3, 4)


def test_processes_that_sample_answers_each_have_a_model(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(distributed, "get_size", lambda: 2)
    step = distributed.Step(recipe_loading.load_recipe("grpo"), torch.nn.Linear(1, 1), lambda *_: torch.zeros(()))
    with pytest.raises(InputError, match=r"--train.shard 2: processes cannot share .* it can be 1"):
        distributed.distribute(step, 2, torch.device("cpu"))
