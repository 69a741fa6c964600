"""What changes the answer: heads, sublayers and edges left out; activations of another input put in their place.

Shapes: R rows of scores, O outputs, L layers, T nodes.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import InputError
from ...events import report_progress
from ...model.edges import Edges, full, window
from ...model.intervention import ablate, patch
from ...model.trace import Trace, record
from ...recipe import LensView

WORK = 3e12  # multiplications of all passes together, unless a person says how many
MAX_PASSES = 1000
NEAR = 4  # nodes
MIN_DIFFERENCE = 1e-6

Change = tuple[str, Callable[[], AbstractContextManager[None]]]  # what it is called, and how it is made

TO_SELF = Edges(lambda b, h, q, k: q == k, "to itself", 0, 0, False, False)
TO_PREVIOUS = Edges(lambda b, h, q, k: q - k == 1, "to the node before", 1, 0, False, False)
TO_FIRST = Edges(lambda b, h, q, k: (k == 0) & (q > 0), "to the first node", uses_batch=False, uses_head=False)
TO_OTHERS = Edges(lambda b, h, q, k: q != k, "to all other nodes", uses_batch=False, uses_head=False)
REMOVED_RULES: dict[str, Edges] = {
    "to itself": TO_SELF,
    "to the node before": TO_PREVIOUS,
    "to the first node": TO_FIRST,
    f"to nodes fewer than {NEAR} away": window(NEAR) & TO_OTHERS,
    f"to nodes {NEAR} or more away": ~window(NEAR),
    "to all other nodes": TO_OTHERS,
}


@dataclass(frozen=True)
class Outcome:
    """What is measured of scores: the log-probability of an output of the answer, or the value of the first."""

    view: LensView
    output: int

    @staticmethod
    def from_scores(view: LensView, scores: Tensor) -> "Outcome":
        return Outcome(view, int(scores[view.answer].argmax()) if view.is_logits else 0)

    @property
    def name(self) -> str:
        name, (row, node) = self.view.name_output(self.output), self.view.rows[self.view.answer]
        place = "" if node is None else " " + row.replace("\n", "⏎")
        return f"log-probability of {name!r}{place}" if self.view.is_logits else f"{name}{place}"

    def __call__(self, scores: Tensor) -> float:
        row = scores[self.view.answer]
        return float(row.log_softmax(-1)[self.output] if self.view.is_logits else row[self.output])

    def describe(self, scores: Tensor, base: float) -> dict[str, Any]:
        """The change of the outcome, and the answer where it is another one."""
        change: dict[str, Any] = {"change": float(f"{self(scores) - base:.4g}")}
        best = int(scores[self.view.answer].argmax())
        return change | ({"answer": self.view.name_output(best)} if self.view.is_logits and best != self.output else {})


def count_passes(module: nn.Module, view: LensView) -> int:
    """How many forward passes are worth the wait."""
    nodes = sum(len(nodes.labels) for nodes in view.stacks.values())
    return int(min(MAX_PASSES, WORK / (nodes * sum(parameter.numel() for parameter in module.parameters()))))


# --- ablation ---


def measure_ablations(module: nn.Module, view: LensView, scores: Tensor, trace: Trace, passes: int) -> dict[str, Any]:
    """Leave out each sublayer, some edges and each head, as far as the passes reach.

    Returns {"outcome", "base", "groups": {"sublayers": {name: change}, ...}, "left_out": [group]}.
    """
    outcome = Outcome.from_scores(view, scores)
    base, groups, left_out = outcome(scores), {}, []
    for group, changes in list_ablations(module, view, trace).items():
        if len(changes) > passes:
            left_out.append(group)
            continue
        passes -= len(changes)
        groups[group] = {}
        for done, (name, change) in enumerate(changes):
            report_progress(f"leaving out {group}", done, len(changes))
            with change():
                groups[group][name] = outcome.describe(view.forward(), base)
    return {"outcome": outcome.name, "base": base, "groups": groups, "left_out": left_out}


def list_ablations(module: nn.Module, view: LensView, trace: Trace) -> dict[str, list[Change]]:
    sublayers: list[Change] = []
    heads: list[Change] = []
    for name in sublayer_names(view, trace):
        sublayers.append((name, lambda name=name: ablate(module, name)))
        queries = trace[name].queries
        for head in range(0 if queries is None else queries.shape[1]):
            heads.append((f"{name}.{head}", lambda name=name, head=head: ablate(module, name, heads=[head])))
    edges: list[Change] = [
        (f"{stack}: {name}", lambda stack=stack, rule=rule: ablate(module, stack, edges=rule))
        for stack in view.stacks
        for name, rule in REMOVED_RULES.items()
    ]
    readers = [stack for stack in view.stacks if trace[stack].memory is not None]
    edges += [(f"{s}: to the other stack", lambda s=s: ablate(module, s, memory_edges=full)) for s in readers]
    return {"sublayers": sublayers, "edges": edges, "heads": heads}


def sublayer_names(view: LensView, trace: Trace) -> Iterator[str]:
    """The sublayers of the stacks that are shown, in the order in which they run."""
    prefixes = tuple(f"{stack}.blocks." for stack in view.stacks)
    return (name for name in trace if name.startswith(prefixes) and name.rpartition(".")[2] in ("attn", "cross", "mlp"))


# --- patching ---


def measure_patches(module: nn.Module, view: LensView, other: LensView, scores: Tensor, passes: int) -> dict[str, Any]:
    """Put the stream of another input in the place of this one's, at each layer and node (2202.05262).

    Returns {"base", "other", "answers", "stacks": [{"name", "groups": [[first, last node], ...], "grid": [layer][group]
    }]}: a cell is the share of the way from this answer to the other that it moves; 0 nothing, 1 all of it. Raises
    InputError where the two inputs have not the same number of nodes.
    """
    check_equal_length(view, other)
    with record(module) as source:
        other_scores = other.forward()
    difference = build_difference(view, scores, other_scores)
    base, total = difference(scores), difference(other_scores) - difference(scores)
    stacks: list[dict[str, Any]] = []
    share = max(1, passes // len(view.stacks))
    for stack, nodes in view.stacks.items():
        n_layers = len(source[stack].edges)
        groups = group_nodes(len(nodes.labels), max(1, share // (n_layers + 1)))
        grid = []
        for layer in range(n_layers + 1):
            report_progress(f"patching {stack}", layer, n_layers + 1)
            name, side = (f"{stack}.blocks.{layer - 1}", "output") if layer else (f"{stack}.blocks.0", "input")
            row = []
            for group in groups:
                with patch(module, source, name, nodes=range(group[0], group[1] + 1), side=side):
                    moved = difference(view.forward()) - base
                row.append(float(f"{moved / total if abs(total) > MIN_DIFFERENCE else moved:.4g}"))
            grid.append(row)
        stacks.append({"name": stack, "groups": groups, "grid": grid})
    labels = {stack: list(nodes.labels) for stack, nodes in other.stacks.items()}
    answers = [name_answer(view, scores), name_answer(other, other_scores)]
    return {"answers": answers, "total": float(f"{total:.4g}"), "stacks": stacks, "labels": labels}


def build_difference(view: LensView, scores: Tensor, other_scores: Tensor) -> Callable[[Tensor], float]:
    """How far scores are on the other answer's side: the difference of the logits of the two answers; of the same
    answer, its log-probability; of numbers, the first."""
    if not view.is_logits:
        return lambda values: float(values[view.answer, 0])
    own, others = int(scores[view.answer].argmax()), int(other_scores[view.answer].argmax())
    if own == others:
        return Outcome(view, own)
    return lambda values: float(values[view.answer, others] - values[view.answer, own])


def name_answer(view: LensView, scores: Tensor) -> str:
    row = scores[view.answer]
    return view.name_output(int(row.argmax())) if view.is_logits else f"{float(row[0]):.4g}"


def check_equal_length(view: LensView, other: LensView) -> None:
    for (name, nodes), others in zip(view.stacks.items(), other.stacks.values(), strict=True):
        counts = len(nodes.labels), len(others.labels)
        if counts[0] != counts[1]:
            where = f" of the {name}" if len(view.stacks) > 1 else ""
            about = f"the input has {counts[0]:,} nodes{where} and the one to compare with {counts[1]:,}"
            raise InputError(f"{about}: activations are patched between inputs of equal length")


def group_nodes(count: int, most: int) -> list[list[int]]:
    """At most so many groups of neighbors: their first and last node."""
    size = -(-count // min(count, most))
    return [[start, min(start + size, count) - 1] for start in range(0, count, size)]


def check_finite_scores(scores: Tensor) -> None:
    if not bool(torch.isfinite(scores).all()):
        raise InputError("the model answers with numbers that are not finite: its weights are damaged")
