"""anyformer eval RUN: metrics of a trained model over the whole validation split."""

import json
from dataclasses import dataclass
from typing import Annotated

from .flags import DeviceFlag, JsonFlag, RecipeFlag, RunArgument, StoreFlag, WeightFormat
from .terminal import show_progress


@dataclass(frozen=True)
class Command:
    """Evaluate a model in one fixed pass over the whole validation split.

    Every token is predicted once; the figures are the same every time."""

    run: RunArgument
    data: Annotated[str | None, "Other data than the run's own; all of it is used, because none was trained on."] = None
    scores: bool = False
    """Add metrics that need the model's answers: BLEU and chrF of translations, returns of an agent."""
    store: StoreFlag = None
    recipe: RecipeFlag = None
    device: DeviceFlag = "auto"
    weights: Annotated[WeightFormat | None, "Number format of the linear layers. Default: as trained."] = None
    json: JsonFlag = False


def run(options: Command) -> None:
    from .. import api

    with show_progress():
        model = api.load(
            options.run, options.device, weights=options.weights, recipe=options.recipe, store=options.store
        )
        metrics = model.evaluate(options.data) | (model.score(options.data) if options.scores else {})
    data = options.data or model.config.data
    if options.json:
        print(json.dumps(metrics | {"run": str(options.run), "step": model.step, "data": data}))
        return
    print(f"{options.run} at step {model.step}, on {data}")
    for name, value in metrics.items():
        text = f"{value:,.4f}" if isinstance(value, float) else value if isinstance(value, str) else f"{value:,}"
        print(f"  {name.replace('_', ' '):<14} {text}")
