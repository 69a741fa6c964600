"""anyformer embed RUN TEXT ...: turn texts into vectors, to compare and to search."""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ..errors import InputError
from .flags import POSITIONAL, DeviceFlag, JsonFlag, RecipeFlag
from .terminal import print_status, read_inputs, show_progress


@dataclass(frozen=True)
class Command:
    """Turn texts into vectors of length 1: the mean of a text's nodes, or the first
    one if the checkpoint says so, normalized.

    The dot product of two vectors is the similarity of their texts. Vectors are
    printed as one JSON list per line, or written as a float32 array (N, C)."""

    run: Annotated[
        Path, POSITIONAL, "A run of an encoder, or a public one (BERT and others): a folder, or owner/name on the hub."
    ]
    input: Annotated[tuple[str, ...], POSITIONAL, "The texts; - reads stdin, one text per line."] = ()
    file: Annotated[Path | None, "A file with one text per line."] = None
    out: Annotated[Path | None, "An .npy file to write the vectors to, instead of printing them."] = None
    cut: Annotated[bool, "Cut texts that are longer than the context instead of refusing them."] = False
    recipe: RecipeFlag = None
    device: DeviceFlag = "auto"
    json: JsonFlag = False


def run(options: Command) -> None:
    texts, out = read_inputs(options.input, options.file), options.out
    if not texts:
        raise InputError("there is nothing to embed: give texts, - for stdin, or --file FILE with one text per line")
    if out is not None and (out.suffix != ".npy" or out.is_dir()):
        raise InputError(f"--out {out}: vectors are written as an .npy file; without --out they are printed as JSON")
    if out is not None and not out.parent.is_dir():
        raise InputError(f"--out {out}: there is no folder {out.parent}")
    import numpy as np

    from .. import api
    from ..training.run_directory import atomic_write

    with show_progress():
        model = api.load(options.run, options.device, recipe=options.recipe)
        vectors = model.embed(texts, options.cut)
    facts = {"run": str(options.run), "texts": len(texts), "channels": len(vectors[0])}
    if out is not None:
        array = io.BytesIO()
        np.save(array, np.array(vectors, np.float32), allow_pickle=False)
        atomic_write(out, array.getvalue())
        facts["out"] = str(out)
    if options.json:
        print(json.dumps(facts | ({"vectors": vectors} if out is None else {})))
    elif out is None:
        print("\n".join(map(json.dumps, vectors)))
    else:
        print_status(f"{out}: {len(texts)} vectors of {len(vectors[0])} numbers")
