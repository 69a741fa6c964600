"""anyformer worth RUN: what each field of a row is worth to a trained model."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from ..parsing import check_range
from ..training.config import MAX_SEED
from .flags import POSITIONAL, DeviceFlag, JsonFlag, RecipeFlag
from .terminal import print_status, show_progress


@dataclass(frozen=True)
class Command:
    """Measure what each field of a row is worth to a trained model.

    The model answers validation rows without the field, with it alone, and with
    its values shuffled. Writes worth.json and worth.svg into the run."""

    run: Annotated[Path, POSITIONAL, "A run directory (its best checkpoint), or a checkpoint."]
    data: Annotated[str | None, "Other data than the run's own; all of it is used, because none was trained on."] = None
    shuffles: Annotated[int, "How often the values of a field are shuffled; the mean is reported."] = 3
    seed: Annotated[int, "Seed of the shuffling."] = 0
    recipe: RecipeFlag = None
    device: DeviceFlag = "auto"
    json: JsonFlag = False

    def __post_init__(self) -> None:
        check_range(self, "shuffles", at_least=1, at_most=1000)
        check_range(self, "seed", at_least=0, at_most=MAX_SEED)


def run(options: Command) -> None:
    from .. import api
    from ..labs import field_importance

    with show_progress():
        model = api.load(options.run, options.device, recipe=options.recipe)
        facts = field_importance.measure(model, options.data, options.shuffles, options.seed)
    picture = field_importance.write_worth(options.run, facts)
    if options.json:
        print(json.dumps({"run": str(options.run), "step": model.step} | facts, ensure_ascii=False))
        return
    print("\n".join(format_table(facts)))
    print_status(f"picture  {shlex.quote(str(picture))}")


def format_table(facts: dict[str, Any]) -> list[str]:
    """Format the fields as a table, most valuable first."""
    columns = ("without", "only", "shuffled", "worth")
    width = max(len(name) for name in (*facts["fields"], "all fields"))
    lines = [f"{facts['score']} over {facts['rows']:,} rows", ""]
    lines += [f"{'':<{width}}  " + " ".join(f"{column:>8}" for column in columns)]
    for name, values in sorted(facts["fields"].items(), key=lambda pair: -pair[1]["worth"]):
        lines.append(f"{name:<{width}}  " + " ".join(f"{values[column]:8.4f}" for column in columns))
    return [*lines, "", f"{'all fields':<{width}}  {facts['all']:8.4f}", f"{'none':<{width}}  {facts['none']:8.4f}"]
