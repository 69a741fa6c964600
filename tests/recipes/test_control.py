"""Control: what an action is read from, cloning, the terms of the loss, playing many episodes at once, requests."""

import json
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anyformer import api, recipe_loading
from anyformer.data.trajectories.environments import play_episodes
from anyformer.data.trajectories.normalizer import TrajectoryNormalizer, load_normalizer
from anyformer.data.trajectories.read import write_trajectories
from anyformer.examples import predict_examples
from anyformer.inference.agent import Actor
from anyformer.parsing import parse_dataclass, to_json
from anyformer.training import loop
from cli_kit import call
from data_kit import refuses

control: Any = recipe_loading.load_recipe("control")
TINY = control.PRESETS["tiny"]
INPUTS = ("return_to_go", "state", "action", "timestep")


@lru_cache
def build_model(**changes: Any) -> Any:
    torch.manual_seed(0)
    model = control.build(replace(TINY, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def first(split: str = "train", **changes: Any) -> dict[str, torch.Tensor]:
    return next(control.batches(replace(TINY, **changes), split))[0]


@torch.no_grad()
def predict_actions(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model.predict_action(*(batch[name] for name in INPUTS))


# --- the model ---


def test_an_action_is_read_from_the_past_alone():
    model, batch = build_model(), first()
    before = predict_actions(model, batch)
    for name, step, unchanged in (("action", 2, 3), ("state", 2, 2), ("return_to_go", 2, 2)):
        changed = batch | {name: batch[name].clone()}
        changed[name][:, step] += 1
        after = predict_actions(model, changed)
        assert torch.equal(before[:, :unchanged], after[:, :unchanged]), name
        assert not torch.isclose(before[:, unchanged:], after[:, unchanged:]).all(), f"{name} is not read"


def test_padding_on_the_right_changes_nothing():
    model = build_model()
    batch = {name: part[:1, :3] for name, part in first().items()}
    longer = {name: torch.cat([part, torch.ones_like(part)], 1) for name, part in batch.items()}
    assert torch.allclose(predict_actions(model, longer)[:, :3], predict_actions(model, batch), atol=1e-6)


def test_a_clone_does_not_read_the_return():
    batch = first()
    higher = batch | {"return_to_go": batch["return_to_go"] + 5}
    clone, model = build_model(conditioned=False), build_model()
    assert torch.equal(predict_actions(clone, batch), predict_actions(clone, higher))
    assert not torch.allclose(predict_actions(model, batch), predict_actions(model, higher))


# --- batches and loss ---


def test_a_clone_of_the_best_sees_only_the_best_episodes():
    limit = np.sort(control.load_episodes(TINY).returns)[-9]
    for batch, _ in islice(control.batches(replace(TINY, best_fraction=0.1), "train"), 5):
        returns = batch["return_to_go"][:, 0, 0][batch["timestep"][:, 0] == 0]
        assert (returns >= limit).all()


def test_evaluation_takes_every_step_once():
    data = control.load_episodes(TINY)
    episodes = data.split("val", TINY.val_fraction)
    metrics = loop.evaluate(control, build_model(), (batch for batch, _ in control.batches(TINY, "val")))
    assert metrics["tokens"] == (data.ends - data.starts)[episodes].sum() and 0 <= metrics["accuracy"] <= 1


def test_the_terms_of_the_loss_by_hand():
    model, batch = build_model(), first()
    with torch.no_grad():
        action, state, return_to_go = model(*(batch[name] for name in INPUTS))
        terms, weights = control.loss_terms(model, batch), control.loss_weight(batch)
        assert torch.isclose(control.loss(model, batch), terms.sum())
    real = batch["real"]
    steps, next_steps = real.nonzero().tolist(), real[:, 1:].nonzero().tolist()
    assert weights.tolist() == [len(steps), len(next_steps), len(next_steps)] and len(steps) < real.numel()
    nats = [-action.log_softmax(-1)[b, k, batch["labels"][b, k]] for b, k in steps]
    errors = [(state[b, k] - batch["state"][b, k + 1]).square().mean() for b, k in next_steps]
    expected = [(return_to_go[b, k] - batch["return_to_go"][b, k + 1] / 20).square() for b, k in next_steps]
    by_hand = [torch.stack(nats).mean(), 0.1 * torch.stack(errors).mean(), 0.1 * torch.stack(expected).mean()]
    torch.testing.assert_close(terms, torch.stack(by_hand))


def test_the_loss_runs_on_the_meta_device():
    """A plan of memory and time builds the model and its loss without values."""
    model = build_model()
    with torch.device("meta"):
        planned = control.build(replace(TINY, space=model.files["space.json"], data=""))
    assert control.loss(planned, {name: part.to("meta") for name, part in first().items()}).shape == ()


# --- playing ---


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_episode_does_not_depend_on_those_played_with_it(temperature: float):
    model, seeds, goals = build_model(), [5, 6, 7], [3.0, 18.0, 9.0]
    together = play_episodes(TINY.env, Actor(model, goals, temperature, seeds), seeds, model.max_episode_steps)
    for i in range(3):
        actor = Actor(model, goals[i : i + 1], temperature, seeds[i : i + 1])
        alone = play_episodes(TINY.env, actor, seeds[i : i + 1])
        assert (alone.actions == together.select(np.array([i])).actions).all()


def test_an_actor_gives_the_model_the_window_of_its_episode():
    model, inputs = build_model(), []

    class Recorder:
        normalizer, context, nodes = model.normalizer, model.context, model.nodes
        max_episode_steps = model.max_episode_steps

        def predict_action(self, *tensors: torch.Tensor) -> torch.Tensor:
            inputs.append([tensor.clone() for tensor in tensors])
            return model.predict_action(*tensors)

    data = play_episodes(TINY.env, Actor(Recorder(), [18.0], 1.0, [3]), [3], 9)
    return_to_go, state, action, timestep = (tensor[0] for tensor in inputs[7])
    assert timestep.tolist() == [3, 4, 5, 6, 7] and np.allclose(state, data.states[3:8])
    assert action[:-1].argmax(-1).tolist() == data.actions[3:7].tolist()
    assert np.allclose(return_to_go[:, 0], 18 - np.concatenate([[0], np.cumsum(data.rewards)])[3:8])


def test_rollouts_repeat_and_do_not_depend_on_other_goals():
    request = {"target_return": [2, 18], "episodes": 4, "seed": 3}
    results = control.predict(build_model(), {"rollout": request})["results"]
    assert [result["wanted"] for result in results] == [2, 18]
    assert all(r["low"] <= r["achieved"] <= r["high"] and len(r["returns"]) == 4 for r in results)
    alone = control.predict(build_model(), {"rollout": {"wanted": 2, "episodes": 4, "seed": 3}})["results"]
    assert alone == results[:1], "`wanted` is an alias"


@pytest.mark.slow
def test_a_short_training_reaches_for_the_return(tmp_path: Path):
    train = {"steps": 150, "lr": 3e-3, "eval_every": 150, "device": "cpu"}
    model = api.train("control", "tiny", out=tmp_path / "run", train=train)
    request = {"target_return": [3, 18], "episodes": 30, "seed": 1}
    low, high = (result["achieved"] for result in model.predict({"rollout": request})["results"])
    assert high > low + 2 and high > 12, (low, high)
    scores = call("eval", tmp_path / "run", "--scores", "--json").ok().json
    assert scores["for 18 from"] <= scores["for 18"] <= scores["for 18 to"] and scores["loss"] > 0
    again = api.load(tmp_path / "run", "cpu").score(target_return=[18.0, 3.0])
    assert again["for 18"] == scores["for 18"] and "for 3" in again
    with refuses("rollout: unknown field 'goal'"):
        model.score(goal=3)


@pytest.mark.parametrize("squash", [True, False])
def test_actions_that_are_numbers(squash: bool, tmp_path: Path):
    pytest.importorskip("gymnasium", reason="Pendulum is gymnasium's")
    from anyformer.data.trajectories.datasets import play_mixed

    write_trajectories(tmp_path / "p.npz", play_mixed("Pendulum-v1", 2, (1.0, 0.3)))
    changes = {"data": str(tmp_path / "p.npz"), "env": "Pendulum-v1", "space": "measured", "max_episode_steps": 200}
    config = replace(TINY, squash=squash, **changes)
    model, batch = control.build(config), next(control.batches(config, "train"))[0]
    assert batch["labels"].abs().max() <= 1 and control.loss(model, batch).isfinite()
    (result,) = control.predict(model, {"rollout": {"episodes": 2, "target_return": -300}})["results"]
    assert len(result["returns"]) == 2 and result["achieved"] < 0
    assert len(control.predict(model, {})["results"][0]["action"]) == 1


# --- requests ---

STATES = [[0.1, 0.0], [0.2, 0.05]]
PAST = {"states": STATES, "actions": [1]}


def test_the_next_action_by_either_way_to_give_the_return():
    (result,) = control.predict(build_model(), {"input": PAST | {"returns": [9, 8]}})["results"]
    for name in ("target_return", "wanted"):
        request = {"input": [PAST | {name: 9, "rewards": [1]}]}
        assert control.predict(build_model(), request)["results"] == [result]
    assert result["action"] in (0, 1) and sum(result["probabilities"]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("request_", "parts"),
    [
        ({"roll": {}}, ("'roll'", "did you mean 'rollout'")),
        ({"input": PAST, "rollout": {}}, ("either an input or a rollout",)),
        ({"input": "a.csv"}, ("input 0", "expected an object")),
        ({"input": PAST}, ("names no return to reach",)),
        ({"input": {"states": [], "wanted": 3}}, ("episode of length 0",)),
        ({"input": {"state": STATES}}, ("unknown field 'state'", "did you mean 'states'")),
        ({"input": {"actions": [1]}}, ("lacks 'states'",)),
        ({"input": {"states": [[1, 2, 3]], "wanted": 3}}, ("lists of 2 numbers",)),
        ({"input": {"states": [["a", 2]], "wanted": 3}}, ("lists of 2 numbers",)),
        ({"input": PAST | {"actions": [2], "wanted": 3, "rewards": [1]}}, ("action 2 does not exist", "0 to 1")),
        ({"input": {"states": STATES, "wanted": 3}}, ("2 states and 0 actions",)),
        ({"input": PAST | {"wanted": 3}}, ("2 states and 1 returns",)),
        ({"input": PAST | {"returns": [1, 1], "start": 19}}, ("goes from step 19 to 20",)),
        ({"input": PAST | {"returns": [1, 1], "start": 0.5}}, ("start is 0.5; it must be a whole number",)),
        ({"rollout": {"env": "Lin-v0"}}, ("'Lin-v0'", "did you mean 'Line-v0'")),
        ({"rollout": {"wanted": "much"}}, ("target_return is 'much'",)),
        ({"rollout": {"episodes": 0}}, ("episodes is 0",)),
        ({"rollout": {"episodes": "5"}}, ("episodes is '5'; it must be a whole number",)),
        ({"rollout": {"temperature": -1}}, ("temperature is -1",)),
        ({"rollout": {"goal": 3}}, ("unknown field 'goal'",)),
        ({"rollout": {"env": ""}}, ("environment ''",)),
    ],
)
def test_requests_that_make_no_sense(request_: dict[str, Any], parts: tuple[str, ...]):
    with refuses(*parts):
        control.predict(build_model(), request_)


def test_another_environments_states_do_not_fit():
    pytest.importorskip("gymnasium", reason="CartPole is gymnasium's")
    with refuses("'CartPole-v1' has 4 numbers", "trained for 2 numbers"):
        control.predict(build_model(), {"rollout": {"env": "CartPole-v1"}})


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"max_episode_steps": 10}, ("an episode has 20 steps, more than --max-episode-steps 10",)),
        ({"best_fraction": 0.0}, ("best_fraction is 0.0; it must be above 0",)),
        ({"val_fraction": 1.5}, ("val_fraction is 1.5",)),
        ({"aux_loss_weight": -1.0}, ("aux_loss_weight is -1.0",)),
        ({"return_scale": 0.0}, ("return_scale is 0.0",)),
        ({"model": replace(TINY.model, context=2)}, ("model.context is 2 nodes; a step has 3",)),
        ({"space": '{"states": 2, "actions": 1, "discrete": true}'}, ("action 1", "does not exist")),
        ({"space": '{"states": 3, "actions": 2, "discrete": true}'}, ("states of 2 numbers", "states of 3")),
        ({"space": '{"states": 2, "action": 2}'}, ("unknown field 'action'", "did you mean 'actions'")),
        ({"data": "lines"}, ("'lines'", "did you mean 'line'")),
        ({"data": ""}, ("data ''",)),
    ],
)
def test_configs_that_make_no_sense(changes: dict[str, Any], parts: tuple[str, ...]):
    with refuses(*parts):
        first(**changes)


def test_without_data_a_model_is_built_from_its_space():
    values = to_json(TINY) | {"data": "", "space": build_model().files["space.json"]}
    model = control.build(parse_dataclass(control.Config, values, ""))
    assert model.normalizer == build_model().normalizer and control.predict(model, {})["results"]


def test_examples_are_beginnings_of_episodes_for_validation():
    data, examples = control.load_episodes(TINY), control.examples(TINY)
    starts = {tuple(data.states[data.starts[i]]) for i in data.split("val", TINY.val_fraction)}
    episodes = examples.request["input"]
    assert len(episodes) == len(examples.truths) == 3 and {tuple(e["states"][0]) for e in episodes} <= starts
    assert all(len(e["states"]) == len(e["actions"]) + 1 == len(e["returns"]) == 5 for e in episodes)
    answers = predict_examples(control, build_model().eval(), examples)["results"]
    assert [answer["truth"] for answer in answers] == examples.truths
    stored = json.dumps({"states": 1, "actions": 2, "discrete": True, "example": {"states": [[0.0]]}})
    assert load_normalizer(stored) == TrajectoryNormalizer(1, 2, True), "older models hold an example"
