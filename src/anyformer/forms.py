"""The form of a recipe: what its model is asked and what it answers, for clients and for the page of the server.

A recipe says what a person can ask of it (`recipe.SupportsForm`). Types, ranges, defaults and help of the fields
are read from the dataclass of the request, so that nothing is written twice.
"""

import dataclasses
import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from .parsing import describe_type, read_field_docs, read_hints, read_ranges

Kind = Literal["text", "texts", "prompt", "messages", "image", "sound", "row", "series", "goal", "json"]
Output = Literal[
    "completions", "classes", "vectors", "masks", "gaps", "drafts", "tags", "translations", "transcripts", "targets",
    "quantiles", "actions", "episodes", "pictures", "tunes", "sounds", "json",
]  # fmt: skip
DIALECT = "https://json-schema.org/draft/2020-12/schema"
MAX_CHOICES = 1000  # of a field of a table that are listed
MAX_LINE = 80  # characters of an example among several
KEYWORDS = {"at_least": "minimum", "above": "exclusiveMinimum", "at_most": "maximum", "below": "exclusiveMaximum"}
TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", types.NoneType: "null"}


@dataclasses.dataclass(frozen=True)
class RowField:
    """A field of a row of a table; each may be missing."""

    name: str
    kind: Literal["choice", "number", "date", "text", "numbers", "image", "sound"]
    help: str = ""
    choices: tuple[str, ...] = ()
    usual: tuple[float, float] | None = None
    """The range of most values in training; others are answered too."""
    example: Any = None


@dataclasses.dataclass(frozen=True)
class Task:
    """One way to ask a model."""

    title: str
    kind: Kind
    """What a person gives. prompt, messages: also by the server's routes of completions, token by token."""
    request: Any
    """The dataclass of the request; but for the inputs, its fields are settings."""
    output: Output
    field: str = "input"
    """The field of the request that holds what a person gives."""
    nested: bool = False
    """This field holds the fields of `request`."""
    omit: tuple[str, ...] = ()
    """Fields of `request` that mean nothing here."""
    mark: str = ""
    """A text that the input must contain, for what is to be filled in."""
    row: tuple[RowField, ...] = ()
    usual: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    """Of settings, a range within which a person will choose."""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Settings that differ from the defaults of `request`, for a person who tries the model."""
    examples: tuple[Any, ...] = ()
    """Values of the input. None: a request without any is answered with an example."""


@dataclasses.dataclass(frozen=True)
class Form:
    """What a model can be asked, the most usual first."""

    tasks: tuple[Task, ...]


@dataclasses.dataclass(frozen=True)
class AnyRequest:
    """The request of a recipe that does not describe its own."""

    input: Any = None
    """A text, or any other value as JSON."""


DEFAULT_FORM = Form((Task("Ask", "json", AnyRequest, "json"),))


def add_examples(form: Form, request: Mapping[str, Any]) -> Form:
    """Return the form with the inputs of a request as its examples. Files are left out: their paths mean nothing to a
    client."""
    inputs, settings = request.get("input"), {name: value for name, value in request.items() if name != "input"}
    if not isinstance(inputs, list) or not inputs:
        return form

    def update(task: Task) -> Task:
        if task.kind == "texts" and all(isinstance(text, str) for text in inputs):
            lines = [" ".join(text.split())[:MAX_LINE] for text in inputs]  # of a list in a form
            return dataclasses.replace(task, examples=(lines,), settings={**task.settings, **settings})
        if task.field != "input" or task.kind not in ("text", "row", "json"):
            return task
        return dataclasses.replace(task, examples=tuple(inputs), settings={**task.settings, **settings})

    return Form(tuple(map(update, form.tasks)))


# --- JSON schema ---


def describe_form(form: Form, title: str = "", description: str = "") -> dict[str, Any]:
    """Return the JSON schema of the requests, with `$defs.response` for the answers and `x-tasks` for who draws a form:
    {"title", "kind", "field", "nested", "settings", "defaults", "output", "mark", "examples"} each."""
    properties: dict[str, Any] = {}
    for task in form.tasks:
        properties |= describe_fields(task)
    inputs = {task.field for task in form.tasks}
    answers = [describe_answer(output) for output in dict.fromkeys(task.output for task in form.tasks)]
    return {
        "$schema": DIALECT,
        "title": title,
        "description": description,
        "type": "object",
        "properties": properties,
        "additionalProperties": form is DEFAULT_FORM,
        "examples": [make_request(task, value) for task in form.tasks for value in task.examples[:1] or (None,)],
        "$defs": {"response": answers[0] if len(answers) == 1 else {"anyOf": answers}},
        "x-tasks": [describe_task(task, inputs) for task in form.tasks],
    }


def make_request(task: Task, value: Any = None) -> dict[str, Any]:
    """Return the request that holds an input; without one, the request that is answered with an example."""
    if task.nested:
        return {task.field: {**task.settings, **(value or {})}}
    return {} if value is None else {task.field: value, **task.settings}


def describe_task(task: Task, inputs: set[str]) -> dict[str, Any]:
    names = [name for name in list_fields(task) if task.nested or name not in inputs] if task.kind != "json" else []
    hints = {name: getattr(task, name) for name in ("title", "kind", "field", "nested", "output", "mark")}
    return hints | {"settings": names, "defaults": dict(task.settings), "examples": list(task.examples)}


def list_fields(task: Task) -> list[str]:
    """Return the fields of a request, those that its class inherits after its own."""
    names = [field.name for field in dataclasses.fields(task.request) if field.name not in task.omit]
    own = inspect.get_annotations(task.request)  # not of its __dict__, which holds none from Python 3.14 on
    return sorted(names, key=lambda name: name not in own)


def describe_fields(task: Task) -> dict[str, Any]:
    """Return the schemas of the fields that a task adds to the request."""
    fields = {name: describe_field(task, name) for name in list_fields(task)}
    if task.nested:
        return {task.field: {"type": "object", "properties": fields, "additionalProperties": False}}
    if task.kind == "row":
        rows = {field.name: describe_row_field(field) for field in task.row}
        fields[task.field] |= {"type": ["object", "array"], "properties": rows}
    return fields


def describe_field(task: Task, name: str) -> dict[str, Any]:
    """Return the schema of a field of a request: its type and range, its default and its help."""
    field = next(field for field in dataclasses.fields(task.request) if field.name == name)
    bounds = {KEYWORDS[word]: bound for word, bound in read_ranges(task.request).get(name, {}).items()}
    schema = describe_hint(read_hints(task.request)[name]) | bounds
    schema |= {"title": name.replace("_", " "), "description": read_field_docs(task.request).get(name, "")}
    if field.default_factory is not dataclasses.MISSING:
        schema["default"] = field.default_factory()
    elif field.default is not dataclasses.MISSING:
        schema["default"] = list(field.default) if isinstance(field.default, tuple) else field.default
    return schema | ({"x-usual": list(task.usual[name])} if name in task.usual else {})


def describe_hint(hint: Any) -> dict[str, Any]:
    """Return the JSON schema of a type hint; of one that JSON has no word for, any value and its name in words."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if hint in TYPES:
        return {"type": TYPES[hint]}
    if origin is Literal:
        return {"enum": list(options)}
    if origin in (types.UnionType, typing.Union):
        schemas = [describe_hint(option) for option in options]
        is_simple = all(list(schema) == ["type"] for schema in schemas)
        return {"type": [schema["type"] for schema in schemas]} if is_simple else {"anyOf": schemas}
    if origin in (list, tuple, Sequence):
        return {"type": "array", "items": describe_hint(options[0])}
    if origin in (dict, Mapping):
        return {"type": "object"}
    return {} if hint is Any else {"type": "string", "$comment": describe_type(hint)}


