"""``rootlet bench offline`` and ``shared-prefix``: throughput of many requests sent at once."""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from typing import Any

from ..errors import ConfigError
from .bench_data import (
    BenchRequest,
    Ids,
    engine_settings,
    ids_of,
    profiled,
    random_requests,
    read_sharegpt,
    require_positive,
    shared_prefix_requests,
    sharegpt_requests,
)
from .options import add_engine_options, add_log_level

OFFLINE_EPILOG = """\
examples:
  rootlet bench offline --model M --dataset-name random --num-prompts 100 --random-output-len 256
  rootlet bench offline --model M --dataset-path ShareGPT.json --sharegpt-output-len 128
"""
SHARED_PREFIX_EPILOG = """\
examples:
  rootlet bench shared-prefix --model M --gsp-num-groups 8 --gsp-prompts-per-group 16
  rootlet bench shared-prefix --model M --disable-radix-cache
"""

SHARED_PREFIX = "generated-shared-prefix"
# option -> default, by the dataset it belongs to
_DATASETS: dict[str, dict[str, Any]] = {
    "sharegpt": {
        "num_prompts": 1000,
        "dataset_path": None,
        "sharegpt_output_len": None,
        "sharegpt_context_len": None,
        "apply_chat_template": False,
    },
    "random": {
        "num_prompts": 1000,
        "dataset_path": None,
        "random_input_len": 1024,
        "random_output_len": 1024,
        "random_range_ratio": 0.0,
    },
    SHARED_PREFIX: {
        "gsp_num_groups": 64,
        "gsp_prompts_per_group": 16,
        "gsp_system_prompt_len": 2048,
        "gsp_question_len": 128,
        "gsp_output_len": 256,
    },
}
_OPTIONS = {name: default for dataset in _DATASETS.values() for name, default in dataset.items()}
_HELP = {
    "num_prompts": "requests in all",
    "dataset_path": "ShareGPT JSON file; without one 'random' takes random token ids",
    "sharegpt_output_len": "tokens to generate (default: as many as the answer has)",
    "sharegpt_context_len": "leave out longer conversations",
    "random_input_len": "longest prompt",
    "random_output_len": "longest output",
    "random_range_ratio": "shortest length as a fraction of the longest",
    "gsp_num_groups": "groups that share a prefix",
    "gsp_prompts_per_group": "requests of a group",
    "gsp_system_prompt_len": "tokens of the prefix",
    "gsp_question_len": "tokens of a request's own",
    "gsp_output_len": "tokens to generate",
    "apply_chat_template": "wrap the questions of ShareGPT in the model's chat template",
}
WARM_UP = (16, 256, 16)  # requests, tokens in, tokens out


def add_parser(kinds: argparse._SubParsersAction) -> None:
    """Add the kind ``offline``."""
    parser = _add(kinds, "offline", "throughput of many requests sent at once", OFFLINE_EPILOG)
    group = parser.add_argument_group("dataset", "an option of another dataset is an error")
    group.add_argument(
        "--dataset-name", choices=tuple(_DATASETS), default="sharegpt", help="(default: sharegpt)"
    )
    for name in _OPTIONS:
        _add_option(group, name)
    parser.set_defaults(run=run)


def add_shared_prefix_parser(kinds: argparse._SubParsersAction) -> None:
    """Add the kind ``shared-prefix``: ``offline`` on the dataset of generated shared prefixes."""
    parser = _add(kinds, "shared-prefix", "throughput of groups that share a prefix", SHARED_PREFIX_EPILOG)
    group = parser.add_argument_group("dataset")
    for name in _DATASETS[SHARED_PREFIX]:
        _add_option(group, name)
    unset = {name: None for name in _OPTIONS if name not in _DATASETS[SHARED_PREFIX]}
    parser.set_defaults(run=run, dataset_name=SHARED_PREFIX, **unset)


