"""ONNX: the model as a graph that other runtimes run, for any batch and any length up to its context.

What goes in and what comes out is for each recipe to say (`graph`). The graph is run once, at sizes other than those it
was traced with, and must say what the model says, before the file is there.
"""

import json
import logging
import math
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import recipe as recipes
from ..errors import InputError
from ..recipe import Graph, Input
from ..training.checkpoints import tensors, whole
from .tensor_map import Values

TRACED, TRIED = {"batch": 2}, ({"batch": 3}, {"batch": 1})
LARGEST = 1_800_000_000  # bytes of one file; a graph with more keeps its numbers in a second
AGREE = 1e-4  # of the largest number there


def write(folder: Path, name: str, values: Values, module: nn.Module) -> None:
    """Write folder/model.onnx and the model's own files beside it. Raises InputError; nothing half-written stays."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f"writing ONNX needs {error.name}: pip install 'anyformer[onnx]'") from None
    described = getattr(recipes.load(name), "graph", None)
    if described is None:
        raise InputError(f"the recipe '{name}' does not say what its graph reads: it has no `graph`")
    graph: Graph = described(module.eval())
    large = sum(tensor.nbytes for tensor in tensors(module).values()) > LARGEST
    with whole(folder) as temporary:
        path = temporary / "model.onnx"
        with silence():
            program = trace(graph, module)
            program.model.metadata_props["anyformer"] = json.dumps({"recipe": name, "longest": dict(graph.longest)})
            program.save(path, external_data=large)
        check(path, graph)
        for kept, text in getattr(module, "files", {}).items():
            (temporary / kept).write_text(text, encoding="utf-8")


class Traced(nn.Module):
    """The function of a graph, with the weights it reads."""

    def __init__(self, graph: Graph, module: nn.Module):
        super().__init__()
        self.module, self.call = module, graph.call

    def forward(self, *inputs: Tensor) -> Any:
        return self.call(*inputs)


def trace(graph: Graph, module: nn.Module) -> Any:
    """The graph as the exporter sees it, with an axis left open for each name."""
    names = {axis for one in graph.inputs.values() for axis in one.axes.split() if not axis.isdigit()}
    open_axes = {name: torch.export.Dim(name, min=1, max=graph.longest.get(name, 1 << 20)) for name in sorted(names)}
    shapes = [
        {i: open_axes[axis] for i, axis in enumerate(one.axes.split()) if not axis.isdigit()}
        for one in graph.inputs.values()
    ]
    return torch.onnx.export(
        Traced(graph, module),
        tuple(example(graph, TRACED, 0).values()),
        dynamo=True,
        dynamic_shapes=(tuple(shapes),),
        input_names=list(graph.inputs),
        output_names=list(graph.outputs),
        verbose=False,
    )


def example(graph: Graph, sizes: Mapping[str, int], seed: int) -> dict[str, Tensor]:
    """Random inputs; every axis that `sizes` does not name has a length of its own, small and within bounds."""
    drawn = torch.Generator().manual_seed(seed)
    known: dict[str, int] = dict(sizes)
    for one in graph.inputs.values():
        for axis in one.axes.split():
            if not axis.isdigit():
                known.setdefault(axis, max(1, min(graph.longest.get(axis, 64), 7 + 4 * seed + 2 * len(known))))
    shortest = min((n for axis, n in known.items() if axis != "batch"), default=1)
    return {name: numbers(one, known, shortest, drawn) for name, one in graph.inputs.items()}


def numbers(one: Input, known: Mapping[str, int], shortest: int, drawn: torch.Generator) -> Tensor:
    shape = [int(axis) if axis.isdigit() else known[axis] for axis in one.axes.split()]
    if one.counts:
        return torch.randint(1, max(2, shortest // 2 + 1), shape, generator=drawn)
    if one.below is not None:
        return torch.randint(one.below, shape, generator=drawn)
    return torch.randn(shape, generator=drawn)


def check(path: Path, graph: Graph) -> None:
    """The graph is whole, and says what the model says. Raises InputError."""
    import onnx
    import onnxruntime

    onnx.checker.check_model(path)
    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, quiet, providers=["CPUExecutionProvider"])
    read = {one.name for one in session.get_inputs()}  # what changes nothing is no input of the graph
    for seed, sizes in enumerate(TRIED, 1):
        inputs = example(graph, sizes, seed)
        with torch.inference_mode():
            wanted = graph.call(*inputs.values())
        found = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items() if name in read})
        wanted = wanted if isinstance(wanted, tuple) else (wanted,)
        for name, ours, theirs in zip(graph.outputs, wanted, map(np.asarray, found), strict=True):
            apart = distance(ours.numpy(), theirs)
            if not apart <= AGREE:
                shapes = {key: list(tensor.shape) for key, tensor in inputs.items()}
                raise InputError(f"the graph's {name} is not the model's (by {apart:.1e}) for inputs of shape {shapes}")


def distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference, as a part of the largest number; infinite for other shapes."""
    if ours.shape != theirs.shape:
        return math.inf
    return float(np.abs(ours - theirs).max(initial=0)) / max(float(np.abs(ours).max(initial=0)), 1e-6)


@contextmanager
def silence() -> Generator[None]:
    """The exporter tells its progress and its worries at length; what counts is checked afterwards."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
