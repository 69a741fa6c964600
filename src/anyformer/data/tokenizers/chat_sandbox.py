"""The process that renders chat templates: a template is a program in Jinja, and comes with a checkpoint.

`python -m anyformer.data.tokenizers.chat_sandbox SECONDS` answers requests until its input ends, a JSON line each, of
several chats. A template gets the variables and functions of the public library and no others, and the length of each
value is bounded.
What no check inside of Python can bound, a single long call or many large values, the operating system does: at a limit
of memory, and one of CPU time for each request, the process dies. macOS does not enforce that of memory, Windows has
neither: there, only the time is limited, by `chat_template`.
"""

import functools
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from .chat_template import MAX_MEMORY, MEMORY_EXIT

MAX_TEXT_CHARACTERS = 1 << 22  # of any value that a template builds
MAX_TEMPLATES = 4  # that are kept compiled
# Methods of texts, and filters, whose result can be much longer than the text.
WIDENING_METHODS = {"center", "expandtabs", "ljust", "rjust", "translate", "zfill"}
WIDENING_FILTERS = ("center", "format", "indent", "batch", "slice", "wordwrap", "xmlattr", "pprint", "urlize")


def main() -> None:
    """Answer requests {"template", "values" of several chats} by {"texts"} or {"error", "index"}."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which closes the input
    limit_memory()
    compile_template = functools.lru_cache(MAX_TEMPLATES)(BoundedSandbox().from_string)
    for line in sys.stdin.buffer:
        limit_seconds(int(sys.argv[1]))
        texts: list[str] = []
        try:
            request = json.loads(line)
            template = compile_template(request["template"])
            for values in request["values"]:
                texts.append(template.render(**values))
            answer = json.dumps({"texts": texts})
        except MemoryError:
            os._exit(MEMORY_EXIT)
        except Exception as error:  # foreign code may fail in any way
            reason = "".join(c if c.isprintable() else " " for c in str(error)[:10_000])
            reason = " ".join(reason.split())[:300] or type(error).__name__
            answer = json.dumps({"error": reason, "index": len(texts)})
        print(answer, flush=True)


def limit_memory() -> None:
    """Bound the memory of this process, where the system can."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        pages = int(Path("/proc/self/statm").read_text().split()[0]) if sys.platform == "linux" else 0
        size = pages * resource.getpagesize() + MAX_MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (size, size))


def limit_seconds(seconds: int) -> None:
    """Let the system end this process after so many more seconds of CPU time, where it can."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + 1 + seconds, hard))


class ConcatToJoin(NodeTransformer):
    """Replace a ~ b, which a sandbox cannot intercept, by the filter `join`, which is bounded."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802 (the name is Jinja's)
        self.generic_visit(node)
        return nodes.Filter(nodes.List(node.nodes), "join", [], [], None, None, lineno=node.lineno)


class BoundedSandbox(ImmutableSandboxedEnvironment):
    """The sandbox of Jinja, with bounds on the length of texts and lists and on the size of numbers."""

    intercepted_binops = frozenset(["*", "**", "+", "%"])

    def __init__(self) -> None:
        extensions = [loopcontrols, Generation]
        super().__init__(finalize=check_size, trim_blocks=True, lstrip_blocks=True, extensions=extensions)
        filters: dict[str, Any] = {name: f for name, f in self.filters.items() if name not in WIDENING_FILTERS}
        filters |= {"tojson": tojson, "join": join, "replace": replace, "indent": indent}
        self.filters = {name: bound_filter(value) for name, value in filters.items()}
        functions: dict[str, Any] = {"raise_exception": raise_exception, "strftime_now": strftime_now}
        self.globals.update(functions)
        self.globals.pop("lipsum", None)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return ConcatToJoin().visit(super()._parse(source, name, filename))

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        return "".join(to_texts(parts))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return not (isinstance(obj, str) and attr in WIDENING_METHODS) and super().is_safe_attribute(obj, attr, value)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and not (abs(left) < 1 << 20 and abs(right) <= 64):
            raise jinja2.TemplateError("it raises a number to too high a power")
        if operator == "*" and isinstance(left, str | list | tuple) | isinstance(right, str | list | tuple):
            sizes = [len(x) if isinstance(x, str | list | tuple) else abs(x) for x in (left, right)]
            check_count(sizes[0] * sizes[1])
        if operator == "%" and isinstance(left, str):
            raise jinja2.TemplateError("it formats with %, which is not supported")
        return check_length(super().call_binop(context, operator, left, right))

    def call(self, context: Any, function: Any, /, *values: Any, **named: Any) -> Any:
        owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
        if isinstance(owner, str) and name == "replace" and len(values) >= 2:
            return replace(owner, *values, **{k: v for k, v in named.items() if k == "count"})  # no _loop_vars of Jinja
        if isinstance(owner, str) and name == "join" and len(values) == 1:
            return check_length(owner.join(to_texts(values[0], len(owner))))
        return super().call(context, function, *values, **named)


