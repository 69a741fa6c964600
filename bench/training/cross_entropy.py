"""Memory and time of the cross-entropy over a large vocabulary: whole logits, in chunks, and torch's own chunked loss.

    python -m bench.training.cross_entropy                      a minute: 2 rows of 1,024 tokens, 50,304 entries
    python -m bench.training.cross_entropy --rows 1 2 4 8 --contenders whole chunked

Each contender runs in a process of its own: loss and gradients of a head, float32, CPU. Memory is the largest resident
size of the process less that before the loss, so that the gradient of the weights counts in all of them. The difference
to whole logits is the largest of any gradient, relative to the largest gradient.
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


def make_loss(name: str, chunk: int) -> Any:
    """Return loss(x, weight, labels) of a contender."""
    import torch
    import torch.nn.functional as F

    from anyformer.model.kernels import cross_entropy as kernel

    kernel.MAX_LOGITS = chunk

    class Head(torch.nn.Module):
        def __init__(self, weight: torch.Tensor):
            super().__init__()
            self.vocab_size, self.project = len(weight), torch.nn.Linear(1, 1, bias=False)
            self.project.weight = torch.nn.Parameter(weight)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.project(x)

    class LinearHead(Head):
        def transform(self, x: torch.Tensor) -> torch.Tensor:
            return x

    if name == "whole":
        return lambda x, weight, labels: F.cross_entropy(F.linear(x, weight), labels)
    if name == "torch":
        options = torch.nn.LinearCrossEntropyOptions()
        return lambda x, weight, labels: F.linear_cross_entropy(x, weight, labels, options=options)
    make_head = LinearHead if name == "chunked" else Head
    return lambda x, weight, labels: kernel.cross_entropy(make_head(weight), x, labels)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the contender in this process."""
    import torch

    torch.manual_seed(0)
    tokens = options.rows[0] * options.context
    x = torch.randn(tokens, options.dim).requires_grad_()
    weight = torch.nn.Parameter(torch.randn(options.vocab, options.dim) / options.dim**0.5)
    labels = torch.randint(0, options.vocab, (tokens,))
    loss_function = make_loss(options.contender, options.chunk)
    loss_function(x[:2], weight, labels[:2]).backward()  # threads, libraries
    gradients = None
    x.grad = weight.grad = None
    before, seconds = current_bytes(), []
    for _ in range(options.repeat):
        x.grad = weight.grad = gradients = None
        start = time.perf_counter()
        loss = loss_function(x, weight, labels)
        loss.backward()
        seconds.append(time.perf_counter() - start)
    gradients = [g for g in (x.grad, weight.grad) if g is not None]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    sums = [g.double().abs().sum().item() for g in gradients]
    return {"seconds": min(seconds), "bytes": peak, "loss": loss.item(), "gradient_sums": sums}


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
                    f"  (logits {logits / 1e6:,.0f} MB)  loss {row['loss']:.6f}"
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
    parser.add_argument("--chunk", type=int, default=1 << 25, help="entries of the logits that are computed at once")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        print(json.dumps(measure(arguments)))
    else:
        main(arguments)
