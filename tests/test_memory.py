"""What does not fit into memory is an error of the process that asks for it."""

import subprocess
import sys
from pathlib import Path

import pytest

from anyformer.memory import read_memory

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists(), reason="no limit here"
)


def run_code(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout


def test_a_limit_makes_a_large_array_an_error():
    code = "bytearray(1 << 30)\nexcept MemoryError: print('refused')"
    assert run_code(f"from anyformer.memory import limit_memory\ntry: limit_memory(1 << 28); {code}") == "refused\n"


def test_the_command_may_take_what_the_machine_has():
    code = "import atexit, resource; atexit.register(lambda: print(resource.getrlimit(resource.RLIMIT_DATA)[0]))"
    assert run_code(f"{code}; from anyformer import cli; cli.main()").endswith(f"\n{read_memory()[0]}\n")
