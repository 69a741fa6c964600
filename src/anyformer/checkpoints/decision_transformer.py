"""Decision Transformer (2106.01345): the `decision_transformer` family.

Its body is GPT-2's. Files also hold a word embedding that nothing reads, and a table of positions whose first row is
added to every node: on import that row is added to the bias of the norm before the body, on export it is zero. What
transformers has no field for (how states and returns are scaled) is kept in config.json under `anyformer`; in a config
without it, numbers are taken as they are.
"""

import json
from collections.abc import Mapping

import torch
from torch import Tensor

from ..data.io.checks import is_finite_number
from ..data.trajectories.normalizer import TrajectoryNormalizer, load_normalizer
from ..errors import InputError
from .config_fields import ConfigFields, require_layernorm, require_settings
from .family import Family
from .gpt2 import map_body, read_body, write_body
from .tensor_map import ConfigDict, TensorMap, WeightSource, has_biases, map_affine, map_tensor

SIZES = {
    "hidden_size": ("dim", 128),
    "n_layer": ("n_layer", 3),
    "n_head": ("n_head", 1),
    "n_inner": ("mlp_dim", None),
    "n_positions": ("context", 1024),
}
POSITIONS, NORM_BIAS, WORDS = "encoder.wpe.weight", "embed_ln.bias", "encoder.wte.weight"
# Fields of the recipe's config kept under `anyformer`: default, and the name in files written before version 0.2.
OWN_FIELDS = {
    "env": ("", "env"),
    "target_return": (0.0, "wanted"),
    "return_scale": (1.0, "scale"),
    "aux_loss_weight": (0.0, "foresee"),
}


class DecisionTransformer(Family):
    model_type, recipes, architecture = "decision_transformer", ("control",), "DecisionTransformerModel"

    def normalize_name(self, name: str) -> str | None:
        """Ignore the word embedding, and the causal masks of old files."""
        return None if name.endswith((".attn.bias", ".attn.masked_bias")) or name == WORDS else name

    def wrap_weights(self, weights: WeightSource) -> WeightSource:
        return FoldedPosition(weights)

    def read_config(self, c: ConfigFields, weights: WeightSource) -> ConfigDict:
        c.get("vocab_size", 1)
        model = read_body(c, weights, SIZES, "relu")
        model |= {"position": "none", "bias": has_biases(weights, "encoder.")}
        squash = c.get_flag("action_tanh", True)
        own = read_own_fields(c, c.get_size("state_dim", 17), c.get_size("act_dim", 4))
        if squash and load_normalizer(own["space"]).discrete:
            raise InputError(f"{c.where}: action_tanh is true, and the actions are discrete: tanh is for numbers")
        return {"model": model, "max_episode_steps": c.get_size("max_ep_len", 4096), "squash": squash, **own}

    def check_config(self, values: ConfigDict) -> None:
        require_layernorm(values["model"], position=("none",), norm_place=("pre",))
        require_settings(values, {"conditioned": (True,)})

    def write_config(self, values: ConfigDict, tensors: Mapping[str, Tensor]) -> ConfigDict:
        return {
            "state_dim": tensors["nodes.state.weight"].shape[1],
            "act_dim": tensors["nodes.action.weight"].shape[1],
            "max_ep_len": values["max_episode_steps"],
            "action_tanh": values["squash"],
            "vocab_size": 1,
            **write_body(values["model"], SIZES),
        }

    def make_unused_tensors(self, config: ConfigDict) -> dict[str, Tensor]:
        dim = config["hidden_size"]
        return {POSITIONS: torch.zeros(config["n_positions"], dim), WORDS: torch.zeros(config["vocab_size"], dim)}

    def write_extra_config(self, values: ConfigDict, files: Mapping[str, str]) -> ConfigDict:
        own = {name: values[name] for name in OWN_FIELDS}
        return {"anyformer": own | {"space": json.loads(files["space.json"])}}

    def build_tensor_map(self, config: ConfigDict) -> TensorMap:
        return [
            *map_affine("nodes.return_to_go", "embed_return"),
            *map_affine("nodes.state", "embed_state"),
            *map_affine("nodes.action", "embed_action"),
            map_tensor("nodes.timestep.weight", "embed_timestep.weight"),
            *map_affine("nodes.norm", "embed_ln"),
            *map_body(config.get("n_layer", 3), "encoder"),
            *map_affine("action", "predict_action.0"),
            *map_affine("state", "predict_state"),
            *map_affine("return_to_go", "predict_return"),
        ]


class FoldedPosition:
    """The file's tensors, with the position that every node receives added to the bias that every node receives."""

    def __init__(self, weights: WeightSource):
        self.weights, self.where = weights, weights.where
        self.shapes = {name: shape for name, shape in weights.shapes.items() if name != POSITIONS}
        for name in (POSITIONS, NORM_BIAS):
            if name not in weights.shapes:
                raise InputError(f"{self.where} lacks {name}")
        row, bias = list(weights.shapes[POSITIONS][1:]), list(weights.shapes[NORM_BIAS])
        if row != bias:
            raise InputError(f"{self.where}: {POSITIONS} has rows of shape {row}, {NORM_BIAS} makes that {bias}")

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        rows = self.weights.read_rows(name, start, stop)
        return rows if name != NORM_BIAS else rows + self.weights.read_rows(POSITIONS, 0, 1)[0, start:stop]


def read_own_fields(c: ConfigFields, states: int, actions: int) -> ConfigDict:
    """Read the object `anyformer` of config.json."""
    own = c.get("anyformer", {})
    renamed = {old: name for name, (_, old) in OWN_FIELDS.items()}
    if not isinstance(own, dict) or own.keys() - {*OWN_FIELDS, *renamed, "space"}:
        raise InputError(f"{c.where}: anyformer is {own!r}; it must be an object of {', '.join(OWN_FIELDS)} and space")
    own = {renamed.get(name, name): value for name, value in own.items()}
    for name, (default, _) in OWN_FIELDS.items():
        value = own.get(name, default)
        if not (isinstance(value, str) if isinstance(default, str) else is_finite_number(value)):
            raise InputError(f"{c.where}: anyformer.{name} is {value!r}; expected a value like {default!r}")
    text = (
        json.dumps(own["space"]) if "space" in own else TrajectoryNormalizer(states, actions, discrete=False).to_json()
    )
    space = load_normalizer(text)
    if (space.states, space.actions) != (states, actions):
        raise InputError(
            f"{c.where}: anyformer.space has {space.states} states and {space.actions} actions, but state_dim is "
            f"{states} and act_dim {actions}"
        )
    return {name: own.get(name, default) for name, (default, _) in OWN_FIELDS.items()} | {"space": text}


family = DecisionTransformer()