def describe_row_field(field: RowField) -> dict[str, Any]:
    """Return the schema of a field of a row; null: the value is missing."""
    choices = list(field.choices[:MAX_CHOICES]) or ([] if field.example is None else [field.example])
    names = {"number": ["number", "string", "null"], "choice": ["string", "number", "boolean", "null"]}
    names |= {"numbers": ["array", "string", "null"]}
    schema = {"type": names.get(field.kind, ["string", "null"]), "description": field.help, "x-kind": field.kind}
    return schema | {"examples": choices} | ({"x-usual": list(field.usual)} if field.usual else {})


# --- answers ---

TEXT, NUMBER, WHOLE = {"type": "string"}, {"type": "number"}, {"type": "integer"}
ANSWERS: dict[str, Any] = {
    # What a result holds in any case, in the words of `build_schema`.
    "completions": {"prompt": TEXT, "text": TEXT, "tokens": [WHOLE], "finish_reason": TEXT},
    "tunes": {"prompt": TEXT, "text": TEXT, "tune": TEXT, "bars": WHOLE, "complete": WHOLE, "sounds": [[NUMBER]]},
    "classes": {"label": TEXT, "probability": NUMBER, "probabilities": {"string": NUMBER}},
    "masks": {"input": TEXT, "text": TEXT, "masks": [[{"token": TEXT, "probability": NUMBER}]]},
    "gaps": {"input": TEXT, "text": TEXT, "gaps": [TEXT], "score": NUMBER},
    "drafts": {"input": {}, "text": TEXT, "passes": WHOLE},
    "tags": {"input": TEXT, "text": TEXT, "words": [{"word": TEXT, "tag": TEXT, "probability": NUMBER}]},
    "translations": {"input": TEXT, "text": TEXT, "score": NUMBER, "finish_reason": TEXT},
    "transcripts": {"input": TEXT, "text": TEXT, "seconds": NUMBER},
    "targets": {},
    "quantiles": {"series": TEXT, "median": [NUMBER], "quantiles": {"string": [NUMBER]}},
    "actions": {"action": {}},
    "pictures": {"input": {}, "png": TEXT},
    "sounds": {"input": TEXT, "seconds": NUMBER, "wav": TEXT},
    "episodes": {"env": TEXT, "wanted": NUMBER, "episodes": WHOLE, "achieved": NUMBER, "returns": [NUMBER]},
}


def describe_answer(output: Output) -> dict[str, Any]:
    """Return the JSON schema of an answer."""
    if output == "json":
        return {"type": "object"}
    if output == "vectors":
        return build_schema({"vectors": [[NUMBER]]})
    return build_schema({"samples" if output in ("completions", "tunes") else "results": [ANSWERS[output]]})


def build_schema(value: Any) -> dict[str, Any]:
    """Return the schema of a value that is drawn with schemas: a list holds that of its items, an object those of its
    fields, or of all of its values under the name "string"."""
    if isinstance(value, list):
        return {"type": "array", "items": build_schema(value[0])}
    if isinstance(value.get("type"), str) or not value:
        return value
    if [*value] == ["string"]:
        return {"type": "object", "additionalProperties": build_schema(value["string"])}
    properties = {name: build_schema(part) for name, part in value.items()}
    return {"type": "object", "properties": properties, "required": [*value]}
