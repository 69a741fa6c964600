"""How fast a training on many GPUs should be, on paper: 124M to 70B parameters, 1 to 4,096 GPUs, DDP, HSDP and FSDP.

    python -m bench.scale.simulate                                    the table of docs/scale.md
    python -m bench.scale.simulate --model 7B --gpus 512 --tokens 4194304 --shard 8       one case, part by part
    python -m bench.scale.simulate --svg docs/scale.svg
    python -m bench.scale.calibrate                                   the model against real processes on this machine

What is counted: products of matrices at a share of the peak; gradients reduced during the last backward pass; weights
gathered block by block during each forward and backward pass; the latency of rings and trees; the optimizer's reads and
writes; kernel launches, below which no step falls; memory. The formulas are those of nanoGPT (FLOPs), NCCL (rings) and
2205.05198 (activations).
"""

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

BYTES_OPTIMIZER = 28  # read and written per parameter: weight, gradient and two moments in float32
BYTES_STATE = 16  # kept per parameter: the same in float32
BUCKET = 25e6  # bytes of gradients that DDP reduces at once
ACTIVATION_BYTES = 34  # per token, channel and layer, with a fused attention (2205.05198, section 4.1)
LOGIT_BYTES = 10  # per token and entry of the vocabulary: bfloat16, float32 and the gradient
CHECKPOINT_BYTES = 2  # per token, channel and layer, where only the input of a block is kept
TIE = 0.02  # by which a way that shares more must be faster
USABLE = 0.92  # of the memory: the libraries' share and fragments take the others


@dataclass(frozen=True)
class Model:
    """A language model, and the tokens of an update that are usual for its size."""

    parameters: float
    layers: int
    dim: int
    context: int
    tokens: int
    vocab: int = 50304

    @property
    def flops_per_token(self) -> float:
        """Forward and backward, as nanoGPT counts them."""
        return 6 * self.parameters + 12 * self.layers * self.dim * self.context


MODELS = {
    "124M": Model(124e6, 12, 768, 1024, 1 << 19),
    "350M": Model(354e6, 24, 1024, 1024, 1 << 19),
    "1.3B": Model(1.31e9, 24, 2048, 2048, 1 << 20),
    "7B": Model(6.74e9, 32, 4096, 2048, 1 << 22, 32000),
    "13B": Model(13.0e9, 40, 5120, 2048, 1 << 22, 32000),
    "70B": Model(69e9, 80, 8192, 4096, 1 << 24, 128256),
}
GPUS = tuple(1 << i for i in range(13))


@dataclass(frozen=True)
class Cluster:
    """GPUs in nodes. Defaults: H100 SXM, NVSwitch, and a 400 Gbit/s InfiniBand card for each GPU."""

    peak: float = 989e12
    """FLOP/s in bfloat16, dense."""
    achieved: float = 400 / 989
    """Share of the peak in the products and all that lies between them, on one GPU."""
    memory: float = 80e9
    memory_bandwidth: float = 2.7e12
    node: int = 8
    """GPUs of a node."""
    nvlink: float = 350e9
    """Bytes a second that a GPU sends within its node."""
    network: float = 50e9
    """Bytes a second that a network card sends."""
    rails: int = 8
    """Network cards of a node that a ring over all GPUs uses: NCCL builds a ring for each, where every GPU has one."""
    nvlink_latency: float = 1e-6
    network_latency: float = 6e-6
    """Seconds of a hop."""
    launch: float = 0.24e-3
    """Seconds of launching the kernels of a layer, forward and backward: about 60."""
    overlap: float = 0.9
    """Share of the communication that can hide behind computation, where there is enough of it."""
    validation: float = 0.01
    """Share of the time that goes into validation and checkpoints."""


IDEAL = Cluster(nvlink_latency=0, network_latency=0, launch=0, memory_bandwidth=math.inf, overlap=1, validation=0)
"""Nothing but products and bytes."""


