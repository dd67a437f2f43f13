"""Chat templates as programs of strangers: bounded, and otherwise as transformers renders them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from rootlet.grammar.chat_templates.builtin import BUILT_IN
from rootlet.grammar.chat_templates.sandbox import MAX_SIZE, render, render_chat

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ok"}]
LIST = "{% set l = range(100000)|list %}{% for i in l %}"
MACRO = "{%% macro f() %%}%s{%% endmacro %%}"
GROW = "{%% set ns = namespace(x=%s) %%}{%% for i in range(60) %%}{%% set ns.x = %s %%}{%% endfor %%}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for i in range(10**9) %}x{% endfor %}", "Range too big"),
        (LIST + "{% for j in l %}{% endfor %}{% endfor %}", "too many steps"),
        (LIST + "{% if 'q' in l %}{% endif %}{% endfor %}", "too many steps"),
        (LIST + "{% if l == l %}{% endif %}{% endfor %}", "too many steps"),
        (LIST + "{% set m = l[1:] %}{% endfor %}", "too many steps"),
        (LIST + "{{ l|join|length }}{% endfor %}", "too many steps"),
        ("{% for i in range(100000) %}{{ 'x' * 100 }}{% endfor %}", "writes more than"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "without end"),
        ("{% macro f(n) %}{% if n %}{{ f(n-1) ~ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}", "many steps"),
        ("{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}", "recursive loops"),
        ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "nested too deeply"),
        ("{% if 1 %}" * 2000 + "{% endif %}" * 2000, "nested too deeply"),
        ("x" * 2**21, "a chat template of 2097152 characters"),
        # what is done for each step
        (LIST + "{% set a = i %}" * 2000 + "{% endfor %}", "too many steps"),
        (MACRO % ("{% set a = 1 %}" * 2000) + LIST + "{{ f() }}{% endfor %}", "too many steps"),
        (LIST + "{% if -1 is in l %}{% endif %}{% endfor %}", "too many steps"),
        (LIST + "{% if l is eq l[:] %}{% endif %}{% endfor %}", "too many steps"),
        (LIST + "{% if l.index(9999) %}{% endif %}{% endfor %}", "too many steps"),
        (LIST + "{{ l|sum }}{% endfor %}", "too many steps"),
        (LIST + "{{ l|map('abs')|max }}{% endfor %}", "too many steps"),
        ("{% set t = 'x' * 400000 %}" + LIST + "{{ t.count('xy') }}{% endfor %}", "too many steps"),
        # one huge value
        ("{{ 'a' * 10**10 }}", "larger than"),
        ("{{ 10**10 * [0] }}", "larger than"),
        ("{{ 10**(10**10) }}", "larger than"),
        ("{{ 'a'|center(10**10) }}", "center with a number above"),
        ("{{ 'a'.ljust(10**10) }}", "ljust with a number above"),
        ("{{ (1).to_bytes(10**10, 'big') }}", "to_bytes with a number above"),
        ("{{ '%1000000000d' % 1 }}", "width"),
        ("{{ '%1000000000d'|format(1) }}", "width"),
        ("{{ '%*d' % (10**9, 1) }}", "number above"),
        ("{{ '{:>1000000000}'.format(1) }}", "width"),
        ("{{ '{:>{}}'.format(1, 10**9) }}", "number above"),
        ("{{ ('a' * 400000).replace('a', 'b' * 100000) }}", "larger than"),
        ("{{ ('a' * 400000)|replace('', 'b' * 100000) }}", "larger than"),
        ("{{ ('b' * 100000).join(range(100000)|map('string')) }}", "many steps"),
        ("{{ range(100000)|join('b' * 100000) }}", "larger than"),
        ("{{ range(100000)|map('center', 10000)|list }}", "many steps"),
        ("{{ ('\\n' * 100000)|indent('x' * 100000) }}", "larger than"),
        ("{{ ('\\t' * 100000).expandtabs(10000) }}", "larger than"),
        # one that grows
        (GROW % ("'aa'", "ns.x ~ ns.x"), "larger than"),
        (GROW % ("'aa'", "ns.x + ns.x"), "larger than"),
        (GROW % ("[1]", "[ns.x, ns.x]"), "larger than"),
        (GROW % ("1", "(ns.x, ns.x)"), "larger than"),
        (GROW % ("1", "{'a': ns.x, 'b': ns.x}"), "larger than"),
        (GROW % ("1", "dict(a=ns.x, b=ns.x)"), "larger than"),
        (GROW % ("1", "namespace(a=ns.x, b=ns.x)"), "larger than"),
        # what the sandbox is for
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "not callable|unsafe"),
    ],
)  # fmt: skip
def test_bounds(template, message):
    with pytest.raises((TemplateError, OverflowError), match=message):
        render(template, messages=CHAT)


def test_the_bounds_grow_with_the_messages():
    """A conversation of a book is nothing to refuse."""
    book = "a page " * MAX_SIZE
    text = render("{% for m in messages %}{{ m.content|trim }}{% endfor %}", messages=[{"content": book}])
    assert text == book.strip()


EVERYTHING = """\
{%- set ns = namespace(found=false) -%}
{% for m in messages[::-1] %}{% if not ns.found and m.role == 'user' %}
{% set ns.found = true %}{{ m.content }}{% endif %}{% endfor %}
{{ messages|tojson }} {{ messages|length - 1 }} {{ [1, 2] + [3] }} {{ (1, 2) }}
{% generation %}x{{ messages[0].content }}{% endgeneration %}
{% for a, b in {'x': 1}.items() %}{{ a }}{{ b }}{{ loop.last }}{% endfor %}
{% for i in range(3) %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{{ loop.length }}{% endfor %}
{% for i in [] %}{{ i }}{% else %}no{% endfor %}
{{ 'a %s' % 'b' }}{{ 'x' ~ 1 ~ none }}{% set a, b = 1, 2 %}{{ a }}{{ 1 < 2 <= 3 }}{{ 'a' in 'abc' }}
{% macro f(x, y=[]) %}{{ x }}{{ y }}{{ caller() if caller }}{% endmacro %}{{ f(1, y=[2]) }}
{% call f(3) %}c{% endcall %}
{{ messages|selectattr('role', 'equalto', 'user')|list|length }}
{{ messages|map(attribute='role')|join(', ') }}
{% if tools is defined and tools is not none %}T{% endif %}{% filter upper %}abc{% endfilter %}
{{ 123456|string }}
{% set block %}in a block{% endset %}{{ block }}{{ bos_token }}{{ messages[-1]['content'].split('k')[0] }}
{{ '{}-{}'.format(1, 'b') }}{{ 'abc'.replace('b', 'x') }}{{ missing }}{{ raise_exception is defined }}
"""


@pytest.mark.parametrize("template", [EVERYTHING, *(one.to_jinja() for one in BUILT_IN.values())])
def test_as_transformers_renders(template):
    from tokenizers import Tokenizer, models

    vocab = Tokenizer(models.WordLevel({"<s>": 0}, unk_token="<s>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=vocab, bos_token="<s>", chat_template=template)
    for options in ({}, {"add_generation_prompt": True}):
        want = tokenizer.apply_chat_template(CHAT, tokenize=False, **options)
        assert render_chat(tokenizer, CHAT, **options) == want


def test_a_tokenizer_with_a_way_of_its_own_is_asked():
    class Own:
        def apply_chat_template(self, messages, **options):
            return f"{len(messages)} {options['tokenize']}"

    assert render_chat(Own(), CHAT) == "2 False"


# one program of a template is run by many renderings: what one of them spends is its own

LOOPS = "{% for i in range(n) %}{% for j in range(80000) %}{% endfor %}{% endfor %}{{ n }}"


def test_threads_that_render_one_template_have_a_budget_each():
    """Each of these takes most of the steps, or too many."""
    with ThreadPoolExecutor(4) as pool:
        futures = [(n, pool.submit(render, LOOPS, n=n)) for n in (8, 20, 9, 20, 8, 9)]
    for n, future in futures:
        if n == 20:
            with pytest.raises(TemplateError, match="too many steps"):
                future.result()
        else:
            assert future.result() == str(n)


def test_a_rendering_after_one_out_of_bounds_begins_anew():
    for _ in range(2):
        with pytest.raises(TemplateError, match="too many steps"):
            render(LOOPS, n=20)
        assert render(LOOPS, n=9) == "9"


def test_a_rendering_within_a_rendering_spends_its_own_steps():
    text = "{% for i in range(80000) %}{% endfor %}{{ within(n) }}"
    for n in (0, 1, 9):
        assert render(text, n=n, within=lambda n: render(LOOPS, n=n)) == str(n)
    with pytest.raises(TemplateError, match="too many steps"):
        render(text, n=20, within=lambda n: render(LOOPS, n=n))


@pytest.mark.parametrize("name", ["block", "macro"])
def test_what_a_template_calls_spends_its_steps(name):
    """A block has a context of its own, and a macro knows that of its template only."""
    part = "{% block part scoped %}" + LOOPS + "{% endblock %}"
    if name == "macro":
        part = "{% macro part() %}" + LOOPS + "{% endmacro %}{{ part() }}"
    assert render(part, n=9) == "9"
    for twice in ("{% for k in [1, 2] %}" + part + "{% endfor %}", part + LOOPS):
        with pytest.raises(TemplateError, match="too many steps"):
            render(twice, n=9)


def test_numbers_are_no_formats():
    """The remainder of a count above the largest width is no such width."""
    assert render("{{ 12345 % 100 }}{{ (n + 3) % 2 }}", n=20000) == "451"


def test_messages_are_not_changed():
    assert render("{{ dict(messages[0], role='x').role }}", messages=CHAT) == "x"
    for change in (
        "dict.update(messages[0], role='x')",
        "messages[0].update(role='x')",
        "messages.append(1)",
    ):
        with pytest.raises(TemplateError):
            render("{{ " + change + " }}", messages=CHAT)
    assert CHAT[0] == {"role": "user", "content": "hi"}
    assert len(CHAT) == 2


def test_templates_too_long_to_compile_are_refused():
    with pytest.raises(TemplateError, match="chat template of 600000 characters, above 262144"):
        render("{{ 1 }}   " * 60_000)
