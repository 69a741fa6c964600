"""anyformer predict RUN INPUT ...: ask a trained model of any recipe."""

import difflib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

from ..data.io.checks import parse_json
from ..errors import InputError
from ..inference.subtitles import find_subtitle_format, format_subtitles
from ..parsing import check_range
from ..recipe import SupportsArray, SupportsTranscription
from ..training.config import MAX_BATCH
from .flags import (
    HELP,
    POSITIONAL,
    CacheFlag,
    DeviceFlag,
    JsonFlag,
    RecipeFlag,
    RunArgument,
    WeightsFlag,
    list_flags,
    parse_arguments,
)
from .terminal import print_status, read_inputs, show_progress

PROG = "anyformer predict"


@dataclass(frozen=True)
class Command:
    """Print the model's answer to each input, one JSON object per line.

    An input is a text or the path of a file, by the recipe. Without inputs the
    recipe's example is answered. With --file and --out, the rows of a table are
    written with their predictions, in bounded memory:

        anyformer predict RUN --file new.csv --out scored.csv

    With --out FILE.srt or FILE.vtt, the words of a sound are written as
    subtitles:

        anyformer predict RUN talk.wav --out talk.srt

    With --out FILE.npy, the array that a model as a whole stands for is written,
    such as the map of an alignment's columns; with --out FILE.wav, what a model
    of speech says.

    Any other flag is a field of the recipe's request, with one value, or with
    several where it is given several times:

        anyformer predict RUN "The ____ sat" --order left --passes 4
        anyformer predict RUN a.jpg --choices "a cat" --choices "a dog" """

    run: RunArgument
    input: Annotated[tuple[str, ...], POSITIONAL] = ()
    """What to answer; - reads stdin: one input per line, or one sound or image."""
    file: Path | None = None
    """A file with one input per line; with --out also a csv, tsv, jsonl or parquet with the columns of the recipe's
    data."""
    out: Path | None = None
    """A .csv, .tsv or .jsonl file to write the rows of --file to, with their predictions; jsonl holds the full
    answers. A .srt or .vtt file is for the subtitles of a sound, a .npy file for an array, a .wav file for speech."""
    batch: int = 64
    """With --out: inputs that are answered together."""
    skip_broken: bool = False
    """With --out: leave out rows that cannot be read or answered, instead of stopping at the first."""
    request: Annotated[dict | None, """More of the recipe's request, as JSON: '{"beam": 4}'."""] = None
    recipe: RecipeFlag = None
    device: DeviceFlag = "auto"
    weights: WeightsFlag = "float32"
    cache_dtype: CacheFlag = "float32"
    json: JsonFlag = False

    def __post_init__(self) -> None:
        check_range(self, "batch", at_least=1, at_most=MAX_BATCH)


def run(words: list[str]) -> int:
    words, settings = split_settings(words)
    options = parse_arguments(Command, words, PROG)
    request: Any = {} if options.request is None else options.request
    if not isinstance(request, dict):
        raise InputError(f"--request should be a JSON object, found {json.dumps(request)}")
    answer(options, request | settings)
    return 0


