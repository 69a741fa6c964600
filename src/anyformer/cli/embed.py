"""anyformer embed RUN TEXT ...: texts become vectors, to compare and to search."""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ..errors import InputError
from .parse import parse, say
from .predict import lines, stdin
from .terminal import busy


@dataclass(frozen=True)
class Command:
    """The mean node of each text, scaled to length 1: the dot product of two vectors says how alike their texts are.
    Printed as a JSON list a line, or written as an array (N, C) of float32."""

    run: tyro.conf.Positional[Path]
    """A run of an encoder (masked, classify), a checkpoint, or a public one (BERT)."""
    input: tyro.conf.Positional[tuple[str, ...]] = ()
    """The texts; - reads stdin, one text a line."""
    file: Path | None = None
    """A file with one text a line."""
    out: Path | None = None
    """An .npy file to write the vectors to, instead of printing them."""
    cut: bool = False
    """Cut texts that are longer than the context instead of refusing them."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
    json: Annotated[bool, tyro.conf.arg(help="One JSON object on stdout, and nothing else there.")] = False

    def inputs(self) -> list[str]:
        given = [line for text in self.input for line in (stdin() if text == "-" else [text])]
        return given + ([] if self.file is None else lines(self.file))


def run(arguments: list[str]) -> int:
    asked = parse(Command, arguments, "anyformer embed")
    texts = asked.inputs()
    if not texts:
        raise InputError("there is nothing to embed: give texts, - for stdin, or --file FILE with a text a line")
    if asked.out is not None and asked.out.suffix != ".npy":
        raise InputError(f"--out {asked.out}: vectors are written as .npy; without --out they are printed as JSON")
    if asked.out is not None and not asked.out.parent.is_dir():
        raise InputError(f"--out {asked.out}: there is no folder {asked.out.parent}")
    from .. import api

    with busy():
        model = api.load(asked.run, asked.device)
        if model.name not in ("masked", "classify"):
            raise InputError(f"{asked.run} is a run of '{model.name}': only encoders (masked, classify) embed texts")
        vectors = model.predict({"embed": texts, "cut": asked.cut})["vectors"]
    about = {"run": str(asked.run), "texts": len(texts), "channels": len(vectors[0])}
    if asked.out is not None:
        write(asked.out, vectors)
        about["out"] = str(asked.out)
    if asked.json:
        print(json.dumps(about | ({"vectors": vectors} if asked.out is None else {})))
    elif asked.out is None:
        print("\n".join(map(json.dumps, vectors)))
    else:
        say(f"{asked.out}: {len(texts)} vectors of {len(vectors[0])} numbers")
    return 0


def write(path: Path, vectors: list[list[float]]) -> None:
    """An array that is there whole or not at all."""
    import numpy as np

    from ..training import run_directory as run

    array = io.BytesIO()
    np.save(array, np.array(vectors, np.float32), allow_pickle=False)
    try:
        run.write(path, array.getvalue())
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None
