"""What a server does, and how much of it at a time. Imports no torch."""

from dataclasses import dataclass

from ..parsing import check_range, check_types


@dataclass(frozen=True)
class ServerOptions:
    """The settings of a server. Raises InputError on values that make no sense."""

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    max_concurrent: int = 32
    """Completions that a model computes together."""
    max_queue: int = 1000
    """Completions, or other requests, that wait for a model."""
    prefix_cache: int | None = None
    """Megabytes for each model, for what texts began with that were read. None: a part of the memory; 0: none."""
    max_tokens: int = 4096
    """The most new tokens of a completion."""
    timeout: float = 600.0
    """Seconds that an answer may take."""
    cors_origin: tuple[str, ...] = ()
    """Other pages that may use the server from a browser."""

    def __post_init__(self) -> None:
        check_types(self)
        check_range(self, "port", at_least=0, at_most=65535)
        check_range(self, "max_concurrent", at_least=1, at_most=4096)
        check_range(self, "max_queue", at_least=0, at_most=1_000_000)
        check_range(self, "prefix_cache", at_least=0, at_most=1 << 24)
        check_range(self, "max_tokens", at_least=1, at_most=10_000_000)
        check_range(self, "timeout", at_least=0.01, at_most=1e6)
