"""One set of weights for five tasks, beside five models of the same shape that have a fifth of the time each.

    python -m bench.recipes.generalist --cpu-minutes 30 --out runs/generalist

The score of a task is relative to its specialist: of text the ratio of the losses, else that of the accuracies, or of
the mean returns of 20 episodes. Then a sixth task is added to the trained generalist: is the written digit the spoken
one, and which ones are they? The speaker of the test was never heard. The old tasks are left out, rehearsed with a
tenth of the rows, or absent from the start (the same model from nothing); what is left of them is compared.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from anyformer.recipes.generalist import TASK_SETS
from bench._common import make_parser, train_for

TASKS = TASK_SETS["five-tasks"]
PAIRS = {"recipe": "multimodal", "preset": "spoken-digits", "data": "digit-pairs"}
METRICS = {"text": "loss", "images": "accuracy", "sounds": "accuracy", "biopsies": "accuracy", "pairs": "same_accuracy"}
EPISODES = 20
REHEARSALS = {"old tasks left out": 0.0, "a tenth of the rows": 0.1}


def write_tasks(path: Path, tasks: dict[str, dict[str, Any]]) -> Path:
    """Write a tasks.toml."""
    lines = []
    for name, fields in tasks.items():
        lines.append(f"[{name}]")
        for key, value in fields.items():
            inner = value if isinstance(value, dict) else {"": value}
            lines += [f"{key}{'.' * bool(part)}{part} = {json.dumps(v)}" for part, v in inner.items()]
    path.write_text("\n".join(lines) + "\n")
    return path


def measure(model: Any) -> dict[str, float]:
    """Return the metric of each task of a model, of its last checkpoint over the whole validation split."""
    result, results = json.loads((model.run_path / "result.json").read_text()), {}
    for name, task in model.tasks.items():
        if name == "pole":
            request = {"rollout": {"episodes": EPISODES, "seed": 1}}
            results[name] = task.predict(request)["results"][0]["achieved"]
        else:
            results[name] = result[f"val_{name}_{METRICS[name]}"]
    return results


def relate(name: str, value: float, specialist: float) -> float:
    """Return the share of the specialist's result that is reached."""
    return specialist / value if METRICS.get(name) == "loss" else value / specialist


def run(options: Any, out: Path) -> dict[str, Any]:
    shared: dict[str, Any] = {"seed": options.seed}
    model = train_for(options.cpu_minutes, "generalist", "small", out / "all", **shared)
    alone = {}
    for name, fields in TASKS.items():
        data = write_tasks(out / f"{name}.toml", {name: fields})
        specialist = train_for(options.cpu_minutes / 5, "generalist", "small", out / name, data=str(data), **shared)
        alone |= measure(specialist)
    results: dict[str, Any] = {"generalist": measure(model), "specialists": alone}
    minutes, added = options.added_minutes or options.cpu_minutes / 5, {}
    for title, share in REHEARSALS.items():
        old = {n: f | ({"rows": f.get("rows", 1.0) * share} if share else {"weight": 0.0}) for n, f in TASKS.items()}
        data = write_tasks(out / f"added-{share}.toml", old | {"pairs": PAIRS})
        start = shared | {"data": str(data), "init": out / "all", "train": {"lr": 1e-3}}
        added[title] = measure(train_for(minutes, "generalist", "small", out / f"added-{share}", **start))
    data = write_tasks(out / "pairs.toml", {"pairs": PAIRS})
    added["from nothing"] = measure(train_for(minutes, "generalist", "small", out / "pairs", data=str(data), **shared))
    return results | {"added": added}


def show(results: dict[str, Any]) -> None:
    both, alone = results["generalist"], results["specialists"]
    shares = {name: relate(name, value, alone[name]) for name, value in both.items()}
    for name, share in shares.items():
        print(f"{name:9} generalist {both[name]:8.4f}   specialist {alone[name]:8.4f}   {100 * share:5.1f} %")
    print(f"mean {100 * sum(shares.values()) / len(shares):.1f} %, lowest {100 * min(shares.values()):.1f} %")
    for title, row in results["added"].items():
        kept = ", ".join(f"{n} {100 * relate(n, row[n], both[n]):.1f} %" for n in both if n in row)
        print(f"a sixth task, {title}: {100 * row['pairs']:.1f} % right; kept of the others: {kept or '-'}")


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--cpu-minutes", type=float, default=30)
    parser.add_argument("--added-minutes", type=float, help="of each sixth task; default: a fifth of the others")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="keep the runs here; those that are finished are not trained again")
    options = parser.parse_args()
    with TemporaryDirectory() as name:
        out = options.out or Path(name)
        out.mkdir(parents=True, exist_ok=True)
        results = run(options, out.resolve())
    print(json.dumps(results)) if options.json else show(results)


if __name__ == "__main__":
    main()
