"""The simulator of a cluster: what must hold of any such model, and the table that it was written to reproduce."""

import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench.scale import simulate as scale
from bench.scale.simulate import GPUS, IDEAL, MODELS, Cluster, Step, simulate

ROOT = Path(__file__).parent.parent.parent
PAPER = replace(IDEAL, rails=1)  # one ring over the network, as the table assumes


@pytest.mark.parametrize(
    ("name", "gpus", "shard", "tokens", "compute", "communication", "bare", "overlapped"),
    [
        ("124M", 8, 1, 1 << 19, 0.140, 0.0025, 0.98, 1.0),
        ("124M", 512, 1, 1 << 19, 0.0022, 0.0049, 0.31, 0.38),
        ("124M", 512, 1, 1 << 22, 0.0176, 0.0049, 0.78, 1.0),
        ("7B", 512, 8, 1 << 22, 0.89, 0.26, 0.77, 1.0),
        ("7B", 512, 512, 1 << 22, 0.89, 1.07, 0.45, 0.81),
    ],
)
def test_cases_computed_by_hand(name, gpus, shard, tokens, compute, communication, bare, overlapped):
    """400 TFLOP/s achieved a GPU, NVLink 350 GB/s, InfiniBand 50 GB/s a GPU."""
    step = simulate(MODELS[name], gpus, shard, tokens, PAPER)
    assert step.compute == pytest.approx(compute, rel=0.03)
    assert step.communication == pytest.approx(communication, rel=0.03)
    assert step.ideal / (step.ideal + step.communication) == pytest.approx(bare, abs=0.01)
    assert step.efficiency == pytest.approx(overlapped, abs=0.01)


def list_cases(cluster: Cluster) -> dict[tuple[str, int, str], Step]:
    return {
        (name, gpus, kind): step
        for name, gpus in itertools.product(MODELS, GPUS)
        for kind, shard in scale.list_shards(gpus, cluster).items()
        if (step := simulate(MODELS[name], gpus, shard, 0, cluster)) is not None
    }


BASE = list_cases(Cluster())


@pytest.mark.parametrize(
    "better",
    [
        {"nvlink": 900e9},
        {"network": 100e9},
        {"nvlink_latency": 0.0, "network_latency": 0.0},
        {"overlap": 1.0},
        {"launch": 0.0},
        {"memory_bandwidth": 5e12},
        {"peak": 2e15},
        {"validation": 0.0},
    ],
    ids=str,
)
def test_a_better_cluster_is_never_slower(better: dict[str, float]):
    steps = list_cases(replace(Cluster(), **better))
    assert steps.keys() == BASE.keys()
    assert all(steps[case].seconds <= BASE[case].seconds + 1e-12 for case in BASE)
    assert any(steps[case].seconds < 0.995 * BASE[case].seconds for case in BASE)


def test_one_gpu_communicates_nothing_and_nothing_exceeds_the_ideal():
    for (_, gpus, _), step in BASE.items():
        assert (step.communication == 0) == (gpus == 1) and 0 < step.efficiency < 1
        assert 0 <= step.exposed <= step.communication + 1e-12
        assert step.memory <= scale.USABLE * Cluster().memory


def test_memory_falls_with_the_shard_and_so_does_what_fits():
    for model in MODELS.values():
        sizes = [scale.count_memory(model, shard, 4096, False) for shard in (2, 8, 64, 512)]
        assert sizes == sorted(sizes, reverse=True)
        kept, again = (scale.count_memory(model, 8, 65536, checkpoints) for checkpoints in (False, True))
        assert again < kept
    assert simulate(MODELS["7B"], 64, 1) is None, "112 GB of weights, gradients and moments"
    assert simulate(MODELS["70B"], 8, 8) is None
    assert simulate(MODELS["124M"], 1024, 1) is None, "an update has 512 sequences"
    with pytest.raises(ValueError, match="cannot be divided"):
        simulate(MODELS["7B"], 12, 8)


def test_accumulation_makes_fsdp_gather_again_and_ddp_not():
    small = replace(Cluster(), memory=60e9)
    model = MODELS["1.3B"]
    for shard, ratio in ((1, 1.0), (8, 2.0)):
        once, twice = (scale.communicate(model, 8, shard, n, small) for n in (1, 2))
        assert sum(twice) == pytest.approx(ratio * sum(once))


def test_a_ring_over_the_network_uses_all_rails():
    model = MODELS["7B"]
    single, eight = (scale.communicate(model, 512, 512, 1, replace(IDEAL, rails=rails)) for rails in (1, 8))
    assert sum(single) > 6 * sum(eight)
    assert scale.reduce_seconds(1e9, 8, 1, IDEAL) == pytest.approx(2 * 7 / 8 * 1e9 / IDEAL.nvlink)


def test_the_page_holds_the_tables_of_today_and_the_chart_is_drawn():
    page = (ROOT / "docs" / "scale.md").read_text()
    assert scale.format_table(Cluster()) in page and scale.format_limits(Cluster()) in page
    assert (ROOT / "docs" / "scale.svg").read_text() == str(scale.draw(Cluster()))
    step = scale.find_best(MODELS["7B"], 512)
    lines = list(scale.describe(step, Cluster()))
    assert lines[0].startswith("HSDP 8 on 512 GPUs") and "MFU" in lines[-1]
    assert next(scale.describe(None, Cluster())).startswith("not possible")


@pytest.mark.slow
def test_the_model_of_one_node_beside_real_processes():
    command = [sys.executable, "-m", "bench.scale.calibrate", "--processes", "1", "2", "--seconds", "3", "--json"]
    process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    alone, together = json.loads(process.stdout)
    assert "latency_ms" not in alone and together["gb_per_s"] > 0
    assert 0.4 < together["measured_of_predicted"] < 2.5, "the machine may be busy"
