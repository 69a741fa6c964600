"""One part of bench/gpu.py, in a process of its own: python -m bench._gpu_parts PART ROWS.jsonl SECONDS FLAG ..."""

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from anyformer.recipes import language
from anyformer.training import hardware
from anyformer.training.device import resolve_device
from bench.gpu import NO_GPU, ROOT, build_parser
from bench.inference.gpu_generation import list_generation
from bench.model.gpu_long_context import list_windows
from bench.recipes.gpu_recipes import list_cifar10, list_multi30k
from bench.training.gpu_training import list_shakespeare, list_training

Row = dict[str, Any]
Measurement = tuple[str, Callable[[], Row]]  # name of a row, and the function that measures it


class Setup:
    """The device, the options, the shapes, and the time at which the part must end."""

    def __init__(self, options: argparse.Namespace, seconds: float):
        self.options, self.dry = options, options.dry
        self.ends_at = time.monotonic() + seconds
        self.device = resolve_device(options.device)
        self.backend = "eager" if self.dry else "inductor"  # eager: traced, not compiled
        gpt2 = language.PRESETS["gpt2"]
        small = replace(gpt2.model, dim=64, n_layer=2, n_head=2, context=64)
        text = {"data": "", "tokenizer": "ids", "padded_vocab": 512 if self.dry else gpt2.padded_vocab}
        self.gpt2 = replace(gpt2, **text, model=small if self.dry else gpt2.model)

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def peak_flops(self) -> float | None:
        """Return the peak FLOP/s in bfloat16: --peak, or known for this GPU."""
        return 1e12 * self.options.peak if self.options.peak else hardware.get_peak_flops(self.device)


def list_checks(setup: Setup) -> Iterator[Measurement]:
    """The checks of `pytest -m gpu`; in a dry run only those that take no seconds, since the tests run all of them."""
    sys.path.insert(0, str(ROOT / "tests" / "kits"))
    import gpu_checks

    with TemporaryDirectory() as folder:
        i, n = map(int, setup.options.share.split("/"))
        for name, check in list(gpu_checks.list_checks().items())[i::n]:
            if setup.dry and not name.startswith(("prefetched", "narrow", "captured", "Muon")):
                continue
            yield name, lambda check=check: check(gpu_checks.Target(setup.device, Path(folder)))


PARTS: dict[str, Callable[[Any], Iterator[Measurement]]] = {
    "checks": list_checks,
    "training": list_training,
    "shakespeare": list_shakespeare,
    "generation": list_generation,
    "window": list_windows,
    "cifar10": list_cifar10,
    "multi30k": list_multi30k,
}


def measure_part(name: str, setup: Setup) -> Iterator[Row]:
    """Yield a row for each measurement, with the problem if it failed, and without one once the time is used up."""
    device = torch.cuda.get_device_name(setup.device) if setup.device.type == "cuda" else str(setup.device)
    yield {"what": "device", "name": device, "torch": torch.__version__, "peak": setup.peak_flops()}
    try:
        for title, work in PARTS[name](setup):
            if time.monotonic() > setup.ends_at:
                yield {"what": title, "skipped": "the time of its part is used up"}
                continue
            yield attempt(title, work)
    except (Exception, SystemExit) as error:
        yield {"what": name, "problem": describe_error(error)}


def attempt(name: str, work: Callable[[], Row]) -> Row:
    """Return a row; if it fails, with the problem and the end of its traceback."""
    start = time.perf_counter()
    try:
        row = {"what": name} | work()
    except (Exception, SystemExit) as error:
        row = {"what": name, "problem": describe_error(error), "where": traceback.format_exc().splitlines()[-12:]}
    torch._dynamo.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return row | {"wall": round(time.perf_counter() - start, 1)}


def describe_error(error: BaseException) -> str:
    return f"{type(error).__name__}: {hardware.first_line(error)}"


def format_row(row: Row) -> str:
    figures = (
        f"{key} {value:,.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in row.items()
        if key != "where"
    )
    return "  ".join(figures).removeprefix("what ")


def main(name: str, file: Path, seconds: float, words: list[str]) -> int:
    setup = Setup(build_parser().parse_args(words), seconds)
    if setup.device.type != "cuda" and not setup.dry:
        return NO_GPU
    with file.open("w") as rows:
        for row in measure_part(name, setup):
            print(json.dumps(row), file=rows, flush=True)
            print(format_row(row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), sys.argv[4:]))
