"""Threads that wait for others sleep soon, so that they do not take the time of those on a busy machine."""

import os
import subprocess
import sys

import pytest

from anyformer.threads import SPIN_COUNT, limit_spinning


@pytest.mark.parametrize(
    ("variables", "expected"),
    [({}, SPIN_COUNT), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_the_environment_decides_if_it_says_how_threads_wait(
    monkeypatch: pytest.MonkeyPatch, variables: dict, expected: str | None
):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    limit_spinning()
    assert os.environ.get("GOMP_SPINCOUNT") == expected


@pytest.mark.parametrize("code", ["import anyformer; anyformer.InputError", "from anyformer import cli; cli.main()"])
def test_it_is_set_before_torch_is_loaded(code: str):
    code = f"import sys, os, atexit; atexit.register(lambda: print('spin', os.environ.get('GOMP_SPINCOUNT'))); {code}"
    variables = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=variables).stdout
    assert output.endswith(f"spin {SPIN_COUNT}\n")
