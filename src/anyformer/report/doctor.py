"""What this machine offers for training: processors, memory, measured speeds and optional packages.

    facts = examine()   # plain values, ready for --json
    describe(facts)     # rich tables and one line of advice

Speeds are measured, not looked up: a processor may support bfloat16 and still be slower with it.
"""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..data.io.cache import cache_dir, remove_damaged
from ..memory import read_memory

MIN_SPEEDUP = 1.15  # a smaller one is not worth another number format
OPTIONAL_PACKAGES = {
    "pyarrow": "read and write Parquet data",
    "soundfile": "read sound files",
    "soxr": "resample sound",
    "pillow": "read image files",
    "gguf": "read and write GGUF checkpoints",
    "onnxruntime": "export to ONNX",
    "gymnasium": "roll out agents in environments",
    "huggingface-hub": "fetch models and data sets of the Hugging Face hub",
    "gemmi": "compare contacts of an alignment with a structure",
    "llguidance": "hold answers to a schema, a regex or a grammar",
    "sacrebleu": "score translations (BLEU, chrF)",
    "jiwer": "score speech (word error rate)",
}


def examine() -> dict[str, Any]:
    """Return the facts as plain values. Takes a second or two and 300 MB of memory.

    Sizes are in bytes, speeds in GFLOP/s and GB/s (10^9). What this system does not tell is None.
    """
    import torch

    total, free = read_memory()
    return {
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "platform": platform.platform(),
        "processor": {"name": processor_name(), "architecture": platform.machine(), "cores": count_cores()},
        "memory": {"total_bytes": total, "free_bytes": free},
        "disk": {"folder": str(Path.cwd()), "free_bytes": shutil.disk_usage(Path.cwd()).free},
        "torch": {"version": torch.__version__, "threads": torch.get_num_threads(), "cuda": torch.version.cuda},
        "compile": check_compile(),
        "devices": list(_examine_devices()),
        "optional": [_check_package(*package) for package in OPTIONAL_PACKAGES.items()],
    }


def examine_cache() -> dict[str, Any]:
    """Read all of the cache, remove what is damaged, and return the facts as plain values."""
    n_folders, removed = remove_damaged()
    return {"folder": str(cache_dir()), "checked": n_folders, "removed": removed}


def processor_name() -> str | None:
    """Return the name of the processor, if the system tells it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith(("model name", "hardware")):
                return line.partition(":")[2].strip()
    return platform.processor() or None


def count_cores() -> int:
    """Return the logical cores that this process may use; in a container they can be fewer than the machine's."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def check_compile() -> dict[str, Any]:
    """Check what torch.compile needs: on a CPU a C++ compiler and Python's headers, on CUDA triton."""
    names = [os.environ.get("CXX"), "c++", "g++", "clang++", "cl"]
    compiler = next((path for name in names if name and (path := shutil.which(name))), None)
    headers = (Path(sysconfig.get_path("include")) / "Python.h").is_file()
    triton = importlib.util.find_spec("triton") is not None
    return {"cpu": bool(compiler and headers), "cuda": triton, "compiler": compiler, "python_headers": headers}


def _check_package(name: str, purpose: str) -> dict[str, Any]:
    version = None
    with suppress(importlib.metadata.PackageNotFoundError):
        version = importlib.metadata.version(name)
    return {"name": name, "installed": version is not None, "version": version, "for": purpose}


def _examine_devices() -> Iterator[dict[str, Any]]:
    import torch

    from ..training.device import has_native_bfloat16

    cpu = {"device": "cpu", "name": processor_name(), "bfloat16": has_native_bfloat16()}
    yield cpu | _measure_device("cpu", ("float32", "bfloat16"))  # float16 is slow on CPUs
    dtypes = ("float32", "bfloat16", "float16")
    for index in range(torch.cuda.device_count()) if torch.cuda.is_available() else ():
        properties, device = torch.cuda.get_device_properties(index), f"cuda:{index}"
        capability = f"{properties.major}.{properties.minor}"
        # before 8.0 (Ampere) bfloat16 is emulated, which torch also calls supported
        native = properties.major >= 8 if torch.version.cuda else torch.cuda.is_bf16_supported()
        facts = {"device": device, "name": properties.name, "memory_bytes": properties.total_memory}
        yield facts | {"capability": capability, "bfloat16": native} | _measure_device(device, dtypes)
    if torch.backends.mps.is_available():
        yield {"device": "mps", "name": processor_name()} | _measure_device("mps", dtypes)


def _measure_device(device: str, dtypes: tuple[str, ...]) -> dict[str, Any]:
    """Measure the speeds of a device; "problem" says why one could not be measured."""
    from ..training import hardware

    facts: dict[str, Any] = {"matmul_gflops": {}, "copy_gb_per_s": None, "problem": None}
    try:
        for name in dtypes:
            facts["matmul_gflops"][name] = hardware.measure_matmul_gflops(device, name)
        facts["copy_gb_per_s"] = hardware.measure_copy_bandwidth(device)
    except hardware.UNSUPPORTED_ERRORS as error:
        facts["problem"] = hardware.first_line(error)
    return facts


