"""Tool calls in text: every format, however the text is cut, malformed as it may be."""

from __future__ import annotations

import itertools
import json

import pytest
import xgrammar
from hypothesis import given, settings
from hypothesis import strategies as st
from xgrammar.testing import _is_grammar_accept_string as accepts

from rootlet.errors import ConfigError, InvalidRequestError
from rootlet.grammar.constraint import Constraint
from rootlet.grammar.notation import as_ebnf
from rootlet.grammar.tool_calls import (
    ArgumentsDelta,
    CallEnd,
    CallStart,
    Findings,
    Function,
    FunctionCallParser,
    TextDelta,
    Tool,
    ToolCallFormat,
    ToolCallItem,
    ToolCallParser,
    detect_format,
    format_names,
    get_format,
    parse,
    read_tools,
    register_format,
)
from rootlet.grammar.tool_calls.formats import _FORMATS, one_or_more, tag

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
TIME = {"type": "function", "function": {"name": "get_time"}}
NAMES = ("get_weather", "get_time")
FORMATS = ("llama3", "mistral", "qwen25")


def written(name, calls, key="arguments"):
    """``calls``, (name, arguments as text) pairs, in the format ``name``."""
    objects = [f'{{"name": "{tool}", "{key}": {arguments}}}' for tool, arguments in calls]
    if name == "llama3":
        return "<|python_tag|>" + "; ".join(objects)
    if name == "mistral" and key == "parameters":  # the newer form, which has no such key
        return "".join(f"[TOOL_CALLS]{tool}[ARGS]{arguments}" for tool, arguments in calls)
    if name == "mistral":
        return f"[TOOL_CALLS] [{', '.join(objects)}]"
    return "\n".join(f"<tool_call>\n{one}\n</tool_call>" for one in objects)


def found(name, text):
    findings = parse(get_format(name), NAMES, text)
    return findings.text, [(call.name, call.arguments) for call in findings.calls]


def events_of(name, pieces):
    """All events, neighbouring deltas put together."""
    parser = ToolCallParser(get_format(name), NAMES)
    events = [event for piece in pieces for event in parser.feed(piece)] + parser.finish()
    merged = []
    for event in events:
        last = merged[-1] if merged else None
        if isinstance(event, TextDelta) and isinstance(last, TextDelta):
            merged[-1] = TextDelta(last.text + event.text)
        elif isinstance(event, ArgumentsDelta) and last == ArgumentsDelta(
            event.index, getattr(last, "text", "")
        ):
            merged[-1] = ArgumentsDelta(event.index, last.text + event.text)
        else:
            merged.append(event)
    return merged


def cut(text, places):
    bounds = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(bounds)]


# ---- properties ----------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
ARGUMENTS = st.builds(
    json.dumps,
    st.dictionaries(
        st.text(), JSON | st.sampled_from(["; ", "];", "</tool_call>", "<tool_call>", "[TOOL_CALLS] ["])
    ),
    ensure_ascii=st.booleans(),
    indent=st.sampled_from([None, 1]),
)
CALLS = st.lists(st.tuples(st.sampled_from(NAMES), ARGUMENTS), min_size=1, max_size=3)
CALL_TEXTS = st.builds(written, st.sampled_from(FORMATS), CALLS, st.sampled_from(["arguments", "parameters"]))
SCRAPS = st.sampled_from(
    ["<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "<tool", "[TOOL", "\\", '"', "\x00"]
    + ["[ARGS]", "[CALL_ID]", "get_time", "[TOOL_CALLS]get_weather", "[TOOL_CALLS]get_time[ARGS]{", '"{}"']
    + ["[", "]", "{", "}", ";", ",", ":", "null", "-1.5e", "0", " ", "\n"]
    + ['"name"', '"get_time"', '"nobody"', '"arguments"', '"parameters"']
    + ['{"name": "get_weather", "arguments": {', '{"parameters": {"a": [1, ', '"name": "get_time"}']
)  # fmt: skip
TEXTS = st.lists(st.text(max_size=6) | SCRAPS | CALL_TEXTS | ARGUMENTS, max_size=8).map("".join)
BROKEN = st.builds(
    lambda text, places: "".join(cut(text, places)[::2]), CALL_TEXTS, st.lists(st.integers(0, 300))
)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(FORMATS), TEXTS | BROKEN, st.lists(st.integers(0, 400), max_size=12))
def test_any_chunking_parses_like_the_whole(name, text, places):
    whole = events_of(name, [text])
    assert events_of(name, cut(text, places)) == whole
    assert events_of(name, text) == whole  # character by character
    findings = Findings()
    findings.add(whole)
    for call in findings.calls:
        assert isinstance(json.loads(call.arguments), dict)
    # nothing is invented, and without calls nothing is lost either
    assert len(findings.text) <= len(text)
    if not findings.calls:
        assert findings.text == text


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(FORMATS),
    st.sampled_from(["", "Let me see."]),
    CALLS,
    st.sampled_from(["", "\n", "\nDone."]),
)
def test_what_is_written_is_found(name, before, calls, after):
    text, seen = found(name, before + "\n" * bool(before) + written(name, calls) + after)
    assert seen == [(tool, arguments) for tool, arguments in calls]
    assert text == before + after * bool(after.strip())


