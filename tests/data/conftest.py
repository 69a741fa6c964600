"""Shards that tests of several files read."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from hub_kit import Hub, serve_hub
from shard_kit import serve_folder, write_numbers


@pytest.fixture
def numbers(tmp_path: Path) -> str:
    """3,000 ids in 15 shards, the last 300 for validation."""
    return write_numbers(tmp_path / "numbers", 3000, 200, 2700)


@pytest.fixture
def mirror(numbers: str) -> Iterator[tuple[Hub, str]]:
    with serve_hub(Hub()) as hub:
        yield hub, serve_folder(hub, Path(numbers))
