"""anyformer list: recipes, presets with their sizes, data sets."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from .. import recipe as recipes
from .parse import parse


@dataclass(frozen=True)
class Command:
    """Recipes, presets with their sizes, data sets with licence and where each would come from."""

    json: Annotated[bool, tyro.conf.arg(help="One JSON object on stdout, and nothing else there.")] = False


def run(arguments: list[str]) -> int:
    asked = parse(Command, arguments, "anyformer list")
    facts = {"recipes": [describe(name) for name in recipes.names()], "data": data_sets()}
    print(json.dumps(facts) if asked.json else readable(facts))
    return 0


def describe(name: str) -> dict[str, Any]:
    module = recipes.load(name)
    about = (getattr(module, "__doc__", None) or "").strip().splitlines()[0]
    presets = {preset: size(config) for preset, config in module.PRESETS.items()}
    return {"name": name, "about": about, "default": recipes.default_preset(module), "presets": presets}


def size(config: Any) -> dict[str, Any]:
    """What a preset builds: parameters of its stacks, without vocabulary, which is the data's."""
    import torch

    from ..model.block import Transformer
    from ..model.config import TransformerConfig

    shapes = [getattr(config, field.name) for field in dataclasses.fields(config)]
    stacks = [shape for shape in shapes if isinstance(shape, TransformerConfig)]  # an encoder and a decoder, or one
    if not stacks:  # what came before
        shape = getattr(config, "model", config)
        names = ("words", "layers", "hidden", "dim", "context")
        return {name: getattr(shape, name) for name in names if hasattr(shape, name)} | {"data": config.data}
    with torch.device("meta"):
        bodies = torch.nn.ModuleList(Transformer(shape, cross=i > 0) for i, shape in enumerate(stacks))
    facts = {name: getattr(stacks[-1], name) for name in ("n_layer", "n_head", "dim", "context")}
    return facts | {"parameters": sum(p.numel() for p in bodies.parameters()), "data": config.data}


def data_sets() -> list[dict[str, str]]:
    from ..data.io.resolve import SETS, where

    return [
        {"name": s.name, "about": s.about, "licence": s.licence, "url": s.url, "from": where(s.name)}
        for s in SETS.values()
    ]


def shown(p: dict[str, Any]) -> str:
    """The size of a preset in one line."""
    if "parameters" not in p:
        depth = f"{p['words']:>2} words " if "words" in p else f"{p['layers']:>2} layers"
        return f"{'':26}{depth} {p['hidden']:>5} hidden {p['dim']:>4} channels"
    size = f"{p['parameters'] / 1e6:8.2f} M + vocabulary   {p['n_layer']:>2} layers"
    return f"{size}  {p['n_head']:>2} heads {p['dim']:>5} channels"


def readable(facts: dict[str, Any]) -> str:
    lines = []
    for recipe in facts["recipes"]:
        lines += [recipe["about"], f"  anyformer train {recipe['name']}", ""]
        for name, p in recipe["presets"].items():
            mark = "  (default)" if name == recipe["default"] else ""
            lines.append(f"    {name:<16} {shown(p)}  context {p['context']:<5} {p['data']}{mark}")
        lines.append("")
    lines += ["Data sets, by name for --data", ""]
    for s in facts["data"]:
        lines += [f"    {s['name']:<12} {s['about']}", f"    {'':<12} {s['licence']} · {s['from']}"]
    return "\n".join(lines)
