"""What a checkpoint says of its tokenizer beside tokenizer.json: end ids, how a prompt begins, the chat template.

Public checkpoints spread it over several files. Here it is read into one value, and written back as few small files
that mean the same.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..io.checks import parse_json, read_text

GENERATION_CONFIG, CONFIG, TOKENIZER_CONFIG, SPECIAL_TOKENS_MAP, CHAT_TEMPLATE = METADATA_FILES = (
    "generation_config.json",
    "config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
TOKEN_NAMES = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))


@dataclass(frozen=True)
class TokenizerMetadata:
    """Empty where there are no such files.

    Attributes:
        end_ids: the ids that stop generation.
        names: bos_token, eos_token and the like -> the token's text.
        flags: add_bos_token, add_eos_token, if specified: they take precedence over tokenizer.json.
    """

    bos_id: int | None = None
    end_ids: tuple[int, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    flags: Mapping[str, bool] = field(default_factory=dict)
    template: str | None = None

    def to_files(self) -> dict[str, str]:
        """Return the files that hold this, name -> text."""
        files = {}
        if self.end_ids or self.bos_id is not None:
            end_ids = list(self.end_ids) if len(self.end_ids) != 1 else self.end_ids[0]
            values = {"bos_token_id": self.bos_id, "eos_token_id": end_ids}
            files[GENERATION_CONFIG] = json.dumps({k: v for k, v in values.items() if v not in (None, [])}, indent=2)
        if self.names or self.flags:
            files[TOKENIZER_CONFIG] = json.dumps({**self.names, **self.flags}, indent=2)
        if self.template is not None:
            files[CHAT_TEMPLATE] = self.template
        return files


def read_metadata_files(folder: Path) -> dict[str, str]:
    """Return the texts of these files in a folder, those that exist. Raises InputError."""
    return {name: read_text(folder / name) for name in METADATA_FILES if (folder / name).is_file()}


def parse_metadata(texts: Mapping[str, str], where: str = "") -> TokenizerMetadata:
    """Parse these files. `where` names their folder in errors. Raises InputError."""
    names = [name for name in METADATA_FILES if name in texts and name != CHAT_TEMPLATE]
    objects = {name: parse_json(texts[name], f"{where}{name}") for name in names}
    config = objects.get(TOKENIZER_CONFIG, {})
    token_names = _token_names(objects.get(SPECIAL_TOKENS_MAP, {})) | _token_names(config)
    sources = [objects[name] for name in (GENERATION_CONFIG, CONFIG) if name in objects]
    end_ids = next((ids for source in sources if (ids := _ids(source.get("eos_token_id")))), ())
    bos_id = next((ids[0] for source in sources if (ids := _ids(source.get("bos_token_id")))), None)
    flags = {name: config[name] for name in ("add_bos_token", "add_eos_token") if isinstance(config.get(name), bool)}
    template = texts.get(CHAT_TEMPLATE) or config.get("chat_template")
    if isinstance(template, list):  # several, with names
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return TokenizerMetadata(bos_id, end_ids, token_names, flags, template if isinstance(template, str) else None)


def _ids(value: Any) -> tuple[int, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(dict.fromkeys(i for i in values if type(i) is int and i >= 0))


def _token_names(config: Mapping[str, Any]) -> dict[str, str]:
    """A token is written as its text, or as an object with the text as `content`."""
    values = {name: config.get(name) for name in TOKEN_NAMES}
    texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in values.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}
