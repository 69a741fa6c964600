"""Write ONNX: the model as a graph for other runtimes, with any batch size and any length up to its context.

A recipe describes its inputs and outputs (`export_graph`). The written graph is run at sizes other than those it was
traced with and must agree with the model, before the file is put in place.
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

from ..errors import InputError
from ..recipe import Graph, GraphInput, Recipe, SupportsCachedExport, SupportsExport
from ..recipe_loading import recipe_name
from ..training.checkpoints import atomic_directory, collect_tensors
from .tensor_map import ConfigDict

TRACED_SIZES, VERIFIED_SIZES = {"batch": 2}, ({"batch": 3}, {"batch": 1})
MAX_SINGLE_FILE_BYTES = 1_800_000_000  # larger graphs keep their weights in a second file
# Relative to the largest value of an output. In float32, 30 layers with a wide residual stream err by 1e-4 themselves.
MAX_ERROR = 1e-3


def require_export(recipe: Recipe) -> SupportsExport:
    """Return the recipe, if it has `export_graph`. Raises InputError."""
    if not isinstance(recipe, SupportsExport):
        raise InputError(f"the recipe '{recipe_name(recipe)}' cannot be exported to ONNX: it defines no `export_graph`")
    return recipe


def make_graph(recipe: Recipe, model: nn.Module, cached: bool) -> Graph:
    """Return the graph of a model, or the one that also takes and returns keys and values. Raises InputError."""
    if not cached:
        return require_export(recipe).export_graph(model.eval())
    if not isinstance(recipe, SupportsCachedExport):
        reason = "cached is for models of text from left to right, which read the tokens before from keys and values"
        raise InputError(f"the recipe '{recipe_name(recipe)}' has no such graph: {reason}")
    return recipe.export_cached_graph(model.eval())


def write(folder: Path, recipe: Recipe, values: ConfigDict, model: nn.Module, cached: bool = False) -> None:
    """Write folder/model.onnx and the model's own files; `cached`: the graph with keys and values.

    Raises:
        InputError: a package is missing, the recipe has no graph, or the graph disagrees with the model. No partial
            folder is left.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f"writing ONNX needs {error.name}: pip install 'anyformer[onnx]'") from None
    graph = make_graph(recipe, model, cached)
    is_large = sum(tensor.nbytes for tensor in collect_tensors(model).values()) > MAX_SINGLE_FILE_BYTES
    with atomic_directory(folder) as temporary:
        path = temporary / "model.onnx"
        with silence(), torch.no_grad():
            program = trace(graph, model)
            metadata = {"recipe": recipe_name(recipe), "longest": dict(graph.max_lengths)}
            program.model.metadata_props["anyformer"] = json.dumps(metadata)
            program.save(path, external_data=is_large)
        verify(path, graph)
        for name, text in getattr(model, "files", {}).items():
            (temporary / name).write_text(text, encoding="utf-8")


class GraphModule(nn.Module):
    """A graph's function as a module that owns the weights it uses."""

    def __init__(self, graph: Graph, model: nn.Module):
        super().__init__()
        self.model, self.call = model, graph.call

    def forward(self, *inputs: Tensor) -> Any:
        return self.call(*inputs)


def find_open_axes(graph_input: GraphInput) -> dict[int, str]:
    """Return the axes of an input whose size is not fixed: index -> name."""
    return {i: axis for i, axis in enumerate(graph_input.axes.split()) if not axis.isdigit()}


def trace(graph: Graph, model: nn.Module) -> Any:
    """Export the graph, with a dynamic dimension for each named axis."""
    return torch.onnx.export(
        GraphModule(graph, model),
        tuple(make_example_inputs(graph, TRACED_SIZES, seed=0).values()),
        dynamo=True,
        dynamic_shapes=find_dynamic_shapes(graph),
        input_names=list(graph.inputs),
        output_names=list(graph.outputs),
        verbose=False,
    )


def find_dynamic_shapes(graph: Graph) -> Any:
    """Return the dimension of each named axis, in the form that torch.export takes for the inputs of a GraphModule."""
    axes = [find_open_axes(graph_input) for graph_input in graph.inputs.values()]
    names = sorted({name for open_axes in axes for name in open_axes.values()})
    dims = {name: torch.export.Dim(name, min=1, max=graph.max_lengths.get(name, 1 << 20)) for name in names}
    return (tuple({i: dims[name] for i, name in open_axes.items()} for open_axes in axes),)


def make_example_inputs(graph: Graph, sizes: Mapping[str, int], seed: int) -> dict[str, Tensor]:
    """Draw random inputs; each axis that `sizes` does not name gets a small size of its own, within its bound."""
    generator = torch.Generator().manual_seed(seed)
    sizes = dict(sizes)
    for graph_input in graph.inputs.values():
        for axis in find_open_axes(graph_input).values():
            sizes.setdefault(axis, max(1, min(graph.max_lengths.get(axis, 64), 7 + 4 * seed + 2 * len(sizes))))
    shortest = min((n for axis, n in sizes.items() if axis != "batch"), default=1)
    return {name: draw_input(x, sizes, shortest, generator) for name, x in graph.inputs.items()}


def draw_input(graph_input: GraphInput, sizes: Mapping[str, int], shortest: int, generator: torch.Generator) -> Tensor:
    shape = [int(axis) if axis.isdigit() else sizes[axis] for axis in graph_input.axes.split()]
    if graph_input.is_length:
        return torch.randint(1, max(2, shortest // 2 + 1), shape, generator=generator)
    if graph_input.upper_bound is not None:
        return torch.randint(graph_input.upper_bound, shape, generator=generator)
    return torch.randn(shape, generator=generator)


def verify(path: Path, graph: Graph) -> None:
    """Run the written graph and compare it with the model. Raises InputError."""
    import onnx
    import onnxruntime

    onnx.checker.check_model(path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    used = {x.name for x in session.get_inputs()}  # inputs that affect no output are not in the graph
    for seed, sizes in enumerate(VERIFIED_SIZES, 1):
        inputs = make_example_inputs(graph, sizes, seed)
        with torch.inference_mode():
            expected = graph.call(*inputs.values())
        actual = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items() if name in used})
        expected = expected if isinstance(expected, tuple) else (expected,)
        for name, a, b in zip(graph.outputs, map(np.asarray, expected), map(np.asarray, actual), strict=True):
            largest = max(np.abs(a).max(initial=0), 1e-6)
            error = np.abs(a - b).max(initial=0) / largest if a.shape == b.shape else math.inf
            if not error <= MAX_ERROR:
                raise InputError(
                    f"the graph's {name} differs from the model's by {error:.1e} for {describe(graph, inputs)}"
                )


def describe(graph: Graph, inputs: Mapping[str, Tensor]) -> str:
    """Return the sizes of the open axes: "batch 3, length 13"."""
    sizes = {axis: inputs[name].shape[i] for name, x in graph.inputs.items() for i, axis in find_open_axes(x).items()}
    return ", ".join(f"{axis} {size}" for axis, size in sizes.items())


@contextmanager
def silence() -> Generator[None]:
    """Suppress the exporter's progress and warnings; its result is verified afterwards."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
