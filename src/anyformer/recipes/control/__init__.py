"""Control: act so that a wanted return is reached; returns, states and actions are a language.

raw    episodes of states, actions and rewards: npz, parquet, Minari's, or a set that is played on the spot
nodes  three a step: the return still wanted, the state, the action, with the step's number
edges  causal
head   from each state's node the next action; from each action's node the next state and return
loss   cross-entropy of the action (or its squared error, where actions are numbers)

    anyformer train control                           two minutes on two cores: CartPole, played well and badly;
                                                      asked for 500 it stands for more than 475 steps
    anyformer train control --preset cloning          the same without being told the return

Decision Transformer (Chen et al. 2021, 2106.01345); cloning of all episodes or the best is its baseline.
"""

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...data.trajectories.environments import trajectories
from ...data.trajectories.normalizer import Space, measured, read_space
from ...data.trajectories.read import Trajectories, drawn, swept, windows
from ...errors import InputError, nearest
from ...inference.rollouts import episode, rollout
from ...model.block import Transformer
from ...model.edges import causal
from ...model.embeddings import Trajectory
from ...model.init import initialise
from ...recipe import Figure, Graph, Input, Place, begin
from .config import PRESETS, Config

__all__ = [
    "PRESETS",
    "Config",
    "DecisionTransformer",
    "batches",
    "build",
    "evaluate",
    "figures",
    "graph",
    "judge",
    "loss",
    "predict",
]
GOALS, EPISODES = 5, 8  # returns that are asked for in the figure, and how often each
LONGEST_DRAWN = 1000  # steps of an episode: the figure costs seconds
OTHER_STARTS = 1  # seed of the episodes played here: sets that are rolled out on the spot have 0


