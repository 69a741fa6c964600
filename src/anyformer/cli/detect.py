"""anyformer detect: what data are, and which recipe trains on them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from .flags import POSITIONAL, JsonFlag


@dataclass(frozen=True)
class Command:
    """Say what data are taken for, why, and which recipe trains on them: the one that
    anyformer train PATH takes."""

    path: Annotated[Path, POSITIONAL]
    """A file or a folder."""
    json: JsonFlag = False


def run(options: Command) -> None:
    from ..detection import detect_recipe

    detection = detect_recipe(options.path)
    print(json.dumps(detection.to_json()) if options.json else detection.describe())
