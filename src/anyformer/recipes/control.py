"""Control: act so that a given return is reached; returns, states and actions are a sequence.

raw    episodes of states, actions and rewards: npz, parquet, Minari's, or a set that is played on the spot
nodes  three a step: the return to go, the state, the action, each with the step's number
edges  causal
head   from each state's node the next action; from each action's node the next state and return to go
loss   cross-entropy of the action (or its squared error, where actions are numbers)

    anyformer train control                           two minutes on two cores: CartPole, played well and badly;
                                                      for a return of 500 it balances for more than 475 steps
    anyformer train control --preset cloning          the same without reading the return

Decision Transformer (Chen et al. 2021, 2106.01345); cloning of all episodes or the best is its baseline.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.sampling import sample_evenly
from ..data.text.batches import IGNORE_INDEX
from ..data.trajectories import MAX_RETURN
from ..data.trajectories.batches import build_windows, eval_starts, sample_starts
from ..data.trajectories.datasets import load_trajectories
from ..data.trajectories.environments import LINE
from ..data.trajectories.normalizer import TrajectoryNormalizer, fit_normalizer, load_normalizer
from ..data.trajectories.read import Trajectories
from ..errors import InputError
from ..forms import Form, Task
from ..inference.agent import (
    Actor,
    EpisodeRequest,
    RolloutRequest,
    check_environment,
    predict_next_actions,
    read_episode_row,
    roll_out,
)
from ..model import TrajectoryEmbedding, Transformer, TransformerConfig, causal, initialize
from ..parsing import check_range, check_types, parse_dataclass, path_field
from ..recipe import (
    BatchStream,
    Examples,
    Figure,
    FileInput,
    Graph,
    GraphInput,
    SizeOption,
    StreamState,
    advance_stream,
    init_stream,
)
from ..training.config import TrainConfig
from ._shared.presets import TINY_TRAIN, make_model_config
from ._shared.row_lenses import lens_control as lens  # noqa: F401
from ._shared.sizes import Size, offer_sizes
from ._shared.trivial_baselines import Baselines, score_actions

FIGURE_GOALS, FIGURE_EPISODES = 5, 8  # returns to reach in the figure, and episodes for each
MAX_FIGURE_STEPS = 1000  # steps of an episode: the figure costs seconds
N_EXAMPLES, EXAMPLE_STEPS = 3, 5
MAX_BASELINE_NUMBERS = 1 << 26  # of the states of a split
EVAL_SEED = 1  # seed of the episodes that are played here; those of generated sets have 0


@dataclass(frozen=True, kw_only=True)
class Config:
    """An agent, the episodes it learns from and its training."""

    data: str = path_field("cartpole")
    """The name of a set (line, cartpole, pendulum), trajectories in a .npz or a table (csv, jsonl, parquet), or
    minari:NAME."""
    env: str = "CartPole-v1"
    """The environment to act in: Line-v0, or one of gymnasium."""
    space: str = path_field("measured", [".json"])
    """How states and actions become numbers: measured (states of mean 0 and deviation 1, actions up to 1), raw (as they
    are), or a space.json: its path, or its content."""
    conditioned: bool = True
    """The model reads the return to go. False: behavior cloning."""
    best_fraction: float = 1.0
    """Learn from this share of the episodes only, those with the highest returns."""
    target_return: float = 500.0
    """The return to reach where a request names none."""
    return_scale: float = 100.0
    """Returns are divided by this."""
    max_episode_steps: int = 500
    """Steps of the longest episode there may be."""
    squash: bool = False
    """Actions that are numbers end in a tanh."""
    aux_loss_weight: float = 0.0
    """Weight of predicting the next state and return to go too."""
    val_fraction: float = 0.1
    """Share of the episodes that is kept for validation."""
    model: TransformerConfig = field(default_factory=TransformerConfig)
    """Its context counts nodes: three for each step."""
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        check_types(self)
        check_range(self, "best_fraction", above=0, at_most=1)
        check_range(self, "target_return", at_least=-MAX_RETURN, at_most=MAX_RETURN)
        check_range(self, "return_scale", at_least=1e-9, at_most=1e9)
        check_range(self, "max_episode_steps", at_least=1, at_most=1_000_000)  # each step has an embedding
        check_range(self, "aux_loss_weight", at_least=0, at_most=1e6)
        check_range(self, "val_fraction", above=0, below=1)
        if self.model.context < 3:
            raise InputError(f"model.context is {self.model.context} nodes; a step has 3, so 60 hold 20 steps")


def make_model(dim: int, n_layer: int, n_head: int, steps: int, **fields: Any) -> TransformerConfig:
    return make_model_config(dim, n_layer, n_head, 3 * steps, position="none", activation="relu", **fields)


CARTPOLE = Config(
    model=make_model(64, 3, 4, 20),
    train=TrainConfig(steps=1500, batch=64, warmup=100, weight_decay=0.01, eval_every=250, save_every=500),
)
PENDULUM = Config(
    data="pendulum",
    env="Pendulum-v1",
    target_return=-150.0,
    max_episode_steps=200,
    squash=True,
    model=make_model(64, 3, 4, 20),
    train=replace(CARTPOLE.train, steps=2500),
)

KINDS = {"trajectories": {"preset": "small"}}
SIZES = (Size(32, 1, 32, 0), Size(48, 2, 64, 500))  # of --minutes
PRESETS = {
    # seconds: for tests
    "tiny": Config(
        data="line",
        env=LINE,
        space="raw",
        target_return=18.0,
        return_scale=20.0,
        max_episode_steps=20,
        aux_loss_weight=0.1,
        val_fraction=0.2,
        model=make_model(32, 2, 2, 5),
        train=TINY_TRAIN,
    ),
    # minutes on two cores
    "small": CARTPOLE,
    "cloning": replace(CARTPOLE, conditioned=False),
    "best": replace(CARTPOLE, conditioned=False, best_fraction=0.1),
    "pendulum": PENDULUM,
    "pendulum-cloning": replace(PENDULUM, conditioned=False),
    "pendulum-best": replace(PENDULUM, conditioned=False, best_fraction=0.1),
    # the paper's for the robots of MuJoCo, as its authors published it: bring --data, --env, --target-return and a GPU
    "mujoco": replace(
        PENDULUM,
        target_return=3600.0,
        return_scale=1000.0,
        max_episode_steps=1000,
        model=make_model(128, 3, 1, 20, dropout=0.1),
        train=TrainConfig(steps=100_000, batch=64, lr=1e-4, warmup=10_000, clip=0.25, weight_decay=1e-4, beta2=0.999),
    ),
}


def sizes(config: Config) -> Iterator[SizeOption]:
    yield from offer_sizes(config, SIZES, steps=1000)


class DecisionTransformer(nn.Module):
    """A Transformer over returns to go, states and actions.

    The return to go is in units of the environment, states and actions as `normalizer` maps them. Rows of fewer than K
    steps are padded on the right: nothing reads ahead.

    Shapes:
        return_to_go (B, K, 1), state (B, K, S), action (B, K, A), timestep (B, K) -> action (B, K, A), state (B, K, S)
        and return_to_go (B, K, 1): predicted from each state the action, from each action what follows it.
    """

    def __init__(self, config: Config, normalizer: TrajectoryNormalizer):
        super().__init__()
        self.normalizer, self.env, self.target_return = normalizer, config.env, config.target_return
        self.context, self.max_episode_steps = config.model.context // 3, config.max_episode_steps
        self.return_scale = config.return_scale if config.conditioned else 0.0
        self.aux_loss_weight, self.squash = config.aux_loss_weight, config.squash
        self.files = {"space.json": normalizer.to_json()}
        self.nodes = TrajectoryEmbedding(normalizer.states, normalizer.actions, config.max_episode_steps, config.model)
        self.body = Transformer(config.model)
        self.action = nn.Linear(config.model.dim, normalizer.actions)
        self.state = nn.Linear(config.model.dim, normalizer.states)
        self.return_to_go = nn.Linear(config.model.dim, 1)

    def forward(self, return_to_go: Tensor, state: Tensor, action: Tensor, timestep: Tensor) -> tuple[Tensor, ...]:
        is_cloning = not self.return_scale
        return_to_go = torch.zeros_like(return_to_go) if is_cloning else return_to_go / self.return_scale
        nodes = self.nodes(return_to_go, state, action, timestep)  # (B, 3 K, C)
        x = self.body(nodes, causal).unflatten(1, (-1, 3))  # (B, K, 3, C)
        output = self.action(x[:, :, 1])
        return output.tanh() if self.squash else output, self.state(x[:, :, 2]), self.return_to_go(x[:, :, 2])

    def predict_action(self, return_to_go: Tensor, state: Tensor, action: Tensor, timestep: Tensor) -> Tensor:
        return self(return_to_go, state, action, timestep)[0]


def load_episodes(config: Config) -> Trajectories:
    """Load the config's episodes, read or played once; a file that has changed since is read again."""
    data = load_trajectories(config.data)
    longest = int((data.ends - data.starts).max())
    if longest > config.max_episode_steps:
        about = f"data '{config.data}': an episode has {longest} steps"
        raise InputError(f"{about}, more than --max-episode-steps {config.max_episode_steps}")
    return data


