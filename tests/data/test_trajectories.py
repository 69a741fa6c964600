"""Trajectories: returns to go by hand, windows that stay in their episode, files, environments, the verb rollout."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from anyformer.cli import run
from anyformer.data.sampling import Dataset
from anyformer.data.trajectories import datasets
from anyformer.data.trajectories.batches import build_windows, eval_starts, sample_starts
from anyformer.data.trajectories.datasets import load_trajectories, play_mixed
from anyformer.data.trajectories.environments import (
    EXPERT_POLICIES,
    LINE,
    EnvSpec,
    EpsilonGreedy,
    make_envs,
    play_episodes,
)
from anyformer.data.trajectories.normalizer import fit_normalizer, load_normalizer
from anyformer.data.trajectories.read import Trajectories, is_trajectory, read_trajectories, write_trajectories
from data_kit import refuses

load_anew = load_trajectories.__wrapped__  # without the memory of this process


def small() -> Trajectories:
    """Episodes of 3, 1 and 2 steps."""
    states = np.arange(12, dtype=np.float32).reshape(6, 2)
    rewards = np.array([1, 2, 3, 10, 5, 6], np.float32)
    return Trajectories(states, np.array([0, 1, 0, 1, 1, 0]), rewards, np.array([3, 4, 6]))


def test_returns_by_hand():
    data = small()
    assert isinstance(data, Dataset)
    assert data.returns.tolist() == [6, 10, 11] and data.return_to_go.tolist() == [6, 5, 3, 10, 11, 6]
    assert data.timesteps.tolist() == [0, 1, 2, 0, 0, 1] and data.episode_ids.tolist() == [0, 0, 0, 1, 2, 2]
    assert data.select_best(0.3).returns.tolist() == [11] and data.select_best(0.7).returns.tolist() == [10, 11]
    assert data.select_best(1.0) is data


def test_a_window_stays_in_its_episode():
    windows = build_windows(small(), np.array([1, 3, 4]), 3)
    assert windows["real"].tolist() == [[True, True, False], [True, False, False], [True, True, False]]
    assert windows["return_to_go"][..., 0].tolist() == [[5, 3, 0], [10, 0, 0], [11, 6, 0]]
    assert windows["timestep"].tolist() == [[1, 2, 0], [0, 0, 0], [0, 1, 0]]
    assert windows["state"][0].tolist() == [[2, 3], [4, 5], [0, 0]] and windows["action"].tolist()[0] == [1, 0, 0]


def test_evaluation_has_every_step_once_and_training_draws_from_its_episodes():
    data, episodes = small(), np.array([0, 2])
    windows = build_windows(data, eval_starts(data, episodes, 2), 2)
    assert sorted(windows["return_to_go"][windows["real"]][:, 0].tolist()) == [3, 5, 6, 6, 11]
    starts = np.concatenate([sample_starts(data, episodes, 8, 1, step) for step in range(20)])
    assert set(starts.tolist()) == {0, 1, 2, 4, 5}
    assert (sample_starts(data, episodes, 8, 1, 3) == sample_starts(data, episodes, 8, 1, 3)).all()


@pytest.mark.parametrize("fraction", [0.1, 0.3])
def test_no_episode_is_in_both_splits(fraction: float):
    data = play_episodes(LINE, EpsilonGreedy(EnvSpec(2, 2), None, [0.0] * 20, list(range(20))), list(range(20)))
    train, val = data.split("train", fraction), data.split("val", fraction)
    assert len(val) == round(20 * fraction) and sorted([*train, *val]) == list(data.split("all", fraction))


def test_a_normalizer_survives_json_and_is_undone():
    actions = np.array([[1.0], [-4], [2], [0], [3], [1]], np.float32)
    data = Trajectories(small().states, actions, small().rewards, small().ends)
    normalizer = fit_normalizer(data, normalize=True)
    states, encoded = normalizer.normalize_states(data.states), normalizer.encode_actions(actions)
    np.testing.assert_allclose([states.mean(0), states.std(0)], [[0, 0], [1, 1]], atol=1e-6)
    assert np.abs(encoded).max() == 1
    np.testing.assert_allclose(normalizer.decode_actions(encoded), actions)
    assert load_normalizer(normalizer.to_json()) == normalizer
    with refuses("the data have discrete actions"):
        normalizer.check(small())
    with refuses("action 2 does not exist"):
        fit_normalizer(small(), normalize=False).encode_actions(np.array([0, 2]))


# --- files ---


def test_files_come_back(tmp_path: Path):
    data = small()
    write_trajectories(tmp_path / "a.npz", data)
    assert read_trajectories(tmp_path / "a.npz").sha256 == data.sha256
    assert list(tmp_path.iterdir()) == [tmp_path / "a.npz"]
    arrays = {"observations": data.states, "actions": data.actions, "rewards": data.rewards}
    np.savez(tmp_path / "d4rl.npz", **arrays, terminals=[0, 0, 0, 1, 0, 0], timeouts=[0, 0, 1, 0, 0, 0])
    assert read_trajectories(tmp_path / "d4rl.npz").sha256 == data.sha256


def test_the_state_is_what_is_left_beside_actions_and_rewards(tmp_path: Path):
    header, rows = (
        "episode,t,position,speed,action,reward,next_position,done\n",
        ["a,0,1,2,0,1,5,0", "a,1,3,4,1,1,5,1", "b,0,5,6,0,2,5,1"],
    )
    (tmp_path / "a.csv").write_text(header + "\n".join(rows) + "\n")
    data = read_trajectories(tmp_path / "a.csv")
    assert data.states.tolist() == [[1, 2], [3, 4], [5, 6]] and data.ends.tolist() == [2, 3]
    assert not is_trajectory(["position", "action", "reward"]), "nothing says where an episode ends"


def test_parquet_files(tmp_path: Path):
    pyarrow = pytest.importorskip("pyarrow", reason="parquet needs pyarrow")
    from pyarrow import parquet

    data = small()
    columns = {"episode": ["a", "a", "a", "b", "c", "c"], "state": data.states.tolist(), "reward": data.rewards}
    parquet.write_table(pyarrow.table(columns | {"action": data.actions}), tmp_path / "a.parquet")
    assert read_trajectories(tmp_path / "a.parquet").sha256 == data.sha256
    parquet.write_table(pyarrow.table(columns | {"actoin": data.actions}), tmp_path / "b.parquet")
    with refuses("b.parquet", "no column 'action'", "did you mean 'actoin'"):
        read_trajectories(tmp_path / "b.parquet")
    shuffled = columns | {"episode": ["a", "b", "a", "b", "c", "c"], "action": data.actions}
    parquet.write_table(pyarrow.table(shuffled), tmp_path / "c.parquet")
    with refuses("c.parquet", "must be consecutive"):
        read_trajectories(tmp_path / "c.parquet")


GOOD: dict[str, Any] = {"states": np.zeros((3, 2)), "actions": np.zeros(3, int), "rewards": np.zeros(3), "ends": [3]}


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"states": None, "stats": np.zeros((3, 2))}, ("no array 'states'", "did you mean 'stats'")),
        ({"ends": None}, ("no array 'ends'",)),
        ({"ends": [2, 2, 3]}, ("episode 1 has length 0",)),
        ({"ends": [2]}, ("ends at 2", "3, the number of steps")),
        ({"states": np.zeros((0, 2)), "actions": np.zeros(0, int), "rewards": [], "ends": []}, ("ends at nothing",)),
        ({"actions": [0, -1, 0]}, ("action -1 at step 1 is below 0",)),
        ({"states": np.array([[0, 0], [0, np.nan], [0, 0]])}, ("states of step 1 is not a number",)),
        ({"rewards": np.zeros(4)}, ("3 states but 4 rewards",)),
        ({"rewards": np.array(["a", "b", "c"])}, ("'rewards'", "array of numbers")),
        ({"actions": np.array([{}, {}, {}], object)}, ("x.npz cannot be read",)),
    ],
)
def test_bad_arrays(change: dict[str, Any], parts: tuple[str, ...], tmp_path: Path):
    np.savez(tmp_path / "x.npz", **{name: array for name, array in (GOOD | change).items() if array is not None})
    with refuses(*parts):
        read_trajectories(tmp_path / "x.npz")


def test_broken_files_and_unknown_sets(tmp_path: Path):
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 and nothing else")
    for data, parts in {
        str(tmp_path / "x.npz"): ("x.npz cannot be read",),
        "cartpol": ("'cartpol'", "did you mean 'cartpole'"),
        "no/such.npz": ("'no/such.npz'", "no such file"),
    }.items():
        with refuses(*parts):
            load_trajectories(data)


# --- environments ---


def test_an_episode_does_not_depend_on_the_others():
    data, again, other = (play_mixed(LINE, 3, (1.0, 0.0), seed) for seed in (0, 0, 1))
    assert data.sha256 == again.sha256 != other.sha256
    alone = play_episodes(LINE, EpsilonGreedy(EnvSpec(2, 2), EXPERT_POLICIES[LINE], [0.0], [4]), [4])
    assert (alone.states == data.select(np.array([4])).states).all()


def test_the_expert_is_better_than_chance():
    returns = play_mixed(LINE, 50, (1.0, 0.5, 0.05)).returns.reshape(3, 50).mean(1)
    assert returns[0] < returns[1] < returns[2] and returns[2] > 14


def test_a_named_set_is_played_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path))
    first = load_anew("line")
    assert len(list((tmp_path / "trajectories").iterdir())) == 1
    monkeypatch.setattr(datasets, "play_mixed", None)
    assert load_anew("line").sha256 == first.sha256


def test_gymnasiums_environments():
    pytest.importorskip("gymnasium", reason="these environments are gymnasium's")
    returns = play_mixed("CartPole-v1", 4, (1.0, 0.0)).returns
    assert returns[:4].mean() < 60 and (returns[4:] == 500).all()
    data = play_mixed("Pendulum-v1", 3, (1.0, 0.0))
    assert data.actions.shape == (1200, 1) and np.abs(data.actions).max() <= 2
    assert data.returns[3:].min() > data.returns[:3].max()
    for name, parts in {
        "CartPole-v2": ("'CartPole-v2'", "did you mean 'CartPole-v1'"),
        "os:system": ("'os:system'", "valid:"),
        "FrozenLake-v1": ("'FrozenLake-v1' has states", "Box"),
    }.items():
        with refuses(*parts):
            make_envs(name, 1)


def test_without_gymnasium_a_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    assert make_envs(LINE, 1)[1] == EnvSpec(2, 2)
    with refuses("CartPole-v1", "pip install 'anyformer[control]'"):
        make_envs("CartPole-v1", 1)


# --- the verb rollout ---


def test_rollout_writes_the_episodes_that_it_plays(tmp_path: Path, capsys: pytest.CaptureFixture):
    out = tmp_path / "a.npz"
    flags = ["--policy", "-1,0", "--epsilon", "0", "1", "--episodes", "4", "--out", str(out), "--json"]
    assert run(["rollout", LINE, *flags]) == 0
    report, data = json.loads(capsys.readouterr().out), read_trajectories(out)
    assert report["returns"] == data.returns.tolist() and len(data.ends) == report["episodes"] == 8
    assert data.returns[:4].mean() > data.returns[4:].mean()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--policy", "0.1"], "--policy has 1 numbers, for states of 2"),
        (["--policy", "exprt"], "random, expert, numbers"),
        (["--episodes", "0"], "--episodes is 0; it must be at least 1"),
        (["--epsilon", "2"], "it must be at least 0 and at most 1"),
        (["--out", "a.csv"], ".npz"),
    ],
)
def test_bad_rollouts(flags: list[str], message: str, capsys: pytest.CaptureFixture):
    assert run(["rollout", LINE, *flags]) == 2
    assert message in capsys.readouterr().err


# --- Minari ---


def install_fake_minari(monkeypatch: pytest.MonkeyPatch, *episodes: Any) -> None:
    """Install as much of Minari as is used, with one dataset."""
    sets = {"walk/left-v0": SimpleNamespace(iterate_episodes=lambda: iter(episodes), total_steps=6)}
    functions = {"list_local_datasets": lambda: sets, "load_dataset": sets.__getitem__}
    monkeypatch.setitem(sys.modules, "minari", SimpleNamespace(**functions))


def minari_episode(data: Trajectories, e: int) -> SimpleNamespace:
    episode = data.select(np.array([e]))
    observations = np.concatenate([episode.states, episode.states[-1:] + 9])  # with the state after the last step
    return SimpleNamespace(observations=observations, actions=episode.actions, rewards=episode.rewards)


def test_minari_datasets(monkeypatch: pytest.MonkeyPatch):
    install_fake_minari(monkeypatch, *(minari_episode(small(), e) for e in range(3)))
    assert load_anew("minari:walk/left-v0").sha256 == small().sha256
    with refuses("'minari:walk/lef-v0'", "did you mean 'walk/left-v0'", "minari download walk/lef-v0"):
        load_anew("minari:walk/lef-v0")
    install_fake_minari(monkeypatch, SimpleNamespace(observations={"a": 1}, actions=np.zeros(1), rewards=np.zeros(1)))
    with refuses("its observations are a dict; only arrays"):
        load_anew("minari:walk/left-v0")
    monkeypatch.setitem(sys.modules, "minari", None)
    with refuses("needs Minari: pip install 'minari[arrow,hdf5]'"):
        load_anew("minari:walk/left-v0")


def test_minari_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    minari = pytest.importorskip("minari", reason="its sets are read where it is installed")
    gymnasium, buffers = pytest.importorskip("gymnasium"), pytest.importorskip("minari.data_collector.episode_buffer")
    data, episodes = play_mixed("CartPole-v1", 2, (1.0,)), []
    for e in range(2):
        episode, n = minari_episode(data, e), len(minari_episode(data, e).rewards)
        flags = {"terminations": [False] * (n - 1) + [True], "truncations": [False] * n, "infos": {}}
        episodes.append(buffers.EpisodeBuffer(id=e, **vars(episode) | {"rewards": episode.rewards.tolist()}, **flags))
    env = gymnasium.make("CartPole-v1")
    minari.create_dataset_from_buffers("test/cartpole-v0", buffer=episodes, env=env, eval_env=env, data_format="arrow")
    assert load_anew("minari:test/cartpole-v0").sha256 == data.sha256


def test_names_of_episodes_can_be_any_json(tmp_path: Path):
    names = [f'"{{""a"": {i // 3}}}"' for i in range(9)]
    rows = ["episode,state,action,reward", *(f"{name},1,0,1" for name in names)]
    (path := tmp_path / "a.csv").write_text("\n".join(rows) + "\n")
    assert load_trajectories(str(path)).ends.tolist() == [3, 6, 9]
