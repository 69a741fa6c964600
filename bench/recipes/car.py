"""A simulated car or truck, driven in closed loop by `multimodal` from its sensors: all of them, one less, one alone.

    python -m bench.recipes.car --drawing car.svg          a few minutes of CPU

A model is trained on drives of a careful driver. On roads that it has never seen it then drives by itself: at every
step it reads what the sensors report, and its steering and acceleration move the vehicle. A drive ends off the road, in
a collision, at the end of the road, or after a minute. Beside it: the driver, a model that reads no sensor, the mean of
all steering, the vehicle's kind told wrongly, and the error of steering in single moments of drives that were held out
(`worth`), which says little of where a whole drive ends.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from anyformer import api
from anyformer.data.tables.car import LANE, SENSORS, STEP, VEHICLES, Drive, act_expert, sense, start_drive
from anyformer.labs import field_importance
from bench._common import make_parser

FIRST_ROAD = 1_000_000  # seed of the first road of the test
MAX_STEPS = 600
WRONG = {"car": "truck", "truck": "car"}


@dataclass(frozen=True)
class Condition:
    """Who drives, and what of the sensors is there."""

    name: str
    sensors: tuple[str, ...] = SENSORS
    driver: str = "model"
    is_kind_wrong: bool = False


def list_conditions() -> list[Condition]:
    return [
        Condition("the driver", driver="expert"),
        Condition("all sensors"),
        *(Condition(f"without {name}", tuple(other for other in SENSORS if other != name)) for name in SENSORS),
        *(Condition(f"{name} alone", (name,)) for name in SENSORS),
        Condition("no sensor", ()),
        Condition("the mean of all steering", driver="mean"),
        Condition("the wrong kind of vehicle", is_kind_wrong=True),
    ]


@dataclass
class Trial:
    """A drive under a condition, and what becomes of it."""

    condition: Condition
    drive: Drive
    rng: np.random.Generator
    path: list[tuple[float, float]]
    sides: list[float]
    end: str = ""

    def describe(self) -> dict[str, Any]:
        """Return what the model is told."""
        row = {name: value for name, value in sense(self.drive, self.rng).items() if name in self.condition.sensors}
        if self.condition.is_kind_wrong:
            row["vehicle"] = WRONG[row["vehicle"]]
        return row

    def advance(self, steering: float, acceleration: float) -> None:
        self.drive.move(steering, acceleration)
        self.path.append((self.drive.x, self.drive.y))
        self.sides.append(abs(self.drive.locate()[1]))
        self.end = self.drive.judge()


def play(model: Any, conditions: list[Condition], roads: range, mean: tuple[float, float]) -> list[Trial]:
    """Drive on each road under each condition, all side by side."""
    trials = [
        Trial(condition, start_drive(FIRST_ROAD + road), np.random.default_rng((13, road)), [], [])
        for condition in conditions
        for road in roads
    ]
    for _ in range(MAX_STEPS):
        running = [trial for trial in trials if not trial.end]
        if not running:
            break
        learned = [trial for trial in running if trial.condition.driver == "model"]
        answers = predict(model, [trial.describe() for trial in learned])
        actions = {id(trial): answer for trial, answer in zip(learned, answers, strict=True)}
        for trial in running:
            rule = {"expert": lambda trial=trial: act_expert(trial.drive), "mean": lambda: mean}
            action = actions[id(trial)] if id(trial) in actions else rule[trial.condition.driver]()
            trial.advance(*action)
    return trials


def predict(model: Any, rows: list[dict[str, Any]]) -> list[tuple[float, float]]:
    if not rows:
        return []
    results = model.predict({"input": rows})["results"]
    return [(result["steering"]["value"], result["acceleration"]["value"]) for result in results]


def summarize(trials: list[Trial], kind: str = "") -> dict[str, Any]:
    """Return how drives ended, how far they came, and how far from the middle of the lane they were."""
    chosen = [trial for trial in trials if kind in ("", trial.drive.kind)]
    ends = [trial.end or "out of time" for trial in chosen]
    metres = [trial.drive.locate()[0] for trial in chosen]
    sides = np.concatenate([trial.sides for trial in chosen])
    return {
        "drives": len(chosen),
        "done": ends.count("done") / len(chosen),
        **{name: ends.count(name) / len(chosen) for name in ("off the road", "collision", "out of time")},
        "metres": float(np.mean(metres)),
        "from the middle": float(sides.mean()),
        "seconds": STEP * float(np.mean([len(trial.sides) for trial in chosen])),
    }


def measure(model: Any, roads: int, seed: int) -> tuple[dict[str, Any], list[Trial]]:
    trials = play(model, list_conditions(), range(roads), mean_action(model))
    results: dict[str, Any] = {"closed loop": {}}
    for condition in list_conditions():
        own = [trial for trial in trials if trial.condition == condition]
        results["closed loop"][condition.name] = summarize(own) | {k: summarize(own, k)["done"] for k in VEHICLES}
    results["worth"] = field_importance.measure(model, shuffles=1, seed=seed)
    return results, trials


def mean_action(model: Any) -> tuple[float, float]:
    """Return steering and acceleration of the mean training row."""
    steering, acceleration = (target.mean[0] for target in model.module.schema.targets)
    return float(steering), float(acceleration)


# --- a drawing ---

COLORS = {"the driver": "#888888", "all sensors": "#1f77b4", "without camera": "#d62728", "map alone": "#ff7f0e"}
SCALE = 3.0  # pixels of a metre


def draw(trials: list[Trial], road: int) -> str:
    """Draw the paths on one road under a few conditions, with the road's edges."""
    n_roads = len(trials) // len(list_conditions())
    shown = {t.condition.name: t for t in trials[road::n_roads] if t.condition.name in COLORS}
    line = shown["the driver"].drive.road
    normal = np.stack([-np.sin(line[:, 2]), np.cos(line[:, 2])], 1)
    edges = [line[:, :2] + side * LANE * normal for side in (-1, 1)]
    points = np.concatenate(edges)
    low, size = points.min(0) - 12, np.ptp(points, axis=0) + 24

    def place(xy: np.ndarray) -> str:
        return " ".join(f"{SCALE * (x - low[0]):.1f},{SCALE * (low[1] + size[1] - y):.1f}" for x, y in xy)

    width, height = (SCALE * size).tolist()
    parts = [f'<polyline points="{place(edge)}" fill="none" stroke="#999" stroke-width="1.5"/>' for edge in edges]
    for i, (name, trial) in enumerate(shown.items()):
        color, label = COLORS[name], f"{name}: {trial.end or 'out of time'}"
        parts.append(f'<polyline points="{place(trial.path)}" fill="none" stroke="{color}" stroke-width="2"/>')
        x, y = place(trial.path[-1:]).split(",")
        parts.append(f'<circle cx="{x}" cy="{y}" r="4" fill="{color}"/>')
        y = height + 18 * (i + 1)
        parts.append(f'<text x="8" y="{y:.0f}" fill="{color}" font-family="sans-serif" font-size="13">{label}</text>')
    box = f"0 0 {width:.0f} {height + 18 * len(shown) + 8:.0f}"
    title = f"<title>A {shown['the driver'].drive.kind} on a road that training never saw</title>"
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}">\n{title}\n' + "\n".join(parts) + "\n</svg>\n"


