"""anyformer index RUN --data FILE --out STORE: give a language model a text to look things up in, without training."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ..parsing import check_range
from .flags import DeviceFlag, JsonFlag, RecipeFlag, RunArgument
from .terminal import print_status, show_progress


@dataclass(frozen=True)
class Command:
    """Store the states of a language model at every token of a text, with the token
    that followed each. With the store the model looks up what followed the most
    similar states, and mixes it with its own prediction. Nothing is trained.

        anyformer index RUN --data my.txt --out STORE
        anyformer eval RUN --data my.txt --store STORE

    The training split of the text is stored; its last tokens choose how much the
    store weighs. The validation split is left out: `eval` measures on it."""

    run: RunArgument
    out: Path
    """A new folder for the store."""
    data: Annotated[str | None, "The text, as for `train`. Default: the run's own."] = None
    neighbors: int = 256
    """How many of the most similar states are looked up."""
    probes: int = 8
    """Groups of states in which they are sought: more are slower and more exact."""
    recipe: RecipeFlag = None
    device: DeviceFlag = "auto"
    json: JsonFlag = False

    def __post_init__(self) -> None:
        check_range(self, "neighbors", at_least=1, at_most=1024)
        check_range(self, "probes", at_least=1, at_most=4096)


def run(options: Command) -> None:
    from .. import api

    with show_progress():
        model = api.load(options.run, options.device, recipe=options.recipe)
        facts = model.index(options.data, options.out, options.neighbors, options.probes)
    if options.json:
        print(json.dumps({"run": str(options.run), "store": str(options.out)} | facts))
        return
    print(f"{options.out}: {facts['tokens']:,} tokens, {facts['bytes'] / 1e6:,.1f} MB")
    print(f"  {'bits per byte':<14} {facts['bits_per_byte_alone']:.4f} -> {facts['bits_per_byte']:.4f}")
    print(
        f"  {'weight':<14} {facts['weight']:g}, chosen on {facts['tuning_tokens']:,} tokens that are not in the store"
    )
    names = (options.run, *(("--data", options.data) if options.data else ()), "--store", options.out)
    print_status(f"measure it: anyformer eval {shlex.join(map(str, names))}")