def build_normalizer(config: Config) -> TrajectoryNormalizer:
    if config.space not in ("measured", "raw"):
        return load_normalizer(config.space)
    data = load_episodes(config)
    if data.is_discrete and len(actions := np.unique(data.actions)) < 2:
        raise InputError(f"data '{config.data}': every step takes one action ({actions[0]}): there is no choice")
    return fit_normalizer(data, config.space == "measured")


def build(config: Config) -> DecisionTransformer:
    model = DecisionTransformer(config, build_normalizer(config))
    initialize(model, config.model)
    return model


def batches(config: Config, split: str, state: StreamState | None = None) -> BatchStream:
    """Yield batches of windows of episodes: state (B, K, S), action (B, K, A), return_to_go (B, K, 1), timestep (B, K),
    real (B, K), False after the end of an episode; and labels, the actions: ids (B, K), or (B, K, A).

    "train" never ends and starts windows at random steps. "val" and "all" yield each step once.
    """
    c, data, normalizer = config.train, load_episodes(config), build_normalizer(config)
    normalizer.check(data)
    context = config.model.context // 3
    state = init_stream(state, config.data, data.sha256)
    data = data.select_best(config.best_fraction) if split != "all" else data
    episodes = data.split(split, config.val_fraction)
    if split != "train":
        starts = eval_starts(data, episodes, context)
        for i in range(0, len(starts), c.batch):
            yield to_tensors(build_windows(data, starts[i : i + c.batch], context), normalizer), state
    while split == "train":
        starts = sample_starts(data, episodes, c.batch, c.seed, state["step"])
        windows = build_windows(data, starts, context)
        state = advance_stream(state, 3 * int(windows["real"].sum()))
        yield to_tensors(windows, normalizer), state


