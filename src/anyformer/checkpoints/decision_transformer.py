"""Decision Transformer (2106.01345), as the `decision_transformer` family of public checkpoints has it.

Its body is GPT-2's, linear maps stored [in, out]. It holds an embedding of words that nothing reads, and one of
positions of which the first is added to every node: here it is folded into the bias of the norm before, and goes out as
zeros. What the library does not keep (how states and returns are scaled) stands in config.json under `anyformer`, which
the library passes over; without it, all numbers are taken as they are.
"""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..data.trajectories.normalizer import Space, finite, read_space
from ..errors import InputError
from .config_fields import Fields, activations
from .safetensors_files import Weights
from .tensor_map import Row, Values, affine, layers, row

RECIPE = "control"
ARCHITECTURE = "DecisionTransformerModel"
PRESETS = ("small", "pendulum", "mujoco")
WPE, BIAS = "encoder.wpe.weight", "embed_ln.bias"
OWN = {"env": "", "wanted": 0.0, "scale": 1.0, "foresee": 0.0}  # of our config, with what an unknown one becomes


def spelling(name: str) -> str | None:
    """The masks that old files carry and the embedding of words say nothing."""
    return None if name.endswith((".attn.bias", ".attn.masked_bias")) or name == "encoder.wte.weight" else name


class Folded:
    """The file's tensors, the position that every node has added to the bias that every node gets."""

    def __init__(self, weights: Weights):
        self.weights, self.where = weights, weights.where
        self.shapes = {name: shape for name, shape in weights.shapes.items() if name != WPE}
        if WPE not in weights.shapes or BIAS not in weights.shapes:
            raise InputError(f"{self.where} lacks {BIAS if WPE in weights.shapes else WPE}")
        found, wanted = weights.shapes[WPE][1:], weights.shapes[BIAS]
        if found != wanted:
            raise InputError(f"{self.where}: {WPE} has rows of shape {list(found)}, {BIAS} makes that {list(wanted)}")

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        found = self.weights.rows(name, start, stop)
        return found if name != BIAS else found + self.weights.rows(WPE, 0, 1)[0, start:stop]


def folded(weights: Weights) -> Weights:
    return Folded(weights)


def read(c: Fields, weights: Weights) -> Values:
    """Their config -> the control recipe's."""
    c.must(add_cross_attention=False, scale_attn_weights=True, reorder_and_upcast_attn=False)
    c.must(scale_attn_by_inverse_layer_idx=False)
    c.value("vocab_size", 1)
    dim = c.size("hidden_size", 128)
    model = {
        "dim": dim,
        "n_layer": c.size("n_layer", 3, most=len(weights.shapes)),
        "n_head": c.size("n_head", 1),
        "mlp_dim": c.size("n_inner", 4 * dim),
        "context": c.size("n_positions", 1024),
        "position": "none",
        "activation": c.choice("activation_function", activations(), "relu"),
        "norm_eps": c.number("layer_norm_epsilon", 1e-5),
        "bias": biased(weights),
        "dropout": c.dropout("resid_pdrop"),
    }
    steps, squash = c.size("max_ep_len", 4096), c.flag("action_tanh", True)
    own = kept(c, c.size("state_dim", 17), c.size("act_dim", 4))
    if squash and read_space(own["space"]).discrete:
        raise InputError(f"{c.where}: action_tanh is true, and its actions are discrete: only numbers end in a tanh")
    return {"model": model, "longest": steps, "squash": squash, **own}


def kept(c: Fields, states: int, actions: int) -> Values:
    """What a checkpoint of ours says besides."""
    own = c.value("anyformer", {})
    if not isinstance(own, dict) or own.keys() - {*OWN, "space"}:
        raise InputError(f"{c.where}: anyformer is {own!r}; it must be an object of {', '.join(OWN)} and space")
    for name, default in OWN.items():
        found = own.get(name, default)
        if not (isinstance(found, str) if isinstance(default, str) else finite(found)):
            raise InputError(f"{c.where}: anyformer.{name} is {found!r}; it must be like {default!r}")
    space = json.dumps(own["space"]) if "space" in own else Space(states, actions, discrete=False).json()
    found = read_space(space)
    if (found.states, found.actions) != (states, actions):
        sizes = f"state_dim {states} and act_dim {actions}"
        raise InputError(f"{c.where}: anyformer.space has {found.states} and {found.actions}, not {sizes}")
    return {name: own.get(name, default) for name, default in OWN.items()} | {"space": space}


