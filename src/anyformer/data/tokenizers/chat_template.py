"""Messages to text by a checkpoint's own chat template: a small program in Jinja, so it is run in a sandbox.

The template sees what the public library shows it, and no more. What it may cost is bounded: the size of its source,
how many steps it takes, and how long any text grows that it makes.
"""

import functools
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from types import FrameType
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from ...errors import InputError

MAX_SOURCE_CHARACTERS = 1 << 18  # characters of a template
MAX_TEXT_CHARACTERS = 1 << 22  # characters of anything it makes
MAX_STEPS = 1_000_000  # lines of a template that are run
MAX_SECONDS = 20.0
WIDENING = {"center", "expandtabs", "format", "format_map", "ljust", "rjust", "translate", "zfill"}  # methods of texts
FILTERS = ("center", "format", "indent", "batch", "slice", "wordwrap", "xmlattr", "pprint", "urlize")  # these too
TOO_LONG = f"it makes a text of more than {MAX_TEXT_CHARACTERS:,} characters"


def render_chat(template: str, messages: Any, names: Mapping[str, str], begin: bool = True) -> str:
    """What the model reads: `messages` by the template, and (`begin`) the beginning of its answer.

    `names`: bos_token, eos_token and the like. Raises InputError for messages that are none, and for a template that
    fails, refuses them, or would take too long.
    """
    check(messages)
    if len(template) > MAX_SOURCE_CHARACTERS:
        raise InputError(f"the chat template has {len(template):,} characters, more than {MAX_SOURCE_CHARACTERS:,}")
    before = sys.gettrace()
    try:
        sandbox = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation])
        compiled = sandbox.from_string(template)
        values = {"messages": json.loads(json.dumps(messages)), "tools": None, "documents": None}
        sys.settrace(Steps())
        return compiled.render(**names, **values, add_generation_prompt=begin)
    except Exception as e:  # a program of others may fail in any way
        reason = " ".join(str(e).split())[:300] or type(e).__name__
        raise InputError(f"the chat template cannot render these messages: {reason}") from None
    finally:
        sys.settrace(before)


def check(messages: Any) -> None:
    """Raises InputError unless this is a list of {"role": ..., "content": ...}."""
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise InputError(f'messages should be a list of {{"role": ..., "content": ...}}, found {str(messages)[:60]!r}')
    for i, message in enumerate(messages):
        fine = isinstance(message, Mapping) and {"role", "content"} <= message.keys()
        if not fine or not all(isinstance(message[name], str) for name in ("role", "content")):
            raise InputError(f"message {i}: expected an object with the texts role and content, found {message!r:.80}")


class Steps:
    """Counts the lines that a template runs, in this thread."""

    def __init__(self) -> None:
        self.left, self.until = MAX_STEPS, time.monotonic() + MAX_SECONDS

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename != "<template>":
            return None
        self.left -= 1
        if self.left < 0 or time.monotonic() > self.until:
            raise jinja2.TemplateError(f"it takes more than {MAX_STEPS:,} steps or {MAX_SECONDS:.0f} seconds")
        return self


