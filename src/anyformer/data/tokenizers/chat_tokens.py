"""A chat template for a tokenizer that has none: a token before each message that names its role, and one after it."""

import json
from dataclasses import replace

from .base import Tokenizer
from .special_tokens import parse_metadata
from .subwords import Subwords

ROLES = ("system", "user", "assistant", "tool")
END_OF_MESSAGE = "<|end|>"
TEMPLATE = (
    "{% if tools %}<|system|>{{ tools | tojson }}<|end|>{% endif %}"
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] or '' }}"
    "{% if message['tool_calls'] %}{{ message['tool_calls'] | tojson }}{% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}


def add_chat_template(tokenizer: Tokenizer) -> Tokenizer:
    """Return the tokenizer if it has a chat template; else one with the template of this module, whose special tokens
    follow all others. Ids stay what they are."""
    if tokenizer.has_chat_template:
        return tokenizer
    fields = json.loads(tokenizer.to_json())
    names = [*(f"<|{role}|>" for role in ROLES), END_OF_MESSAGE]
    new_names = [name for name in names if tokenizer.token_to_id(name) is None]
    ids = {name: tokenizer.vocab_size + i for i, name in enumerate(new_names)}
    fields["added_tokens"] = [*(fields.get("added_tokens") or ()), *({"id": ids[n], "content": n} | FLAGS for n in ids)]
    metadata = parse_metadata(tokenizer.extra_files)
    end_id = ids.get(END_OF_MESSAGE, tokenizer.token_to_id(END_OF_MESSAGE))
    files = replace(
        metadata,
        end_ids=tuple(i for i in (end_id, *tokenizer.end_ids) if i is not None),
        names={**metadata.names, "eos_token": END_OF_MESSAGE},
        template=TEMPLATE,
    ).to_files()
    return Subwords(json.dumps(fields, ensure_ascii=False, indent=2), files)
