"""The command line is made from the dataclasses, is light, and says what is wrong in one line."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import pydoc
import re
import subprocess
import sys

import pytest

from rootlet import RequestOutput, errors, run_jobs
from rootlet.__main__ import build_parser, main
from rootlet.cli.options import engine_options, sampling_params
from rootlet.engine.chat.outputs import ChatDelta, ChatOutput, ToolCall, ToolCallDelta
from rootlet.engine.config import EngineConfig
from rootlet.engine.jobs import JobSummary
from rootlet.sampling.params import SamplingParams

COMMANDS = {
    "batch": ["batch", "--model", "M", "--input", "in", "--output", "out"],
    "generate": ["generate", "--model", "M", "prompt"],
    "chat": ["chat", "--model", "M"],
}


def parse(command, *arguments):
    return build_parser().parse_args([*COMMANDS[command], *arguments])


def subparser(command):
    [action] = [a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return action.choices[command]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_engine_option_and_sampling_parameter_has_an_option_with_help(command):
    helps = {flag: action.help for action in subparser(command)._actions for flag in action.option_strings}
    by_hand = {"step_by_hand", "skip_tokenizer_init"}  # no use for them where text goes in and out
    names = {f.name for cls in (EngineConfig, SamplingParams) for f in dataclasses.fields(cls)} - by_hand
    for name in names:
        assert len(helps["--" + name.replace("_", "-")]) > 5, name
    assert not {"--" + name.replace("_", "-") for name in by_hand} & set(helps)


@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_given_means_nothing_passed_on(command):
    args = parse(command)
    assert engine_options(args) == {}
    assert sampling_params(args) == {}


def test_values_have_the_types_of_the_fields():
    args = parse(
        "batch",
        *("--page-size", "1", "--disable-radix-cache", "--mem-fraction-static", "0.5", "--dtype", "float32"),
        *("--no-disable-overlap-schedule", "--max-total-tokens", "none", "--schedule-policy", "fcfs"),
        *("--max-new-tokens", "none", "--stop", "a", "--stop", "b", "--stop-token-ids", "5", "--ignore-eos"),
        *("--no-skip-special-tokens", "--logit-bias", '{"7": -1}', "--temperature", "0", "--seed", "3"),
        *("--json-schema", '{"type": "object"}'),
    )
    assert engine_options(args) == {
        "page_size": 1,
        "disable_radix_cache": True,
        "mem_fraction_static": 0.5,
        "dtype": "float32",
        "disable_overlap_schedule": False,
        "max_total_tokens": None,
        "schedule_policy": "fcfs",
    }
    assert EngineConfig(model_path="M", **engine_options(args)).page_size == 1
    assert sampling_params(args) == {
        "max_new_tokens": None,
        "stop": ["a", "b"],
        "stop_token_ids": [5],
        "ignore_eos": True,
        "skip_special_tokens": False,
        "logit_bias": {"7": -1},
        "temperature": 0.0,
        "seed": 3,
        "json_schema": '{"type": "object"}',
    }
    assert SamplingParams(**sampling_params(args)).logit_bias == {7: -1.0}


def test_unambiguous_abbreviations_work_as_in_the_documented_commands():
    args = parse(
        "generate", "--mem-frac", "0.5", "--context-len", "99", "--max-total-token", "5", "--disable-radix"
    )
    assert engine_options(args) == {
        "mem_fraction_static": 0.5,
        "context_length": 99,
        "max_total_tokens": 5,
        "disable_radix_cache": True,
    }
    assert build_parser().parse_args(["chat", "--model-path", "M"]).model == "M"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_complete_and_exits_with_0(command, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main([command, "--help"])
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    assert "examples:" in text
    assert text.startswith(f"usage: rootlet {command} --model PATH")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["genrate", "--model", "M"], "Did you mean 'generate'?"),
        (["bench", "one_batch", "--model", "M"], "Did you mean 'one-batch'?"),
        (["bench", "offline", "--model", "M", "--num-prompt-s", "3"], "Did you mean '--num-prompts'"),
        (
            ["batch", "--model", "M", "--input", "i", "--output", "o", "--ouput", "p"],
            "Did you mean '--output'",
        ),
        (["generate", "--model", "M", "x", "--max_new_tokens=3"], "Did you mean '--max-new-tokens'"),
        (["generate", "--model", "M", "x", "--dtype", "flaot16"], "Did you mean 'float16'"),
        (["chat", "--model", "M", "--qqqq", "1"], "unrecognized arguments: --qqqq 1\n"),
        (["chat", "--modle", "M"], "required: --model/--model-path Did you mean '--model'"),
        (["batch", "--model", "M"], "--input"),
        (["generate", "hello"], "--model"),
        (["generate", "--model", "M", "x", "--page-size", "many"], "--page-size"),
        (["generate", "--model", "M", "x", "--logit-bias", "[1]"], "not a JSON object"),
        (["generate", "--model", "M", "x", "--logit-bias", "{"], "not JSON"),
        (["generate", "--model", "M", "x", "--dtype", "int3"], "--dtype"),
        (
            ["generate", "--model", "M", "x", "--temprature", "1"],
            "--temprature 1 Did you mean '--temperature'",
        ),
    ],
)
def test_usage_errors_exit_with_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "--model", "M", "x", "--temperature", "-1"], "temperature must be non-negative"),
        (["generate", "--model", "no-such-model.gguf", "x"], "no-such-model.gguf"),
        (["generate", "--model", "M", "x", "--page-size", "0"], "page_size must be at least 1"),
        (["chat", "--model", "M", "--top-p", "2"], "top_p"),
        (["batch", "--model", "M", "--input", "-", "--output", "o"], "standard input"),
        (["batch", "--model", "M", "--input", "no-such-file", "--output", "o"], "does not exist"),
        (["batch", "--model", "M", "--input", __file__, "--output", "/no/such/folder/o"], "does not exist"),
    ],
)
def test_what_is_refused_is_said_in_one_line(arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("rootlet: error: ")
    assert message in error
    assert error.count("\n") == 1


def test_help_loads_neither_torch_nor_numpy():
    code = (
        "import sys\nfrom rootlet.__main__ import main\n"
        "try: main(['batch', '--help'])\n"
        "except SystemExit: pass\n"
        "print({'torch', 'transformers', 'numpy', 'tqdm'} & set(sys.modules), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr.strip() == "set()"


# the word by which a number's help says what it counts
UNITS = ("token", "byte", "GiB", "fraction", "request", "step", "seed", "second", "thread", "count", "batch")


def test_pydoc_explains_every_option():
    text = pydoc.plain(pydoc.render_doc("rootlet.engine.config"))
    text = " ".join(text.replace("|", " ").split())
    for option in dataclasses.fields(EngineConfig):
        default = "" if option.default is dataclasses.MISSING else f" = {option.default!r}"
        kind = " ".join(str(option.type).replace("|", " ").split())
        explained = f" {option.name}: {kind}{default} {' '.join(option.metadata['help'].split())}"
        assert explained in text
        for choice in option.metadata.get("choices") or ():
            assert choice in text
        if kind.startswith(("int", "float")):
            assert any(unit in option.metadata["help"] for unit in UNITS), option.name


@pytest.mark.parametrize(
    "thing", [SamplingParams, ChatDelta, ChatOutput, ToolCall, ToolCallDelta, RequestOutput, JobSummary]
)
def test_docstrings_name_every_field(thing):
    for name in [field.name for field in dataclasses.fields(thing)]:
        assert re.search(rf"\b{name}\b", thing.__doc__), name


def test_docstrings_name_every_argument_of_a_job():
    for name in inspect.signature(run_jobs).parameters:
        assert re.search(rf"\b{name}\b", run_jobs.__doc__.partition("Args:")[2]), name


def test_the_tree_of_errors_is_whole():
    for name, error in vars(errors).items():
        if isinstance(error, type) and issubclass(error, errors.RootletError):
            builtin = f" ({error.__bases__[1].__name__})" if len(error.__bases__) > 1 else ""
            assert re.search(rf"\b{name}{re.escape(builtin)}", errors.__doc__), name
