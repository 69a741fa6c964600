"""Control: target returns and achieved returns, compared with cloning all episodes and cloning the best tenth.

    python -m bench.recipes.control                           CartPole and Pendulum, the six presets
    python -m bench.recipes.control --envs CartPole-v1 --minutes 3 --picture returns.svg --json

All train on the same episodes of mixed quality, generated locally. Then each plays 100 episodes for each target return,
from the same start states (which no training saw), with the 95 % interval of the mean. A clone does not read a target
return and plays once.
"""

import argparse
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from anyformer import api
from anyformer.recipes import control
from anyformer.report.chart import Series, line_chart
from bench._common import make_parser

METHODS = ("conditioned", "cloning", "cloning the best 10 %")
PRESETS = {
    "CartPole-v1": dict(zip(METHODS, ("small", "cloning", "best"))),
    "Pendulum-v1": dict(zip(METHODS, ("pendulum", "pendulum-cloning", "pendulum-best"))),
}
TARGETS = {"CartPole-v1": (50, 100, 200, 350, 500), "Pendulum-v1": (-1200, -900, -600, -300, -150)}
START_SEED = 7  # not the seed of any data set


def measure_preset(preset: str, targets: tuple[int, ...], options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train a preset and roll it out: [{"wanted", "achieved", "low", "high"}]; a clone has one entry."""
    start = time.monotonic()
    model = api.train("control", preset, minutes=options.minutes, out=folder / preset, train={"seed": options.seed})
    training_seconds = time.monotonic() - start
    goals = list(targets) if model.config.conditioned else [model.config.target_return]
    rollout = {"target_return": goals, "episodes": options.episodes, "seed": START_SEED}
    rollout |= {"temperature": options.temperature}
    names = ("wanted", "achieved", "low", "high")
    results = [{name: result[name] for name in names} for result in model.predict({"rollout": rollout})["results"]]
    return {"preset": preset, "steps": model.config.train.steps, "seconds": training_seconds, "played": results}


def measure_environment(env: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    returns = control.load_episodes(control.PRESETS[PRESETS[env]["conditioned"]]).returns
    data = {"episodes": len(returns), "mean": returns.mean(), "lowest": returns.min(), "highest": returns.max()}
    print(f"{env}: {len(returns)} episodes, return {data['mean']:.1f} on average, {data['highest']:.1f} at best")
    results: dict[str, Any] = {"data": {name: float(value) for name, value in data.items()}}
    for name, preset in PRESETS[env].items():
        results[name] = measure_preset(preset, TARGETS[env], options, folder)
        for result in results[name]["played"]:
            goal = f"{result['wanted']:>7,.0f}" if name == "conditioned" else "  (all)"
            interval = f"[{result['low']:.1f}, {result['high']:.1f}]"
            print(f"  {name:<22} target {goal}  achieved {result['achieved']:>9.1f} {interval}")
        print(end="", flush=True)
    return results


def draw(env: str, results: dict[str, Any]) -> str:
    """Draw achieved over target return as SVG: diagonal, interval, and the clones as horizontal lines."""
    conditioned, goals = results["conditioned"]["played"], [float(goal) for goal in TARGETS[env]]
    lines = {"target": goals, "achieved": [result["achieved"] for result in conditioned]}
    lines |= {f"95 %, {end}": [result[end] for result in conditioned] for end in ("low", "high")}
    clones = [name for name in PRESETS[env] if name != "conditioned"]
    lines |= {name: [results[name]["played"][0]["achieved"]] * len(goals) for name in clones}
    lines["mean of the data"] = [results["data"]["mean"]] * len(goals)
    colors = {name: i for i, name in enumerate(name for name in lines if not name.startswith("95"))}
    series = [
        Series(name, goals, y, color=colors.get(name, 1), dots=name == "achieved", faint=name not in colors)
        for name, y in lines.items()
    ]
    return line_chart(series, title=f"{env}: achieved", x_label="target return")


if __name__ == "__main__":
    parser = make_parser(__doc__)
    parser.add_argument("--envs", nargs="+", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--minutes", type=float, help="of each training; by default the steps of the presets")
    parser.add_argument("--episodes", type=int, default=100, help="for each target return")
    parser.add_argument("--temperature", type=float, default=1.0, help="of sampling discrete actions")
    parser.add_argument("--picture", type=Path, help="write a chart of the first environment, .svg")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    results = {}
    for env in options.envs:
        with TemporaryDirectory() as folder:
            results[env] = measure_environment(env, options, Path(folder))
    if options.picture is not None:
        options.picture.write_text(draw(options.envs[0], results[options.envs[0]]), encoding="utf-8")
    if options.json:
        print(json.dumps(results))