def streamed(name, pieces):
    """What a FunctionCallParser's stream hands out: the text, and (index, tool, name, arguments)."""
    parser = FunctionCallParser([WEATHER, TIME], name)
    text, calls = "", {}
    for normal, items in [*map(parser.parse_stream_chunk, pieces), parser.finish_stream()]:
        text += normal
        for item in items:
            call = calls.setdefault(item.call_index, [item.tool_index, "", ""])
            call[1] += item.name
            call[2] += item.parameters
    return text, [(index, *call) for index, call in calls.items()]


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(FORMATS), TEXTS | BROKEN, st.lists(st.integers(0, 400), max_size=12))
def test_a_stream_hands_out_what_the_whole_text_has(name, text, places):
    normal, items = FunctionCallParser([WEATHER, TIME], name).parse_non_stream(text)
    whole = [(item.call_index, item.tool_index, item.name, json.loads(item.parameters)) for item in items]
    for pieces in ([text], text, cut(text, places)):
        shown, calls = streamed(name, pieces)
        assert shown == normal
        assert [(*call, json.loads(arguments)) for *call, arguments in calls] == whole


@settings(deadline=None)
@given(st.sampled_from(FORMATS), CALLS, st.lists(st.integers(0, 400), max_size=12))
def test_the_documented_stream(name, calls, places):
    """Chunks give what the whole gives; a call's parameters concatenate to its arguments as written."""
    text = "Well.\n" + written(name, calls)
    parser = FunctionCallParser([WEATHER, TIME], name)
    shown, streamed = "", {}
    for piece in cut(text, places):
        normal, items = parser.parse_stream_chunk(piece)
        shown += normal
        for item in items:
            if item.name:
                assert (item.call_index, item.parameters) == (len(streamed), "")
                streamed[item.call_index] = [item.tool_index, item.name, ""]
            else:
                streamed[item.call_index][2] += item.parameters
    normal, items = parser.finish_stream()
    assert (shown + normal, items) == ("Well.", [])
    normal, items = parser.parse_non_stream(text)
    assert normal == "Well."
    assert [tuple(one) for one in streamed.values()] == [(NAMES.index(tool), tool, a) for tool, a in calls]
    assert [(item.tool_index, item.name) for item in items] == [
        (NAMES.index(tool), tool) for tool, _ in calls
    ]
    assert [json.loads(item.parameters) for item in items] == [json.loads(a) for _, a in calls]


# ---- cases ---------------------------------------------------------------------------------------------

CALL = '{"name": "get_weather", "parameters": {"city": "Paris"}}'
CITY = '{"city": "Paris"}'
PARIS = ("get_weather", CITY)


