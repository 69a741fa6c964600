"""What is read of a JSON schema. What the compiler does not know would be ignored, so it is refused here.

The compiler (llguidance) refuses most keywords that it lacks, but takes unknown ones for annotations: a misspelt
`maxlength` would bound nothing.
"""

from collections.abc import Iterator
from typing import Any

from ..errors import InputError, suggest
from ..parsing import show_value

MAX_DEPTH = 64
MAX_EXACT = 1 << 53  # a larger float is another number when its digits are read again

SCHEMA, SCHEMAS, NAMED = "a schema", "a list of schemas", "an object of schemas"
NUMBER, COUNT, TEXT, TEXTS, ANY = "a number", "a whole number from 0 on", "a text", "a list of texts", "anything"
KEYWORDS = {
    "type": "a type or a list of types", "enum": "a list", "const": ANY,
    "anyOf": SCHEMAS, "oneOf": SCHEMAS, "allOf": SCHEMAS, "$ref": TEXT,
    "properties": NAMED, "patternProperties": NAMED, "additionalProperties": SCHEMA, "required": TEXTS,
    "minProperties": COUNT, "maxProperties": COUNT,
    "items": SCHEMA, "prefixItems": SCHEMAS, "minItems": COUNT, "maxItems": COUNT,
    "minLength": COUNT, "maxLength": COUNT, "pattern": TEXT, "format": TEXT,
    "minimum": NUMBER, "maximum": NUMBER, "exclusiveMinimum": NUMBER, "exclusiveMaximum": NUMBER, "multipleOf": NUMBER,
    "$defs": "an object", "definitions": "an object", "title": ANY, "description": ANY, "default": ANY, "examples": ANY,
    "$comment": ANY, "$schema": ANY, "deprecated": ANY, "readOnly": ANY, "writeOnly": ANY,
}  # fmt: skip
"""What is read, and annotations, which change nothing; `$defs` only where something refers to them."""
TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")


def check_schema(schema: Any) -> list[dict[str, Any]]:
    """Return the schemas in a schema, itself included. Raises InputError for one that is malformed, or has parts that
    are not supported."""
    seen: set[str] = set()
    parts: dict[int, dict[str, Any]] = {}
    pending: list[tuple[str, Any, int]] = [("#", schema, 0)]
    while pending:
        where, part, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise InputError(f"it is nested more than {MAX_DEPTH} deep")
        if isinstance(part, bool):
            continue
        if not isinstance(part, dict):
            raise InputError(f"{where} is {show_value(part)}; it must be a schema: an object, true or false")
        parts[id(part)] = part
        for name, value in part.items():
            check_keyword(where, name, value)
            pending += [(*child, depth + 1) for child in list_subschemas(where, name, value)]
        if "$ref" in part and part["$ref"] not in seen:
            seen.add(part["$ref"])
            pending.append((part["$ref"], resolve_reference(schema, part["$ref"], where), 0))
    return list(parts.values())


def check_keyword(where: str, name: str, value: Any) -> None:
    """Raise InputError for a keyword that is not read, or a value that it cannot have."""
    if (name == "$id" and where == "#") or (name.startswith("x-") and name != "x-guidance"):
        return
    if name not in KEYWORDS:
        raise InputError(f"{where} has '{name}', which is not supported: {suggest(name, KEYWORDS)}")
    kind = KEYWORDS[name]
    if not is_of_kind(kind, value):
        raise InputError(f"{where}/{name} is {show_value(value)}; it must be {kind}")
    if name in ("enum", "const"):
        check_numbers(f"{where}/{name}", value)
    unknown = (
        [text for text in ([value] if isinstance(value, str) else value) if text not in TYPES] if name == "type" else []
    )
    if unknown:
        raise InputError(f"{where}/type is {show_value(unknown[0])}: {suggest(str(unknown[0]), TYPES)}")


def is_of_kind(kind: str, value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    is_texts = isinstance(value, list) and all(isinstance(item, str) for item in value)
    return {
        NUMBER: is_number,
        COUNT: is_number and value >= 0 and int(value) == value,
        TEXT: isinstance(value, str),
        TEXTS: is_texts,
        KEYWORDS["type"]: isinstance(value, str) or is_texts,
        SCHEMA: isinstance(value, dict | bool),
        SCHEMAS: isinstance(value, list),
        "a list": isinstance(value, list),
        NAMED: isinstance(value, dict),
        "an object": isinstance(value, dict),
        ANY: True,
    }[kind]


def list_subschemas(where: str, name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the schemas in the value of a keyword, each with its place."""
    kind = KEYWORDS.get(name)
    if kind == SCHEMA:
        yield f"{where}/{name}", value
    elif kind == SCHEMAS:
        yield from ((f"{where}/{name}/{i}", part) for i, part in enumerate(value))
    elif kind == NAMED:
        yield from ((f"{where}/{name}/{key}", part) for key, part in value.items())


def check_numbers(where: str, value: Any) -> None:
    """Raise InputError for a constant whose digits, once read again, may be another number."""
    if isinstance(value, float) and abs(value) > MAX_EXACT:
        raise InputError(f"{where} has the number {value}; numbers of constants have at most 15 digits")
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        check_numbers(where, part)


def resolve_reference(schema: Any, reference: str, where: str) -> Any:
    """Return the part of the schema that "#/..." names. Raises InputError."""
    part = schema
    steps = reference.split("/")
    if steps[0] != "#":
        raise InputError(f"{where}/$ref is {show_value(reference)}; it must name a part of this schema, '#/...'")
    for step in (step.replace("~1", "/").replace("~0", "~") for step in steps[1:]):
        if isinstance(part, list) and step.isdecimal() and int(step) < len(part):
            part = part[int(step)]
        elif isinstance(part, dict) and step in part:
            part = part[step]
        else:
            raise InputError(f"{where}/$ref is {show_value(reference)}, and the schema has no such part")
    return part
