"""What README shows runs as it is printed: its blocks in order, its commands, names and links."""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import pydoc
import re
import shlex
from pathlib import Path

import pytest

import rootlet
from rootlet.__main__ import build_parser
from rootlet.models.tokenizer import load_tokenizer

from .engine.test_chat_calls import TEMPLATE
from .models.hf import build_hf

ROOT = Path(rootlet.__file__).parent
README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?://)([^)#]+)")


def blocks(language: str, text: str = README) -> list[tuple[int, str]]:
    """The blocks of a language ("" for commands), each with the line where its first line stands."""
    found = [match for match in BLOCK.finditer(text) if match[1] == language]
    return [(text.count("\n", 0, match.start(2)), match[2]) for match in found]


@pytest.fixture
def a_folder_with_the_models(tmp_path, smollm2_gguf, smollm2_dir, monkeypatch):
    """The file of SmolLM2, and small stand-ins under the names of the other models."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / smollm2_gguf.name).symlink_to(smollm2_gguf)
    tokenizer = load_tokenizer(str(smollm2_gguf))

    def folder(name: str) -> Path:
        path = tmp_path / name
        path.mkdir(parents=True)
        tokenizer.save_pretrained(path)
        return path

    size = {"vocab_size": len(tokenizer), "pad_token_id": 0}
    build_hf("Mistral", kind="Model", **size).save_pretrained(folder("intfloat/e5-mistral-7b-instruct"))
    judge = build_hf("Llama", kind="ForSequenceClassification", num_labels=1, **size)
    judge.save_pretrained(folder("path/to/reward-model"))
    build_hf("Llama", **size).save_pretrained(folder("path/to/policy"))
    tokenizer.chat_template = TEMPLATE
    caller = folder("Qwen/Qwen2.5-0.5B-Instruct")
    for name in ("config.json", "model.safetensors"):
        (caller / name).symlink_to(smollm2_dir / name)


@pytest.mark.usefixtures("a_folder_with_the_models")
def test_the_blocks_run_one_after_another():
    Path("in.jsonl").write_text('{"prompt": "The capital of France is"}\n')  # as the command before has it
    session = {}
    for line, block in blocks("python"):
        code = compile("\n" * line + block, "README.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        if code.co_flags & inspect.CO_COROUTINE:
            asyncio.run(eval(code, session))
        else:
            exec(code, session)
    session["engine"].close()
    assert [len(answer.text) > 0 for answer in session["answers"]] == [True, True]
    results = session["results"]  # one or more: a forced reply may call a tool again
    assert results
    assert all(called["content"].startswith("half past ten in ") for called in results)
    paris, london = session["scores"]
    assert paris.logprob > london.logprob
    assert [len(vector) for vector in session["vectors"]] == [64, 64]
    assert isinstance(session["reward"], float)
    assert "Paris" in json.loads(Path("answers.jsonl").read_text())["text"]


@pytest.mark.parametrize("page", ["README.md", "examples/README.md"])
def test_the_commands_are_understood(page):
    lines = "".join(block for _, block in blocks("", (ROOT / page).read_text())).replace("\\\n", " ")
    commands = [shlex.split(line) for line in lines.splitlines() if line.startswith("python -m rootlet")]
    assert commands
    for command in commands:
        assert build_parser().parse_args(command[3:]).run


def test_targets_of_make_are_there():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE))
    assert named >= {"demo", "test", "test-oldest"}
    assert named <= targets


def test_names_to_look_up_are_there():
    names = set(re.findall(r"`(?:pydoc )?(rootlet(?:\.\w+)+)`", README))
    assert len(names) > 8
    assert [name for name in names if pydoc.locate(name) is None] == []


@pytest.mark.parametrize(
    "page", ["README.md", "docs/architecture.md", "docs/releases.md", "examples/README.md"]
)
def test_links_lead_somewhere(page):
    path = ROOT / page
    prose = BLOCK.sub("", path.read_text())
    assert [link for link in LINK.findall(prose) if not (path.parent / link).exists()] == []
