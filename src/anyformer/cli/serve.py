"""anyformer serve RUN ...: answer over HTTP, as OpenAI's clients ask, and show a page."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ..data.io.checks import read_text
from ..errors import InputError
from ..serve.options import ServerOptions
from .flags import POSITIONAL, REPEATABLE, CacheFlag, DeviceFlag, RecipeFlag, StoreFlag, WeightsFlag

KEY_VARIABLE = "ANYFORMER_API_KEY"


@dataclass(frozen=True)
class Command:
    """Answer requests over HTTP, until Ctrl-C: any OpenAI client, curl, or the page at /.

    Several models are served side by side, each by the name of its folder, or by
    another: NAME=RUN. Logs are JSON lines on stderr, without texts."""

    run: Annotated[
        tuple[str, ...],
        POSITIONAL,
        "Runs, checkpoints, public checkpoints, or owner/name on the hub, each RUN or NAME=RUN.",
    ]
    host: Annotated[str, "The address to listen on; 0.0.0.0 for every machine of the network."] = "127.0.0.1"
    port: Annotated[int, "The port to listen on; 0 takes any that is free."] = 8000
    api_key: Annotated[str | None, "A key that every client has to send. Default: $ANYFORMER_API_KEY, or none."] = None
    api_key_file: Annotated[
        Path | None, "A file with the key, which other users then cannot see in the list of processes."
    ] = None
    max_concurrent: Annotated[int, "Completions that a model computes together."] = 32
    max_queue: Annotated[int, "Completions, or other requests, that wait for a model; more get 429."] = 1000
    prefix_cache: Annotated[
        int | None,
        "Megabytes of each model for the beginnings of texts, which are then not read again; 0 for none. "
        "Default: a sixteenth of the memory, at most 1024.",
    ] = None
    max_tokens: Annotated[int, "The most new tokens of a completion, and of a chat that names no number."] = 4096
    timeout: Annotated[float, "Seconds that an answer may take."] = 600.0
    cors_origin: Annotated[
        tuple[str, ...],
        REPEATABLE,
        "A web page (https://example.org) that may use the server from a browser. May be repeated.",
    ] = ()
    store: StoreFlag = None
    recipe: RecipeFlag = None
    device: DeviceFlag = "auto"
    weights: WeightsFlag = "float32"
    cache_dtype: CacheFlag = "float32"

    def __post_init__(self) -> None:
        self.settings(self.api_key)

    def settings(self, key: str | None) -> ServerOptions:
        names = ("host", "port", "max_concurrent", "max_queue", "prefix_cache", "max_tokens", "timeout", "cors_origin")
        return ServerOptions(**{name: getattr(self, name) for name in names}, api_key=key)


def run(options: Command) -> None:
    key = read_key(options)
    from ..data.io.files import import_optional

    for name in ("starlette", "uvicorn", "python_multipart"):
        import_optional(name, "serving needs starlette, uvicorn and python-multipart: pip install 'anyformer[serve]'")
    from ..serve.app import build_app
    from ..serve.models import load_models
    from ..serve.server import Server, bind_socket

    settings = options.settings(key)
    listener = bind_socket(settings.host, settings.port)
    names = ("device", "weights", "cache_dtype", "recipe", "store")
    choices = {name: getattr(options, name) for name in names}
    # OpenMP keeps threads for every thread that has computed, until it ends; with more of them than cores all wait
    # longer for each other. The thread that loads ends, and this one computes nothing.
    with ThreadPoolExecutor(1) as loader:
        models = loader.submit(load_models, options.run, settings, **choices).result()
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    names = [model.name for model in models]
    print(f"serving {', '.join(names)} on {url} (Ctrl-C stops)", flush=True)
    try:
        Server(build_app(models, settings), settings, url, names).run(sockets=[listener])
    finally:
        for model in models:
            model.close()


def read_key(options: Command) -> str | None:
    """Return the key that clients have to send. Raises InputError."""
    if options.api_key is not None and options.api_key_file is not None:
        raise InputError("--api-key and --api-key-file exclude each other: one key, or the file with it")
    if options.api_key_file is not None:
        key = read_text(options.api_key_file, 1 << 16).strip()
    else:
        key = options.api_key if options.api_key is not None else os.environ.get(KEY_VARIABLE)
    if key is None:
        return None
    if not key.strip() or not key.isascii() or not key.isprintable():
        raise InputError("the API key must be printable ASCII characters, at least one")
    return key.strip()
