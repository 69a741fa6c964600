"""Memory and time of the cross-entropy over a large vocabulary: whole logits, in chunks, and torch's own chunked loss.

    python -m bench.training.cross_entropy                      a minute: 2 rows of 1,024 tokens, 50,304 entries
    python -m bench.training.cross_entropy --rows 1 2 4 8 --contenders whole chunked

Each contender runs in a process of its own: loss and gradients of a head in float32, in seconds of CPU time. Memory is
the largest resident size of the process less that before the loss, so that the gradient of the weights counts in all.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

from bench._common import make_parser

CONTENDERS = ("whole", "chunked", "recomputed", "torch")


def make_loss(name: str, weight: Any, chunk: int) -> Any:
    """Return loss(x, labels) of a contender, for a head with this weight."""
    import torch
    import torch.nn.functional as F

    from anyformer.model.heads import LMHead
    from anyformer.model.kernels import cross_entropy as kernel

    kernel.MAX_CPU_LOGITS = chunk
    head = LMHead(weight.shape[1], len(weight))
    head.project.weight = weight
    if name == "whole":
        return lambda x, labels: F.cross_entropy(head(x), labels)
    if name == "torch":
        options = torch.nn.LinearCrossEntropyOptions()
        return lambda x, labels: F.linear_cross_entropy(x, weight, labels, options=options)
    if name == "recomputed":  # as of a head that does not end with a linear map

        def call(x: torch.Tensor) -> torch.Tensor:
            return head(x)

        call.vocab_size = len(weight)  # ty: ignore[unresolved-attribute]
        return lambda x, labels: kernel.cross_entropy(call, x, labels)
    return lambda x, labels: kernel.cross_entropy(head, x, labels)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the contender in this process."""
    import torch

    torch.manual_seed(0)
    tokens = options.rows[0] * options.context
    x = torch.randn(tokens, options.dim).requires_grad_()
    weight = torch.nn.Parameter(torch.randn(options.vocab, options.dim) / options.dim**0.5)
    labels = torch.randint(0, options.vocab, (tokens,))
    loss_function = make_loss(options.contender, weight, options.chunk)
    before, start = current_bytes(), time.process_time()
    loss = loss_function(x, labels)
    loss.backward()
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    norms = [g.double().norm().item() for g in (x.grad, weight.grad)]
    return {"seconds": seconds, "bytes": peak, "loss": loss.item(), "gradient_norms": norms}


def current_bytes() -> int:
    """Return the resident size of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def main(options: argparse.Namespace) -> None:
    rows = []
    for n in options.rows:
        for name in options.contenders:
            command = [sys.executable, "-m", "bench.training.cross_entropy", *sys.argv[1:], "--contender", name]
            process = subprocess.run([*command, "--rows", str(n)], check=True, stdout=subprocess.PIPE)
            rows.append({"contender": name, "tokens": n * options.context} | json.loads(process.stdout))
            if not options.json:
                row, logits = rows[-1], 4 * n * options.context * options.vocab
                print(
                    f"{name:<10} {row['tokens']:>7,} tokens  {row['seconds']:6.2f} s  {row['bytes'] / 1e6:8,.0f} MB"
                    f"  (logits {logits / 1e6:,.0f} MB)  loss {row['loss']:.6f}  gradients"
                    f" {' '.join(f'{norm:.6f}' for norm in row['gradient_norms'])}"
                )
    if options.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    parser = make_parser(__doc__)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--rows", type=int, nargs="+", default=[2])
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--vocab", type=int, default=50_304)
    parser.add_argument("--chunk", type=int, default=1 << 24, help="entries of the logits that are computed at once")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        print(json.dumps(measure(arguments)))
    else:
        main(arguments)
