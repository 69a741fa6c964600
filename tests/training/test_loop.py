"""Training: the loop, its optimisers, checkpoints that survive anything, runs that go on as if never stopped."""

import json
import math
import os
import random
import signal
import time
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path

import pytest
import torch

import anyformer
from anyformer import api
from anyformer.errors import InputError, Stopped, TrainingError
from anyformer.parsing import to_json
from anyformer.recipes import language
from anyformer.training import checkpoints as checkpoint
from anyformer.training import loop
from anyformer.training.config import TrainConfig
from anyformer.training.optimizers import Optimizer, get_lr
from anyformer.training.run_directory import read_samples
from cli_kit import call

STEPS = 24


def config(text: Path, **train) -> language.Config:
    tiny = language.PRESETS["tiny"]
    model = replace(tiny.model, dropout=0.1)  # so that resuming must also bring the randomness back
    more = {"steps": STEPS, "eval_every": 6, "save_every": 4, "device": "cpu", "dtype": "float32"} | train
    return replace(tiny, data=str(text), model=model, train=replace(tiny.train, **more))


def fit(text: Path, out: Path, **train) -> api.Model:
    return api.train("language", "tiny", out=out, resume=True, **to_json(config(text, **train)))


def evidence(run: Path) -> dict[str, bytes]:
    """All that must not depend on interruptions."""
    last = checkpoint.find_latest(run / "checkpoints")
    names = [path.name for path in sorted((run / "checkpoints").iterdir())]
    files = [last / "model.safetensors", last / "optimizer.safetensors", last / "state.json"]
    files += [run / "metrics.jsonl", run / "samples.txt", run / "config.json"]
    return {path.name: path.read_bytes() for path in files} | {"checkpoints": repr(names).encode()}


def test_the_same_seed_gives_the_same_run(text: Path, tmp_path: Path):
    fit(text, tmp_path / "a"), fit(text, tmp_path / "b"), fit(text, tmp_path / "c", seed=7)
    a, b, c = (evidence(tmp_path / name) for name in "abc")
    assert a == b
    assert a["model.safetensors"] != c["model.safetensors"]


def test_it_learns(text: Path, tmp_path: Path):
    model = fit(text, tmp_path / "run", steps=120, lr=1e-2, eval_every=60)
    assert model.evaluate()["loss"] < 1.5 < math.log(len(set(text.read_text())))


@pytest.mark.parametrize(("optimizer", "dtype"), [("adamw", "float32"), ("muon", "float32"), ("muon", "bfloat16")])
@pytest.mark.parametrize("stop", [1, 11, 23])
def test_resumed_equals_uninterrupted(text: Path, tmp_path: Path, stop: int, optimizer: str, dtype: str):
    """Stopped between two checkpoints by Ctrl-C, and gone on."""
    more = {"optimizer": optimizer, "dtype": dtype}
    fit(text, tmp_path / "whole", **more)

    def interrupt(record: dict) -> None:
        if record["step"] == stop:
            os.kill(os.getpid(), signal.SIGINT)

    settings = config(text, **more)
    with pytest.raises(Stopped, match="everything is saved"):
        api.train("language", "tiny", out=tmp_path / "part", on_record=interrupt, **to_json(settings))
    fit(text, tmp_path / "part", **more)
    whole, part = evidence(tmp_path / "whole"), evidence(tmp_path / "part")
    assert {name for name in whole if whole[name] != part[name]} == set()


def test_killed_twenty_times_equals_uninterrupted(text: Path, tmp_path: Path):
    """SIGKILL at random moments, in the middle of whatever it was doing, twenty times in a row."""
    import torch._dynamo  # noqa: F401  (the optimiser imports it: once here, not in each child)

    settings = {"save_every": 2, "steps": 100}
    began = time.monotonic()
    fit(text, tmp_path / "whole", **settings)
    full = time.monotonic() - began
    rng, kills, stood = random.Random(0), 0, set()
    while kills < 20:
        child = os.fork()
        if child == 0:
            try:
                fit(text, tmp_path / "killed", **settings)
            finally:
                os._exit(0)
        time.sleep(rng.uniform(0, full / 12))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        kills += os.WIFSIGNALED(status)
        stood.add(checkpoint.find_latest(tmp_path / "killed" / "checkpoints"))
    assert len(stood) >= 5, "the kills came too early or too late to mean anything"
    fit(text, tmp_path / "killed", **settings)
    whole, killed = evidence(tmp_path / "whole"), evidence(tmp_path / "killed")
    assert {name for name in whole if whole[name] != killed[name]} == set()


def test_what_a_kill_left_behind_is_cleared(text: Path, tmp_path: Path):
    fit(text, tmp_path / "run", steps=8)
    left = tmp_path / "run" / "checkpoints" / ".step-12.99999"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"step": 9, "lo')
    fit(text, tmp_path / "run", steps=12)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert not left.exists()


def test_best_and_last_are_kept(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    losses = iter([3.0, 1.0, 2.0, 2.5, 1.0])  # the fifth is the final pass
    monkeypatch.setattr(language, "evaluate", lambda model, batches: {"loss": next(losses)})
    model = fit(text, tmp_path / "run")
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path / "run" / "checkpoints")] == ["step-12", "step-24"]
    assert model.step == 12
    assert api.load(tmp_path / "run" / "checkpoints" / "step-24").step == 24


