"""Control: return wanted and return achieved, beside cloning of all episodes and of the best tenth.

    python -m bench.recipes.control                                       CartPole and Pendulum, six trainings of their presets
    python -m bench.recipes.control --envs CartPole-v1 --minutes 3 --picture wanted.svg --json

The same episodes of mixed quality for all, played on the spot; then each plays 100 episodes for each return that is
wanted, all from the same states (which no training saw), with the 95 % interval of the mean. A clone is not told the
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

PRESETS = {
    "CartPole-v1": {"told the return": "small", "cloning": "cloning", "cloning the best 10 %": "best"},
    "Pendulum-v1": {
        "told the return": "pendulum",
        "cloning": "pendulum-cloning",
        "cloning the best 10 %": "pendulum-best",
    },
}
TARGETS = {"CartPole-v1": (50, 100, 200, 350, 500), "Pendulum-v1": (-1200, -900, -600, -300, -150)}
START_SEED = 7  # a seed of no set


def measure_preset(preset: str, targets: tuple[int, ...], options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One training, and what it plays: [{"wanted", "achieved", "low", "high"}]; of a clone once, wanted or not."""
    start = time.monotonic()
    model = api.train("control", preset, minutes=options.minutes, out=folder / preset, train={"seed": options.seed})
    training_seconds = time.monotonic() - start
    goals = list(targets) if model.config.conditioned else [model.config.target_return]
    rollout = {"wanted": goals, "episodes": options.episodes, "seed": START_SEED, "temperature": options.temperature}
    names = ("wanted", "achieved", "low", "high")
    results = [{name: result[name] for name in names} for result in model.predict({"rollout": rollout})["results"]]
    return {"preset": preset, "steps": model.config.train.steps, "seconds": training_seconds, "played": results}


def measure_environment(env: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    returns = control.load_episodes(control.PRESETS[PRESETS[env]["told the return"]]).returns
    data = {"episodes": len(returns), "mean": returns.mean(), "lowest": returns.min(), "highest": returns.max()}
    print(f"{env}: {len(returns)} episodes, return {data['mean']:.1f} on average, {data['highest']:.1f} at best")
    results: dict[str, Any] = {"data": {name: float(value) for name, value in data.items()}}
    for name, preset in PRESETS[env].items():
        results[name] = measure_preset(preset, TARGETS[env], options, folder)
        for result in results[name]["played"]:
            goal = f"{result['wanted']:>7,.0f}" if name == "told the return" else "  (all)"
            print(f"  {name:<22} wanted {goal}  achieved {result['achieved']:>9.1f} [{result['low']:.1f}, {result['high']:.1f}]")
        print(end="", flush=True)
    return results


def draw(env: str, results: dict[str, Any]) -> str:
    """Wanted against achieved, as SVG: with the diagonal, the interval, and the clones, which hear nothing of it."""
    conditioned, goals = results["told the return"]["played"], [float(goal) for goal in TARGETS[env]]
    lines = {"as wanted": goals, "achieved": [result["achieved"] for result in conditioned]}
    lines |= {f"95 %, {end}": [result[end] for result in conditioned] for end in ("low", "high")}
    clones = [name for name in PRESETS[env] if name != "told the return"]
    lines |= {name: [results[name]["played"][0]["achieved"]] * len(goals) for name in clones}
    lines["mean of the data"] = [results["data"]["mean"]] * len(goals)
    colors = {name: i for i, name in enumerate(name for name in lines if not name.startswith("95"))}
    series = [
        Series(name, goals, y, color=colors.get(name, 1), dots=name == "achieved", faint=name not in colors)
        for name, y in lines.items()
    ]
    return line_chart(series, title=f"{env}: achieved", x_label="return wanted")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--envs", nargs="+", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--minutes", type=float, help="of each training; by default the steps of the presets")
    parser.add_argument("--episodes", type=int, default=100, help="for each return that is wanted")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the choice among discrete actions")
    parser.add_argument("--picture", type=Path, help="an .svg of the (first) environment")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout at the end")
    options = parser.parse_args()
    results = {}
    for env in options.envs:
        with TemporaryDirectory() as folder:
            results[env] = measure_environment(env, options, Path(folder))
    if options.picture is not None:
        options.picture.write_text(draw(options.envs[0], results[options.envs[0]]), encoding="utf-8")
    if options.json:
        print(json.dumps(results))