def advise(facts: dict[str, Any]) -> str:
    """Say in one line on which device and in which dtype to train here."""
    devices = [device for device in facts["devices"] if device["matmul_gflops"].get("float32")]
    if not devices:
        return "no device could multiply two matrices: reinstall torch"
    best = max(devices, key=lambda device: max(speed or 0 for speed in device["matmul_gflops"].values()))
    gflops = best["matmul_gflops"]
    ratio = (gflops.get("bfloat16") or 0) / gflops["float32"]
    flag = "" if best["device"] == "cpu" else f" --device {best['device'].partition(':')[0]}"
    if ratio >= MIN_SPEEDUP:
        return f"train with{flag} --dtype bfloat16: matrices multiply {ratio:.1f} × as fast as in float32 here"
    slower = f"bfloat16 measured {ratio:.1f} × float32" if ratio else "bfloat16 could not be measured"
    return f"train with{flag} --dtype float32: {slower} here"


def describe(facts: dict[str, Any]) -> Group:
    """Format the facts of `examine` for a terminal."""
    processor, torch, memory, disk, python = (facts[n] for n in ("processor", "torch", "memory", "disk", "python"))
    free, total = (_format_bytes(memory[f"{name}_bytes"]) for name in ("free", "total"))
    machine = Table.grid(padding=(0, 3))
    machine.add_column(style="dim", no_wrap=True)
    machine.add_column()
    machine.add_row("processor", f"{processor['name'] or 'unknown'} · {processor['architecture']}")
    machine.add_row("cores", f"{processor['cores']} · torch uses {torch['threads']}")
    machine.add_row("memory", f"{free} free of {total}")
    machine.add_row("disk", f"{_format_bytes(disk['free_bytes'])} free in {disk['folder']}")
    machine.add_row("system", facts["platform"])
    machine.add_row("python", f"{python['version']} · {python['executable']}")
    machine.add_row("torch", f"{torch['version']} · torch.compile {_format_compile(facts['compile'])}")
    packages = Table.grid(padding=(0, 3))
    for package in facts["optional"]:
        mark = Text("✓", style="green") if package["installed"] else Text("·", style="dim")
        packages.add_row(mark, package["name"], Text(package["version"] or "not installed", "dim"), package["for"])
    if "cache" in facts:
        cache = facts["cache"]
        counts = f"{cache['checked']} folders read in {cache['folder']}, {len(cache['removed'])} damaged"
        machine.add_row("cache", counts)
        for folder, damage in cache["removed"].items():
            machine.add_row("", f"removed {folder}: {damage}")
    return Group(
        add_title("This machine", machine),
        add_title("Speed, measured", _format_speeds(facts["devices"])),
        add_title("Optional packages", packages),
        Text.assemble(("→ ", "bold green"), (advise(facts), "bold")),
    )


def add_title(title: str, table: Table) -> Group:
    return Group(Text(title, style="bold"), Padding(table, (0, 0, 1, 2)))


def _format_speeds(devices: list[dict[str, Any]]) -> Table:
    dtypes = list(dict.fromkeys(name for device in devices for name in device["matmul_gflops"]))
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column("device")
    for name in dtypes:
        table.add_column(name, justify="right")
    table.add_column("memory copy", justify="right")
    table.add_column("")
    for device in devices:
        remarks = [device["name"] or "", f"capability {device['capability']}" if "capability" in device else ""]
        remarks += [_format_bytes(device["memory_bytes"]) if "memory_bytes" in device else ""]
        remarks += ["native bfloat16" if device.get("bfloat16") else "", device["problem"] or ""]
        speeds = [format_flops(device["matmul_gflops"].get(name)) for name in dtypes]
        copy = f"{device['copy_gb_per_s']:,.0f} GB/s" if device["copy_gb_per_s"] else "–"
        table.add_row(device["device"], *speeds, copy, Text(" · ".join(filter(None, remarks)), style="dim"))
    return table


def format_flops(gflops: float | None) -> str:
    if gflops is None:
        return "–"
    return f"{gflops / 1000:.1f} TFLOP/s" if gflops >= 1000 else f"{gflops:.0f} GFLOP/s"


def _format_bytes(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 2**30:.1f} GiB"


def _format_compile(parts: dict[str, Any]) -> str:
    if parts["cpu"]:
        return f"can work ({parts['compiler']})" + (", with triton" if parts["cuda"] else "")
    missing = "no C++ compiler" if not parts["compiler"] else "no Python.h: install Python's development headers"
    return f"cannot work on the CPU ({missing})"