class Joins(NodeTransformer):
    """a ~ b, which no sandbox sees, becomes a filter, which ours bounds."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802 (the name is Jinja's)
        self.generic_visit(node)
        return nodes.Filter(nodes.List(node.nodes), "join", [], [], None, None, lineno=node.lineno)


class Sandbox(ImmutableSandboxedEnvironment):
    """The sandbox of Jinja, which in addition lets no text grow without bound."""

    intercepted_binops = frozenset(["*", "**", "+", "%"])

    def __init__(self, **more: Any):
        super().__init__(finalize=weighed, **more)
        own: dict[str, Any] = {"tojson": tojson, "join": join, "replace": replace, "indent": indent}
        kept = {name: value for name, value in self.filters.items() if name not in FILTERS}
        self.filters = {name: careful(value) for name, value in (kept | own).items()}
        seen: dict[str, Any] = self.globals
        seen |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
        self.globals.pop("lipsum", None)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return Joins().visit(super()._parse(source, name, filename))

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        return "".join(counted(parts))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return not (isinstance(obj, str) and attr in WIDENING) and super().is_safe_attribute(obj, attr, value)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and not (abs(left) < 1 << 20 and abs(right) <= 64):
            raise jinja2.TemplateError("it raises a number to too high a power")
        if operator == "*":
            sizes = [len(x) if isinstance(x, str | list | tuple) else abs(x) for x in (left, right)]
            if isinstance(left, str | list | tuple) or isinstance(right, str | list | tuple):
                bounded(range(int(sizes[0] * sizes[1])))
        if operator == "%" and isinstance(left, str):
            raise jinja2.TemplateError("it formats with %, which is not supported")
        return bounded(super().call_binop(context, operator, left, right))

    def call(self, context: Any, function: Any, /, *values: Any, **named: Any) -> Any:
        owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
        if isinstance(owner, str) and name == "replace" and len(values) >= 2:
            return replace(owner, *values, **named)
        if isinstance(owner, str) and name == "join" and len(values) == 1:
            return bounded(owner.join(counted(values[0], len(owner))))
        return super().call(context, function, *values, **named)


class Generation(Extension):
    """{% generation %} ... {% endgeneration %} marks what is learnt; here it is only read through."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def bounded(value: Any) -> Any:
    if isinstance(value, str | list | tuple | range) and len(value) > MAX_TEXT_CHARACTERS:
        raise jinja2.TemplateError(TOO_LONG)
    if isinstance(value, int) and value.bit_length() > 4096:
        raise jinja2.TemplateError("it makes a number of more than 4,096 bits")
    return value


def weighed(value: Any) -> Any:
    """The value, unless it is longer written out than it may be: a list can hold itself doubled, many times over."""
    left, stack = MAX_TEXT_CHARACTERS, [value]
    while stack and isinstance(value, list | tuple | dict):
        one = stack.pop()
        left -= len(one) + 1 if isinstance(one, str | list | tuple | dict) else 1
        if left < 0:
            raise jinja2.TemplateError(TOO_LONG)
        if isinstance(one, dict):
            stack += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple):
            stack += one
    return value


def careful(filter: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that is given and gives nothing too large."""

    @functools.wraps(filter)
    def inner(*values: Any, **named: Any) -> Any:
        for value in (*values, *named.values()):
            weighed(value)
        return bounded(filter(*values, **named))

    return inner


def counted(parts: Iterable[Any], between: int = 0) -> list[str]:
    """The parts as texts, as long as all together are not too long."""
    found, total = [], 0
    for part in parts:
        found.append(str(weighed(part)))
        total += len(found[-1]) + between
        if total > MAX_TEXT_CHARACTERS:
            raise jinja2.TemplateError(TOO_LONG)
    return found


# --- what a template may call ---


def join(value: Iterable[Any], d: str = "", attribute: str | None = None) -> str:
    parts = (part[attribute] for part in value) if attribute else value
    return str(d).join(counted(parts, len(str(d))))


def replace(text: Any, old: Any, new: Any, count: int | None = -1) -> str:
    text, old, new = str(text), str(old), str(new)
    if len(text) + (len(text) + 1 if not old else text.count(old)) * len(new) > MAX_TEXT_CHARACTERS:
        raise jinja2.TemplateError(TOO_LONG)
    return text.replace(old, new, -1 if count is None else count)


def indent(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    space = width if isinstance(width, str) else " " * min(width, 100)
    lines = str(text).splitlines() or [""]
    shown = [line if (i == 0 and not first) or not (line or blank) else space + line for i, line in enumerate(lines)]
    return "\n".join(counted(shown))


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    space = min(indent, 100) if isinstance(indent, int) else None
    return bounded(
        json.dumps(value, ensure_ascii=ensure_ascii, indent=space, separators=separators, sort_keys=sort_keys)
    )


def raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def strftime_now(form: str) -> str:
    return datetime.now().strftime(form[:1000])