class Generation(Extension):
    """{% generation %} ... {% endgeneration %} marks the trained part; here it has no effect."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def check_count(n: int) -> None:
    if n > MAX_TEXT_CHARACTERS:
        raise jinja2.TemplateError(f"it makes a text of more than {MAX_TEXT_CHARACTERS:,} characters")


def check_length(value: Any) -> Any:
    check_count(len(value) if isinstance(value, str | list | tuple | range) else 0)
    if isinstance(value, int) and value.bit_length() > 4096:
        raise jinja2.TemplateError("it makes a number of more than 4,096 bits")
    return value


def check_size(value: Any) -> Any:
    """Return a value that is not too long when written out: a list may contain another one many times."""
    total, stack = 0, [value]
    while stack and isinstance(value, list | tuple | dict):
        item = stack.pop()
        total += len(item) + 1 if isinstance(item, str | list | tuple | dict) else 1
        check_count(total)
        if isinstance(item, dict):
            stack += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple):
            stack += item
    return value


def bound_filter(filter: Callable[..., Any]) -> Callable[..., Any]:
    """Check the size of a filter's arguments and of its result."""

    @functools.wraps(filter)
    def wrapper(*values: Any, **named: Any) -> Any:
        for value in (*values, *named.values()):
            check_size(value)
        return check_length(filter(*values, **named))

    return wrapper


def to_texts(parts: Iterable[Any], separator_length: int = 0) -> list[str]:
    """Convert parts that are not too long together."""
    texts, total = [], 0
    for part in parts:
        texts.append(str(check_size(part)))
        total += len(texts[-1]) + separator_length
        check_count(total)
    return texts


# --- filters and functions of templates ---


def join(value: Iterable[Any], d: str = "", attribute: str | None = None) -> str:
    parts = (part[attribute] for part in value) if attribute else value
    return str(d).join(to_texts(parts, len(str(d))))


def replace(text: Any, old: Any, new: Any, count: int | None = -1) -> str:
    text, old, new = str(text), str(old), str(new)
    check_count(len(text) + (len(text) + 1 if not old else text.count(old)) * len(new))
    return text.replace(old, new, -1 if count is None else count)


def indent(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    space = width if isinstance(width, str) else " " * min(width, 100)
    lines = str(text).splitlines() or [""]
    indented = [line if (i == 0 and not first) or not (line or blank) else space + line for i, line in enumerate(lines)]
    return "\n".join(to_texts(indented))


def tojson(
    x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    space = min(indent, 100) if isinstance(indent, int) else None
    options: dict[str, Any] = {"ensure_ascii": ensure_ascii, "separators": separators, "sort_keys": sort_keys}
    return check_length(json.dumps(x, indent=space, **options))


def raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def strftime_now(form: str) -> str:
    return datetime.now().strftime(form[:1000])


if __name__ == "__main__":
    main()