@pytest.mark.parametrize(
    ("name", "text", "rest", "calls"),
    [
        ("llama3", CALL, "", [PARIS]),
        ("llama3", f" {CALL};{CALL} ;\n<|python_tag|>{CALL}\n", "", [PARIS] * 3),
        ("llama3", f"Sure. {CALL}", f"Sure. {CALL}", []),
        ("llama3", f"Sure. <|python_tag|>{CALL}; and so on", "Sure.; and so on", [PARIS]),
        ("llama3", f"<|python_tag|>{CALL}<|python_tag|>{CALL}", "", [PARIS, PARIS]),
        ("llama3", '<|python_tag|>search.call("x")', '<|python_tag|>search.call("x")', []),
        ("llama3", '{"city": "Paris"}', '{"city": "Paris"}', []),
        ("llama3", f"{CALL}\n{CALL}\n\n<|python_tag|>{CALL}{CALL}\nDone.", "\nDone.", [PARIS] * 4),
        ("llama3", f"{CALL}\n{{\"city\": 1}}", '\n{"city": 1}', [PARIS]),
        ("llama3", f"{CALL}\n{CALL[:-1]}", f"\n{CALL[:-1]}", [PARIS]),
        ("llama3", CALL[:-1] + ', "note": 1}', CALL[:-1] + ', "note": 1}', []),
        ("llama3", f"```json\n{CALL}\n```", f"```json\n{CALL}\n```", []),
        ("llama3", f"<tool_call>{CALL}</tool_call>", f"<tool_call>{CALL}</tool_call>", []),
        ("mistral", f"[TOOL_CALLS] [{CALL[:-1]}]", f"[TOOL_CALLS] [{CALL[:-1]}]", []),
        ("mistral", f"So.[TOOL_CALLS]get_weather[ARGS]{CITY} Then.", "So. Then.", [PARIS]),
        ("mistral", f"[TOOL_CALLS] get_weather [ARGS] {CITY}", "", [PARIS]),
        ("mistral", f"[TOOL_CALLS]get_weather{CITY}[TOOL_CALLS]get_weather{CITY}", "", [PARIS] * 2),
        ("mistral", f"[TOOL_CALLS]get_weather[CALL_ID]aB3dE6gH9[ARGS]{CITY}", "", [PARIS]),
        ("mistral", f"[TOOL_CALLS]get_weather[ARGS]{CITY}[TOOL_CALLS][{CALL}]", "", [PARIS] * 2),
        ("mistral", f"[TOOL_CALLS]nobody[ARGS]{CITY}", f"[TOOL_CALLS]nobody[ARGS]{CITY}", []),
        ("mistral", "[TOOL_CALLS]get_weather[ARGS]", "[TOOL_CALLS]get_weather[ARGS]", []),
        ("mistral", '[TOOL_CALLS]get_time[ARGS]{"a": 1', '[TOOL_CALLS]get_time[ARGS]{"a": 1', []),
        ("mistral", f"[TOOL_CALLS]get_weather[ARGS]{json.dumps(CITY)}", "", [PARIS]),
        ("mistral", f"[TOOL_CALLS][{CALL} , {CALL}] Then.", " Then.", [PARIS, PARIS]),
        ("mistral", f"[TOOL_CALLS] {CALL}", f"[TOOL_CALLS] {CALL}", []),
        ("mistral", f"[TOOL_CALLS] [{CALL}, {{}}]", ", {}]", [PARIS]),
        ("mistral", f"[TOOL_CALLS] [{CALL}", "", [PARIS]),
        ("qwen25", f"<tool_call>{CALL}", "", [PARIS]),
        ("qwen25", f"<tool_call>{CALL[:-1]}</tool_call>", f"<tool_call>{CALL[:-1]}</tool_call>", []),
        ("qwen25", f"<tool_call>\n{CALL}\n{CALL}\n</tool_call>", "", [PARIS] * 2),
        ("qwen25", f'<tool_call>{{"name": "get_weather", "arguments": {json.dumps(CITY)}}}', "", [PARIS]),
        ("qwen25", '<tool_call>{"name": "get_time", "arguments": ""}', "", [("get_time", "{}")]),
        ("qwen25", '<tool_call>{"n\\u0061me": "get\\u005ftime"}', "", [("get_time", "{}")]),
        ("qwen25", f"<tool_call><tool_call>{CALL}</tool_call>", "<tool_call>", [PARIS]),
        ("qwen25", f"{CALL}", f"{CALL}", []),
        ("qwen25", "a < b\n\n", "a < b\n\n", []),
        ("qwen25", "<tool_call>oh", "<tool_call>oh", []),
        ("qwen25", f"A\n<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>\n", "A", [PARIS] * 2),
        ("qwen25", '<tool_call>{"name": "get_time"}</tool_call>', "", [("get_time", "{}")]),
        ("qwen25", '<tool_call>{"name": "get_time", "arguments": null}', "", [("get_time", "{}")]),
        ("qwen25", '<tool_call>{"arguments": {"a" :1}, "name": "get_time"}', "", [("get_time", '{"a" :1}')]),
        ("qwen25", '<tool_call>{"id": [{}], "name": "get_time", "arguments": {}}', "", [("get_time", "{}")]),
    ],
)  # fmt: skip
def test_cases(name, text, rest, calls):
    assert found(name, text) == (rest, calls)


