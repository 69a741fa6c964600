"""Local and global layers in config.json: `layer_types` and a window."""

from ..errors import InputError
from .config_fields import ConfigFields
from .tensor_map import ConfigDict

GLOBAL, LOCAL = "full_attention", "sliding_attention"


def read_layer_kinds(c: ConfigFields, window: int | None, default: list[str]) -> ConfigDict:
    """Return the fields of a decoder's config. `default`: the kind of each layer where `layer_types` is missing."""
    kinds, n_layer = read_kinds(c, default), len(default)
    if window is None or LOCAL not in kinds:
        return {"window": None}
    period = kinds.index(GLOBAL) + 1 if GLOBAL in kinds else n_layer + 1
    if kinds != list_kinds(n_layer, period):
        raise InputError(f"{c.where}: layer_types is {kinds}; supported: all layers local but every k-th")
    return {"window": window, "global_every": period}


def read_kinds(c: ConfigFields, default: list[str]) -> list[str]:
    kinds = c.get("layer_types", default)
    if not isinstance(kinds, list) or len(kinds) != len(default) or not set(map(str, kinds)) <= {GLOBAL, LOCAL}:
        raise InputError(f"{c.where}: layer_types must be a list of {len(default)} names, {GLOBAL} or {LOCAL}")
    return kinds


def list_kinds(n_layer: int, period: int) -> list[str]:
    """Return the kind of each layer: every `period`-th is global."""
    return [GLOBAL if (i + 1) % period == 0 else LOCAL for i in range(n_layer)]


def write_layer_kinds(values: ConfigDict) -> list[str]:
    n_layer = values["model"]["n_layer"]
    return [GLOBAL] * n_layer if values["window"] is None else list_kinds(n_layer, values["global_every"])
