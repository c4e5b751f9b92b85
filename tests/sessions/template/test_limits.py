"""Chat templates that do too much are ended; others write what transformers writes."""

import threading
import time
import tracemalloc

import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.sessions.template.chat_template import ChatTemplate
from mlx_deltamem.sessions.template.guarded import guarded_template
from mlx_deltamem.sessions.template.limits import TemplateLimitError, limited
from mlx_deltamem.sessions.template.text import rendered
from mlx_deltamem.sessions.text.messages import Message
from tests.sessions.template.test_chat_template import CHATML, chat, golden_tokenizer, written

TALK = chat("I am Ann.", "Hello.", "Who am I?", system="Be brief.")
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"a": "int", "b": ["x", None, 1.5, True]}}}]
S = "{% set s = 'a' * 100000 %}"


def text_of(source: str, messages: list[Message] = TALK, **options: object) -> str:
    return rendered(golden_tokenizer(), messages, True, {"chat_template": source, **options})


def unguarded(source: str, messages: list[Message] = TALK, **options: object) -> str:
    return golden_tokenizer().apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, chat_template=source, **options
    )


def doubled(step: str, begin: str = "'x'") -> str:
    return "{% set ns = namespace(s=" + begin + ") %}{% for i in range(60) %}{% set ns.s = " + step + " %}{% endfor %}"


ENDED = {
    # Time
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "macros": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "macros in a dict": "{% macro m(n) %}{% if n %}{% set d = {'strip': m} %}{% set x = d.strip(n - 1) %}"
    "{% set y = d.strip(n - 1) %}{% endif %}{% endmacro %}{% set z = m(60) %}",
    "power": "{{ 10 ** (10 ** 9) }}",
    "products": doubled("ns.s * ns.s", "10 ** 4000"),
    "lipsum": "{% set l = lipsum %}{{ l(n=1000000) }}",
    # Size
    "text": "{{ 'x' * 2000000 }}",
    "huge text": "{{ 10000000000 * 'x' }}",
    "list": "{{ ([1] * 1000000000) | length }}",
    "constants in a loop": "{% for i in range(99999) %}" + "y" * 1000 + "{% endfor %}",
    "short constants in a loop": "{% for i in range(99999) %}" + ("{{ '' }}" + "y" * 60) * 20 + "{% endfor %}",
    "texts in a loop": S + "{% for i in range(99999) %}{{ s }}{% endfor %}",
    "doubled": doubled("ns.s + ns.s"),
    "doubled by ~": doubled("ns.s ~ ns.s"),
    "doubled list": doubled("ns.s + ns.s", "['x']"),
    "nested list": doubled("[ns.s, ns.s]"),
    "doubled without a loop": "{% set s = 'x' %}" + "{% set s = s + s %}" * 40,
    "doubled in namespaces": "{% set n = namespace(s='x') %}" + "{% set n = namespace(s=n.s + n.s) %}" * 40,
    "doubled by with": "{% set s = 'x' * 99 %}" + "{% with s = s + s %}" * 40 + "{% endwith %}" * 40,
    "doubled by for": "{% set s = 'x' * 99 %}" + "{% for s in [s + s] %}" * 18 + "{% endfor %}" * 18,
    "dicts to JSON": "{% set s = {'a': 1} %}" + "{% set s = {'a': s, 'b': s} %}" * 40 + "{{ s | tojson }}",
    "center": "{{ 'x' | center(1000000000) }}",
    "map": "{{ range(100000) | map('center', 100000) | list | length }}",
    "ljust": "{{ 'x'.ljust(1000000000) | length }}",
    "percent": "{{ '%1000000000d' % 1 }}",
    "percent of an argument": "{{ '%*d' | format(1000000000, 1) }}",
    "format": "{{ '{:>1000000000}'.format(1) }}",
    "format of an argument": "{{ '{:>{}}'.format(1, '1000000000') }}",
    "replace": S + "{{ s | replace('a', s) | length }}",
    "replace method": S + "{{ s.replace('a', s) | length }}",
    "join": S + "{{ range(100000) | join(s) | length }}",
    "join method": S + "{{ s.join(s) | length }}",
    "join list": S + "{{ ([s] * 10) | join(s) | length }}{{ ([s] * 1000) | join | length }}",
    "wordwrap": S + "{{ s | wordwrap(1, true, s) | length }}",
    "indent": "{{ 'a' | indent(1000000000) }}",
    "indent by a text": S + "{{ ('\\n' * 100000) | indent(s) | length }}",
    "tojson": "{{ [1, 2] | tojson(indent=1000000000) }}",
    "batch": "{{ [1] | batch(1000000000, 'x') | list | length }}",
    "sum": "{{ ([[1] * 1000] * 100000) | sum(start=[]) | length }}",
    "bytes": "{{ 5 .to_bytes(1000000000, 'big') | length }}",
    "macro of lists": "{% macro m(x, n) %}{% if n %}{{ m([x, x], n - 1) }}{% else %}{{ x | upper }}{% endif %}"
    "{% endmacro %}{{ m(['x'], 60) }}",
    "list to text": doubled("[ns.s, ns.s][:1] ~ ns.s"),
    "filter block": "{% filter center(1000000000) %}x{% endfilter %}",
    "set block": "{% set s | center(1000000000) %}x{% endset %}",
    "translate": S + "{{ s.translate({97: s}) | length }}",
    "source": "x" * 1_000_001,
}
SLOW = ("loops", "macros", "macros in a dict", "doubled list", "nested list", "dicts to JSON", "join", "macro of lists")


