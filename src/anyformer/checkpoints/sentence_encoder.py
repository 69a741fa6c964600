"""Files of sentence-transformers (1908.10084): how the nodes of a text become its vector.

`modules.json` lists what follows the encoder: a pooling, whose settings are in a folder of its own, and perhaps a norm.
Vectors of `embed` always have length 1, with that norm or without.
"""

from pathlib import Path
from typing import Any

from ..data.io.checks import read_json
from ..errors import InputError
from .config_fields import ConfigFields
from .tensor_map import ConfigDict

MODULES, PROMPTS = "modules.json", "config_sentence_transformers.json"
MODES = {"mean": "pooling_mode_mean_tokens", "first": "pooling_mode_cls_token"}
TYPES = ("Transformer", "Pooling", "Normalize")


def read_pooling(where: str) -> ConfigDict:
    """Return the fields of an encoder's config for the folder of a config.json, none where nothing says how it pools.
    Raises InputError for a module that is not supported."""
    path = Path(where).with_name(MODULES)
    if not path.is_file():
        return {}
    modules = read_json(path, kind=list)
    kinds = [str(module.get("type")).rpartition(".")[2] if isinstance(module, dict) else "" for module in modules]
    if tuple(kinds) not in (TYPES, TYPES[:2]):
        raise InputError(f"{path}: the modules are {', '.join(kinds)}; supported: {', '.join(TYPES)}")
    if (prompts := path.with_name(PROMPTS)).is_file() and read_json(prompts).get("default_prompt_name") is not None:
        raise InputError(f"{prompts}: default_prompt_name is set, but texts are read as they are: remove it")
    folder = modules[1].get("path")
    if not isinstance(folder, str) or Path(folder).name != folder:
        raise InputError(f"{path}: the path of the pooling is {folder!r}; it must be a folder beside this file")
    config = path.parent / folder / "config.json"
    c = ConfigFields(read_json(config), str(config))
    c.get("word_embedding_dimension", None), c.get("embedding_dimension", None), c.get("include_prompt", None)
    chosen = [mode for mode, name in MODES.items() if c.get_flag(name, False)]
    c.reject_unread()  # other modes, if they are true
    if len(chosen) != 1:
        raise InputError(f"{config}: one of {' and '.join(MODES.values())} must be true")
    return {"embed_pool": chosen[0]}


def make_pooling_files(values: ConfigDict) -> dict[str, Any]:
    """Return the same files for an encoder's config."""
    paths = ("", "1_Pooling", "2_Normalize")
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(zip(paths, TYPES, strict=True))
    ]
    modes = {name: mode == values["embed_pool"] for mode, name in MODES.items()}
    return {
        MODULES: modules,
        "1_Pooling/config.json": {"word_embedding_dimension": values["model"]["dim"], **modes},
    }