@pytest.mark.parametrize(
    "object_text",
    [
        '{"name": "get_time", "arguments": {"a": tru',
        '{"name": "get_time", "arguments": {"a": 01}}',
        '{"name": "get_time", "arguments": {"a": NaN}}',
        '{"name": "get_time", "arguments": {"a": "line\nend"}}',
        '{"name": "get_time", "arguments": {"a": 1,}}',
        '{"name": "get_time", "arguments": [1]}',
        '{"name": "get_time", "arguments": "x"}',
        '{"name": "get_time", "arguments": "[1]"}',
        '{"name": "get_time", "arguments": "{} {}"}',
        '{"name": "get_time", "arguments": "{\\"a\\": 01}"}',
        '{"name": "get_time", "arguments": "{\\"a\\": \\"\\ud800\\"}"}',
        '{"name": "get_time", "arguments": "{}", "parameters": null}',
        '{"name": "get_time", "arguments": {}, "parameters": {}}',
        '{"name": "get_time", "name": "get_weather"}',
        '{"name": "nobody", "arguments": {}}',
        '{"arguments": {}}',
        '{"name": 7}',
        "[]",
        '{"name": "get_time", "arguments": ' + '{"a":' * 200,
        '{"name": "get_time", "arguments": {"a": ' + "[" * 5000,
    ],
)
def test_malformed_calls_are_text(object_text):
    text = f"Hm. <tool_call>{object_text}</tool_call> Well."
    assert found("qwen25", text) == (text, [])


def test_arguments_stream_while_they_are_written():
    parser = ToolCallParser(get_format("qwen25"), NAMES)
    assert parser.feed('Hm. <tool_call>{"name": "get_time", ') == [TextDelta("Hm."), CallStart(0, "get_time")]
    assert parser.feed('"arguments": {"zone": "Eur') == [ArgumentsDelta(0, '{"zone": "Eur')]
    assert parser.feed("ope") == [ArgumentsDelta(0, "ope")]
    assert parser.feed('"} ') == [ArgumentsDelta(0, '"}')]
    assert parser.feed("}") == [CallEnd(0, '{"zone": "Europe"}')]
    assert parser.feed("</tool_call>") == parser.finish() == []


def test_parameters_are_written_anew():
    parser = FunctionCallParser([WEATHER], "llama3")
    for raw, parameters in [
        ('{ "city" :"Z\\u00fcrich"}', '{"city": "Zürich"}'),
        ('{"city":1e999}', '{"city":1e999}'),
        ('{"city":"\\ud800"}', '{"city":"\\ud800"}'),
        ('{"city":' + "1" * 5000 + "}", '{"city":' + "1" * 5000 + "}"),
    ]:
        text = f'{{"name": "get_weather", "parameters": {raw}}}'
        assert parser.parse_non_stream(text) == ("", [ToolCallItem(0, "get_weather", parameters)])


def test_unknown_formats_and_wrong_tools():
    for name in (None, "", "llama4"):
        with pytest.raises(ConfigError, match="Unsupported tool_call_parser"):
            FunctionCallParser([WEATHER], name)
    for tools, message in [
        ({}, "tools must be a list"),
        ([{"name": "f"}], r"tools\[0\] must be"),
        ([TIME, {"type": "function", "function": {}}], r"tools\[1\]\.function\.name is missing"),
        ([{"type": "function", "function": {"name": "a b"}}], r"tools\[0\]: The name of a tool"),
        ([{"type": "retrieval", "function": {"name": "f"}}], r"tools\[0\] must be"),
        ([{"function": {"name": "f", "parameters": []}}], "must be a JSON schema"),
        ([{"function": {"name": "f", "parameters": {"type": "string"}}}], "must describe an object"),
        ([{"function": {"name": "f", "parameters": {"properties": []}}}], "properties that are no object"),
        ([{"function": {"name": "f", "parameters": {"required": "x"}}}], "required that is no list"),
        ([{"function": {"name": "f", "arguments": {}}}], r"function\.arguments is unknown"),
        ([{"function": {"name": "f", "strict": "yes"}}], "strict must be true or false"),
        ([TIME, TIME], "'get_time' twice"),
    ]:
        with pytest.raises(InvalidRequestError, match=message):
            read_tools(tools)
    tools = read_tools([WEATHER, Tool(function=Function(name="get_time"))])
    assert [tool.as_dict() for tool in tools] == [WEATHER, TIME]


NEWER_MISTRAL = [
    ("{{- '[TOOL_CALLS]' + tool['function']['name'] + '[ARGS]' + arguments }}", ("[ARGS]",)),
    ("{{ '[TOOL_CALLS]' + c.function.name }}{{ '[CALL_ID]' + c.id + '[ARGS]' }}", ("[CALL_ID]", "[ARGS]")),
    ("[TOOL_CALLS]{{ call.name }}{{ call.arguments }}", ()),
    ('{{ "[TOOL_CALLS]" ~ call["function"]["name"] ~ arguments }}', ()),
]