def print_results(results: dict[str, Any]) -> None:
    for name, facts in results["closed loop"].items():
        ends = "  ".join(f"{key} {facts[key]:.2f}" for key in ("done", "off the road", "collision", "out of time"))
        about = f"{facts['metres']:4.0f} m  {facts['from the middle']:.2f} m from the middle"
        print(f"{name:<26} {ends}  {about}  car {facts['car']:.2f}  truck {facts['truck']:.2f}")
    worth = results["worth"]
    print(f"{worth['score']}: {worth['all']:.4f} with all, {worth['none']:.4f} with none")
    for name, values in worth["fields"].items():
        print(f"{name:<10} " + "  ".join(f"{key} {value:.4f}" for key, value in values.items()))


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--steps", type=int, help="default: those of the preset")
    parser.add_argument("--roads", type=int, default=20, help="of the test, under each condition")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="the run, which is kept, and found again")
    parser.add_argument("--drawing", type=Path, help="an .svg of one road")
    parser.add_argument("--road", type=int, default=0, help="which road is drawn")
    options = parser.parse_args()
    start = time.process_time()
    with TemporaryDirectory() as folder:
        out = options.out or Path(folder) / "run"
        train = {"seed": options.seed, "device": "cpu"} | ({"steps": options.steps} if options.steps else {})
        if not (out / "result.json").exists():
            api.train("multimodal", "car", out=out, train=train, progress=False)
        spent = time.process_time() - start
        results, trials = measure(api.load(out, "cpu"), options.roads, options.seed)
    if options.drawing:
        options.drawing.write_text(draw(trials, options.road), encoding="utf-8")
    results |= {"seed": options.seed, "training_cpu_seconds": round(spent), "roads": options.roads}
    if options.json:
        print(json.dumps(results))
    else:
        print_results(results)


if __name__ == "__main__":
    main()
