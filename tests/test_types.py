"""What mypy says: nothing about the package, and of users' scripts what is wrong in them."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rootlet

ROOT = Path(rootlet.__file__).parent

RIGHT = """
from collections.abc import Iterator
from pathlib import Path
from typing_extensions import assert_type

import rootlet
from rootlet import ChatOutput, Engine, RequestOutput, SamplingParams

engine = Engine(Path("model"), max_total_tokens=8, tokenizer_path=Path("tokenizer"), page_size=None)
greedy = {"temperature": 0, "max_new_tokens": 8}
assert_type(engine.generate("one"), RequestOutput)
assert_type(engine.generate("one", greedy, None, True, top_logprobs_num=2), RequestOutput)
assert_type(engine.generate(["one", "two"], SamplingParams(stop="\\n", seed=1)), list[RequestOutput])
assert_type(engine.generate(["one", "two"], [greedy, None]), list[RequestOutput])
assert_type(engine.generate(input_ids=[1, 2], return_logprob=True), RequestOutput)
assert_type(engine.generate(input_ids=[[1], [2]], rid=["a", "b"]), list[RequestOutput])
for output in engine.generate(["one", "two"], stream=True):
    assert_type(output, RequestOutput)
    assert_type(output.text, str | None)
assert_type([output.token_ids for output in engine.submit("one")], list[tuple[int, ...]])
assert_type(engine.submit("one").result(), RequestOutput)
engine.generate(["one", "two"], return_logprob=True, logprobs_of=["raw", None], return_sampling_mask=True)
engine.abort("one")
engine.abort()
assert_type(engine.submit(continue_from=engine.submit("one").result()).result(), RequestOutput)
engine.generate(continue_from=engine.generate(["one", "two"]), rid=["a", "b"])

hello = [{"role": "user", "content": "Hello"}]
assert_type(engine.chat(hello), ChatOutput)
assert_type(engine.chat([hello, hello], greedy, tools=[]), list[ChatOutput])
assert_type([delta.content for delta in engine.chat(hello, stream=True)], list[str])


def stream(prompt: str) -> Iterator[RequestOutput]:
    return engine.generate(prompt, stream=True)


async def main() -> None:
    assert_type(await engine.async_generate("one"), RequestOutput)
    assert_type(await engine.async_generate(["one", "two"]), list[RequestOutput])
    assert_type(await engine.async_chat(hello), ChatOutput)
    assert_type(await engine.submit("one"), RequestOutput)
    async for output in await engine.async_generate("one", stream=True):
        assert_type(output.text, str | None)
    async for delta in await engine.async_chat(hello, stream=True):
        assert_type(delta.content, str)


with Engine("embedder", is_embedding=True) as embedder:
    for embedding in embedder.encode(["one", "two"]), embedder.classify("one"):
        print(embedding)
"""

# each wrong line ends with the code of its error
WRONG = """
import rootlet
engine = rootlet.Engine("m", max_total_tokens="8")  # arg-type
engine = rootlet.Engine("m", max_total_token=8)  # call-arg
engine.generate(5)  # call-overload
engine.generate("one", {"temperature": 0}, sampling_parms={})  # call-overload
engine.generate("one", stream=True).text  # attr-defined
engine.generate(["one", "two"]).text  # attr-defined
engine.chat("Hello")  # arg-type
rootlet.SamplingParams(temperature="hot")  # arg-type
engine.submit(["one", "two"])  # arg-type
engine.generate("one", return_logprob=True, logprobs_of="tempred")  # arg-type
engine.submit(continue_from="one")  # arg-type
rootlet.Enigne("m")  # attr-defined
"""


@pytest.fixture(scope="module")
def findings(made_once) -> dict[str, list[dict]]:
    """What mypy says of the package and of two scripts of a user who has it installed, by file."""
    folder = made_once("types", check_types)
    found: dict[str, list[dict]] = {}
    for line in (folder / "findings.jsonl").read_text().splitlines():
        finding = json.loads(line)
        found.setdefault(finding["file"], []).append(finding)
    return found


def check_types(folder: Path) -> None:
    """Run mypy with the package where installed ones are, whatever this folder of it is called."""
    scripts, installed = folder / "scripts", folder / "installed"
    scripts.mkdir()
    installed.mkdir()
    (installed / "rootlet").symlink_to(ROOT)
    (scripts / "right.py").write_text(RIGHT)
    (scripts / "wrong.py").write_text(WRONG)
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "--output=json"]
    command += ["--cache-dir", str(ROOT / ".mypy_cache"), "-p", "rootlet", "-m", "right", "-m", "wrong"]
    # what stands on this path is told from a user's own files, and read for py.typed
    path = os.pathsep.join(filter(None, (str(installed), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": path}
    run = subprocess.run(command, cwd=scripts, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode in (0, 1), run.stdout + run.stderr  # 2: mypy itself failed
    assert not run.stderr, run.stderr
    (folder / "findings.jsonl").write_text(run.stdout)


def test_the_package_is_clean(findings):
    problems = [
        f"{file.rpartition('installed/rootlet/')[2]}:{one['line']}: {one['message']}"
        for file, found in findings.items()
        for one in found
        if file not in ("right.py", "wrong.py")
    ]
    assert not problems, "\n".join(problems)


def test_a_right_script_is_clean(findings):
    assert findings.get("right.py", []) == []


def test_each_wrong_line_is_found(findings):
    wrong = [re.search(r"# ([\w-]+)$", line) for line in WRONG.splitlines()]
    expected = {number: match[1] for number, match in enumerate(wrong, 1) if match is not None}
    errors = [one for one in findings["wrong.py"] if one["severity"] == "error"]
    assert {(one["line"], one["code"]) for one in errors} == set(expected.items())


def test_functions_beside_kernels_are_annotated():
    """Kernels are exempt by their modules, so what else stands there is looked at here."""
    bare = []
    for path in (ROOT / "kernels/gpu").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef):
                continue
            if any(re.match(r"(triton\.)?jit\b", ast.unparse(one)) for one in node.decorator_list):
                continue
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            given = [a.annotation for a in arguments if a.arg not in ("self", "cls")]
            if node.returns is None or None in given:
                bare.append(f"{path.name}: {node.name}")
    assert bare == []
