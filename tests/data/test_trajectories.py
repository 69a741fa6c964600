"""Trajectories: returns to go by hand, windows that stay in their episode, files, environments, the verb rollout."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from anyformer.data.trajectories.environments import EXPERTS, LINE, Mixed, Rule, Space, make, mixed, play
from anyformer.data.trajectories.read import Trajectories, drawn, read, swept, windows, write

from anyformer.cli import run
from anyformer.data.trajectories import environments
from data_kit import refuses


def small() -> Trajectories:
    """Episodes of 3, 1 and 2 steps."""
    states = np.arange(12, dtype=np.float32).reshape(6, 2)
    rewards = np.array([1, 2, 3, 10, 5, 6], np.float32)
    return Trajectories(states, np.array([0, 1, 0, 1, 1, 0]), rewards, np.array([3, 4, 6]))


def test_returns_by_hand():
    found = small()
    assert found.returns.tolist() == [6, 10, 11] and found.to_go.tolist() == [6, 5, 3, 10, 11, 6]
    assert found.at.tolist() == [0, 1, 2, 0, 0, 1] and found.episode.tolist() == [0, 0, 0, 1, 2, 2]
    assert found.best(0.3).returns.tolist() == [11] and found.best(0.7).returns.tolist() == [10, 11]
    assert found.best(1.0) is found


def test_a_window_stays_in_its_episode():
    made = windows(small(), np.array([1, 3, 4]), 3)
    assert made["real"].tolist() == [[True, True, False], [True, False, False], [True, True, False]]
    assert made["wanted"][..., 0].tolist() == [[5, 3, 0], [10, 0, 0], [11, 6, 0]]
    assert made["at"].tolist() == [[1, 2, 0], [0, 0, 0], [0, 1, 0]]
    assert made["state"][0].tolist() == [[2, 3], [4, 5], [0, 0]] and made["action"].tolist()[0] == [1, 0, 0]


def test_a_sweep_has_every_step_once_and_draws_cover_the_episodes_given():
    found = small()
    made = windows(found, swept(found, np.array([0, 2]), 2), 2)
    assert sorted(made["wanted"][made["real"]][:, 0].tolist()) == [3, 5, 6, 6, 11]
    seen = np.concatenate([drawn(found, np.array([0, 2]), 8, 1, step) for step in range(20)])
    assert set(seen.tolist()) == {0, 1, 2, 4, 5}
    assert (drawn(found, np.array([0, 2]), 8, 1, 3) == drawn(found, np.array([0, 2]), 8, 1, 3)).all()


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.5])
def test_no_episode_is_on_both_sides(fraction: float):
    found = play(LINE, Rule(Space(2, 2), None, [0.0] * 20, list(range(20))), list(range(20)))
    train, val = found.split("train", fraction), found.split("val", fraction)
    assert len(val) == round(20 * fraction) and sorted([*train, *val]) == list(found.split("all", fraction))


def test_files_come_back(tmp_path: Path):
    found = small()
    write(tmp_path / "a.npz", found)
    assert read(tmp_path / "a.npz").sha256 == found.sha256 and list(tmp_path.iterdir()) == [tmp_path / "a.npz"]
    flags = {"observations": found.states, "actions": found.actions, "rewards": found.rewards}
    np.savez(tmp_path / "d4rl.npz", **flags, terminals=[0, 0, 0, 1, 0, 0], timeouts=[0, 0, 1, 0, 0, 0])
    assert read(tmp_path / "d4rl.npz").sha256 == found.sha256


def test_parquet_says_the_same(tmp_path: Path):
    pa = pytest.importorskip("pyarrow", reason="parquet needs pyarrow")
    from pyarrow import parquet

    found = small()
    columns = {"episode": ["a", "a", "a", "b", "c", "c"], "state": found.states.tolist(), "reward": found.rewards}
    parquet.write_table(pa.table(columns | {"action": found.actions}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet").sha256 == found.sha256
    parquet.write_table(pa.table(columns | {"actoin": found.actions}), tmp_path / "b.parquet")
    with refuses("b.parquet", "no column 'action'", "did you mean 'actoin'"):
        read(tmp_path / "b.parquet")
    mixed_up = columns | {"episode": ["a", "b", "a", "b", "c", "c"], "action": found.actions}
    parquet.write_table(pa.table(mixed_up), tmp_path / "c.parquet")
    with refuses("c.parquet", "must stand together"):
        read(tmp_path / "c.parquet")


GOOD: dict[str, Any] = {"states": np.zeros((3, 2)), "actions": np.zeros(3, int), "rewards": np.zeros(3), "ends": [3]}


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"states": None, "state": np.zeros((3, 2))}, ("no array 'states'", "did you mean 'state'")),
        ({"rewards": None}, ("no array 'rewards'", "valid: states, actions, ends")),
        ({"ends": None}, ("no array 'ends'",)),
        ({"ends": [2, 2, 3]}, ("episode 1 has length 0",)),
        ({"ends": [2]}, ("ends at 2", "3 steps")),
        ({"states": np.zeros((0, 2)), "actions": np.zeros(0, int), "rewards": [], "ends": []}, ("ends at nothing",)),
        ({"actions": [0, -1, 0]}, ("action -1 at step 1 is below 0",)),
        ({"states": np.array([[0, 0], [0, np.nan], [0, 0]])}, ("states of step 1 is not a number",)),
        ({"rewards": np.zeros(4)}, ("3 states but 4 rewards",)),
        ({"rewards": np.array(["a", "b", "c"])}, ("'rewards'", "array of numbers")),
        ({"actions": np.array([{}, {}, {}], object)}, ("x.npz cannot be read",)),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change: dict[str, Any], parts: tuple[str, ...], tmp_path: Path):
    np.savez(tmp_path / "x.npz", **{name: part for name, part in (GOOD | change).items() if part is not None})
    with refuses(*parts):
        read(tmp_path / "x.npz")


def test_a_broken_file_and_an_unknown_set_are_refused(tmp_path: Path):
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 and no more")
    with refuses("x.npz cannot be read"):
        read(tmp_path / "x.npz")
    with refuses("'cartpol'", "did you mean 'cartpole'"):
        environments.trajectories("cartpol")
    with refuses("'no/such.npz'", "no such file"):
        environments.trajectories("no/such.npz")


# --- environments ---


def test_an_episode_does_not_depend_on_those_beside_it():
    asked = Mixed(LINE, 3, (1.0, 0.0))
    whole = mixed(asked)
    assert whole.sha256 == mixed(asked).sha256 != mixed(Mixed(LINE, 3, (1.0, 0.0), seed=1)).sha256
    alone = play(LINE, Rule(Space(2, 2), EXPERTS[LINE], [0.0], [4]), [4])
    assert (alone.states == whole.pick(np.array([4])).states).all()


def test_the_expert_is_better_than_chance_and_quality_is_mixed():
    returns = mixed(Mixed(LINE, 50, (1.0, 0.5, 0.05))).returns.reshape(3, 50).mean(1)
    assert returns[0] < returns[1] < returns[2] and returns[2] > 14


def test_the_cache_keeps_a_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path))
    first = environments.trajectories("line")
    assert len(list((tmp_path / "trajectories").iterdir())) == 1
    monkeypatch.setattr(environments, "mixed", None)  # not played again
    assert environments.trajectories("line").sha256 == first.sha256


def test_gymnasiums_cartpole_and_pendulum():
    pytest.importorskip("gymnasium", reason="these environments are gymnasium's")
    returns = mixed(Mixed("CartPole-v1", 4, (1.0, 0.0))).returns
    assert returns[:4].mean() < 60 and (returns[4:] == 500).all()
    found = mixed(Mixed("Pendulum-v1", 3, (1.0, 0.0)))
    assert found.actions.shape == (1200, 1) and np.abs(found.actions).max() <= 2
    assert found.returns[3:].min() > found.returns[:3].max()
    with refuses("'CartPole-v2'", "did you mean 'CartPole-v1'"):
        make("CartPole-v2", 1)
    with refuses("'os:system'", "valid:"):
        make("os:system", 1)
    with refuses("'FrozenLake-v1' shows", "Box"):
        make("FrozenLake-v1", 1)


def test_without_gymnasium_a_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    assert make(LINE, 1)[1] == Space(2, 2)
    with refuses("CartPole-v1", "pip install 'anyformer[control]'"):
        make("CartPole-v1", 1)


# --- the verb ---


def test_the_verb_keeps_what_it_played(tmp_path: Path, capsys: pytest.CaptureFixture):
    out = tmp_path / "a.npz"
    asked = ["rollout", LINE, "--policy", "-1,0", "--epsilon", "0", "1", "--episodes", "4", "--out", str(out), "--json"]
    assert run(asked) == 0
    told, kept = json.loads(capsys.readouterr().out), read(out)
    assert told["returns"] == kept.returns.tolist() and len(kept.ends) == told["episodes"] == 8
    assert kept.returns[:4].mean() > kept.returns[4:].mean()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--policy", "0.1"], "--policy has 1 numbers, for states of 2"),
        (["--policy", "exprt"], "random, expert, numbers"),
        (["--episodes", "0"], "0 episodes"),
        (["--epsilon", "2"], "a share is from 0 to 1"),
        (["--out", "a.csv"], "kept as .npz"),
    ],
)
def test_the_verb_refuses(more: list[str], says: str, capsys: pytest.CaptureFixture):
    assert run(["rollout", LINE, *more]) == 2
    assert says in capsys.readouterr().err


# --- Minari ---


def minari(monkeypatch: pytest.MonkeyPatch, *episodes: Any) -> None:
    """As much of Minari as is asked of it, with one set."""
    sets = {"walk/left-v0": SimpleNamespace(iterate_episodes=lambda: iter(episodes), total_steps=6)}
    known = {"list_local_datasets": lambda: sets, "load_dataset": sets.__getitem__}
    monkeypatch.setitem(sys.modules, "minari", SimpleNamespace(**known))


def told(found: Trajectories, e: int) -> SimpleNamespace:
    one = found.pick(np.array([e]))
    after = np.concatenate([one.states, one.states[-1:] + 9])  # Minari shows where the last step led, too
    return SimpleNamespace(observations=after, actions=one.actions, rewards=one.rewards)


def test_a_set_of_minaris_says_the_same(monkeypatch: pytest.MonkeyPatch):
    minari(monkeypatch, *(told(small(), e) for e in range(3)))
    assert environments.trajectories("minari:walk/left-v0").sha256 == small().sha256
    with refuses("'minari:walk/lef-v0'", "did you mean 'walk/left-v0'", "minari download walk/lef-v0"):
        environments.trajectories("minari:walk/lef-v0")
    minari(monkeypatch, SimpleNamespace(observations={"a": 1}, actions=np.zeros(1), rewards=np.zeros(1)))
    with refuses("its observations are a dict; only arrays"):
        environments.trajectories("minari:walk/left-v0")
    monkeypatch.setitem(sys.modules, "minari", None)
    with refuses("needs Minari: pip install 'minari[arrow,hdf5]'"):
        environments.trajectories("minari:walk/left-v0")


def test_minari_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    real = pytest.importorskip("minari", reason="its sets are read where it is installed")
    gymnasium, buffers = pytest.importorskip("gymnasium"), pytest.importorskip("minari.data_collector.episode_buffer")
    wanted, made = mixed(Mixed("CartPole-v1", 2, (1.0,))), []
    for e in range(2):
        one, n = told(wanted, e), len(told(wanted, e).rewards)
        flags = {"terminations": [False] * (n - 1) + [True], "truncations": [False] * n, "infos": {}}
        made.append(buffers.EpisodeBuffer(id=e, **vars(one) | {"rewards": one.rewards.tolist()}, **flags))
    env = gymnasium.make("CartPole-v1")
    real.create_dataset_from_buffers("test/cartpole-v0", buffer=made, env=env, eval_env=env, data_format="arrow")
    assert environments.trajectories("minari:test/cartpole-v0").sha256 == wanted.sha256