@dataclass(frozen=True)
class Step:
    """The seconds of an update on each GPU, and its memory."""

    gpus: int
    shard: int
    """How many GPUs share one copy of weights, gradients and optimizer: 1 is DDP, `gpus` is FSDP, between them HSDP."""
    tokens: int
    """Of an update, all GPUs together."""
    micro_batches: int
    checkpoints: bool
    """Whether only the input of each block is kept for the backward pass, which computes the block again."""
    compute: float
    communication: float
    exposed: float
    """Communication that no computation hides."""
    optimizer: float
    seconds: float
    memory: float
    ideal: float
    """Seconds if there were nothing but products at the achieved speed."""

    @property
    def efficiency(self) -> float:
        return self.ideal / self.seconds

    @property
    def speed(self) -> float:
        """Tokens per second of all GPUs."""
        return self.tokens / self.seconds

    @property
    def kind(self) -> str:
        if self.shard == 1:
            return "DDP" if self.gpus > 1 else "alone"
        return "FSDP" if self.shard == self.gpus else f"HSDP {self.shard}"


# --- communication ---


def ring_seconds(size: float, gpus: int, calls: int, cluster: Cluster) -> float:
    """Return the seconds of gathering `size` bytes on each of `gpus`, or of reducing and scattering them, in `calls`
    calls. A ring passes every byte over each link; between nodes as many rings run as there are rails."""
    if gpus == 1:
        return 0.0
    nodes = math.ceil(gpus / cluster.node)
    bandwidth = cluster.nvlink if nodes == 1 else min(cluster.nvlink, cluster.network * cluster.rails)
    hops = (gpus - nodes) * cluster.nvlink_latency + (nodes - 1) * cluster.network_latency
    return (gpus - 1) / gpus * size / bandwidth + calls * hops


def reduce_seconds(size: float, gpus: int, calls: int, cluster: Cluster) -> float:
    """Return the seconds of adding up `size` bytes over all GPUs: reduced and scattered within the node, each part over
    its own network card between nodes (a ring or a tree, whichever is sooner), and gathered within the node."""
    local, nodes = min(gpus, cluster.node), math.ceil(gpus / cluster.node)
    seconds = 2 * ring_seconds(size, local, calls, cluster)
    if nodes > 1:
        seconds += 2 * (nodes - 1) / nodes * size / local / cluster.network
        seconds += calls * 2 * min(nodes - 1, math.log2(nodes)) * cluster.network_latency
    return seconds


def replica_seconds(size: float, replicas: int, calls: int, cluster: Cluster, is_within_node: bool) -> float:
    """Return the seconds of adding up a shard's gradient over the copies of it, which lie on different nodes (or, of
    shards smaller than a node, partly on the same)."""
    if replicas == 1:
        return 0.0
    bandwidth = cluster.nvlink if is_within_node else cluster.network
    latency = cluster.nvlink_latency if is_within_node else cluster.network_latency
    hops = 2 * min(replicas - 1, math.log2(replicas))
    return 2 * (replicas - 1) / replicas * size / bandwidth + calls * hops * latency