def test_formats_are_detected_by_the_template():
    assert detect_format("""{{ '<tool_call>\n{"name": ..., "arguments": ' }}""") is get_format("qwen25")
    assert detect_format("{{ '<tool_call><function=' ~ call.name ~ call.arguments }}") is None
    assert detect_format('the format {"name": function name, "parameters": ...}') is get_format("llama3")
    assert detect_format({"default": "{{ x }}", "tool_use": "[TOOL_CALLS]"}) is get_format("mistral")
    for template in ("'[TOOL_CALLS] [' }}", "{{ '[TOOL_CALLS]' + message['content']|string }}"):
        assert detect_format(template) is get_format("mistral")
    for template, markers in NEWER_MISTRAL:
        assert detect_format(template).after_name == markers
        assert detect_format(template, "mistral").after_name == markers
    assert detect_format("<|python_tag|>", "mistral") is get_format("mistral")
    assert detect_format("<|python_tag|>") is get_format("llama3")
    assert detect_format("<|im_start|>") is detect_format(None) is None


# ---- forced calls --------------------------------------------------------------------------------------


def forced(name, tools):
    functions = [tool.function for tool in read_tools(tools)]
    structure = {"type": "structural_tag", "format": get_format(name).write(functions)}
    return xgrammar.Grammar.from_structural_tag(json.dumps(structure))


@pytest.mark.parametrize("name", FORMATS)
def test_forced_calls_are_calls(name):
    """Its grammar takes calls of the tools by their schemas, which the parser finds, and nothing else."""
    grammar = forced(name, [WEATHER, TIME])
    one, two = [PARIS], [PARIS, ("get_time", "{}"), PARIS]
    key = "parameters" if name == "llama3" else "arguments"
    for calls in (one, two):
        text = written(name, calls, key).removeprefix("<|python_tag|>")
        assert accepts(grammar, text)
        assert found(name, text) == ("", calls)
        assert not accepts(grammar, "Sure. " + text)
    for calls in ([], [("get_weather", '{"city": 1}')], [("get_weather", "{}")], [("nobody", "{}")]):
        assert not accepts(grammar, written(name, calls, key).removeprefix("<|python_tag|>"))
    assert not accepts(grammar, "")
    assert not accepts(forced(name, [TIME]), written(name, one, key).removeprefix("<|python_tag|>"))


@pytest.mark.parametrize(("template", "markers"), NEWER_MISTRAL)
def test_forced_calls_have_the_form_of_the_template(template, markers):
    functions = [tool.function for tool in read_tools([WEATHER, TIME])]
    structure = {"type": "structural_tag", "format": detect_format(template).write(functions)}
    grammar = xgrammar.Grammar.from_ebnf(as_ebnf(Constraint("structural_tag", json.dumps(structure)).rules()))
    between = "".join(markers).replace("[CALL_ID]", "[CALL_ID]aB3dE6gH9")
    text = "".join(
        f"[TOOL_CALLS]{name}{between}{arguments}" for name, arguments in (PARIS, ("get_time", "{}"))
    )
    assert accepts(grammar, text)
    assert found("mistral", text) == ("", [PARIS, ("get_time", "{}")])
    assert not accepts(grammar, f"[TOOL_CALLS] [{CALL}]")
    assert not accepts(grammar, text.replace("Paris", '"'))


def test_a_new_format_is_one_class():
    try:

        @register_format
        class Tagged(ToolCallFormat):
            name = "tagged"
            start = "<function="

            def read(self, parser):
                name = yield from parser.source.until(">")
                yield from parser.arguments(name)
                yield from parser.source.optional("</function>")

            def write(self, functions):
                calls = [tag(f"<function={f.name}>", f.schema, "</function>") for f in functions]
                return one_or_more(calls, separator="")

        assert format_names()[-1] == "tagged"
        text = 'So <function=get_weather>{"city": "Paris"}</function><function=get_time>{}</function>'
        assert found("tagged", text) == ("So", [PARIS, ("get_time", "{}")])
        for bad in ("<function=nobody>{}", "<function=get_time", "<function=get_time>[]", "<function="):
            assert found("tagged", bad) == (bad, [])
        assert events_of("tagged", text) == events_of("tagged", [text])
        assert accepts(forced("tagged", [WEATHER, TIME]), text[3:])
        assert detect_format("<function=f>") is get_format("tagged")
    finally:
        _FORMATS.pop("tagged", None)
