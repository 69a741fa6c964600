"""Chat templates: the same text as the public library renders, and bounds on what a template can do."""

import json
from pathlib import Path

import pytest
import tokenizers

from anyformer import api
from anyformer.data.tokenizers import build as tok
from anyformer.data.tokenizers import chat_template
from anyformer.data.tokenizers.chat_template import MAX_SOURCE_CHARACTERS, render_chat
from anyformer.errors import InputError
from cli_kit import assert_refused, call, train
from data_kit import SAMPLE, refuses

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA = """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
STRICT = """{{ bos_token }}{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Roles must alternate!') }}
{% endif %}
{% if message['role'] == 'user' %}
{% generation %}[INST] {{ message['content'].strip() ~ " " ~ loop.index }} [/INST]{% endgeneration %}
{% else %}
{% set ns = namespace(words=message['content'].split(' ')) %}
{% for word in ns.words %}{% if word == 'stop' %}{% break %}{% endif %}{{ word | replace('a', 'b') }},{% endfor %}
{{ message | tojson }}{{ messages | map(attribute='role') | join('/') }}{{ eos_token }}
{% endif %}
{% endfor %}"""
GROW = "{% set ns = namespace(x='aa') %}{% for i in range(99) %}"
TALKS = [
    [{"role": "user", "content": 'Hello <b>\n"you" é夏🌞 '}],
    [
        {"role": "user", "content": " a"},
        {"role": "assistant", "content": "b a stop c"},
        {"role": "user", "content": "c"},
    ],
    [{"role": "system", "content": "Be kind. "}, {"role": "user", "content": ""}],
]


def with_template(template: str = CHATML) -> tok.Subwords:
    """Build a small tokenizer with a template."""
    public = tokenizers.Tokenizer.from_str(tok.train_bpe([SAMPLE], 300).to_json())
    public.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    config = {"eos_token": {"content": "<|im_end|>"}, "bos_token": tok.END, "chat_template": template}
    return tok.Subwords(public.to_str(), {"tokenizer_config.json": json.dumps(config)})


@pytest.mark.parametrize("template", [CHATML, LLAMA, STRICT], ids=["chatml", "llama", "strict"])
@pytest.mark.parametrize("talk", TALKS, ids=["one", "three", "system"])
def test_the_public_library_renders_the_same(template: str, talk: list[dict[str, str]]):
    transformers = pytest.importorskip("transformers")
    own = with_template(template)
    public = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(own.to_json()), bos_token=tok.END, eos_token="<|im_end|>"
    )
    public.chat_template = template
    if template is STRICT and talk[0]["role"] == "system":
        with pytest.raises(Exception, match="alternate"):
            public.apply_chat_template(talk, tokenize=False)
        with refuses("cannot render", "Roles must alternate!"):
            own.apply_chat_template(talk)
        return
    expected = public.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
    assert own.apply_chat_template(talk) == expected
    ids = public.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)
    assert own.encode_parsing_special(own.apply_chat_template(talk)).tolist() == ids


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(9999999) %}{{ a }}{% endfor %}",
        "{% for a in range(99999) %}{{ messages[0].content * 1000 }}{% endfor %}",
        "{{ 'a' * 10**12 }}",
        "{{ [1] * 10**12 }}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ '%1000000000000d' % 1 }}",
        "{{ '%1000000000000d' | format(1) }}",
        "{{ 'a'.ljust(10**12) }}",
        "{{ 'a' | center(10**12) }}",
        "{{ '{:>1000000000000}'.format(1) }}",
        GROW + "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        GROW + "{% set ns.x = ns.x + ns.x %}{% endfor %}",
        GROW + "{% set ns.x %}{{ns.x}}{{ns.x}}{% endset %}{% endfor %}",
        GROW + "{% set ns.x = ns.x.replace('a', ns.x) %}{% endfor %}",
        GROW + "{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
        GROW + "{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x|tojson }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{% include 'x' %}",
        "{% if %}",
        "{{ nothing.at.all }}",
        "(" * 1000 + "{{" + "(" * 1000,
        " " * (MAX_SOURCE_CHARACTERS + 1),
    ],
)
def test_a_hostile_template_is_refused_in_one_line(monkeypatch, template: str):
    monkeypatch.setattr(chat_template, "MAX_TEXT_CHARACTERS", 1 << 16)  # the same bounds, reached sooner
    monkeypatch.setattr(chat_template, "MAX_STEPS", 100_000)
    with refuses("chat template"):
        render_chat(template, TALKS[0], {})


@pytest.mark.parametrize(
    "messages", ["hi", [], [1], [{"role": "user"}], [{"role": "user", "content": 3}], {"role": "u"}]
)
def test_bad_messages(messages):
    with refuses("message", "role"):
        with_template().apply_chat_template(messages)


def test_a_tokenizer_without_a_template_says_so():
    for own in (tok.Bytes(), tok.train_bpe([SAMPLE], 300)):
        with refuses("keeps no chat template", "prompt"):
            own.apply_chat_template(TALKS[0])


def test_a_named_template_and_its_file(tmp_path: Path):
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    own = with_template(named)
    assert own.apply_chat_template(TALKS[0]) == "yes" and own.extra_files["chat_template.jinja"] == "yes"
    for name, text in {"tokenizer.json": own.to_json(), **own.extra_files}.items():
        (tmp_path / name).write_text(text)
    loaded = tok.load_tokenizer(tmp_path / "tokenizer.json")
    assert loaded.extra_files == own.extra_files and loaded.apply_chat_template(TALKS[0]) == "yes"
    end_id = own.token_to_id("<|im_end|>")
    assert loaded.end_ids == own.end_ids == (end_id,)


def test_a_run_keeps_its_template_and_answers(text: Path, tmp_path: Path):
    home = tmp_path / "home"
    home.mkdir()
    own = with_template()
    for name, content in {"tokenizer.json": own.to_json(), **own.extra_files}.items():
        (home / name).write_text(content)
    train(text, tmp_path / "run", "--tokenizer", str(home / "tokenizer.json"))
    model = api.load(tmp_path / "run")
    assert model.module.tokenizer.extra_files == own.extra_files
    answer = model.generate(messages=TALKS[0], tokens=3)["samples"][0]
    assert answer["prompt"] == "" and len(answer["tokens"]) <= 3
    with pytest.raises(InputError, match="messages"):
        model.generate(message=TALKS[0])
    result = call("sample", tmp_path / "run", "--chat", "hello", "--tokens", 3, "--seed", 1, "--json").ok()
    assert result.json["samples"][0]["prompt"] == ""
    assert_refused(call("sample", tmp_path / "run", "--chat", "hello", "--prompt", "x"), "exclude each other")
