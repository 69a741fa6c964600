"""The command line: anyformer VERB ...

Answers go to stdout, progress and errors to stderr. Exit code 0: done. 2: the input was wrong, in one line that says
what, where, and what would be right. 1: anything else.
"""

import errno
import importlib
import keyword
import os
import re
import sys
import traceback
from typing import NoReturn

from ..data.io.regular_file import shorten
from ..errors import HangError, InputError, TrainingError, suggest
from ..memory import limit_memory, read_memory
from ..processes import EXIT_FILE, get_world_size, is_first, name_process
from ..threads import limit_spinning

VERBS = {
    "train": "train on your data, or a recipe on a data set by name",
    "detect": "say what your data are, and which recipe trains on them",
    "shard": "turn texts larger than a machine into shards of tokens",
    "sample": "continue a prompt with a trained language model",
    "chat": "a conversation with a language model in the terminal",
    "predict": "ask a trained model of any recipe",
    "embed": "turn texts into vectors",
    "index": "store a text for a language model to look things up in",
    "rollout": "play episodes in an environment, to learn from",
    "serve": "answer over HTTP, as OpenAI's clients ask, and show a page",
    "eval": "metrics over the whole validation split",
    "runs": "what was trained: scores, sizes, states; remove, prune, open",
    "sweep": "search for a better config, and train it",
    "compare": "runs side by side: scores, configs, loss curves",
    "ladder": "compare the Transformer with what came before it",
    "worth": "what each field of a row is worth to a trained model",
    "lab": "experiments of the lecture, each with its report",
    "lens": "see inside a model while it answers an input",
    "import": "turn a public checkpoint into a run",
    "export": "write a run as a public checkpoint, a GGUF or an ONNX file",
    "list": "recipes, presets with their sizes, data sets",
    "doctor": "what this machine can do",
    "bench": "how fast this machine trains, generates and tokenizes",
}

MAX_ERROR_CHARS = 1000
MAY_RESTART = 75  # the exit code of what is not this process's fault (EX_TEMPFAIL)

HELP = f"""anyformer: any data, one Transformer

usage: anyformer VERB ... [--help]

{chr(10).join(f"  {verb:<8} {text}" for verb, text in VERBS.items())}

  anyformer train language                   a minute on two cores: plays
  anyformer train my_data --minutes 10       on your own data of any kind
  anyformer train language --data my.txt     on your own text
  anyformer train ./my_recipe.py             a recipe of your own
  anyformer sample runs/language-my-1 --prompt "Once upon a time"
"""


def main() -> NoReturn:
    """The entry point of the `anyformer` command."""
    limit_spinning()
    limit_memory(read_memory()[0])
    if get_world_size() > 1:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # warnings of torch.distributed
    if not is_first():
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (until the end): the first process shows all
    try:
        code = run(sys.argv[1:])
    except Exception:
        sys.stderr, code = sys.__stderr__, 1
        traceback.print_exc()
    sys.exit(end_process(code))


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code; errors become one line."""
    try:
        return run_verb(arguments)
    except InputError as error:
        return print_error(str(error), 2)
    except HangError as error:
        return print_error(str(error), MAY_RESTART)
    except TrainingError as error:
        return print_error(str(error), 1)
    except KeyboardInterrupt:
        return print_error("interrupted", 1)
    except BrokenPipeError:  # nobody reads our output anymore
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, MemoryError, RuntimeError) as error:
        message = describe_shortage(error)
        if message is None and is_consequence(error):
            return print_error(f"another process has ended ({str(error).splitlines()[0]})", MAY_RESTART)
        if message is None:
            raise
        return print_error(message, 2)


def run_verb(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0 if arguments else 2
    verb, *words = arguments
    if verb == "--version":
        from .. import __version__

        print(__version__)
        return 0
    if verb not in VERBS:
        raise InputError(f"there is no verb '{verb}': {suggest(verb, VERBS)}")
    module = importlib.import_module(f"{__name__}.{verb_module(verb)}")
    if verb in ("train", "sweep", "predict", "lab"):  # some of their flags are those of a recipe, or of a lab
        return module.run(words)
    from .flags import parse_arguments

    module.run(parse_arguments(module.Command, words, f"anyformer {verb}"))
    return 0


def verb_module(verb: str) -> str:
    """The module of a verb; keywords of Python get a trailing underscore."""
    return f"{verb}_" if keyword.iskeyword(verb) else verb


DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


def describe_shortage(error: BaseException) -> str | None:
    """Say what the machine has too little of, and what to do about it, or which file it cannot use; None for any other
    error."""
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        return f"the disk refuses ({error}): free some space, or point --out or $ANYFORMER_CACHE elsewhere"
    if isinstance(error, OSError) and error.filename:  # a loop of links, a name that is too long
        return f"{shorten(error.filename)}: {error.strerror or error}"
    kind, text = type(error).__name__, str(error)
    if not (isinstance(error, MemoryError) or re.search("out ?of ?memory|allocate memory", f"{kind} {text}", re.I)):
        return None
    remedy = "lower --train.batch (and raise --train.accumulate as much), --model.context or the size of the model"
    return f"out of memory: {remedy} ({(text or kind).splitlines()[0]})"


def is_consequence(error: BaseException) -> bool:
    """Whether an error says that another process does not answer, or that a device has failed."""
    words = "gloo|nccl|connection|broken pipe|store|cuda error"
    return get_world_size() > 1 and re.search(words, str(error), re.I) is not None


def print_error(text: str, code: int) -> int:
    """Print one line on stderr, and a traceback if $ANYFORMER_TRACEBACK is set; return the exit code. Of several
    processes one prints it: the first that knows why it ends."""
    if get_world_size() > 1:
        from ..training.distributed import claim_failure

        if not claim_failure(code == MAY_RESTART):
            return code
        sys.stderr, text = sys.__stderr__, text if is_first() else f"{name_process()}: {text}"
    if os.environ.get("ANYFORMER_TRACEBACK"):
        traceback.print_exc()
    line = " ".join(text.split())
    if len(line) > MAX_ERROR_CHARS:
        line = f"{line[: MAX_ERROR_CHARS // 2]} ... {line[-MAX_ERROR_CHARS // 2 :]}"
    print(f"anyformer: {line}", file=sys.stderr)
    return code


def end_process(code: int) -> int:
    """Return the exit code of one of several processes. Where they are started again if one fails (`--processes`), an
    end that would be the same again is no failure: its code is written to a file."""
    path = os.environ.get(EXIT_FILE) if get_world_size() > 1 else None  # the one that starts them has it set too
    if path is None or code == 0:
        return code
    if code == MAY_RESTART:
        return 0 if os.path.exists(path) else code
    with open(path, "w") as file:
        file.write(str(code))
    return 0