@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.slow] * (case in SLOW)) for case in ENDED])
def test_a_template_that_does_too_much_is_ended(case):
    begun = time.thread_time()
    # Tracing makes a template several times slower.
    if case not in SLOW:
        tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="the chat template was ended at 4 messages") as raised:
            text_of(ENDED[case] + written(CHATML))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "\n" not in str(raised.value)
    assert peak < 100_000_000
    # The limit is 2 seconds.
    assert time.thread_time() - begun < 10


@pytest.mark.slow
def test_limits_hold_in_other_threads():
    found = []

    def write() -> None:
        try:
            text_of(ENDED["loops"])
        except ValueError as error:
            found.append(str(error))

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert text_of(written(CHATML)) == unguarded(written(CHATML))
    for thread in threads:
        thread.join()
    assert len(found) == 2 and all("2 seconds" in text for text in found)


WRITES = {
    "chatml": CHATML,
    "loop variables": "{% for m in messages %}{{ loop.index }}/{{ loop.length }}/{{ loop.revindex }}{{ loop.last }}"
    "{{ loop.previtem.role if loop.previtem }}{{ loop.nextitem.role if not loop.last }}{{ loop.cycle('a', 'b') }}"
    "{{ loop.changed(m.role) }}{{ m.content }}{% else %}none{% endfor %}",
    "filtered loop": "{% for m in messages if m.role != 'system' %}{{ loop.length }}{{ m.content }}{% endfor %}",
    "break": "{% for m in messages[::-1] %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "recursive": "{% for x in [[1, [2]], [3]] recursive %}{{ x if x is number else loop(x) }},{% endfor %}",
    "dict": "{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}{{ messages[0] }}{{ tools | tojson }}",
    "json": "{{ tools | tojson(indent=2) }}{{ tools[0] | tojson | length }}{{ messages | tojson }}{{ tools | string }}",
    "macro": "{% macro m(x, y='z') -%} [{{ x }}{{ y }}{{ varargs }}{{ kwargs }}"
    "{{ caller() if caller }}] {%- endmacro %}"
    "{{ m(1) }}{{ m('a', y='b') }}{{ m(1, 2, 3, w=4) }}{% call m(5) %}called{% endcall %}",
    "namespace": "{% set ns = namespace(a='', n=0) %}{% for m in messages %}{% set ns.a = ns.a ~ m.role ~ '|' %}"
    "{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.a }}{{ ns.n }}",
    "set": "{% set a, b = messages[0].role, messages[1:] %}{{ a }}{{ b | length }}"
    "{% set c %}x{{ a }}y{% endset %}{{ c }}",
    "with": "{% with a = 1, b = messages[0].content %}{{ a }}{{ b }}{% endwith %}{{ a is defined }}",
    "numbers": "{{ 7 % 3 }}{{ 2 ** 10 }}{{ 3 * 4 }}{{ 1.5 * 2 }}{{ 7 // 2 }}{{ -7 % 3 }}{{ 'ab' * 3 }}{{ [1] * 2 }}",
    "formats": "{{ '%s=%d%%' % ('a', 5) }}{{ '%s' | format('x') }}{{ '{}-{a}'.format(1, a=2) }}{{ '%5.2f' % 1 }}",
    "a number before a field": "{{ 'since 20261129 %s' % 'x' }}{{ '12345 {}'.format('x') }}",
    "texts": "{{ ' a b '.strip().split(' ') }}{{ 'abc'.replace('b', 'x') }}{{ ','.join(['a', 'b']) }}"
    "{{ 'a'.center(5) }}",
    "filters": "{{ messages | map(attribute='role') | join(', ') }}{{ 'a\nb' | indent(2) }}{{ [3, 1] | sort }}"
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ [1, 2] | sum }}{{ 'b' | upper }}"
    "{{ none | default('d', true) }}{{ 'a<b' | e }}{{ [1, 2, 3] | batch(2) | list }}{{ 'abc' | replace('b', '') }}"
    "{{ nothing | list }}{{ nothing | join('x') }}{{ {'a': 1} | join }}{{ 'ab' | list }}{{ [['a', 1]] | join(',') }}",
    "undefined": "{{ nothing }}{{ messages[0].nothing }}{% if nothing %}x{% endif %}{% for x in nothing %}{% endfor %}",
    "joined": "{{ " + " ~ ".join(["'a'", "1", "none", "nothing"] * 6) + " }}{{ " + " + ".join(["'a'"] * 40) + " }}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "blocks": "{% filter upper %}a{{ messages[0].role }}{% endfilter %}{% set x | trim %} a {% endset %}{{ x }}"
    "{% filter replace('a', 'b') | upper %}a{{ x }}{% endfilter %}{% set y | trim | replace('a', 'c') %} a {% endset %}"
    "{{ y }}{% set ns = namespace(z=1) %}{% set ns.z | indent(2) %}a\nb{% endset %}{{ ns.z }}",
    "long": "{{ '" + "c" * 100 + "' }}" + "d" * 100 + "{% for m in messages %}" + "e" * 100 + "{% endfor %}",
    "cycler": "{% set c = cycler('a', 'b') %}{% for m in messages %}{{ c.next() }}{% endfor %}{{ dict(a=1) }}",
    "special tokens": "{{ eos_token }}{{ add_generation_prompt }}{{ enable_thinking }}",
    "spaces": "  {%- if true -%}  a  {%- endif %}\n  {% if true %}\n  b\n{% endif %}\n\n",
}


