"""anyformer detect: what data are, and which recipe trains on them."""

import json
from dataclasses import dataclass
from typing import Annotated

from .flags import POSITIONAL, JsonFlag
from .terminal import show_progress


@dataclass(frozen=True)
class Command:
    """Say what data are taken for, why, and which recipe trains on them: the one that
    anyformer train PATH takes."""

    path: Annotated[str, POSITIONAL]
    """A file or a folder, a URL, a named set, or owner/name of a data set on the Hugging Face hub."""
    json: JsonFlag = False


def run(options: Command) -> None:
    from ..detection import detect_recipe

    with show_progress():
        detection = detect_recipe(options.path)
    print(json.dumps(detection.to_json()) if options.json else detection.describe())
