"""Everything that the lens shows of a request, as plain values of bounded size.

Shapes: L layers, T nodes, H heads, Q queries, K keys.
"""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import InputError
from ...events import report_progress
from ...model.edges import Edges
from ...model.trace import Call, Trace, record
from ...model.transformer import Transformer
from ...recipe import LensNodes, LensView, SupportsLens, SupportsTasks
from ...training.run_directory import RunDirectory
from .effects import check_finite_scores, count_passes, measure_ablations, measure_patches
from .measure import describe_readings, list_summaries, measure_norms, summarize_heads
from .pack import (
    MAX_WEIGHT_BYTES,
    choose_kept,
    encode_array,
    pack_mask,
    pack_picture,
    pack_thumbnails,
    pack_weights,
    round_numbers,
    share_bytes,
)

MAX_NODES = 2048  # of a stack: the weights of a head are its square
MAX_LABEL = 60  # characters


@torch.no_grad()
def build_lens(
    model: Any,
    request: Any = None,
    against: Any = None,
    answer: int | None = None,
    passes: int | None = None,
) -> dict[str, Any]:
    """Look into a model while it answers a request.

    Args:
        model: An `anyformer.Model`.
        request: As for `predict`; what is no dict is its "input". None: an example of the run.
        against: Another request, whose activations are patched in.
        answer: The row of the logit lens whose change is measured; None: the recipe's own.
        passes: The most forward passes for ablations, and as many for patching; None: by the size of the model.

    The model can answer others meanwhile.

    Returns plain values for `render_lens`. Raises InputError for a recipe without a Transformer and for a request that
    cannot be shown.
    """
    recipe, module = require_lens(model), share_weights(model.module, {})
    view = choose_answer(recipe.lens(module, read_request(model, request)), answer)
    check_size(view)
    with record(module) as trace:
        scores = view.forward()
    check_finite_scores(scores)
    passes = count_passes(module, view) if passes is None else passes
    data: dict[str, Any] = {
        "title": f"Inside {model.run_path.name}",
        "facts": describe_model(model),
        "notes": list(view.notes),
    }
    data["stacks"] = [describe_stack(trace, name, nodes) for name, nodes in view.stacks.items()]
    data["attention"] = describe_attention(trace, view)
    if view.repeat is not None:
        data["attention"][0]["summaries"]["prefix matching"] = measure_prefix_matching(module, view.repeat())
    data["readings"] = describe_readings(module, view, trace)
    data["ablation"] = measure_ablations(module, view, scores, trace, passes)
    if against is not None:
        other_request = (against if isinstance(against, dict) else {"input": against}) | dict(view.shared)
        other = replace(recipe.lens(module, other_request), answer=view.answer)
        check_size(other)
        data["patching"] = measure_patches(module, view, other, scores, passes)
    return data


def require_lens(model: Any) -> Any:
    """The model's recipe. Raises InputError where it has no lens."""
    if isinstance(model.recipe, SupportsLens):
        return model.recipe
    if isinstance(model.recipe, SupportsTasks):
        raise InputError(f"the recipe '{model.name}' has several tasks: {model.task_hint}")
    if any(isinstance(module, Transformer) for module in model.module.modules()):
        raise InputError(f"the recipe '{model.name}' does not say what its nodes are: it needs a function `lens`")
    raise InputError(f"the model of '{model.name}' has no Transformer: the lens has nothing to show")


def share_weights(module: nn.Module, copies: dict[int, nn.Module]) -> nn.Module:
    """A copy of a module with the same tensors and hooks of its own: what is changed in it changes no other thread's
    answers. `copies` holds those of modules that occur twice."""
    if id(module) not in copies:
        clone = copies[id(module)] = copy.copy(module)
        for name, value in vars(module).items():
            if name.endswith("hooks") or "_hooks_" in name:
                vars(clone)[name] = type(value)(value)
        children = module._modules.items()
        vars(clone)["_modules"] = {name: child and share_weights(child, copies) for name, child in children}
    return copies[id(module)]


def read_request(model: Any, request: Any) -> dict[str, Any]:
    """A request as a dict; without one, the first example that the run keeps."""
    if request is not None and not isinstance(request, dict):
        return {"input": request}
    if request:
        return request
    example = RunDirectory(model.run_path).read_examples().request
    inputs = example.get("input")
    return example | {"input": inputs[0]} if isinstance(inputs, list) and inputs else example


def choose_answer(view: LensView, answer: int | None) -> LensView:
    count = len(view.rows)
    if answer is not None and not -count <= answer < count:
        raise InputError(f"row {answer} of {count}: the answer is one of the rows 0 to {count - 1}")
    return replace(view, answer=(view.answer if answer is None else answer) % count)


def check_size(view: LensView) -> None:
    for name, nodes in view.stacks.items():
        if len(nodes.labels) > MAX_NODES:
            about = f"the input makes {len(nodes.labels):,} nodes in '{name}'"
            raise InputError(f"{about}; the lens shows up to {MAX_NODES:,}: give it a shorter one")


