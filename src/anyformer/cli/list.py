"""anyformer list: recipes, presets with their sizes, data sets."""

import dataclasses
import inspect
import json
from dataclasses import dataclass
from typing import Any

from .. import recipe as recipes
from .. import recipe_loading
from .flags import JsonFlag

SHAPE_FIELDS = ("words", "layers", "hidden", "dim", "context")  # of models before the Transformer


@dataclass(frozen=True)
class Command:
    """List recipes, their presets with size and export formats, and data sets with
    license and source."""

    json: JsonFlag = False


def run(options: Command) -> None:
    facts = {"recipes": [describe_recipe(name) for name in recipe_loading.list_recipes()], "data": list_data()}
    print(json.dumps(facts) if options.json else format_facts(facts))


def describe_recipe(name: str) -> dict[str, Any]:
    recipe = recipe_loading.load_recipe(name)
    about = (inspect.getdoc(recipe) or name).splitlines()[0]
    presets = {preset: describe_preset(recipe, config) for preset, config in recipe.PRESETS.items()}
    return {"name": name, "about": about, "default": recipe_loading.default_preset(recipe), "presets": presets}


def describe_preset(recipe: recipes.Recipe, config: Any) -> dict[str, Any]:
    """The shape of a preset, the parameters of its Transformers (without vocabulary, which depends on the data), and
    the formats that it can be exported to."""
    import torch

    from ..checkpoints import exports
    from ..model import Transformer, TransformerConfig
    from ..training.building import SkipInit

    formats = [name for name, reason in exports(recipe, config).items() if reason is None]
    facts = {"data": config.data, "exports": formats}
    values = [getattr(config, field.name) for field in dataclasses.fields(config)]
    stacks = [value for value in values if isinstance(value, TransformerConfig)]  # an encoder and a decoder, or one
    if not stacks:  # models before the Transformer
        sizes = dataclasses.asdict(getattr(config, "model", config))
        return {name: size for name, size in sizes.items() if name in SHAPE_FIELDS} | facts
    with SkipInit(), torch.device("meta"):
        models = [Transformer(stack, cross=i > 0) for i, stack in enumerate(stacks)]
    shape = {name: getattr(stacks[-1], name) for name in ("n_layer", "n_head", "dim", "context")}
    return shape | {"parameters": sum(p.numel() for model in models for p in model.parameters())} | facts


def list_data() -> list[dict[str, str]]:
    from ..data.io.resolve import locate
    from ..data.registry import list_data_sets

    return [
        {"name": s.name, "kind": s.kind, "about": s.about, "licence": s.license, "url": s.url, "from": locate(s.name)}
        for s in list_data_sets()
    ]


def format_facts(facts: dict[str, Any]) -> str:
    lines: list[str] = []
    for recipe in facts["recipes"]:
        lines += [recipe["about"], f"  anyformer train {recipe['name']}", ""]
        for name, preset in recipe["presets"].items():
            mark = "  (default)" if name == recipe["default"] else ""
            lines.append(f"    {name:<16} {format_shape(preset)}  {preset['data']}{mark}")
        lines.append("")
    lines += ["Data sets, by name for --data", ""]
    for data in facts["data"]:
        lines += [f"    {data['name']:<14} {data['about']}", f"    {'':<14} {data['licence']} · {data['from']}"]
    return "\n".join(lines)


def format_shape(preset: dict[str, Any]) -> str:
    exports = ",".join(preset["exports"]) or "-"
    if "parameters" not in preset:
        return ", ".join(f"{name} {preset[name]}" for name in SHAPE_FIELDS if name in preset) + f"  {exports}"
    size = f"{preset['parameters'] / 1e6:7.2f} M  {preset['n_layer']:>2} layers {preset['n_head']:>2} heads"
    return f"{size} {preset['dim']:>4} dim  context {preset['context']:<5} {exports:<14}"
