"""Control: what is told and what is not, play that does not depend on company, cloning, requests."""

from dataclasses import replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anyformer.data.trajectories.environments import play
from anyformer.data.trajectories.read import write

from anyformer import api
from anyformer import recipe as recipes
from anyformer.inference.agent import Actor
from anyformer.recipes import control
from anyformer.training import loop
from cli_kit import call
from data_kit import refuses

TINY = control.PRESETS["tiny"]


@lru_cache
def built(**changes: Any) -> control.DecisionTransformer:
    torch.manual_seed(0)
    model = control.build(replace(TINY, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def first(split: str = "train", **changes: Any) -> dict[str, torch.Tensor]:
    return next(control.batches(replace(TINY, **changes), split))[0]


@torch.no_grad()
def answers(model: control.DecisionTransformer, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model.answer(batch["wanted"], batch["state"], batch["action"], batch["at"])


def test_an_action_is_read_from_the_past_alone():
    model, batch = built(), first()
    before = answers(model, batch)
    for name, at, same in (("action", 2, 3), ("state", 2, 2), ("wanted", 2, 2)):
        changed = batch | {name: batch[name].clone()}
        changed[name][:, at] += 1
        after = answers(model, changed)
        assert torch.equal(before[:, :same], after[:, :same]), name
        assert not torch.isclose(before[:, same:], after[:, same:]).all(), f"{name} is not read"


def test_padding_behind_changes_nothing():
    model = built()
    batch = {name: part[:1, :3] for name, part in first().items()}
    longer = {name: torch.cat([part, torch.ones_like(part)], 1) for name, part in batch.items()}
    assert torch.allclose(answers(model, longer)[:, :3], answers(model, batch), atol=1e-6)


def test_a_clone_is_deaf_to_what_is_wanted():
    batch = first()
    louder = batch | {"wanted": batch["wanted"] + 5}
    clone, told = built(conditioned=False), built()
    assert torch.equal(answers(clone, batch), answers(clone, louder))
    assert not torch.allclose(answers(told, batch), answers(told, louder))


def test_the_best_are_all_that_a_clone_of_the_best_sees():
    found = control.episodes(TINY)
    limit = np.sort(found.returns)[-9]
    for batch, _ in islice(control.batches(replace(TINY, best=0.1), "train"), 5):
        beginnings = batch["wanted"][:, 0, 0][batch["at"][:, 0] == 0]
        assert (beginnings >= limit).all()


def test_evaluation_takes_every_step_once():
    found = control.episodes(TINY)
    val = found.split("val", TINY.val_fraction)
    told = loop.evaluate(control, built(), (b for b, _ in control.batches(TINY, "val")))
    assert told["tokens"] == sum(found.ends[e] - found.begins[e] for e in val) and 0 <= told["accuracy"] <= 1


def test_the_loss_by_hand():
    model, batch = built(foresee=0.0), first()
    likely = answers(model, batch).log_softmax(-1)
    each = [-likely[b, k, batch["took"][b, k]] for b, k in batch["real"].nonzero().tolist()]
    assert torch.isclose(control.loss(model, batch), torch.stack(each).mean(), atol=1e-6)


# --- play ---


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_played_together_is_played_alone(temperature: float):
    model, seeds, goals = built(), [5, 6, 7], [3.0, 18.0, 9.0]
    together = play(TINY.env, Actor(model, goals, temperature, seeds), seeds, model.steps)
    for i in range(3):
        alone = play(TINY.env, Actor(model, goals[i : i + 1], temperature, seeds[i : i + 1]), seeds[i : i + 1])
        assert (alone.actions == together.pick(np.array([i])).actions).all()


def test_the_actor_shows_the_model_what_happened():
    """What a model is shown while it plays is what a window of the episode holds."""
    model, seen = built(), []

    class Spy:
        space, context, steps, nodes = model.space, model.context, model.steps, model.nodes

        def answer(self, *parts: torch.Tensor) -> torch.Tensor:
            seen.append([part.clone() for part in parts])
            return model.answer(*parts)

    found = play(TINY.env, Actor(Spy(), [18.0], 1.0, [3]), [3], 9)
    wanted, state, action, at = (part[0] for part in seen[7])
    assert at.tolist() == [3, 4, 5, 6, 7] and np.allclose(state, found.states[3:8])
    assert action[:-1].argmax(-1).tolist() == found.actions[3:7].tolist()
    assert np.allclose(wanted[:, 0], 18 - np.concatenate([[0], np.cumsum(found.rewards)])[3:8])


def test_rollouts_answer_for_each_wanted_return_and_repeat():
    asked = {"rollout": {"wanted": [2, 18], "episodes": 4, "seed": 3}}
    told = control.predict(built(), asked)["results"]
    assert [one["wanted"] for one in told] == [2, 18] and told == control.predict(built(), asked)["results"]
    assert all(one["low"] <= one["achieved"] <= one["high"] and len(one["returns"]) == 4 for one in told)
    assert (
        told[0]["returns"]
        == control.predict(built(), {"rollout": {"wanted": 2, "episodes": 4, "seed": 3}})["results"][0]["returns"]
    )


def test_a_short_training_walks_to_the_middle(tmp_path: Path):
    more = {"steps": 150, "lr": 3e-3, "eval_every": 150, "device": "cpu"}
    model = api.train("control", "tiny", out=tmp_path / "run", train=more)
    asked = {"wanted": [3, 18], "episodes": 30, "seed": 1}
    little, much = (one["achieved"] for one in model.predict({"rollout": asked})["results"])
    assert much > little + 2 and much > 12, (little, much)


@pytest.mark.parametrize("squash", [True, False])
def test_actions_that_are_numbers(squash: bool, tmp_path: Path):
    pytest.importorskip("gymnasium", reason="Pendulum is gymnasium's")
    from anyformer.data.trajectories.environments import Mixed, mixed

    write(tmp_path / "p.npz", mixed(Mixed("Pendulum-v1", 2, (1.0, 0.3))))
    config = replace(
        TINY, data=str(tmp_path / "p.npz"), env="Pendulum-v1", space="measured", longest=200, squash=squash
    )
    model, batch = control.build(config), next(control.batches(config, "train"))[0]
    assert batch["took"].abs().max() <= 1 and control.loss(model, batch).isfinite()
    told = control.predict(model, {"rollout": {"episodes": 2, "wanted": -300}})["results"][0]
    assert len(told["returns"]) == 2 and told["achieved"] < 0
    assert len(control.predict(model, {})["results"][0]["action"]) == 1


# --- requests ---

STATES = [[0.1, 0.0], [0.2, 0.05]]


def test_the_next_action_by_either_way_of_saying_what_is_wanted():
    past = {"states": STATES, "actions": [1]}
    one = control.predict(built(), {"input": past | {"returns": [9, 8]}})["results"][0]
    assert one == control.predict(built(), {"input": [past | {"wanted": 9, "rewards": [1]}]})["results"][0]
    assert one["action"] in (0, 1) and sum(one["probabilities"]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("request_", "parts"),
    [
        ({"roll": {}}, ("no 'roll'", "did you mean 'rollout'")),
        ({"input": {"states": STATES, "actions": [1]}}, ("does not say what return is wanted",)),
        ({"input": {"states": [], "wanted": 3}}, ("episode of length 0",)),
        ({"input": {"state": STATES}}, ("no 'state'", "did you mean 'states'")),
        ({"input": {"actions": [1]}}, ("lacks 'states'",)),
        ({"input": {"states": [[1, 2, 3]], "wanted": 3}}, ("lists of 2 numbers",)),
        ({"input": {"states": [["a", 2]], "wanted": 3}}, ("lists of 2 numbers",)),
        ({"input": {"states": STATES, "actions": [2], "wanted": 3, "rewards": [1]}}, ("action 2 is outside", "0 to 1")),
        ({"input": {"states": STATES, "wanted": 3}}, ("2 states and 0 actions",)),
        ({"input": {"states": STATES, "actions": [1], "wanted": 3}}, ("2 states and 1 returns",)),
        ({"input": {"states": STATES, "actions": [1], "returns": [1, 1], "start": 19}}, ("goes to step 21",)),
        ({"rollout": {"env": "Lin-v0"}}, ("'Lin-v0'", "did you mean 'Line-v0'")),
        ({"rollout": {"wanted": "much"}}, ("wanted is ['much']",)),
        ({"rollout": {"episodes": 0}}, ("episodes is 0",)),
        ({"rollout": {"goal": 3}}, ("no 'goal'",)),
        ({"rollout": {"env": ""}}, ("env is ''",)),
    ],
)
def test_requests_that_make_no_sense(request_: dict[str, Any], parts: tuple[str, ...]):
    with refuses(*parts):
        control.predict(built(), request_)


def test_another_environments_states_do_not_fit():
    pytest.importorskip("gymnasium", reason="CartPole is gymnasium's")
    with refuses("'CartPole-v1' has 4 numbers", "trained for 2 numbers"):
        control.predict(built(), {"rollout": {"env": "CartPole-v1"}})


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"longest": 10}, ("an episode has 20 steps, more than --longest 10",)),
        ({"best": 0.0}, ("best 0.0",)),
        ({"val_fraction": 1.5}, ("val_fraction of 1.5",)),
        ({"space": '{"states": 2, "actions": 1, "discrete": true}'}, ("action 1", "outside the space")),
        ({"space": '{"states": 3, "actions": 2, "discrete": true}'}, ("have 2 numbers, the model's 3",)),
        ({"space": '{"states": 2, "action": 2}'}, ("unknown field 'action'", "did you mean 'actions'")),
        ({"data": "lines"}, ("'lines'", "did you mean 'line'")),
        ({"data": ""}, ("data ''",)),
    ],
)
def test_configs_that_make_no_sense(changes: dict[str, Any], parts: tuple[str, ...]):
    with refuses(*parts):
        first(**changes)


def test_without_data_a_model_is_built_from_its_space():
    config = recipes.from_json(
        control.Config, recipes.to_json(TINY) | {"data": "", "space": built().files["space.json"]}, ""
    )
    model = control.build(config)
    assert model.space == built().space and control.predict(model, {})["results"]


def test_evaluation_plays_the_real_environment_when_asked(tmp_path: Path):
    api.train("control", "tiny", out=tmp_path / "run", train={"steps": 2, "device": "cpu"})
    found = call("eval", tmp_path / "run", "--scores", "--json").well().json
    assert found["for 18 from"] <= found["for 18"] <= found["for 18 to"] and found["loss"] > 0
    again = api.load(tmp_path / "run", "cpu").judge(wanted=[18.0, 3.0])
    assert again["for 18"] == found["for 18"] and "for 3" in again
    with refuses("rollout has no 'goal'"):
        api.load(tmp_path / "run", "cpu").judge(goal=3)