class DecisionTransformer(nn.Module):
    """wanted (B, K, 1), state (B, K, S), action (B, K, A), at (B, K) -> action (B, K, A), state (B, K, S) and wanted
    (B, K, 1), as predicted: from each state the action, from each action the state and the return that follow.

    What is wanted comes in the environment's own numbers, states and actions as `space` makes them. Rows shorter than K
    are filled up behind: nothing reads ahead."""

    def __init__(self, config: Config, space: Space):
        super().__init__()
        self.space, self.env, self.wanted_return = space, config.env, config.wanted
        self.context, self.steps = max(1, config.model.context // 3), config.longest
        self.scale = config.scale if config.conditioned else 0.0
        self.foresee, self.squash = config.foresee, config.squash
        self.files = {"space.json": space.json()}
        self.nodes = Trajectory(space.states, space.actions, config.longest, config.model)
        self.body = Transformer(config.model)
        self.action = nn.Linear(config.model.dim, space.actions)
        self.state = nn.Linear(config.model.dim, space.states)
        self.wanted = nn.Linear(config.model.dim, 1)

    def forward(self, wanted: Tensor, state: Tensor, action: Tensor, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        wanted = wanted / self.scale if self.scale else torch.zeros_like(wanted)  # deaf to it: behaviour cloning
        x = self.body(self.nodes(wanted, state, action, at), causal).unflatten(1, (-1, 3))  # (B, K, 3, C)
        act = self.action(x[:, :, 1])
        return act.tanh() if self.squash else act, self.state(x[:, :, 2]), self.wanted(x[:, :, 2])

    def answer(self, wanted: Tensor, state: Tensor, action: Tensor, at: Tensor) -> Tensor:
        """The actions alone."""
        return self(wanted, state, action, at)[0]


def check(config: Config) -> None:
    """Raises InputError where numbers do not make sense."""
    if config.model.context < 3:
        raise InputError(
            f"model.context is {config.model.context} nodes; a step has 3: --model.context 60 sees 20 steps"
        )
    if not config.scale > 0 or not 0 < config.best <= 1 or config.longest < 1 or config.foresee < 0:
        raise InputError(
            f"scale {config.scale} must be above 0, best {config.best} above 0 and at most 1, longest {config.longest} "
            f"at least 1, foresee {config.foresee} at least 0"
        )


def episodes(config: Config) -> Trajectories:
    """The config's episodes, read or played once; a file that has changed since is read again."""
    path = Path(config.data)
    stamp = (str(path.resolve()), os.stat(path).st_mtime_ns, os.stat(path).st_size) if path.is_file() else ()
    found = prepared(config.data, stamp)
    longest = int((found.ends - found.begins).max())
    if longest > config.longest:
        raise InputError(f"data '{config.data}': an episode has {longest} steps, more than --longest {config.longest}")
    return found


@lru_cache(maxsize=4)
def prepared(data: str, stamp: tuple) -> Trajectories:
    return trajectories(data)


@lru_cache(maxsize=4)
def chosen(found: Trajectories, best: float) -> Trajectories:
    return found.best(best)


def space_of(config: Config) -> Space:
    if config.space in ("measured", "raw"):
        found = episodes(config)
        if found.discrete and len(taken := np.unique(found.actions)) < 2:
            raise InputError(
                f"data '{config.data}': every step takes one action ({taken[0]}): there is nothing to choose"
            )
        return measured(found, config.space == "measured")
    return read_space(config.space)


def build(config: Config) -> DecisionTransformer:
    check(config)
    model = DecisionTransformer(config, space_of(config))
    initialise(model, config.model)
    return model


def batches(config: Config, split: str, place: Place | None = None) -> Iterator[tuple[dict[str, Tensor], Place]]:
    """ "train": windows that begin at random steps, for ever. "val" and "all": one pass, each step once."""
    check(config)
    c, found, space = config.train, episodes(config), space_of(config)
    space.check(found)
    context = config.model.context // 3
    place = begin(place, config.data, found.sha256)
    found = chosen(found, config.best) if split != "all" else found
    part = found.split(split, config.val_fraction)
    if split != "train":
        starts = swept(found, part, context)
        for i in range(0, len(starts), c.batch):
            yield tensors(windows(found, starts[i : i + c.batch], context), space), place
    while split == "train":
        made = windows(found, drawn(found, part, c.batch, c.seed, place["step"]), context)
        place = place | {"step": place["step"] + 1, "tokens": place["tokens"] + 3 * int(made["real"].sum())}
        yield tensors(made, space), place


def tensors(made: dict[str, np.ndarray], space: Space) -> dict[str, Tensor]:
    """As the model takes them; and `took`, the actions that are to be predicted."""
    encoded = space.encode(made["action"])
    parts = made | {"state": space.normal(made["state"]), "action": encoded}
    took = made["action"] if space.discrete else encoded
    return {name: torch.from_numpy(np.ascontiguousarray(part)) for name, part in (parts | {"took": took}).items()}


def missed(model: DecisionTransformer, predicted: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """The loss of each real step's action, (steps,)."""
    predicted, took = predicted[batch["real"]].float(), batch["took"][batch["real"]]
    if model.space.discrete:
        return F.cross_entropy(predicted, took, reduction="none")
    return F.mse_loss(predicted, took, reduction="none").mean(-1)


def loss(model: DecisionTransformer, batch: dict[str, Tensor]) -> Tensor:
    action, state, wanted = model(batch["wanted"], batch["state"], batch["action"], batch["at"])
    mean = missed(model, action, batch).mean()
    follows = batch["real"][:, 1:]  # the step after is there to be foreseen
    later = {"state": state, "wanted": wanted * (model.scale or 1.0)}
    for name, guess in later.items():
        error = F.mse_loss(guess[:, :-1].float(), batch[name][:, 1:].float(), reduction="none").mean(-1)
        size = (model.scale or 1.0) ** 2 if name == "wanted" else 1.0
        mean = mean + model.foresee / size * (error * follows).sum() / follows.sum().clamp(min=1)
    return mean


def evaluate(model: DecisionTransformer, batches: Iterator[dict[str, Tensor]]) -> dict[str, float]:
    """The mean loss of an action; where actions are discrete, the share whose likeliest is the one taken."""
    total, right, count = 0.0, 0, 0
    for batch in batches:
        action = model.answer(batch["wanted"], batch["state"], batch["action"], batch["at"])
        total += missed(model, action, batch).double().sum().item()
        count += int(batch["real"].sum())
        if model.space.discrete:
            right += int((action.argmax(-1) == batch["took"])[batch["real"]].sum())
    found = {"loss": total / max(1, count)}
    return found | ({"accuracy": right / max(1, count)} if model.space.discrete else {}) | {"tokens": count}


def graph(model: DecisionTransformer) -> Graph:
    sizes = {"wanted": 1, "state": model.space.states, "action": model.space.actions}
    inputs = {name: Input(f"batch length {size}") for name, size in sizes.items()}
    inputs["at"] = Input("batch length", model.steps)
    return Graph(model, inputs, ("next_action", "next_state", "next_wanted"), {"length": model.context})


def judge(model: DecisionTransformer, config: Config, split: str = "val", **request: Any) -> dict[str, float]:
    """What it achieves in the real environment: for each return that is wanted, the mean over 100 episodes and its 95 %
    interval. More: "wanted" (a number or several), "episodes", "seed", "temperature" and "env", as in `predict`."""
    found = rollout(model, {"episodes": 100, "seed": OTHER_STARTS} | request)
    names = {"": "achieved", " from": "low", " to": "high"}
    return {f"for {one['wanted']:g}{name}": one[key] for one in found for name, key in names.items()}


def figures(model: DecisionTransformer, config: Config) -> list[Figure]:
    """What was wanted against what was achieved, a few episodes each. A clone hears nothing of it: its line is flat.
    Nothing where the environment is not here, or is another one than the data's."""
    returns = episodes(config).returns
    goals = np.linspace(returns.min(), max(returns.max(), config.wanted), GOALS).round(2).tolist()
    asked = {"wanted": goals, "episodes": EPISODES, "seed": OTHER_STARTS}
    try:
        found = rollout(model, asked) if model.steps <= LONGEST_DRAWN else []
    except InputError:
        return []
    ends, mean = [goals[0], goals[-1]], float(returns.mean())
    lines = [
        {"name": "achieved", "x": goals, "y": [round(one["achieved"], 2) for one in found]},
        {"name": "as wanted", "x": ends, "y": ends},
        {"name": "mean of the data", "x": ends, "y": [round(mean, 2)] * 2},
    ]
    note = f"{model.env}: the mean of {EPISODES} episodes for each return that was asked for"
    about = {"kind": "lines", "title": "Wanted and achieved", "note": note, "x_label": "return wanted"}
    return [about | {"lines": lines}] if found else []


def predict(model: DecisionTransformer, request: dict[str, Any]) -> dict[str, Any]:
    """What to do next: {"input": {"states": [...], "actions": [...], "returns": [...], "start": 0} or a list of such},
    one action less than states; instead of "returns", the return to go before each step, "wanted" and "rewards" do.
    Returns {"results": [{"action", "probabilities"}, ...]}. Or play: {"rollout": {"env", "wanted": a number or several,
    "episodes", "seed", "temperature"}} -> {"results": [{"wanted", "achieved", "low", "high", "returns"}, ...]}. Without
    either: the example kept beside the weights."""
    for name in request:
        if name not in ("input", "rollout"):
            raise InputError(f"a request has no '{name}': {nearest(name, ('input', 'rollout'))}")
    if len(request) > 1:
        raise InputError("a request has either an input or a rollout")
    if "rollout" in request:
        return {"results": rollout(model, request["rollout"])}
    given = request.get("input", model.space.example or [])
    return {"results": [episode(model, one, i) for i, one in enumerate(given if isinstance(given, list) else [given])]}
