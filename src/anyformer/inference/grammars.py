"""Grammars for llguidance, in its dialect of Lark, from what a request asks for, and its errors in one line."""

import json
import re
from typing import Any

from ..data.tokenizers.base import encode_utf8
from ..errors import InputError
from ..parsing import show_value
from .schema_checks import check_schema

MAX_CHARACTERS = 1 << 20  # of a schema, a grammar or all choices
# Masks hold every token that can follow, also where only one text can.
OPTIONS = '%llguidance {"no_forcing": true}\n'
JSON_OPTIONS = {
    # One space or a line break with its indentation, so that no answer is lost in white space.
    "whitespace_flexible": True, "whitespace_pattern": r"(\n[ \t]{0,40}| )?",
    "lenient": False, "coerce_one_of": False,
}  # fmt: skip
# The compiler lets every year have a 29th of February, and a date the year 0: which dates these formats have besides.
LEAP_YEAR = "([0-9]{2}(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)"
DAY = f"^({LEAP_YEAR}-02-29|[0-9]{{4}}-(0[13-9]|1[0-2]|02-([01][0-9]|2[0-8])))"
YEAR = "^([1-9][0-9]{3}|0[0-9]{0,2}[1-9][0-9]{0,2})-"
LITERALS = re.compile(r'"(\\.|[^"\\\n])*"|//[^\n]*|/(\\.|[^/\\\n])+/')
WORDS = {
    "failed to compile JSON schema: ": "",
    "Unsatisfiable schema": "nothing can meet it",
    "oneOf constraints are not supported. Enable 'coerce_one_of' option to approximate oneOf with anyOf":
        "the options of oneOf overlap, which is not supported: write anyOf",
}  # fmt: skip
FOREIGN = re.compile(r"<\[|<\||%llguidance|\btemperature\s*=")  # tokens by number or name, settings of the compiler


def build_grammar(name: str, value: Any, alphabet: str | None = None) -> str:
    """Return the grammar of a field of `StructureParams`. Raises InputError.

    `alphabet`: all characters that the vocabulary has, for tokens that are characters: a regex is limited to them.
    """
    size = len(value) if isinstance(value, str) else 0
    if size > MAX_CHARACTERS:
        raise InputError(f"{name} has {size:,} characters; at most {MAX_CHARACTERS:,} are read")
    if size:
        encode_utf8(value)
    builders = {"json_schema": convert_schema, "grammar": convert_grammar, "choices": convert_choices}
    text = convert_regex(value, alphabet) if name == "regex" else builders[name](value)
    return f"{text}\n{OPTIONS}"


def convert_regex(regex: str, alphabet: str | None) -> str:
    from llguidance import regex_to_lark

    pattern = regex_to_lark(regex, "d")
    if alphabet is None:
        return f"start: /{pattern}/"
    characters = "".join(f"\\x{{{ord(c):x}}}" for c in alphabet)
    return f"start: ANSWER\nANSWER: /{pattern}/ & /[{characters}]*/"


def convert_choices(choices: Any) -> str:
    if not choices or not all(isinstance(choice, str) and choice for choice in choices):
        raise InputError("choices: expected at least one text, and none of them empty")
    if (size := sum(map(len, choices))) > MAX_CHARACTERS:
        raise InputError(f"choices have {size:,} characters; at most {MAX_CHARACTERS:,} are read")
    return "start: CHOICE\nCHOICE: " + " | ".join(map(json.dumps, dict.fromkeys(choices)))


def convert_schema(schema: Any) -> str:
    try:
        schema = json.loads(schema) if isinstance(schema, str) else schema
        text = json.dumps(schema, allow_nan=False)
        if not isinstance(schema, dict):
            raise InputError(f"it is {show_value(schema)}; it must be an object")
        if len(text) > MAX_CHARACTERS:
            raise InputError(f"it has {len(text):,} characters; at most {MAX_CHARACTERS:,} are read")
        schema = json.loads(text)
        for part in check_schema(schema):
            if part.get("format") in ("date", "date-time"):
                part["allOf"] = [*part.get("allOf", ()), {"pattern": DAY}, {"pattern": YEAR}]
    except InputError as error:
        raise InputError(f"json_schema: {error}") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"json_schema: it is no JSON ({error})") from None
    return "start: %json " + json.dumps(schema | {"x-guidance": JSON_OPTIONS})


def convert_grammar(text: str) -> str:
    bare = LITERALS.sub(lambda match: " " * len(match[0]), text)
    if "::=" in bare:
        return convert_gbnf(text)
    if match := FOREIGN.search(bare):
        line = text.count("\n", 0, match.start()) + 1
        raise InputError(f"grammar: line {line} has {match[0]!r}: a grammar describes texts, not tokens or settings")
    return text


def convert_gbnf(text: str) -> str:
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        return gbnf_to_lark(text)
    except RecursionError:
        raise InputError("grammar: it is nested too deeply") from None
    except Exception as error:  # the converter raises bare Exception
        raise InputError(f"grammar: {error}") from None


def explain_error(error: str, has_lines: bool = False) -> str:
    """Return an error of llguidance as one line: why and, of a text that has lines, where."""
    lines = error.splitlines() or ["unknown error"]
    place = re.match(r"(?:at )?(\d+)\((\d+)\): ", lines[0])
    reason = lines[0][place.end() :] if place else lines[0]
    reason = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), reason)
    for words, better in WORDS.items():
        reason = reason.replace(words, better)
    return f"line {place[1]}, column {place[2]}: {reason}" if place and has_lines else reason
