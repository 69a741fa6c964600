"""What an agent can be told, and the presets."""

from dataclasses import dataclass, field, replace
from typing import Any

from ...data.trajectories.environments import LINE
from ...model.config import TransformerConfig
from ...training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    """An agent, the episodes it learns from and its training."""

    data: str = "cartpole"
    """The name of a set (line, cartpole, pendulum), a .npz or a .parquet of trajectories, or minari:NAME."""
    env: str = "CartPole-v1"
    """The environment to act in: Line-v0, or one of gymnasium."""
    space: str = "measured"
    """How states and actions become numbers: measured (states of mean 0 and deviation 1, actions to 1), raw (as they
    are), or a space.json (its path, or what it holds)."""
    conditioned: bool = True
    """Told the return that is wanted. False: behaviour cloning."""
    best: float = 1.0
    """Learn from this share of the episodes only, those with the highest returns."""
    wanted: float = 500.0
    """The return to act for where none is asked for."""
    scale: float = 100.0
    """Returns are divided by this."""
    longest: int = 500
    """Steps of the longest episode there may be."""
    squash: bool = False
    """Actions that are numbers end in a tanh."""
    foresee: float = 0.0
    """Weight of predicting the next state and return too."""
    val_fraction: float = 0.1
    """Episodes kept for validation."""
    model: TransformerConfig = field(default_factory=TransformerConfig)
    """Its context counts nodes: three for each step that the model sees."""
    train: TrainConfig = field(default_factory=TrainConfig)


def sized(dim: int, n_layer: int, n_head: int, steps: int, **more: Any) -> TransformerConfig:
    return TransformerConfig(
        dim=dim, n_layer=n_layer, n_head=n_head, context=3 * steps, position="none", activation="relu", **more
    )


CARTPOLE = Config(
    model=sized(64, 3, 4, 20),
    train=TrainConfig(steps=1500, batch=64, warmup=100, weight_decay=0.01, eval_every=250, save_every=500),
)
PENDULUM = Config(
    data="pendulum",
    env="Pendulum-v1",
    wanted=-150.0,
    longest=200,
    squash=True,
    model=sized(64, 3, 4, 20),
    train=replace(CARTPOLE.train, steps=2500),
)

PRESETS = {
    # seconds: for tests
    "tiny": Config(
        data="line",
        env=LINE,
        space="raw",
        wanted=18.0,
        scale=20.0,
        longest=20,
        foresee=0.1,
        val_fraction=0.2,
        model=sized(32, 2, 2, 5),
        train=TrainConfig(steps=20, batch=8, warmup=2, eval_every=10, eval_batches=4, save_every=10),
    ),
    # minutes on two cores
    "small": CARTPOLE,
    "cloning": replace(CARTPOLE, conditioned=False),
    "best": replace(CARTPOLE, conditioned=False, best=0.1),
    "pendulum": PENDULUM,
    "pendulum-cloning": replace(PENDULUM, conditioned=False),
    "pendulum-best": replace(PENDULUM, conditioned=False, best=0.1),
    # the paper's for the robots of MuJoCo, as its authors published it: bring --data, --env, --wanted and a GPU
    "mujoco": Config(
        data="pendulum",
        env="Pendulum-v1",
        wanted=3600.0,
        scale=1000.0,
        longest=1000,
        squash=True,
        model=sized(128, 3, 1, 20, dropout=0.1),
        train=TrainConfig(steps=100_000, batch=64, lr=1e-4, warmup=10_000, clip=0.25, weight_decay=1e-4, beta2=0.999),
    ),
}