@pytest.mark.parametrize("case", WRITES)
def test_a_template_writes_what_transformers_writes(case):
    source = written(WRITES[case])
    options = {"tools": TOOLS, "enable_thinking": False}
    assert text_of(source, **options) == unguarded(source, **options)


def test_a_long_chat_may_be_written():
    long = chat("word " * 300_000, "ok", "word " * 300_000)
    assert text_of(written(CHATML), long) == unguarded(written(CHATML), long)
    many = chat(*["Hi"] * 2001)
    assert text_of(written(CHATML), many) == unguarded(written(CHATML), many)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ messages | length + 'x' }}", "TypeError: unsupported operand"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
        ("{{ x.y.z }}", "UndefinedError: 'x' is undefined"),
        ("{% for %}", "TemplateSyntaxError"),
        ("{{ raise_exception('no system prompt') }}", r"\(no system prompt\)"),
        ("{{ ''.__class__ }}{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ messages.append }}{{ messages['append'](1) }}", "SecurityError"),
        ("{% include 'x' %}", "no loader"),
        ("{{ " + "(" * 5000 + ")" * 5000 + " }}", "RecursionError"),
        ("{{ [][5][3] }}", "UndefinedError"),
        ("{{ [] | map('nothing') | list }}{{ [1] | map('nothing') | list }}", "nothing"),
    ],
)
def test_any_exception_of_a_template_is_a_refusal(source, reason):
    with pytest.raises(ValueError, match="the chat template refuses 4 messages .*" + reason) as raised:
        text_of(source)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("value", [True, 5, ["x"], {"a": "b"}])
def test_a_template_that_is_no_text_is_refused(value):
    with pytest.raises(ValueError, match="chat_template is of type"):
        text_of(value)


def test_guards_are_for_templates_only():
    def renderer(messages: list[Message], **options: object) -> str:
        return "".join(message["content"] for message in messages)

    tokenizer = TokenizerWrapper(golden_tokenizer()._tokenizer, chat_template=renderer)
    assert guarded_template(tokenizer, None, None) is None
    assert rendered(tokenizer, TALK, False, {}) == "Be brief.I am Ann.Hello.Who am I?"
    guarded = guarded_template(golden_tokenizer(), None, None)
    assert guarded is guarded_template(golden_tokenizer(), None, None)
    with limited(TALK) as checked, pytest.raises(TemplateLimitError):
        checked("x" * 1_000_000 + "x" * 1000)


@pytest.mark.parametrize(
    "name",
    [
        *("add_generation_prompt", "continue_final_message", "conversation", "conversations", "messages", "padding"),
        *("return_dict", "return_tensors", "sanitize_control_tokens", "self", "tokenize", "truncation"),
    ],
)
def test_options_that_clash_are_refused_by_name(name):
    with pytest.raises(ValueError, match=f"the template options name {name};"):
        ChatTemplate(golden_tokenizer(), **{name: True})
