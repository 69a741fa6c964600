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

SIDES = {
    "CartPole-v1": {"told the return": "small", "cloning": "cloning", "cloning the best 10 %": "best"},
    "Pendulum-v1": {
        "told the return": "pendulum",
        "cloning": "pendulum-cloning",
        "cloning the best 10 %": "pendulum-best",
    },
}
WANTED = {"CartPole-v1": (50, 100, 200, 350, 500), "Pendulum-v1": (-1200, -900, -600, -300, -150)}
STARTS = 7  # a seed of no set


def side(preset: str, wanted: tuple[int, ...], asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One training, and what it plays: [{"wanted", "achieved", "low", "high"}]; of a clone once, wanted or not."""
    began = time.monotonic()
    model = api.train("control", preset, minutes=asked.minutes, out=folder / preset, train={"seed": asked.seed})
    trained = time.monotonic() - began
    goals = list(wanted) if model.config.conditioned else [model.config.target_return]
    play = {"wanted": goals, "episodes": asked.episodes, "seed": STARTS, "temperature": asked.temperature}
    names = ("wanted", "achieved", "low", "high")
    played = [{name: one[name] for name in names} for one in model.predict({"rollout": play})["results"]]
    return {"preset": preset, "steps": model.config.train.steps, "seconds": trained, "played": played}


def environment(env: str, asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    returns = control.load_episodes(control.PRESETS[SIDES[env]["told the return"]]).returns
    data = {"episodes": len(returns), "mean": returns.mean(), "lowest": returns.min(), "highest": returns.max()}
    print(f"{env}: {len(returns)} episodes, return {data['mean']:.1f} on average, {data['highest']:.1f} at best")
    made: dict[str, Any] = {"data": {name: float(value) for name, value in data.items()}}
    for name, preset in SIDES[env].items():
        made[name] = side(preset, WANTED[env], asked, folder)
        for one in made[name]["played"]:
            goal = f"{one['wanted']:>7,.0f}" if name == "told the return" else "  (all)"
            print(f"  {name:<22} wanted {goal}  achieved {one['achieved']:>9.1f} [{one['low']:.1f}, {one['high']:.1f}]")
        print(end="", flush=True)
    return made


def picture(env: str, made: dict[str, Any]) -> str:
    """Wanted against achieved, as SVG: with the diagonal, the interval, and the clones, which hear nothing of it."""
    told, goals = made["told the return"]["played"], [float(goal) for goal in WANTED[env]]
    lines = {"as wanted": goals, "achieved": [one["achieved"] for one in told]}
    lines |= {f"95 %, {end}": [one[end] for one in told] for end in ("low", "high")}
    clones = [name for name in SIDES[env] if name != "told the return"]
    lines |= {name: [made[name]["played"][0]["achieved"]] * len(goals) for name in clones}
    lines["mean of the data"] = [made["data"]["mean"]] * len(goals)
    colours = {name: i for i, name in enumerate(name for name in lines if not name.startswith("95"))}
    series = [
        Series(name, goals, y, colour=colours.get(name, 1), dots=name == "achieved", faint=name not in colours)
        for name, y in lines.items()
    ]
    return line_chart(series, title=f"{env}: achieved", x_label="return wanted")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--envs", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--minutes", type=float, help="of each training; by default the steps of the presets")
    parser.add_argument("--episodes", type=int, default=100, help="for each return that is wanted")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the choice among discrete actions")
    parser.add_argument("--picture", type=Path, help="an .svg of the (first) environment")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout at the end")
    asked = parser.parse_args()
    found = {}
    for env in asked.envs:
        with TemporaryDirectory() as folder:
            found[env] = environment(env, asked, Path(folder))
    if asked.picture is not None:
        asked.picture.write_text(picture(asked.envs[0], found[asked.envs[0]]), encoding="utf-8")
    if asked.json:
        print(json.dumps(found))
