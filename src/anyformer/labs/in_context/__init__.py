"""Lab in-context: Transformers that learn within their forward pass, beside the methods that they might have found."""

from ..lab import LabResult, Log
from .induction import run_heads
from .settings import Settings
from .train_functions import run_functions
from .train_regression import run_regression

PARTS = {"regression": run_regression, "functions": run_functions, "heads": run_heads}

__all__ = ["Settings", "run"]


def run(settings: Settings, log: Log) -> LabResult:
    results = {
        name: run_part(settings, lambda record, name=name: log({"part": name} | record))
        for name, run_part in PARTS.items()
        if settings.part in ("all", name)
    }
    return LabResult(
        "Learning within the forward pass",
        [sentence for result in results.values() for sentence in result.summary],
        [table for result in results.values() for table in result.tables],
        [figure for result in results.values() for figure in result.figures],
        [text for result in results.values() for text in result.texts],
        {name: dict(result.facts) for name, result in results.items()},
    )
