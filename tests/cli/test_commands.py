"""``generate`` and ``chat`` on the real small model, in this process."""

from __future__ import annotations

import io
import json

import pytest

from rootlet.__main__ import main
from rootlet.cli.chat import ChatSession

GREEDY = ["--temperature", "0", "--max-new-tokens", "10"]
PROMPT = "The capital of France is"
PARAMS = {"temperature": 0, "max_new_tokens": 10}


@pytest.fixture
def stdin(monkeypatch):
    """``stdin(text)`` pipes text in."""
    return lambda text: monkeypatch.setattr("sys.stdin", io.StringIO(text))


def test_generate_prints_the_text(lent_engine, capsys):
    expected = lent_engine.engine.generate(PROMPT, PARAMS).text
    for extra in ([], ["--stream"], ["--no-stream"]):
        assert main(["generate", "--model", "M", PROMPT, *GREEDY, *extra]) == 0
        assert capsys.readouterr().out == expected + "\n"


def test_generate_reads_a_pipe_and_passes_options_on(lent_engine, stdin, capsys):
    expected = lent_engine.engine.generate(PROMPT, PARAMS).text
    for arguments in ([], ["-"]):
        stdin(PROMPT)
        assert main(["generate", "--model", "M", "--page-size", "4", *GREEDY, *arguments]) == 0
        assert capsys.readouterr().out == expected + "\n"
    assert lent_engine.built_with == [("M", {"page_size": 4})] * 2


def test_generate_json(lent_engine, capsys):
    assert main(["generate", "--model", "M", PROMPT, *GREEDY, "--n", "2", "--json"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["text"] == second["text"]
    assert (first["index"], second["index"]) == (0, 1)
    assert first["meta_info"]["completion_tokens"] == 10


def test_generate_samples(lent_engine, capsys):
    assert main(["generate", "--model", "M", PROMPT, *GREEDY, "--n", "2", "--stream"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("--- sample 1\n")
    assert "\n--- sample 2\n" in out


def test_generate_chat(lent_engine, capsys):
    engine = lent_engine.engine
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi!"}]
    text = engine.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = engine.tokenizer.encode(text, add_special_tokens=False)
    assert main(["generate", "--model", "M", "--system", "Be brief.", "Hi!", *GREEDY]) == 0
    assert capsys.readouterr().out == engine.generate(input_ids=ids, sampling_params=PARAMS).text + "\n"


def test_generate_refuses_in_one_line(lent_engine, capsys):
    assert main(["generate", "--model", "M", ""]) == 2
    assert capsys.readouterr().err.startswith("rootlet: error: The prompt is empty")


def test_ctrl_c_exits_with_130(lent_engine, monkeypatch, capsys):
    def interrupted(**arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(lent_engine.engine, "generate", interrupted, raising=False)
    assert main(["generate", "--model", "M", "x"]) == 130


def test_chat_with_a_pipe(lent_engine, stdin, capsys):
    stdin("What is 2 + 2?\n\nAnd 3 + 3?\n/reset\nWhat is 2 + 2?\n/system Be brief.\nHi!\n/exit\nnever read\n")
    assert main(["chat", "--model", "M", *GREEDY]) == 0
    first, second, again, brief = capsys.readouterr().out.rstrip("\n").split("\n\n")
    assert first == again
    session = ChatSession(lent_engine.engine, PARAMS)
    assert [first, second] == [answer(session, "What is 2 + 2?"), answer(session, "And 3 + 3?")]
    assert [role for role, _ in session.messages] == ["user", "assistant"] * 2
    assert brief == answer(ChatSession(lent_engine.engine, PARAMS, "Be brief."), "Hi!")


def test_chat_on_a_terminal(lent_engine, monkeypatch, capsys):
    """Ctrl-C at the prompt says how to leave, Ctrl-D leaves."""
    lines = iter(["Hi!", KeyboardInterrupt(), "/help", EOFError()])

    def read(prompt):
        assert prompt == "> "
        line = next(lines)
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    assert main(["chat", "--model", "M", *GREEDY]) == 0
    out = capsys.readouterr().out
    assert answer(ChatSession(lent_engine.engine, PARAMS), "Hi!") in out
    assert "Ctrl-D or /exit leaves." in out
    assert "/system TEXT" in out


def answer(session, text):
    pieces = []
    session.ask(text, pieces.append)
    return "".join(pieces)


def test_chat_reports_what_it_cannot_do_and_goes_on(lent_engine, stdin, capsys):
    stdin("/fly\n" + "word " * 9000 + "\nHi!\n")
    assert main(["chat", "--model", "M", *GREEDY]) == 1
    out, err = capsys.readouterr()
    assert out.strip()
    assert "There is no command /fly" in err
    assert "/reset starts over" in err


def test_an_interrupted_answer_stays_in_the_conversation(lent_engine):
    session = ChatSession(lent_engine.engine, PARAMS | {"max_new_tokens": 200, "ignore_eos": True})
    pieces = []

    def write(piece):
        pieces.append(piece)
        if len(pieces) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session.ask("Count to a hundred.", write)
    assert session.messages == [("user", "Count to a hundred."), ("assistant", "".join(pieces[:2]))]
    assert lent_engine.engine.stats().num_running == 0  # the engine no longer computes it


def test_a_refused_message_is_not_part_of_the_conversation(lent_engine):
    session = ChatSession(lent_engine.engine, PARAMS)
    answer(session, "Hi!")
    before = list(session.messages)
    with pytest.raises(ValueError, match="longer than"):
        answer(session, "word " * 9000)
    assert session.messages == before


def test_the_default_answer_fits_what_is_left_of_the_context(lent_engine):
    session = ChatSession(lent_engine.engine, {"temperature": 0, "stop": ["."]})
    session._room = 40  # as if the context were that short
    answer(session, "Hi!")
    assert session.messages[-1][0] == "assistant"