def test_a_full_disk_leaves_the_last_good_checkpoint(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fit(text, tmp_path / "run", steps=8)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(
        InputError, match=r"No space left on device; the last good checkpoint is .*step-8: free some space"
    ):
        fit(text, tmp_path / "run", steps=12)
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-8"]
    assert api.load(tmp_path / "run").step == 8


def test_a_loss_that_is_not_finite_stops_the_run(text: Path, monkeypatch: pytest.MonkeyPatch):
    real = language.loss
    settings = config(text)
    state = loop.init_state(language, settings)
    monkeypatch.setattr(
        language, "loss", lambda model, batch: real(model, batch) * (math.nan if state.step == 3 else 1)
    )
    run, before = loop.train(language, settings, state), None
    for _ in range(3):
        next(run)
        before = [p.clone() for p in state.model.parameters()]
    with pytest.raises(TrainingError, match=r"step 4 with learning rate .*: try --train.lr"):
        next(run)
    assert all(torch.equal(a, b) for a, b in zip(before, state.model.parameters())), "the weights were spoilt"


def test_accumulation_is_a_larger_batch(text: Path, monkeypatch: pytest.MonkeyPatch):
    """Two halves, summed before the update, move the weights as the whole does."""
    settings = config(text, batch=8, steps=1)
    settings = replace(settings, model=replace(settings.model, dropout=0.0))
    whole, _ = next(language.batches(settings, "train", None))
    halves = [{name: part for name, part in zip(whole, parts)} for parts in zip(*(t.split(4) for t in whole.values()))]
    after = []
    for stream, times in (([whole], 1), (halves, 2)):
        monkeypatch.setattr(language, "batches", lambda *_, stream=stream: ((batch, {}) for batch in stream * 3))
        c = replace(settings, train=replace(settings.train, accumulate=times, eval_batches=1))
        state = loop.init_state(language, c)
        list(loop.train(language, c, state))
        after.append(state.model.body.blocks[0].mlp.up.weight)
    torch.testing.assert_close(after[0], after[1], atol=1e-5, rtol=1e-4)


def test_matrices_decay_and_vectors_do_not(text: Path):
    settings = config(text, optimizer="muon")
    model = language.build(settings)
    parts = Optimizer(model, settings.train).parts
    groups = [group for part in parts for group in part.param_groups]
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(id(p) for p in model.parameters())
    for group in groups:
        assert all((p.ndim >= 2) == (group["weight_decay"] > 0) for p in group["params"])
    assert {tuple(p.shape) for p in parts[1].param_groups[0]["params"]} == {(32, 32), (128, 32), (32, 128)}


def test_schedules():
    cosine = TrainConfig(steps=100, warmup=10, lr=1.0, min_lr=0.1)
    rates = [get_lr(step, cosine) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 11 for i in range(10)])
    assert rates[10] == 1 and rates[55] == pytest.approx(0.55) and rates[99] == pytest.approx(0.1, abs=1e-3)
    assert all(a >= b for a, b in pairwise(rates[10:]))
    flat = replace(cosine, schedule="trapezoid", min_lr=0.0)
    assert get_lr(60, flat) == 1 and get_lr(82, flat) == pytest.approx(0.5)


def test_metrics_and_samples_tell_the_run(text: Path, tmp_path: Path):
    fit(text, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert lines[-1]["tokens"] == STEPS * 8 * 32
    assert [line["step"] for line in lines if "val_loss" in line] == [6, 12, 18, 24]
    assert [step for step, _, _ in read_samples(tmp_path / "run" / "samples.txt")] == [6, 12, 18, 24]
    described = json.loads((tmp_path / "run" / "config.json").read_text())
    assert described["recipe"] == "language" and described["versions"]["torch"] == torch.__version__
    report = (tmp_path / "run" / "report.html").read_text()
    assert "<svg" in report and "over the whole split, at step" in report


def test_python_trains_and_loads(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    heard: list[dict] = []
    model = anyformer.train("language", "tiny", data=str(text), train={"steps": 6}, on_record=heard.append)
    assert [record["step"] for record in heard] == [1, 2, 3, 4, 5, 6]
    again = anyformer.load("runs/language-text-1")
    assert again.evaluate() == model.evaluate()
    assert again.generate("the", tokens=5, temperature=0) == model.generate("the", tokens=5, temperature=0)
    with pytest.raises(InputError, match="unknown field 'stpes': did you mean 'steps'"):
        anyformer.train("language", "tiny", train={"stpes": 6})


def test_a_run_cannot_change_its_model_or_data(text: Path, tmp_path: Path):
    fit(text, tmp_path / "run", steps=4)
    other = config(text)
    changed = replace(other, model=replace(other.model, n_layer=3))
    with pytest.raises(InputError, match="was begun with model"):
        api.train("language", "tiny", out=tmp_path / "run", resume=True, **to_json(changed))
    text.write_text(text.read_text() + "more")
    with pytest.raises(InputError, match="has changed since this run began"):
        fit(text, tmp_path / "run", steps=8)


def test_batches_go_on_from_any_place(text: Path):
    settings = config(text)
    straight = list(islice(language.batches(settings, "train", None), 6))
    _, place = straight[2]
    resumed = list(islice(language.batches(settings, "train", json.loads(json.dumps(place))), 3))
    for (a, at), (b, there) in zip(straight[3:], resumed):
        assert at == there and all(torch.equal(a[name], b[name]) for name in a)


def test_shortcuts_reach_the_config():
    """--seed 0 is a seed, and --compile needs no value."""
    flags = ("train", "language", "--preset", "tiny", "--seed", 0, "--compile", "--print-config")
    found = json.loads(call(*flags).well().out)["config"]["train"]
    assert (found["seed"], found["compile"]) == (0, True)