def biased(weights: Weights) -> bool:
    """Whether any bias of the body is not zero."""
    biases = [name for name in weights.shapes if name.startswith("encoder.") and name.endswith(".bias")]
    return any(bool(weights.rows(name, 0, weights.shapes[name][0]).any()) for name in biases)


def write(values: Values, own: Mapping[str, Tensor]) -> Values:
    """The control recipe's config -> theirs. Raises InputError for what this family cannot say."""
    m = values["model"]
    wanted = {"position": "none", "norm": "layernorm", "norm_place": "pre", "qk_norm": False, "scale": None}
    for name, right in wanted.items():
        if m[name] != right:
            raise InputError(f"{name} is {m[name]}, not {right}")
    if m["n_kv_head"] not in (None, m["n_head"]) or m["head_dim"] not in (None, m["dim"] // m["n_head"]):
        raise InputError("heads of keys are fewer, or channels of heads are not dim / n_head")
    known = {ours: theirs for theirs, ours in reversed(activations().items())}
    if m["activation"] not in known:
        raise InputError(f"the activation is {m['activation']}")
    if not values["conditioned"]:
        raise InputError("it is not told the return (conditioned is false)")
    return {
        "model_type": "decision_transformer",
        "state_dim": own["nodes.state.weight"].shape[1],
        "act_dim": own["nodes.action.weight"].shape[1],
        "max_ep_len": values["longest"],
        "action_tanh": values["squash"],
        "hidden_size": m["dim"],
        "vocab_size": 1,
        "n_positions": m["context"],
        "n_layer": m["n_layer"],
        "n_head": m["n_head"],
        "n_inner": m["mlp_dim"] or 4 * m["dim"],
        "activation_function": known[m["activation"]],
        "layer_norm_epsilon": m["norm_eps"],
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), m["dropout"]),
    }


def unread(config: Values) -> dict[str, Tensor]:
    """Tensors that the library wants and that change nothing."""
    dim = config["hidden_size"]
    return {WPE: torch.zeros(config["n_positions"], dim), "encoder.wte.weight": torch.zeros(config["vocab_size"], dim)}


def besides(values: Values, texts: Mapping[str, str]) -> dict[str, Any]:
    """What config.json also says: how the numbers outside become those of the model."""
    own = {name: values[name] for name in OWN}
    return {"anyformer": own | {"space": json.loads(texts["space.json"])}}


def rows(c: Values) -> list[Row]:
    """Names of ours and of theirs, for a config of theirs."""
    ours, theirs = "body.blocks.{i}", "encoder.h.{i}"
    told = [f"{ours}.attn.{name}" for name in ("query", "key", "value")]
    block = [
        *affine(f"{ours}.attn_norm", f"{theirs}.ln_1"),
        *affine(told, f"{theirs}.attn.c_attn", flip=True),
        *affine(f"{ours}.attn.output", f"{theirs}.attn.c_proj", flip=True),
        *affine(f"{ours}.mlp_norm", f"{theirs}.ln_2"),
        *affine(f"{ours}.mlp.up", f"{theirs}.mlp.c_fc", flip=True),
        *affine(f"{ours}.mlp.down", f"{theirs}.mlp.c_proj", flip=True),
    ]
    return [
        *affine("nodes.wanted", "embed_return"),
        *affine("nodes.state", "embed_state"),
        *affine("nodes.action", "embed_action"),
        row("nodes.step.weight", "embed_timestep.weight"),
        *affine("nodes.norm", "embed_ln"),
        *layers(c.get("n_layer", 3), block),
        *affine("body.norm", "encoder.ln_f"),
        *affine("action", "predict_action.0"),
        *affine("state", "predict_state"),
        *affine("wanted", "predict_return"),
    ]
