"""The linear map of inference by each format and kernel that `model/quantization` chooses from, on a CPU.

    python -m bench.model.linear

By CPU time of one thread, over matrices that together exceed the processor's cache: billions of weights a second for
each number of rows. "torch" is the kernel for newer processors, "FBGEMM" the one for those with AVX2 alone.
"""

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from anyformer.model.kernels.linear import Linear
from anyformer.model.quantization.fbgemm import HalfLinear, has_fbgemm
from anyformer.model.quantization.int4 import Int4Linear, has_int4
from anyformer.model.quantization.quantize import FloatLinear, Int8Linear, PackedInt8Linear
from bench._common import make_parser

BYTES = 64 << 20  # of all matrices together, in int8


def list_kernels() -> dict[str, Callable[[Linear], Any]]:
    kernels: dict[str, Callable[[Linear], Any]] = {
        "float32": lambda linear: FloatLinear(linear, torch.float32),
        "bfloat16, torch": lambda linear: FloatLinear(linear, torch.bfloat16),
        "int8, torch": Int8Linear,
    }
    if has_fbgemm():
        kernels |= {"16 bits, FBGEMM": HalfLinear, "int8, FBGEMM": PackedInt8Linear}
    return kernels | ({"int4": Int4Linear} if has_int4() else {})


def time_pass(layers: list[Any], x: Tensor) -> float:
    start = time.process_time()
    for layer in layers:
        layer(x)
    return time.process_time() - start


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--shape", type=int, nargs=2, default=[576, 3072], metavar=("IN", "OUT"))
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 8, 32, 256])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    inputs, outputs = options.shape
    count = max(1, BYTES // (inputs * outputs))
    with torch.inference_mode():
        linears = [Linear(inputs, outputs, bias=False) for _ in range(count)]
        kernels = {name: [make(linear) for linear in linears] for name, make in list_kernels().items()}
        table: dict[str, dict[int, float]] = {name: {} for name in kernels}
        for rows in options.rows:
            x = torch.randn(rows, inputs)
            times: dict[str, list[float]] = {name: [] for name in kernels}
            for _ in range(options.rounds + 1):  # in turns; the first round warms up
                for name, layers in kernels.items():
                    times[name].append(time_pass(layers, x))
            for name, seconds in times.items():
                table[name][rows] = count * inputs * outputs / statistics.median(seconds[1:]) / 1e9
    if options.json:
        print(json.dumps({"capability": torch.backends.cpu.get_cpu_capability(), "table": table}))
        return
    print(f"{torch.backends.cpu.get_cpu_capability()}, {inputs} to {outputs}: 10^9 weights a CPU second")
    print(f"{'rows':<20}" + "".join(f"{rows:>8}" for rows in options.rows))
    for name, rates in table.items():
        print(f"{name:<20}" + "".join(f"{rate:>8.2f}" for rate in rates.values()))


if __name__ == "__main__":
    main()
