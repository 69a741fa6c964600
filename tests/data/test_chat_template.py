"""Chat templates: the same text as the public library renders, and bounds on what a template can do."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jinja2
import pytest
import tokenizers

from anyformer import api
from anyformer.data.tokenizers import build as tok
from anyformer.data.tokenizers import chat_sandbox, chat_template
from anyformer.data.tokenizers.chat_template import MAX_SOURCE_CHARACTERS, Chat, Renderer, get_renderer, render_chats
from anyformer.errors import InputError
from cli_kit import assert_refused, call, train
from data_kit import SAMPLE, refuses

QUICK = {
    "test_a_single_call_without_end_is_ended": {"n.x == n.y"},
}  # with which parameters a test runs each time; with all others it is slow (conftest.py)


def render_chat(template: str, messages: list[dict[str, str]], names: dict[str, str]) -> str:
    return render_chats(template, [Chat(messages)], names)[0]


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


def test_the_public_library_renders_tools_the_same():
    transformers = pytest.importorskip("transformers")
    template = "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}{% for message in messages %}"
    template += "{{ message.content or '' }}{% for call in message.tool_calls or [] %}{{ call.function.name }}"
    template += "{% endfor %}{% endfor %}"
    call = {"type": "function", "function": {"name": "rain", "arguments": {"place": "é"}}}
    talk = [TALKS[0][0], {"role": "assistant", "content": None, "tool_calls": [call]}]
    tools = [{"type": "function", "function": {"name": "rain", "parameters": {"type": "object"}}}]
    own = with_template(template)
    public = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer.from_str(own.to_json()))
    public.chat_template = template
    assert own.apply_chat_template(talk, tools) == public.apply_chat_template(talk, tools=tools, tokenize=False)
    assert own.apply_chat_template(talk) == public.apply_chat_template(talk, tokenize=False)
    with refuses("message 1", "role and content"):
        own.apply_chat_template([talk[0], {"role": "assistant", "content": None}])


@pytest.fixture(scope="module")
def hasty() -> Iterator[Renderer]:
    """A renderer with little time."""
    renderer = Renderer(seconds=0.4)
    yield renderer
    renderer.close()


@pytest.mark.parametrize(
    "template",
    [
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
    ],
)
def test_a_hostile_template_is_refused_in_one_line(monkeypatch, hasty: Renderer, template: str):
    monkeypatch.setattr(chat_template, "get_renderer", lambda pid: hasty)
    with refuses("chat template"):
        render_chat(template, TALKS[0], {})
    monkeypatch.setattr(chat_sandbox, "MAX_TEXT_CHARACTERS", 1 << 16)  # the same bounds, reached sooner
    with pytest.raises((jinja2.TemplateError, OverflowError, RecursionError, MemoryError, TypeError)):
        chat_sandbox.BoundedSandbox().from_string(template).render(messages=TALKS[0])


def test_the_reason_of_a_template_moves_no_cursor():
    with refuses("cannot render these messages: no [2J more"):
        render_chat("{{ raise_exception('no\n\x1b[2J\ud800 more') }}", TALKS[0], {})


def test_a_long_template_is_refused():
    with refuses("chat template has 262,145 characters"):
        render_chat(" " * (MAX_SOURCE_CHARACTERS + 1), TALKS[0], {})


@pytest.mark.parametrize("expression", ["n.x == n.y", "n.x in [n.y]", "[n.y].index(n.x)", "{n.x: 1}"])
def test_a_single_call_without_end_is_ended(monkeypatch, hasty: Renderer, expression: str):
    """Each is one call in C, of which no trace function hears: two trees of 2^60 leaves from 60 values."""
    monkeypatch.setattr(chat_template, "get_renderer", lambda pid: hasty)
    grow = "{% set n.x = (n.x, n.x) %}{% set n.y = (n.y, n.y) %}"
    grow = "{% set n = namespace(x=1, y=1) %}{% for i in range(60) %}" + grow + "{% endfor %}"
    with refuses("the chat template", "takes more than 0.4 seconds"):
        render_chat(grow + "{{ " + expression + " }}", TALKS[0], {})


def test_loops_without_end_are_ended(monkeypatch, hasty: Renderer):
    monkeypatch.setattr(chat_template, "get_renderer", lambda pid: hasty)
    with refuses("takes more than 0.4 seconds"):
        render_chat("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", TALKS[0], {})


@pytest.mark.skipif(sys.platform != "linux", reason="no other system limits the memory of a process")
def test_many_bounded_values_do_not_take_the_memory_of_the_machine():
    start, grow = "{% set n = namespace(x=[]) %}", "{% set n.x = n.x + ['é' * 4000000 ~ i] %}"
    with refuses("the chat template", "needs more than 256 MiB of memory"):
        render_chat(start + "{% for i in range(99999) %}" + grow + "{% endfor %}", TALKS[0], {})
    assert render_chat("{{ messages[0].role }}", TALKS[0], {}) == "user", "the next request gets a new process"


# --- the process that renders ---


def test_the_process_stays_and_is_started_again_when_it_has_died():
    renderer = get_renderer(os.getpid())
    assert render_chat("a{{ messages[0].role }}", TALKS[0], {}) == "auser"
    first = renderer.process
    assert render_chat("b", TALKS[0], {}) == "b" and renderer.process is first is not None
    first.kill()
    first.wait()
    assert render_chat("c", TALKS[0], {}) == "c" and renderer.process is not first


def test_an_interrupted_request_leaves_no_answer_for_the_next(monkeypatch):
    def interrupt(process: subprocess.Popen, line: bytes) -> bytes:
        exchange_lines(process, line)
        raise KeyboardInterrupt

    exchange_lines = chat_template.exchange_lines
    with monkeypatch.context() as patch:
        patch.setattr(chat_template, "exchange_lines", interrupt)
        with pytest.raises(KeyboardInterrupt):
            render_chat("old", TALKS[0], {})
    assert render_chat("new", TALKS[0], {}) == "new"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process cannot be forked here")
def test_a_forked_process_renders_in_a_process_of_its_own():
    render_chat("a", TALKS[0], {})
    pid = os.fork()
    if not pid:
        status = 1
        try:
            status = 0 if render_chat("b", TALKS[0], {}) == "b" else 2
            get_renderer(os.getpid()).close()
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    assert render_chat("c", TALKS[0], {}) == "c"


def test_the_process_ends_with_its_parent_and_loads_no_torch():
    code = "import os, sys\nfrom anyformer.data.tokenizers import chat_sandbox, chat_template as c\n"
    code += "assert not {'torch', 'numpy'} & set(sys.modules)\n"
    code += "c.render_chats('a', [c.Chat([{'role': 'user', 'content': ''}])], {})\n"
    code += "print(c.get_renderer(os.getpid()).process.pid, flush=True)\nos.kill(os.getpid(), 9)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == -signal.SIGKILL and result.stderr == ""
    for _ in range(100):
        try:
            os.kill(int(result.stdout), 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("the process has outlived its parent")


def test_methods_of_texts_act_inside_of_loops():
    loop = "{% for m in messages %}{% set c = m.content.replace('a', 'b', 1) %}{{ ','.join([c, m.role]) }}{% endfor %}"
    assert render_chat(loop, [{"role": "user", "content": "aa"}], {}) == "ba,user"


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