def communicate(model: Model, gpus: int, shard: int, micro_batches: int, cluster: Cluster) -> tuple[float, float]:
    """Return the seconds of communication in all forward passes, and in all backward passes, of an update."""
    gradient, weights = 4 * model.parameters, 2 * model.parameters  # float32 and bfloat16
    if shard == 1:  # the gradient is reduced once, in the last backward pass
        return 0.0, reduce_seconds(gradient, gpus, math.ceil(gradient / BUCKET), cluster)
    calls = model.layers + 1
    gather = ring_seconds(weights, shard, calls, cluster)
    scatter = ring_seconds(gradient, shard, calls, cluster)
    copies = replica_seconds(gradient / shard, gpus // shard, calls, cluster, gpus <= cluster.node)
    return micro_batches * gather, micro_batches * (gather + scatter) + copies


# --- memory ---


def count_memory(model: Model, shard: int, tokens: float, checkpoints: bool) -> float:
    """Return the bytes of a GPU: state of the weights, the copy that is computed with, activations of a micro-batch."""
    state = BYTES_STATE * model.parameters / shard
    block = model.parameters / model.layers
    copies = 2 * model.parameters if shard == 1 else 3 * (2 + 4) * block  # bfloat16; or blocks on their way
    per_layer = CHECKPOINT_BYTES if checkpoints else ACTIVATION_BYTES
    activations = tokens * model.dim * (per_layer * model.layers + (ACTIVATION_BYTES if checkpoints else 0))
    return state + copies + activations + LOGIT_BYTES * tokens * model.vocab


def choose_micro_batch(model: Model, gpus: int, shard: int, tokens: int, cluster: Cluster) -> tuple[int, bool] | None:
    """Return the fewest micro-batches of an update that fit into memory, and whether blocks must be computed again.
    None if nothing fits, or if the update has fewer sequences than there are GPUs."""
    sequences = tokens // model.context // gpus
    for checkpoints in (False, True):
        count = 1
        while sequences and count <= sequences:
            share = math.ceil(sequences / count) * model.context
            if count_memory(model, shard, share, checkpoints) <= USABLE * cluster.memory:
                return count, checkpoints
            count *= 2
    return None


# --- an update ---


def simulate(model: Model, gpus: int, shard: int, tokens: int = 0, cluster: Cluster = Cluster()) -> Step | None:
    """Return an update on so many GPUs; None if it is not possible: memory, or too few sequences.

    Raises:
        ValueError: If the GPUs cannot be divided into shards.
    """
    if gpus % shard:
        raise ValueError(f"{gpus} GPUs cannot be divided into shards of {shard}")
    tokens = tokens or model.tokens
    choice = choose_micro_batch(model, gpus, shard, tokens, cluster)
    if choice is None:
        return None
    micro_batches, checkpoints = choice
    ideal = model.flops_per_token * tokens / gpus / (cluster.peak * cluster.achieved)
    forward, backward = ideal / 3, ideal * (1.0 if checkpoints else 2 / 3)
    floor = model.layers * cluster.launch * micro_batches
    forward, backward = max(forward, floor / 3), max(backward, floor * 2 / 3)
    gather, reduce = communicate(model, gpus, shard, micro_batches, cluster)
    # DDP reduces during the last backward pass only, FSDP communicates in all of them
    window = backward / micro_batches if shard == 1 else backward
    exposed = sum(
        max(seconds - compute, (1 - cluster.overlap) * seconds)
        for seconds, compute in ((gather, forward), (reduce, window))
    )
    optimizer = BYTES_OPTIMIZER * model.parameters / shard / cluster.memory_bandwidth
    seconds = (forward + backward + exposed + optimizer) / (1 - cluster.validation)
    memory = count_memory(model, shard, math.ceil(tokens / gpus / micro_batches), checkpoints)
    times = (forward + backward, gather + reduce, exposed, optimizer, seconds)
    return Step(gpus, shard, tokens, micro_batches, checkpoints, *times, memory, ideal)


def list_shards(gpus: int, cluster: Cluster) -> dict[str, int]:
    """Return the ways to share a model: name -> GPUs of a shard."""
    shards = {"DDP": 1}
    shards |= {"HSDP": cluster.node} if gpus > cluster.node else {}
    return shards | ({"FSDP": gpus} if gpus > 1 else {})


def find_best(model: Model, gpus: int, tokens: int = 0, cluster: Cluster = Cluster()) -> Step | None:
    """Return the fastest way, of nearly equal ones that which shares least; None if none is possible."""
    shards = list_shards(gpus, cluster).values()
    steps = [step for shard in shards if (step := simulate(model, gpus, shard, tokens, cluster))]
    fastest = max((step.speed for step in steps), default=0.0)
    return next((step for step in steps if step.speed >= (1 - TIE) * fastest), None)


def find_limits(model: Model, cluster: Cluster = Cluster(), share: float = 0.5) -> dict[str, int | None]:
    """Return for each way the most GPUs with at least this efficiency; None if there are none."""
    limits: dict[str, int | None] = {"DDP": None, "HSDP": None, "FSDP": None}
    for gpus in GPUS:
        for name, shard in list_shards(gpus, cluster).items():
            step = simulate(model, gpus, shard, 0, cluster)
            if step is not None and step.efficiency >= share:
                limits[name] = gpus
    return limits


# --- what is printed ---


def format_table(cluster: Cluster, gpus: Sequence[int] = (1, 8, 64, 512, 4096)) -> str:
    """Return a table in Markdown: for each model the fastest way, its tokens per second, its MFU and its memory."""
    lines = ["| model, tokens an update | " + " | ".join(f"{n:,} GPU{'s' * (n > 1)}" for n in gpus) + " |"]
    lines.append("|---" * (len(gpus) + 1) + "|")
    for name, model in MODELS.items():
        cells = [format_cell(find_best(model, n, 0, cluster), cluster) for n in gpus]
        lines.append(f"| {name}, {model.tokens / 2**20:.1f}M | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def format_cell(step: Step | None, cluster: Cluster) -> str:
    if step is None:
        return "–"
    mfu = step.efficiency * cluster.achieved
    return f"{format_number(step.speed)} tok/s, {mfu:.0%}, {step.kind}, {step.memory / 1e9:.0f} GB"


def format_number(value: float) -> str:
    size, unit = next((s, u) for s, u in ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1, "")) if value >= s or s == 1)
    return f"{value / size:.3g}{unit}"