def _add(kinds: argparse._SubParsersAction, name: str, summary: str, epilog: str) -> argparse.ArgumentParser:
    parser = kinds.add_parser(
        name,
        usage=f"rootlet bench {name} --model PATH [options]",
        help=summary,
        description=f"Measure the {summary}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    group = parser.add_argument_group("benchmark")
    group.add_argument("--backend", default="engine", metavar="NAME", help="'engine', the only one")
    group.add_argument("--result-filename", default="", metavar="FILE", help="JSONL file to append to")
    group.add_argument(
        "--seed", type=int, default=1, metavar="INT", help="of lengths, ids, orders (default: 1)"
    )
    group.add_argument("--disable-ignore-eos", action="store_true", help="let the model end its outputs")
    group.add_argument(
        "--extra-request-body", type=_json_object, default={}, metavar="JSON", help="more sampling parameters"
    )
    group.add_argument("--profile", action="store_true", help="write a torch.profiler trace")
    group.add_argument("--profile-filename-prefix", metavar="TEXT", help="of the trace (default: profile)")
    group.add_argument("--skip-warmup", action="store_true", help="time the very first requests too")
    group.add_argument("--do-not-exit", action="store_true", help="keep the engine until Ctrl-C")
    add_engine_options(parser)
    add_log_level(parser, "warning")
    return parser


def _add_option(group: Any, name: str) -> None:
    """An option whose absence can be told: None."""
    flag, default = "--" + name.replace("_", "-"), _OPTIONS[name]
    if default is False:
        group.add_argument(flag, action="store_true", default=None, help=_HELP[name])
        return
    kind = str if name == "dataset_path" else float if isinstance(default, float) else int
    text = _HELP[name] if default is None else f"{_HELP[name]} (default: {default})"
    metavar = "FILE" if kind is str else kind.__name__.upper()
    group.add_argument(flag, type=kind, metavar=metavar, help=text)


def run(args: argparse.Namespace) -> int:
    """Measure and print; returns the exit code."""
    dataset = _check(args)
    from ..engine.engine import Engine

    name, path = args.dataset_name, dataset.get("dataset_path")
    pairs = read_sharegpt(path, args.seed) if path else []
    with Engine(args.model, **engine_settings(args, ids_only=not pairs)) as engine:
        requests = _requests(engine, ids_of(engine, args, args.seed), name, dataset, pairs)
        if not args.skip_warmup:
            _generate(engine, _warm_up(engine, ids_of(engine, args, args.seed + 1)), {})
            engine.flush_cache()
        body = {"ignore_eos": not args.disable_ignore_eos, **args.extra_request_body}
        prefix = args.profile_filename_prefix or "profile"
        with profiled(f"{prefix}_offline.trace.json.gz") if args.profile else contextlib.nullcontext():
            start = time.perf_counter()
            outputs = _generate(engine, requests, body)
            elapsed = time.perf_counter() - start
        record = _record(args.backend, outputs, elapsed)
        _print(record)
        if args.result_filename:
            with open(args.result_filename, "a") as file:
                file.write(json.dumps(record) + "\n")
        if args.do_not_exit:
            _wait()
    return 0


def _check(args: argparse.Namespace) -> dict[str, Any]:
    """The chosen dataset's options, defaults filled in. Raises ConfigError for what does not go together."""
    if args.backend != "engine":
        raise ConfigError(
            f"--backend must be 'engine', got {args.backend!r}: the model runs inside this process, there is"
            " no server to measure."
        )
    chosen = _DATASETS[args.dataset_name]
    for name in _OPTIONS:
        if name not in chosen and getattr(args, name) is not None:
            raise ConfigError(
                f"--{name.replace('_', '-')} does not apply to the dataset {args.dataset_name!r}. Leave it"
                " out, or choose another --dataset-name."
            )
    given = {name: getattr(args, name) for name in chosen}
    values = {name: chosen[name] if value is None else value for name, value in given.items()}
    for name, value in values.items():
        if type(value) is int:
            require_positive(name, value)
    if args.dataset_name == "sharegpt" and values["dataset_path"] is None:
        raise ConfigError(
            "The dataset 'sharegpt' needs --dataset-path FILE: nothing is downloaded. Or choose"
            " --dataset-name random."
        )
    if not 0 <= values.get("random_range_ratio", 0) <= 1:
        raise ConfigError(f"--random-range-ratio must be in [0, 1], got {values['random_range_ratio']}.")
    if args.profile_filename_prefix is not None and not args.profile:
        raise ConfigError("--profile-filename-prefix belongs to --profile. Add that, or leave this out.")
    return values


def _requests(
    engine: Any, ids: Ids, name: str, dataset: dict[str, Any], pairs: list[tuple[str, str]]
) -> list[BenchRequest]:
    if name == SHARED_PREFIX:
        return shared_prefix_requests(ids, *dataset.values())
    count = dataset["num_prompts"]
    if name == "sharegpt":
        return sharegpt_requests(
            engine,
            pairs,
            count,
            output_len=dataset["sharegpt_output_len"],
            context_len=dataset["sharegpt_context_len"],
            chat=dataset["apply_chat_template"],
        )
    texts = [text for question, _ in pairs[:count] if (text := engine.tokenizer.encode(question))]
    lengths = (dataset["random_input_len"], dataset["random_output_len"])
    return random_requests(ids, count, *lengths, dataset["random_range_ratio"], texts)


def _warm_up(engine: Any, ids: Ids) -> list[BenchRequest]:
    count, input_len, output_len = WARM_UP
    half = engine.get_server_info()["max_req_input_len"] // 2
    input_len, output_len = min(input_len, half), min(output_len, half)
    return [BenchRequest(ids.draw(input_len), output_len) for _ in range(count)]


def _generate(engine: Any, requests: list[BenchRequest], body: dict[str, Any]) -> list[Any]:
    params = [
        {"temperature": 0, "max_new_tokens": request.output_len, "ignore_eos": True} | body
        for request in requests
    ]
    return engine.generate(input_ids=[request.input_ids for request in requests], sampling_params=params)


def _record(backend: str, outputs: list[Any], elapsed: float) -> dict[str, Any]:
    inputs = sum(output.prompt_tokens for output in outputs)
    generated = sum(output.completion_tokens for output in outputs)
    return {
        "backend": backend,
        "successful_requests": len(outputs),
        "total_latency": elapsed,
        "total_input_tokens": inputs,
        "total_cached_tokens": sum(output.cached_tokens for output in outputs),
        "total_output_tokens": generated,
        "request_throughput": len(outputs) / elapsed,
        "input_throughput": inputs / elapsed,
        "output_throughput": generated / elapsed,
        "total_throughput": (inputs + generated) / elapsed,
    }


def _print(record: dict[str, Any]) -> None:
    rows = {
        "Backend:": record["backend"],
        "Successful requests:": record["successful_requests"],
        "Benchmark duration (s):": record["total_latency"],
        "Total input tokens:": record["total_input_tokens"],
        "Cached input tokens:": record["total_cached_tokens"],
        "Total generated tokens:": record["total_output_tokens"],
        "Request throughput (req/s):": record["request_throughput"],
        "Input token throughput (tok/s):": record["input_throughput"],
        "Output token throughput (tok/s):": record["output_throughput"],
        "Total token throughput (tok/s):": record["total_throughput"],
    }
    print(f"\n{' Offline Throughput Benchmark Result ':=^50}")
    for label, value in rows.items():
        print(f"{label:<40} {value if not isinstance(value, float) else format(value, '.2f'):<10}")
    print("=" * 50, flush=True)


def _wait() -> None:
    print("The engine stays; Ctrl-C ends it.", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            time.sleep(3600)


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("not a JSON object")
    return value
