"""The command line: anyformer VERB ...

Answers go to stdout, progress and complaints to stderr. Exit 0: done. 2: the input was wrong, in one line that says
what, where, and what would be right. 1: anything else.
"""

import errno
import importlib
import keyword
import os
import sys
import traceback
from typing import NoReturn

VERBS = {
    "train": "train a recipe on data of yours or a set by name",
    "sample": "let a trained language model write on from a prompt",
    "predict": "ask a trained model of any recipe: texts, files",
    "embed": "texts become vectors, to compare and to search",
    "rollout": "play episodes in an environment, to keep and learn from",
    "eval": "loss and its kin over the whole validation split",
    "ladder": "what came before the Transformer beside it: same data, same time",
    "worth": "what each field of a row is worth to a trained model",
    "import": "a public checkpoint (a folder, a GGUF file) becomes a run",
    "export": "a run becomes a public checkpoint, a GGUF or an ONNX file",
    "list": "recipes, presets with their sizes, data sets",
    "doctor": "what this machine can do",
    "bench": "what this machine reaches: training, answers, tokens",
}

HELP = f"""anyformer: any data, one Transformer

usage: anyformer VERB ... [--help]

{chr(10).join(f"  {verb:<8} {what}" for verb, what in VERBS.items())}

  anyformer train language                     a minute on two cores: the plays of Shakespeare
  anyformer train language --data my.txt       on your own text
  anyformer sample runs/language-my-1 --prompt "Once upon a time"
"""


def main(arguments: list[str] | None = None) -> NoReturn:
    """The entry point of the `anyformer` command."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run one command; returns its exit code."""
    from ..errors import InputError, TrainingError, suggest

    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0 if arguments else 2
    verb, rest = arguments[0], arguments[1:]
    try:
        if verb == "--version":
            from .. import __version__

            print(__version__)
            return 0
        if verb not in VERBS:
            raise InputError(f"there is no verb '{verb}': {suggest(verb, VERBS)}")
        return importlib.import_module(f"{__name__}.{verb_module(verb)}").run(rest)
    except InputError as error:
        return complain(str(error), 2)
    except TrainingError as error:
        return complain(str(error), 1)
    except KeyboardInterrupt:
        return complain("interrupted", 1)
    except BrokenPipeError:  # whoever read our output has gone; nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, MemoryError, RuntimeError) as error:
        if (short := lacking(error)) is None:
            raise
        return complain(short, 2)


def verb_module(verb: str) -> str:
    """The file of a verb; a word of Python's own gets a trailing underscore."""
    return f"{verb}_" if keyword.iskeyword(verb) else verb


REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
LOWER = "--train.batch (and raise --train.accumulate as much), --model.context or the size of the model"


def lacking(error: BaseException) -> str | None:
    """What the machine has too little of, and what to do about it; None if that is not what went wrong."""
    if isinstance(error, OSError) and error.errno in REFUSALS:
        return f"the disk refuses ({error}): free some space, or point --out or $ANYFORMER_CACHE elsewhere"
    return f"out of memory: lower {LOWER} ({first_line(error)})" if out_of_memory(error) else None


def out_of_memory(error: BaseException) -> bool:
    text = f"{type(error).__name__} {error}".lower()
    return (
        isinstance(error, MemoryError) or "outofmemory" in text or "out of memory" in text or "allocate memory" in text
    )


def first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def complain(text: str, code: int) -> int:
    if os.environ.get("ANYFORMER_TRACEBACK"):
        traceback.print_exc()
    print("anyformer: " + " ".join(text.split()), file=sys.stderr)
    return code