def format_limits(cluster: Cluster) -> str:
    lines = ["| model | DDP | HSDP 8 | FSDP |", "|---|---|---|---|"]
    for name, model in MODELS.items():
        cells = ("–" if n is None else f"{n:,}" for n in find_limits(model, cluster).values())
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(cluster: Cluster) -> str:
    """Return a chart of the efficiency of the fastest way by the number of GPUs, as SVG."""
    from anyformer.report.chart import Series, line_chart

    def line(color: int, name: str) -> Series:
        steps = [(math.log2(n), find_best(MODELS[name], n, 0, cluster)) for n in GPUS]
        points = [(x, 100 * step.efficiency) for x, step in steps if step is not None]
        return Series(name, [x for x, _ in points], [y for _, y in points], color, dots=True)

    lines = [line(color, name) for color, name in enumerate(("124M", "350M", "1.3B", "7B", "70B"))]
    title = "Efficiency of the fastest way, in percent"
    return line_chart(lines, title=title, x_label="log2 of GPUs", zero=True)


def describe(step: Step | None, cluster: Cluster) -> Iterator[str]:
    """Yield the lines that describe one case."""
    if step is None:
        yield "not possible: it does not fit into memory, or there are fewer sequences than GPUs"
        return
    yield f"{step.kind} on {step.gpus:,} GPUs, {step.tokens:,} tokens an update in {step.micro_batches} micro-batches"
    activations = "each block computed again" if step.checkpoints else "activations kept"
    yield f"  {activations}, {step.memory / 1e9:.1f} GB a GPU"
    for name in ("compute", "communication", "exposed", "optimizer", "seconds"):
        yield f"  {name:<14} {1e3 * getattr(step, name):10.2f} ms"
    bare = step.ideal / (step.ideal + step.communication)
    yield f"  efficiency     {step.efficiency:10.2f}    without overlap {bare:.2f}"
    yield f"  tokens/s       {format_number(step.speed):>10}    a GPU {format_number(step.speed / step.gpus)}"
    yield f"  MFU            {step.efficiency * cluster.achieved:10.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=MODELS)
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=0, help="of an update; by default usual for the size")
    parser.add_argument("--shard", type=int, help="GPUs that share one copy; by default the fastest")
    parser.add_argument("--context", type=int)
    parser.add_argument("--svg", type=Path)
    parser.add_argument("--json", action="store_true")
    for name, value in asdict(Cluster()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    options = parser.parse_args()
    cluster = Cluster(**{name: getattr(options, name) for name in asdict(Cluster())})
    if options.svg:
        options.svg.write_text(draw(cluster))
        return
    if not options.model:
        print(format_table(cluster), format_limits(cluster), sep="\n\n")
        return
    model = MODELS[options.model]
    model = replace(model, context=options.context or model.context)
    shard = options.shard
    step = find_best(model, options.gpus, options.tokens, cluster)
    step = step if shard is None else simulate(model, options.gpus, shard, options.tokens, cluster)
    if options.json:
        print(json.dumps(step and asdict(step) | {"efficiency": step.efficiency, "tokens_per_second": step.speed}))
    else:
        print("\n".join(describe(step, cluster)))


if __name__ == "__main__":
    main()
