"""What stands beside a tokenizer.json in a checkpoint: which ids end a text, how a prompt begins, the chat template.

The public layouts spread it over several files, which grew over the years; here it is read into one value, and written
back as few and small files as say the same.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import InputError

GENERATION, CONFIG, DESCRIBED, SPECIAL, TEMPLATE = NAMES = (
    "generation_config.json",
    "config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
ROLES = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
FLAGS = ("add_bos_token", "add_eos_token")
MAX_FILE_BYTES = 64 << 20  # bytes of any of these files


@dataclass(frozen=True)
class TokenizerMetadata:
    """Empty where nothing stands beside."""

    begin: int | None = None
    end_ids: tuple[int, ...] = ()
    """The ids with which generation stops, as the checkpoint says."""
    names: Mapping[str, str] = field(default_factory=dict)
    """bos_token, eos_token and the like: how these tokens are written."""
    flags: Mapping[str, bool] = field(default_factory=dict)
    """add_bos_token, add_eos_token where they are said: they overrule what tokenizer.json does."""
    template: str | None = None

    def files(self) -> dict[str, str]:
        """The files that say this, name -> text."""
        found = {}
        if self.end_ids or self.begin is not None:
            ends = list(self.end_ids) if len(self.end_ids) != 1 else self.end_ids[0]
            said = {"bos_token_id": self.begin, "eos_token_id": ends}
            found[GENERATION] = json.dumps({k: v for k, v in said.items() if v not in (None, [])}, indent=2)
        if self.names or self.flags:
            found[DESCRIBED] = json.dumps({**self.names, **self.flags}, indent=2)
        if self.template is not None:
            found[TEMPLATE] = self.template
        return found


def read_metadata_files(folder: Path) -> dict[str, str]:
    """The texts of these files in a folder, those that are there. Raises InputError."""
    return {name: read_text(folder / name) for name in NAMES if (folder / name).is_file()}


def read_text(path: Path, largest: int = MAX_FILE_BYTES) -> str:
    """A whole file of UTF-8, if it is no larger than it may be. Raises InputError."""
    try:
        if (size := path.stat().st_size) > largest:
            raise InputError(f"{path}: {size:,} bytes, more than the {largest:,} that such a file may have")
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text ({error})") from None


def read_object(text: str, where: str) -> dict[str, Any]:
    """A JSON object. Raises InputError."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON ({error})") from None
    if not isinstance(found, dict):
        raise InputError(f"{where}: should hold a JSON object, found {type(found).__name__}")
    return found


def parse_metadata(texts: Mapping[str, str], where: str = "") -> TokenizerMetadata:
    """What these files say. `where` names their folder in errors. Raises InputError."""
    objects = {name: read_object(texts[name], f"{where}{name}") for name in NAMES if name in texts and name != TEMPLATE}
    described = objects.get(DESCRIBED, {})
    names = _names(objects.get(SPECIAL, {})) | _names(described)
    ids = [objects[name] for name in (GENERATION, CONFIG) if name in objects]
    ends = next((found for said in ids if (found := _ids(said.get("eos_token_id")))), ())
    begin = next((found[0] for said in ids if (found := _ids(said.get("bos_token_id")))), None)
    flags = {name: described[name] for name in FLAGS if isinstance(described.get(name), bool)}
    template = texts.get(TEMPLATE) or _template(described.get("chat_template"))
    return TokenizerMetadata(begin, ends, names, flags, template)


def _ids(value: Any) -> tuple[int, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(dict.fromkeys(i for i in values if type(i) is int and i >= 0))


def _names(said: Mapping[str, Any]) -> dict[str, str]:
    """A token is written as its text, or as an object that has it as `content`."""
    contents = {name: said.get(name) for name in ROLES}
    contents = {name: value.get("content") if isinstance(value, dict) else value for name, value in contents.items()}
    return {name: value for name, value in contents.items() if isinstance(value, str)}


def _template(value: Any) -> str | None:
    """One template, or the default among several that are named."""
    if isinstance(value, list):
        named = {one.get("name"): one.get("template") for one in value if isinstance(one, dict)}
        value = named.get("default")
    return value if isinstance(value, str) else None
