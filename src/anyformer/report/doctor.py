"""What this machine can do for a Transformer: what it has, and what it measures, in a few seconds.

    facts = examine()   # plain values, ready for --json
    describe(facts)     # the same for a person: a rich table and one line of advice

Speeds are measured, not looked up: a processor may know bfloat16 and still be slower with it.
"""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

OPTIONAL = (  # module, distribution, what it is for
    ("pyarrow", "pyarrow", "read and write Parquet data"),
    ("soundfile", "soundfile", "read sound files"),
    ("PIL", "pillow", "read image files"),
    ("gymnasium", "gymnasium", "play in control environments"),
    ("sacrebleu", "sacrebleu", "score translations (BLEU, chrF)"),
    ("jiwer", "jiwer", "score speech (word error rate)"),
    ("starlette", "starlette", "serve a model over HTTP"),
    ("uvicorn", "uvicorn", "serve a model over HTTP"),
)


def examine() -> dict[str, Any]:
    """Everything `describe` tells, as plain JSON-able values. Takes a second or two and 300 MB of memory.

    Bytes are bytes, speeds are GFLOP/s and GB/s (10^9). What cannot be found out on this system is None.
    """
    import torch

    total, free = memory()
    devices = [_cpu()]
    devices += [_cuda(index) for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    devices += [_mps()] if torch.backends.mps.is_available() else []
    return {
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "platform": platform.platform(),
        "processor": {"name": processor_name(), "architecture": platform.machine(), "cores": cores()},
        "memory": {"total_bytes": total, "free_bytes": free},
        "disk": {"folder": str(Path.cwd()), "free_bytes": shutil.disk_usage(Path.cwd()).free},
        "torch": {"version": torch.__version__, "threads": torch.get_num_threads(), "cuda": torch.version.cuda},
        "compile": compile_parts(),
        "devices": devices,
        "optional": [_optional(*part) for part in OPTIONAL],
    }


def processor_name() -> str | None:
    """The name on the processor, as well as this system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith(("model name", "hardware")):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or None


def cores() -> int:
    """The logical cores that this process may use, which in a container can be fewer than the machine has."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def memory() -> tuple[int | None, int | None]:
    """(total, free) bytes for this process: the machine's, or the container's limit where that is lower."""
    table = {}
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            key, _, value = line.partition(":")
            table[key] = int(value.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    total, free = table.get("MemTotal"), table.get("MemAvailable")
    if total is None:
        try:
            total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (AttributeError, OSError, ValueError):
            return None, None
    try:
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        total, free = min(total, limit), min(total if free is None else free, max(0, limit - used))
    except (OSError, ValueError):
        pass  # no container, or one without a limit ("max")
    return total, free


def compile_parts() -> dict[str, Any]:
    """What torch.compile needs on a CPU: a C++ compiler and Python's headers (on CUDA: triton)."""
    names = [os.environ.get("CXX"), "c++", "g++", "clang++", "cl"]
    compiler = next((found for name in names if name and (found := shutil.which(name))), None)
    headers = (Path(sysconfig.get_path("include")) / "Python.h").is_file()
    triton = importlib.util.find_spec("triton") is not None
    return {"cpu": bool(compiler and headers), "cuda": triton, "compiler": compiler, "python_headers": headers}


def _optional(module: str, distribution: str, purpose: str) -> dict[str, Any]:
    found = importlib.util.find_spec(module) is not None
    try:
        version = importlib.metadata.version(distribution) if found else None
    except importlib.metadata.PackageNotFoundError:
        version = None
    return {"name": distribution, "installed": found, "version": version, "for": purpose}


def _cpu() -> dict[str, Any]:
    from anyformer.training.device import has_native_bfloat16

    facts = {"device": "cpu", "name": processor_name(), "bfloat16": has_native_bfloat16()}
    return facts | _measured("cpu", ("float32", "bfloat16"))  # float16 needs a GPU to be worth having


def _cuda(index: int) -> dict[str, Any]:
    import torch

    about = torch.cuda.get_device_properties(index)
    facts = {
        "device": f"cuda:{index}",
        "name": about.name,
        "memory_bytes": about.total_memory,
        "capability": f"{about.major}.{about.minor}",
        # before 8.0 (Ampere) there is no unit for it, though torch calls the emulation supported
        "bfloat16": about.major >= 8 if torch.version.cuda else torch.cuda.is_bf16_supported(),
    }
    return facts | _measured(f"cuda:{index}", ("float32", "bfloat16", "float16"))


def _mps() -> dict[str, Any]:
    return {"device": "mps", "name": processor_name()} | _measured("mps", ("float32", "bfloat16", "float16"))


def _measured(device: str, dtypes: tuple[str, ...]) -> dict[str, Any]:
    """Speeds of one device; a dtype that it cannot multiply is None, and a broken device says why."""
    from anyformer.training import hardware as ceilings

    speeds: dict[str, float | None] = {}
    try:
        for name in dtypes:
            speeds[name] = ceilings.measure_matmul_gflops(device, name)
        return {"matmul_gflops": speeds, "copy_gb_per_s": ceilings.measure_copy_bandwidth(device), "problem": None}
    except ceilings.UNSUPPORTED_ERRORS as error:
        return {"matmul_gflops": speeds, "copy_gb_per_s": None, "problem": ceilings.first_line(error)}


def advice(facts: dict[str, Any]) -> str:
    """One line: what to train on here and in which dtype, from what was measured."""
    speeds = [one for one in facts["devices"] if one["matmul_gflops"].get("float32")]
    if not speeds:
        return "no device could multiply two matrices: reinstall torch"
    best = max(speeds, key=lambda one: max(speed or 0 for speed in one["matmul_gflops"].values()))
    gflops = best["matmul_gflops"]
    ratio = (gflops.get("bfloat16") or 0) / gflops["float32"]
    where = "" if best["device"] == "cpu" else f" --device {best['device'].partition(':')[0]}"
    if ratio >= 1.15:
        return f"train with{where} --dtype bfloat16: matrices multiply {ratio:.1f} × as fast as in float32 here"
    slower = f"bfloat16 measured {ratio:.1f} × float32" if ratio else "bfloat16 could not be measured"
    return f"train with{where} --dtype float32: {slower} here"


def describe(facts: dict[str, Any]) -> Group:
    """The facts of `examine` for a terminal: what is here, how fast it is, what is missing, what to do."""
    here = Table.grid(padding=(0, 3))
    here.add_column(style="dim", no_wrap=True)
    here.add_column()
    processor, torch, disk = facts["processor"], facts["torch"], facts["disk"]
    here.add_row("processor", f"{processor['name'] or 'unknown'} · {processor['architecture']}")
    here.add_row("cores", f"{processor['cores']} · torch uses {torch['threads']}")
    here.add_row("memory", f"{_bytes(facts['memory']['free_bytes'])} free of {_bytes(facts['memory']['total_bytes'])}")
    here.add_row("disk", f"{_bytes(disk['free_bytes'])} free in {disk['folder']}")
    here.add_row("system", facts["platform"])
    here.add_row("python", f"{facts['python']['version']} · {facts['python']['executable']}")
    here.add_row("torch", f"{torch['version']} · torch.compile {_compile(facts['compile'])}")
    parts = Table.grid(padding=(0, 3))
    for one in facts["optional"]:
        mark = Text("✓", style="green") if one["installed"] else Text("·", style="dim")
        parts.add_row(mark, one["name"], Text(one["version"] or "not installed", style="dim"), one["for"])
    return Group(
        section("This machine", here),
        section("Speed, measured", _speeds(facts["devices"])),
        section("Optional parts", parts),
        Text.assemble(("→ ", "bold green"), (advice(facts), "bold")),
    )


def section(title: str, table: Table) -> Group:
    """A table under its title."""
    return Group(Text(title, style="bold"), Padding(table, (0, 0, 1, 2)))


def _speeds(devices: list[dict[str, Any]]) -> Table:
    dtypes = list(dict.fromkeys(name for one in devices for name in one["matmul_gflops"]))
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column("device")
    for name in dtypes:
        table.add_column(name, justify="right")
    table.add_column("memory copy", justify="right")
    table.add_column("")
    for one in devices:
        remarks = [one["name"] or "", f"capability {one['capability']}" if "capability" in one else ""]
        remarks += [_bytes(one["memory_bytes"]) if "memory_bytes" in one else ""]
        remarks += ["native bfloat16" if one.get("bfloat16") else "", one["problem"] or ""]
        speeds = [flops(one["matmul_gflops"].get(name)) for name in dtypes]
        copy = f"{one['copy_gb_per_s']:,.0f} GB/s" if one["copy_gb_per_s"] else "–"
        table.add_row(one["device"], *speeds, copy, Text(" · ".join(filter(None, remarks)), style="dim"))
    return table


def flops(gflops: float | None) -> str:
    """A speed of matrix products for a person."""
    if gflops is None:
        return "–"
    return f"{gflops / 1000:.1f} TFLOP/s" if gflops >= 1000 else f"{gflops:.0f} GFLOP/s"


def _bytes(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 2**30:.1f} GiB"


def _compile(parts: dict[str, Any]) -> str:
    if parts["cpu"]:
        return f"can work ({parts['compiler']})" + (", with triton" if parts["cuda"] else "")
    missing = "no C++ compiler" if not parts["compiler"] else "no Python.h: install Python's development headers"
    return f"cannot work on the CPU ({missing})"
