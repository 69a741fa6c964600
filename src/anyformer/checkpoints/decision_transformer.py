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
from .config_fields import ACTIVATIONS, LAYERNORM, ConfigFields
from .family import Family
from .gpt2 import BODY_FIELDS, map_body, read_body
from .tensor_map import ConfigDict, TensorMap, WeightSource, has_biases, map_affine, map_weight

FIELDS = {
    "hidden_size": ("dim", 128),
    "n_layer": ("n_layer", 3),
    "n_head": ("n_head", 1),
    **BODY_FIELDS,
    "activation_function": ("activation", "relu", ACTIVATIONS),
}
SETTINGS = {"position": ("none",), "norm_place": ("pre",), **LAYERNORM}
EPISODE = {"max_ep_len": ("max_episode_steps", 4096), "action_tanh": ("squash", True)}
POSITIONS, NORM_BIAS, WORDS = "encoder.wpe.weight", "embed_ln.bias", "encoder.wte.weight"
NODES = {
    "nodes.return_to_go": "embed_return",
    "nodes.state": "embed_state",
    "nodes.action": "embed_action",
    "nodes.norm": "embed_ln",
}
HEADS = {"action": "predict_action.0", "state": "predict_state", "return_to_go": "predict_return"}
# Fields of the recipe's config kept under `anyformer`: default, and the name in files written before version 0.2.
OWN_FIELDS = {
    "env": ("", "env"),
    "target_return": (0.0, "wanted"),
    "return_scale": (1.0, "scale"),
    "aux_loss_weight": (0.0, "foresee"),
}


class DecisionTransformer(Family):
    model_type, recipes, architecture = "decision_transformer", ("control",), "DecisionTransformerModel"
    stacks, fields, settings = {"model": (FIELDS, SETTINGS)}, EPISODE, {"conditioned": (True,)}
    embedding = None

    def normalize_name(self, name: str) -> str | None:
        """Ignore the word embedding, and the causal masks of old files."""
        return None if name.endswith((".attn.bias", ".attn.masked_bias")) or name == WORDS else name

    def wrap_weights(self, weights: WeightSource) -> WeightSource:
        return FoldedPosition(weights)

    def read_config(self, c: ConfigFields, weights: WeightSource) -> ConfigDict:
        c.get("vocab_size", 1)
        values = super().read_config(c, weights)
        read_body(c, values["model"], has_biases(weights, "encoder."))
        values |= read_own_fields(c, c.get_size("state_dim", 17), c.get_size("act_dim", 4))
        if values["squash"] and load_normalizer(values["space"]).discrete:
            raise InputError(f"{c.where}: action_tanh is true, and the actions are discrete: tanh is for numbers")
        return values

    def write_config(self, values: ConfigDict, tensors: Mapping[str, Tensor]) -> ConfigDict:
        states, actions = (tensors[f"nodes.{name}.weight"].shape[1] for name in ("state", "action"))
        return super().write_config(values, tensors) | {"state_dim": states, "act_dim": actions, "vocab_size": 1}

    def make_unused_tensors(self, config: ConfigDict) -> dict[str, Tensor]:
        dim = config["hidden_size"]
        return {POSITIONS: torch.zeros(config["n_positions"], dim), WORDS: torch.zeros(config["vocab_size"], dim)}

    def make_files(self, values: ConfigDict, files: Mapping[str, str]) -> dict[str, ConfigDict]:
        own = {name: values[name] for name in OWN_FIELDS}
        return {"config.json": {"anyformer": own | {"space": json.loads(files["space.json"])}}}

    def build_tensor_map(self, values: ConfigDict, config: ConfigDict) -> TensorMap:
        timestep = map_weight({"nodes.timestep": "embed_timestep"})
        return [*map_affine(NODES | HEADS), *timestep, *map_body(values["model"]["n_layer"], "encoder")]


class FoldedPosition(WeightSource):
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
    own, names = c.get("anyformer", {}), {old: name for name, (_, old) in OWN_FIELDS.items()}
    if not isinstance(own, dict) or own.keys() - {*OWN_FIELDS, *names, "space"}:
        raise InputError(f"{c.where}: anyformer is {own!r}; it must be an object of {', '.join(OWN_FIELDS)} and space")
    own = {names.get(name, name): value for name, value in own.items()}
    values = {name: own.get(name, default) for name, (default, _) in OWN_FIELDS.items()}
    for name, value in values.items():
        default = OWN_FIELDS[name][0]
        if not (isinstance(value, str) if isinstance(default, str) else is_finite_number(value)):
            raise InputError(f"{c.where}: anyformer.{name} is {value!r}; expected a value like {default!r}")
    raw = TrajectoryNormalizer(states, actions, discrete=False)
    text = json.dumps(own["space"]) if "space" in own else raw.to_json()
    space = load_normalizer(text)
    if (space.states, space.actions) != (states, actions):
        raise InputError(
            f"{c.where}: anyformer.space has {space.states} states and {space.actions} actions, but state_dim is "
            f"{states} and act_dim {actions}"
        )
    return values | {"space": text}
