"""The simulated car, driven by `control`: trajectories of drivers of any skill, and the return to reach as a wish.

    python -m bench.recipes.car_control --steps 1500        about ten minutes of CPU

The state of a step is all that the sensors report (the camera's pixels, the three nearest radar returns, the map, the
vehicle, the wheels), an action is the angle of the wheels and the acceleration, and the reward the metres that were
gained along the road, less a fine for leaving it or hitting another car. The drivers err by different amounts, which
differs from `bench.recipes.car`, where a careful driver is imitated. The model is then driven in closed loop, on roads
that no driver has seen, towards a high return, a low one, and without conditioning on the return (cloning).
"""

import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from anyformer import api
from anyformer.data.tables.car import VEHICLES, Drive, act_expert, sense, start_drive
from anyformer.data.trajectories.read import Trajectories, write_trajectories
from anyformer.inference.agent import Actor
from bench._common import make_parser
from bench.recipes.car import FIRST_ROAD

MAX_STEPS, CONTEXT = 600, 8  # of a drive; steps that the model reads
RETURNS, WHEELS, FINE = 3, 4, 100.0  # radar returns and past moments of the wheels in a state; metres
ERRORS = (0.0, 0.03, 0.06, 0.12)  # of the drivers, in radians of the wheels
MODEL = {"dim": 96, "n_layer": 3, "n_head": 4, "context": 3 * CONTEXT, "position": "none"}


def read_state(drive: Drive, rng: np.random.Generator) -> np.ndarray:
    """Return what all sensors report as one vector: (S,)"""
    row = sense(drive, rng)
    radar = np.tile([40.0, 0.0, 0.0], (RETURNS, 1))
    if "radar" in row:
        nearest = row["radar"][np.argsort(row["radar"][:, 0])][:RETURNS]
        radar[: len(nearest)] = nearest
    wheels = np.concatenate([np.repeat(row["wheels"][:1], WHEELS, 0), row["wheels"]])[-WHEELS:]
    kind = [float(row["vehicle"] == name) for name in VEHICLES]
    parts = (row["camera"] / 255.0, radar, row["map"], wheels, kind)
    return np.concatenate([np.ravel(part) for part in parts]).astype(np.float32)


def advance(drive: Drive, action: np.ndarray) -> tuple[float, str]:
    """Move one step. Returns the reward, and how the drive has ended, "" if it goes on."""
    before, _ = drive.locate()
    drive.move(*map(float, action))
    end = drive.judge()
    return drive.locate()[0] - before - FINE * (end in ("off the road", "collision")), end


def record(drives: int, seed: int) -> Trajectories:
    """Let drivers of different skill drive."""
    states, actions, rewards, ends = [], [], [], []
    for number in range(drives):
        drive, rng = start_drive(number), np.random.default_rng((seed, number))
        error, push = ERRORS[number % len(ERRORS)], 0.0
        for step in range(MAX_STEPS):
            if step % 10 == 0:
                push = float(rng.normal(0, error))
            steering, acceleration = act_expert(drive)
            states.append(read_state(drive, rng))
            actions.append([steering + push * drive.vehicle.wheelbase / 4, acceleration + 10 * push])
            reward, end = advance(drive, np.array(actions[-1]))
            rewards.append(reward)
            if end:
                break
        ends.append(len(states))
    return Trajectories(np.stack(states), np.array(actions, np.float32), np.array(rewards, np.float32), np.array(ends))


def drive_roads(act: Any, roads: int) -> dict[str, float]:
    """Drive on roads that were not trained on, side by side; `act(states, rows, rewards, step, drives)` drives."""
    drives = [start_drive(FIRST_ROAD + road) for road in range(roads)]
    rngs = [np.random.default_rng((13, road)) for road in range(roads)]
    ends, totals, rewards = [""] * roads, np.zeros(roads), np.zeros(roads, np.float32)
    for step in range(MAX_STEPS):
        rows = np.array([row for row in range(roads) if not ends[row]])
        if not len(rows):
            break
        states = np.stack([read_state(drives[row], rngs[row]) for row in rows])
        actions = act(states, rows, rewards[rows], step, [drives[row] for row in rows])
        for row, action in zip(rows.tolist(), actions):
            rewards[row], ends[row] = advance(drives[row], action)
            totals[row] += rewards[row]
    names = [end or "out of time" for end in ends]
    shares = {name: names.count(name) / roads for name in ("done", "off the road", "collision", "out of time")}
    return shares | {"return": float(totals.mean()), "metres": float(np.mean([d.locate()[0] for d in drives]))}


def follow(model: Any, target: float, roads: int) -> Any:
    actor = Actor(model.module, [target] * roads, 0.0, list(range(roads)))
    return lambda states, rows, rewards, step, _: actor(states, rows, rewards, step)


def drive_carefully(*inputs: Any) -> np.ndarray:
    return np.array([act_expert(drive) for drive in inputs[-1]])


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--drives", type=int, default=160)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--roads", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="the runs, which are kept")
    options = parser.parse_args()
    data = record(options.drives, seed=0)
    returns = data.returns
    high, low = (float(np.quantile(returns, share)) for share in (0.9, 0.1))
    results: dict[str, Any] = {
        "training returns": {"mean": float(returns.mean()), "best tenth": high, "worst tenth": low}
    }
    train = {"steps": options.steps, "batch": 64, "warmup": 100, "seed": options.seed, "device": "cpu"}
    train |= {"eval_every": options.steps, "save_every": options.steps}
    fields: dict[str, Any] = {"max_episode_steps": MAX_STEPS, "target_return": high, "model": MODEL, "train": train}
    with TemporaryDirectory() as folder:
        out = options.out or Path(folder)
        out.mkdir(parents=True, exist_ok=True)
        write_trajectories(out / "drives.npz", data)
        start = time.process_time()
        wishes = {"a high return": (True, high), "a low return": (True, low), "cloning": (False, high)}
        for name, (conditioned, target) in wishes.items():
            run = out / ("conditioned" if conditioned else "cloning")
            if (run / "result.json").exists():
                model = api.load(run, "cpu")
            else:
                model = api.train(
                    "control", data=out / "drives.npz", out=run, progress=False, conditioned=conditioned, **fields
                )
            results[name] = drive_roads(follow(model, target, options.roads), options.roads)
        results["cpu_minutes"] = round((time.process_time() - start) / 60, 1)
    results["the careful driver"] = drive_roads(drive_carefully, options.roads)
    print(json.dumps(results, indent=None if options.json else 1))


if __name__ == "__main__":
    main()