def describe_model(model: Any) -> list[str]:
    data = [str(model.config.data)] if model.config.data else []
    return [model.name, f"{model.n_parameters:,} parameters", *data, f"step {model.step:,}"]


def describe_nodes(nodes: LensNodes) -> dict[str, Any]:
    facts: dict[str, Any] = {"labels": [label[:MAX_LABEL] for label in nodes.labels], "kinds": list(nodes.kinds)}
    facts |= {"picture": pack_picture(nodes.picture), "series": round_numbers(list(map(float, nodes.series)))}
    return facts | {"boxes": [None if box is None else list(box) for box in nodes.boxes]}


def describe_stack(trace: Trace, name: str, nodes: LensNodes) -> dict[str, Any]:
    """The nodes of a stack, the rule of each layer as bits, and the norms of its stream."""
    call, count = trace[name], trace[name].input.shape[1]
    if count != len(nodes.labels):
        raise ValueError(f"'{name}' has {count} nodes and the recipe names {len(nodes.labels)}")
    masks = {rule: describe_rule(rule, count, count) for rule in dict.fromkeys(call.edges)}
    rules = list({rule["bits"]: rule for rule in masks.values()}.values())  # equal ones once
    bits = [rule["bits"] for rule in rules]
    norms = {kind: round_numbers(values) for kind, values in measure_norms(trace, name).items()}
    facts = describe_nodes(nodes) | {"name": name, "norms": norms}
    return facts | {"rules": rules, "layer_rules": [bits.index(masks[rule]["bits"]) for rule in call.edges]}


def describe_rule(rule: Edges, queries: int, keys: int) -> dict[str, str]:
    """The rule of the first head. A page that draws it needs no more than its bits."""
    return {"name": rule.name, "bits": pack_mask(rule.build_mask(1, queries, keys)[0, 0])}


def describe_attention(trace: Trace, view: LensView) -> list[dict[str, Any]]:
    """Self-attention of each stack, and cross-attention of those that read another."""
    names, parts = list(view.stacks), []
    for index, name in enumerate(names):
        parts.append((index, index, "attn"))
        if (memory := trace[name].memory) is not None:
            sources = [i for i, other in enumerate(names) if trace[other].output is memory]
            parts += [(index, source, "cross") for source in sources]
    sizes = [count_weights(trace, f"{names[query]}.blocks", kind) for query, _, kind in parts]
    shares = share_bytes(sizes, MAX_WEIGHT_BYTES)
    return [describe_part(trace, view, part, share) for part, share in zip(parts, shares, strict=True)]


def count_weights(trace: Trace, prefix: str, kind: str) -> int:
    return sum(len_weights(call) for name, call in trace.items() if name.startswith(prefix) and name.endswith(kind))


def len_weights(call: Call) -> int:
    queries, keys = call.queries, call.keys
    return 0 if queries is None or keys is None else queries.shape[1] * queries.shape[2] * keys.shape[2]


def describe_part(trace: Trace, view: LensView, part: tuple[int, int, str], n_bytes: int) -> dict[str, Any]:
    """All layers of one kind of attention: packed weights, pictures and summaries of the heads."""
    (query, key, kind), names = part, list(view.stacks)
    stack = trace[names[query]]
    calls = [trace[f"{names[query]}.blocks.{i}.{kind}"] for i in range(len(stack.edges))]
    queries, keys = (len(view.stacks[names[index]].labels) for index in (query, key))
    n_heads = count_heads(calls[0])
    kept = choose_kept(len(calls) * n_heads * queries, keys, n_bytes)
    layers, thumbnails, summaries = [], [], []
    for layer, call in enumerate(calls):
        report_progress("reading weights", layer, len(calls))
        weights: Tensor = call.weights[0]
        layers.append(pack_weights(weights, kept))
        thumbnails.append(pack_thumbnails(weights))
        summaries.append(summarize_heads(weights, view.stacks[names[query]], kind == "attn"))
    facts: dict[str, Any] = {"query": query, "key": key, "kind": kind, "heads": n_heads, "kept": kept, "layers": layers}
    pictures = np.stack(thumbnails)
    facts |= {"thumbnails": encode_array(pictures), "thumbnail_shape": list(pictures.shape[2:])}
    facts["summaries"] = list_summaries(summaries)
    if kind == "cross" and stack.memory_edges is not None:
        facts["rule"] = describe_rule(stack.memory_edges, queries, keys)
    return facts


def measure_prefix_matching(module: nn.Module, view: LensView) -> list[list[float | None]]:
    """The attention of each head to what followed the same node before, in random nodes that repeat: [layer][head]."""
    with record(module) as trace:
        view.forward()
    (name, nodes), *_ = view.stacks.items()
    calls = [trace[f"{name}.blocks.{i}.attn"] for i in range(len(trace[name].edges))]
    return list_summaries([summarize_heads(call.weights[0], nodes, True) for call in calls])["induction"]


def count_heads(call: Call) -> int:
    return 0 if call.queries is None else call.queries.shape[1]