def split_settings(words: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Return the words of the verb's own flags, and the fields of the request that the other flags set: JSON, or else
    text. What is nearly a flag of the verb is left to it, as a typing mistake."""
    names = {flag.name for flag in list_flags(Command)} | HELP
    own, settings = [], {}
    words = list(words)
    while words:
        word = words.pop(0)
        name, has_value, text = word.partition("=")
        name = name.replace("_", "-")
        if word == "--":
            own += [word, *words]
            break
        is_own = not word.startswith("--") or name in names or name.replace("--no-", "--", 1) in names
        if is_own or difflib.get_close_matches(name, names, n=1, cutoff=0.85):
            own.append(word)
            continue
        if not has_value:
            if not words or words[0].startswith("--"):
                raise InputError(f"{name} needs a value: of a switch {name} true")
            text = words.pop(0)
        field, value = name[2:].replace("-", "_"), read_setting(text)
        settings[field] = [*as_list(settings[field]), *as_list(value)] if field in settings else value
    return own, settings


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def read_setting(text: str) -> Any:
    try:
        return parse_json(text, "", kind=object)
    except InputError:
        return text


def answer(options: Command, request: dict[str, Any]) -> None:
    if options.out is not None and options.out.suffix.lower() == ".npy":
        return write_array(options, options.out, request)
    if options.out is not None and find_subtitle_format(options.out) is not None:
        return write_subtitles(options, options.out, request)
    if options.out is not None and options.out.suffix.lower() == ".wav":
        return write_sound(options, options.out, request)
    if options.out is not None:
        return write_file(options, options.out, request)
    with TemporaryDirectory() as folder:
        media = Path(folder) / "stdin"
        inputs = read_inputs(options.input, options.file, media)
        if not inputs and (options.input or options.file):
            raise InputError(f"there is nothing to answer: {options.file or 'stdin'} holds no lines")
        with show_progress():
            model = load_model(options)
            answer = model.predict(request | ({"input": inputs} if inputs else {}))
    for result in answer.get("results") or ():
        result |= {"input": "-"} if result.get("input") == str(media) else {}
    if options.json:
        print(json.dumps(answer | {"run": str(options.run), "step": model.step}, ensure_ascii=False))
        return
    for result in answer.get("results") or answer.get("samples") or [answer]:
        print(json.dumps(result, ensure_ascii=False))


def load_model(options: Command) -> Any:
    from .. import api

    names = ("weights", "cache_dtype", "recipe")
    return api.load(options.run, options.device, **{name: getattr(options, name) for name in names})


def write_subtitles(options: Command, out: Path, request: dict[str, Any]) -> None:
    """Write the transcript of one sound as subtitles."""
    from ..recipe_loading import recipes_with
    from ..training.run_directory import report_write_errors

    if options.file is not None or len(options.input) != 1:
        raise InputError(f"--out {out.name} is for the subtitles of one sound: name its file, and no --file")
    if not out.parent.is_dir():
        raise InputError(f"cannot write {out}: there is no folder {out.parent}")
    with show_progress(), TemporaryDirectory() as folder:
        (path,) = read_inputs(options.input, None, Path(folder) / "stdin")
        model = load_model(options)
        if not isinstance(model.recipe, SupportsTranscription):
            names = recipes_with(SupportsTranscription)
            raise InputError(f"{options.run} is a run of '{model.name}', not of {names}: it transcribes no sounds")
        result = model.recipe.transcribe(model.module, Path(path).expanduser(), request | {"words": True})
    with report_write_errors(str(out)):
        out.write_text(format_subtitles(result["words"], find_subtitle_format(out) or ""), encoding="utf-8")
    facts = {"seconds": result["seconds"], "words": len(result["words"])}
    if options.json:
        print(json.dumps({"run": str(options.run), "out": str(out), **facts}))
        return
    print_status(f"{out}: {facts['words']:,} words in {facts['seconds']:g} s of sound")


def write_array(options: Command, out: Path, request: dict[str, Any]) -> None:
    """Write the array of a model, and print its most telling values."""
    import numpy as np

    from ..recipe_loading import recipes_with
    from ..training.run_directory import report_write_errors

    if options.file is not None or options.input:
        raise InputError(f"--out {out.name} writes an array of the model as a whole: leave --file and the inputs out")
    if not out.parent.is_dir():
        raise InputError(f"cannot write {out}: there is no folder {out.parent}")
    with show_progress():
        model = load_model(options)
        if not isinstance(model.recipe, SupportsArray):
            names = recipes_with(SupportsArray)
            raise InputError(f"{options.run} is a run of '{model.name}', not of {names}: it stands for no array")
        array, lines = model.recipe.predict_array(model.module, request)
    with report_write_errors(str(out)), open(out, "wb") as file:
        np.save(file, array, allow_pickle=False)
    shape = list(array.shape)
    if options.json:
        print(json.dumps({"run": str(options.run), "out": str(out), "shape": shape, "lines": lines}))
        return
    for line in lines:
        print(json.dumps(line, ensure_ascii=False))
    print_status(f"{out}: {' x '.join(map(str, shape))} numbers")


def write_sound(options: Command, out: Path, request: dict[str, Any]) -> None:
    """Write the sounds of all inputs as one file."""
    from ..recipe import SupportsSpeaking
    from ..recipe_loading import recipes_with
    from ..training.run_directory import report_write_errors

    if not out.parent.is_dir():
        raise InputError(f"cannot write {out}: there is no folder {out.parent}")
    with TemporaryDirectory() as folder, show_progress():
        inputs = read_inputs(options.input, options.file, Path(folder) / "stdin")
        model = load_model(options)
        if not isinstance(model.recipe, SupportsSpeaking):
            names = recipes_with(SupportsSpeaking)
            raise InputError(f"{options.run} is a run of '{model.name}', not of {names}: it makes no sounds")
        content = model.recipe.record(model.module, request | ({"input": inputs} if inputs else {}))
    with report_write_errors(str(out)):
        out.write_bytes(content)
    if options.json:
        print(json.dumps({"run": str(options.run), "out": str(out), "step": model.step}))
    print_status(f"{out}: {len(inputs) or 'the'} inputs")


def write_file(options: Command, out: Path, request: dict[str, Any]) -> None:
    """Write the rows of --file with their predictions, and say how many."""
    if options.file is None or options.input:
        raise InputError("--out writes the predictions for --file FILE: name one, and no other inputs")
    with show_progress():
        model = load_model(options)
        start = time.monotonic()
        result = model.predict_file(options.file, out, options.batch, options.skip_broken, **request)
        seconds = time.monotonic() - start
    if options.json:
        facts = {"run": str(options.run), "step": model.step, "file": str(options.file), "out": str(out)}
        print(json.dumps(facts | result | {"seconds": round(seconds, 3)}, ensure_ascii=False))
        return
    skipped = f"; {result['skipped']:,} left out, the first: {result['first_skipped']}" if result["skipped"] else ""
    print_status(f"{out}: {result['rows']:,} rows, {result['rows'] / seconds:,.0f} per second{skipped}")