def to_tensors(windows: dict[str, np.ndarray], normalizer: TrajectoryNormalizer) -> dict[str, Tensor]:
    """Normalize windows, and add the labels."""
    action = normalizer.encode_actions(windows["action"])
    labels = np.where(windows["real"], windows["action"], IGNORE_INDEX) if normalizer.discrete else action
    state = normalizer.normalize_states(windows["state"])
    arrays = windows | {"state": state, "action": action, "labels": labels}
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}


def action_losses(model: DecisionTransformer, output: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Return the loss of each real step's action, (steps,)."""
    output, labels = select_real(output, batch).float(), select_real(batch["labels"], batch)
    if model.normalizer.discrete:
        return F.cross_entropy(output, labels, reduction="none")
    return F.mse_loss(output, labels, reduction="none").mean(-1)


def select_real(x: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Return the real steps: (B, K, ...) -> (steps, ...). Tensors on the meta device have no values: all steps."""
    return x.flatten(0, 1) if x.is_meta else x[batch["real"]]


def compute_terms(model: DecisionTransformer, batch: dict[str, Tensor]) -> list[Tensor]:
    """Return the terms of the loss: of the action, the next state and the next return to go."""
    action, state, return_to_go = model(batch["return_to_go"], batch["state"], batch["action"], batch["timestep"])
    terms, scale = [action_losses(model, action, batch).mean()], model.return_scale or 1.0
    has_next = batch["real"][:, 1:]
    for name, output, size in (("state", state, 1.0), ("return_to_go", return_to_go * scale, scale**2)):
        error = F.mse_loss(output[:, :-1].float(), batch[name][:, 1:].float(), reduction="none").mean(-1)
        terms.append(model.aux_loss_weight / size * (error * has_next).sum() / has_next.sum().clamp(min=1))
    return terms


def loss(model: DecisionTransformer, batch: dict[str, Tensor]) -> Tensor:
    action, state, return_to_go = compute_terms(model, batch)
    return action + state + return_to_go


def loss_terms(model: DecisionTransformer, batch: dict[str, Tensor]) -> Tensor:
    """Return the terms that `loss` is the sum of: each is a mean over another number of predictions. (3,)"""
    return torch.stack(compute_terms(model, batch))


def loss_weight(batch: dict[str, Tensor]) -> Tensor:
    """Return the number of predictions of each term: every real step has an action, all but the last of each window a
    next state and return. (3,)"""
    steps, next_steps = batch["real"].sum(), batch["real"][:, 1:].sum()
    return torch.stack([steps, next_steps, next_steps])


def evaluate(model: DecisionTransformer, batches: Iterator[dict[str, Tensor]]) -> dict[str, float]:
    """Return the mean loss of an action and, where actions are discrete, the accuracy."""
    total, right, count = 0.0, 0, 0
    for batch in batches:
        output = model.predict_action(batch["return_to_go"], batch["state"], batch["action"], batch["timestep"])
        total += action_losses(model, output, batch).double().sum().item()
        count += int(batch["real"].sum())
        if model.normalizer.discrete:
            right += int((output.argmax(-1) == batch["labels"]).sum())  # never equal where a label is ignored
    accuracy = {"accuracy": right / max(1, count)} if model.normalizer.discrete else {}
    return {"loss": total / max(1, count), **accuracy, "tokens": count}


def baselines(config: Config) -> Baselines:
    """Score what predicts the action from the state of the same step alone."""
    most = max(1, MAX_BASELINE_NUMBERS // load_episodes(config).states.shape[1])
    rows = {"train": min(10_000, most), "val": min(2_000, most)}
    (x, y), (x_val, y_val) = (collect_steps(config, split, n) for split, n in rows.items())
    return score_actions(x, y, x_val, y_val)


def collect_steps(config: Config, split: str, n_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return states (steps, S) and labels (steps[, A]) of up to so many steps of a split."""
    states, labels, count = [], [], 0
    for batch, _ in batches(config, split):
        states.append(select_real(batch["state"], batch).numpy())
        labels.append(select_real(batch["labels"], batch).numpy())
        if (count := count + len(states[-1])) >= n_steps:
            break
    return np.concatenate(states)[:n_steps], np.concatenate(labels)[:n_steps]


def export_graph(model: DecisionTransformer) -> Graph:
    sizes = {"return_to_go": 1, "state": model.normalizer.states, "action": model.normalizer.actions}
    inputs = {name: GraphInput(f"batch length {size}") for name, size in sizes.items()}
    inputs["timestep"] = GraphInput("batch length", model.max_episode_steps)
    return Graph(model, inputs, ("next_action", "next_state", "next_return_to_go"), {"length": model.context})


def make_policy(
    model: DecisionTransformer,
    config: Config,
    env: str,
    target_return: float | None,
    temperature: float,
    seeds: Sequence[int],
) -> tuple[Actor, int]:
    """Return the model as a policy in an environment, with one episode per seed, and the most steps of an episode."""
    check_environment(model, env)
    target = config.target_return if target_return is None else target_return
    return Actor(model, [target] * len(seeds), temperature, seeds), model.max_episode_steps


def score(model: DecisionTransformer, config: Config, split: str = "val", **request: Any) -> dict[str, float]:
    """Play the environment: for each return to reach, the mean return of 100 episodes and its 95 % interval. `request`
    holds fields of `RolloutRequest`; the data are not read."""
    results = roll_out(model, {"episodes": 100, "seed": EVAL_SEED} | request)
    keys = {"": "achieved", " from": "low", " to": "high"}
    return {f"for {result['wanted']:g}{name}": result[key] for result in results for name, key in keys.items()}


def figures(model: DecisionTransformer, config: Config) -> list[Figure]:
    """Draw the returns achieved against those to reach, a few episodes each. Nothing where the environment is not
    installed, or is not that of the data, or an episode takes too long."""
    if model.max_episode_steps > MAX_FIGURE_STEPS:
        return []
    returns = load_episodes(config).returns
    goals = np.linspace(returns.min(), max(returns.max(), config.target_return), FIGURE_GOALS).round(2).tolist()
    request = {"target_return": goals, "episodes": FIGURE_EPISODES, "seed": EVAL_SEED}
    try:
        results = roll_out(model, request)
    except InputError:
        return []
    ends, mean = [goals[0], goals[-1]], float(returns.mean())
    lines = [
        {"name": "achieved", "x": goals, "y": [round(result["achieved"], 2) for result in results]},
        {"name": "return to reach", "x": ends, "y": ends},
        {"name": "mean of the data", "x": ends, "y": [round(mean, 2)] * 2},
    ]
    note = f"{model.env}: the mean of {FIGURE_EPISODES} episodes for each return to reach"
    figure = {"kind": "lines", "title": "Return to reach and achieved", "note": note, "x_label": "return to reach"}
    return [figure | {"lines": lines}]


def examples(config: Config) -> Examples:
    """Take the beginnings of episodes of the validation split; the truth is the action that was taken next."""
    data, episodes, truths = load_episodes(config), [], []
    for start in data.starts[sample_evenly(data.split("val", config.val_fraction), N_EXAMPLES)]:
        last = min(start + EXAMPLE_STEPS, data.ends[data.episode_ids[start]]) - 1
        episode = {"states": data.states[start : last + 1], "actions": data.actions[start:last]}
        episode |= {"returns": data.return_to_go[start : last + 1]}
        episodes.append({name: array.tolist() for name, array in episode.items()})
        truths.append(data.actions[last].tolist())
    return Examples({"input": episodes}, truths)


@dataclass(frozen=True)
class Request:
    """An episode, or several, of which to predict the next action; or episodes to play."""

    input: Any = None
    """The fields of `EpisodeRequest`, or a list of such. None: the mean state at the beginning of an episode."""
    rollout: Any = None
    """The fields of `RolloutRequest`."""


def predict(model: DecisionTransformer, request: dict[str, Any]) -> dict[str, Any]:
    """Predict the next action, or play episodes.

    {"input": {"states": [...], "actions": [...], "returns": [...], "start": 0}}, or a list of such (`EpisodeRequest`),
    returns {"results": [{"action", "probabilities"}, ...]}. {"rollout": {"env", "target_return": a number or several,
    "episodes", "seed", "temperature"}} returns {"results": [{"wanted", "achieved", "low", "high", "returns"}, ...]}.
    """
    fields = parse_dataclass(Request, request, "request")
    if len(request) > 1:
        raise InputError("request: expected either an input or a rollout")
    if fields.rollout is not None:
        return {"results": roll_out(model, fields.rollout)}
    mean = list(model.normalizer.mean) or [0.0] * model.normalizer.states
    episodes = {"states": [mean], "target_return": model.target_return} if fields.input is None else fields.input
    episodes = episodes if isinstance(episodes, list | tuple) else [episodes]
    return {"results": predict_next_actions(model, episodes)}


def form(model: DecisionTransformer, config: Config) -> Form:
    """Describe how episodes are played, with a range of returns, and how the next action is predicted."""
    ends = sorted((0.0, float(model.target_return))) if model.return_scale else []
    goal = {"target_return": model.target_return, "episodes": 10, "trace": True}
    usual = {"target_return": (ends[0], ends[1])} if ends else {}
    play = Task("Play", "goal", RolloutRequest, "episodes", "rollout", nested=True, usual=usual, settings=goal)
    state = [round(x, 4) for x in model.normalizer.mean] or [0.0] * model.normalizer.states
    episode = {"states": [state], "target_return": model.target_return}
    act = Task("Choose the next action", "json", EpisodeRequest, "actions", nested=True, examples=(episode,))
    return Form((play, act))


def file_input(model: DecisionTransformer, config: Config) -> FileInput:
    return FileInput(("states",), read_row=read_episode_row)


def predict_batch(model: DecisionTransformer, inputs: list[Any], settings: dict[str, Any]) -> list[dict[str, Any]]:
    return predict(model, settings | {"input": inputs})["results"]
