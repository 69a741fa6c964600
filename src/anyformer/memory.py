"""How much memory this process may take. Imports no torch."""

import os
from contextlib import suppress
from pathlib import Path


def read_memory() -> tuple[int | None, int | None]:
    """Return (total, free) bytes for this process: of the machine, or the limit of the container if that is lower."""
    total = free = None
    with suppress(AttributeError, OSError, ValueError):
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError, KeyError):  # Linux
        table = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        total, free = (int(table[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    if total is None:
        return None, None
    with suppress(OSError, ValueError):  # no container, or one without a limit ("max")
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
        total, free = min(total, limit), min(total if free is None else free, max(0, limit - used))
    return total, free


def read_resident_memory() -> int:
    """Return how many bytes of memory this process has, 0 where the system does not say."""
    with suppress(AttributeError, OSError, ValueError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def limit_memory(size: int | None) -> None:
    """Let this process take no more than so many bytes, so that what does not fit is an error here, instead of the end
    of any process that the kernel chooses. On Linux, and not with a GPU, whose driver reserves more than it uses."""
    if size is None or Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists():
        return
    with suppress(ImportError, OSError, ValueError):  # Windows has none, and a limit may only be lowered
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (size if most < 0 else min(size, most), most))
