"""``rootlet bench one-batch``: prefill and decode latency of a static batch."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import statistics
import time
from typing import Any

from ..errors import ConfigError
from .bench_data import Ids, engine_settings, ids_of, profiled, require_positive
from .options import add_engine_options, add_log_level

DESCRIPTION = """\
Latency of a batch of random prompts of one length, for every combination of the given sizes. Prefill
lasts until every request has its first token. Decode is then timed step by step on the same prompts, sent
again: all but their last token come from the prefix cache, so that every step decodes the whole batch.
"""

EPILOG = """\
examples:
  rootlet bench one-batch --model M --load-format dummy --batch-size 1 16 --input-len 256 --output-len 32
  rootlet bench one-batch --model SmolLM2-135M-Instruct.Q4_1.gguf --correctness-test
"""

PROMPTS = (
    "The capital of France is",
    "The capital of the United Kingdom is",
    "Today is a sunny day and I like",
)
SHOWN_STEPS = 5
WARM_UP_OUTPUT = 8


def add_parser(kinds: argparse._SubParsersAction) -> None:
    """Add the kind ``one-batch``."""
    parser = kinds.add_parser(
        "one-batch",
        usage="rootlet bench one-batch --model PATH [options]",
        help="prefill and decode latency of a static batch",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    group = parser.add_argument_group("benchmark")
    group.add_argument("--run-name", default="default", metavar="TEXT", help="written into the results")
    group.add_argument("--batch-size", type=int, nargs="+", default=[1], metavar="INT")
    group.add_argument("--input-len", type=int, nargs="+", default=[1024], metavar="INT")
    group.add_argument("--output-len", type=int, nargs="+", default=[16], metavar="INT")
    group.add_argument(
        "--result-filename",
        default="result.jsonl",
        metavar="FILE",
        help="JSONL file to append to; '' for none (default: result.jsonl)",
    )
    group.add_argument(
        "--correctness-test", action="store_true", help="instead print what the model says to three prompts"
    )
    group.add_argument(
        "--cut-len",
        type=int,
        metavar="INT",
        help="tokens of the first half of a prompt in --correctness-test (default: 4)",
    )
    group.add_argument("--profile", action="store_true", help="write a torch.profiler trace of each run")
    group.add_argument("--profile-filename-prefix", metavar="TEXT", help="of the traces (default: profile)")
    add_engine_options(parser)
    add_log_level(parser, "warning")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure and print; returns the exit code."""
    _check(args)
    settings = engine_settings(args, ids_only=not args.correctness_test)
    if settings.get("disable_radix_cache"):
        raise ConfigError(
            "one-batch tells prefill from decode by means of the prefix cache. Leave out"
            " --disable-radix-cache: the prompts share nothing, and the cache is emptied before each run."
        )
    from ..engine.engine import Engine

    with Engine(args.model, step_by_hand=True, **settings) as engine:
        if args.correctness_test:
            _print_answers(engine, 4 if args.cut_len is None else args.cut_len, args.output_len[0])
            return 0
        ids = ids_of(engine, args, seed=0)
        sizes = list(itertools.product(args.batch_size, args.input_len, args.output_len))
        first = sizes[0]
        if _fits(engine, *first):
            print("Warmup ...", flush=True)
            _measure(engine, ids, first[0], first[1], min(WARM_UP_OUTPUT, first[2]))
            print("Benchmark ...", flush=True)
        for batch_size, input_len, output_len in sizes:
            if not _fits(engine, batch_size, input_len, output_len):
                print(f"skip ({batch_size}, {input_len}, {output_len}) due to max batch size limit")
                continue
            record = {"run_name": args.run_name}
            record |= _run_one(args, engine, ids, batch_size, input_len, output_len)
            if args.result_filename:
                with open(args.result_filename, "a") as file:
                    file.write(json.dumps(record) + "\n")
    return 0


def _check(args: argparse.Namespace) -> None:
    for name in ("batch_size", "input_len", "output_len"):
        for value in getattr(args, name):
            require_positive(name, value)
    require_positive("cut_len", args.cut_len)
    if args.cut_len is not None and not args.correctness_test:
        raise ConfigError("--cut-len belongs to --correctness-test. Add that option, or leave --cut-len out.")
    if args.correctness_test and args.profile:
        raise ConfigError("--correctness-test measures nothing. Leave out --profile.")
    if args.profile_filename_prefix is not None and not args.profile:
        raise ConfigError("--profile-filename-prefix belongs to --profile. Add that, or leave this out.")


def _fits(engine: Any, batch_size: int, input_len: int, output_len: int) -> bool:
    """Whether the whole batch has slots and pages at once; a partly shared page takes one more."""
    info = engine.get_server_info()
    pages = -(-(input_len + output_len) // info["page_size"]) + 1
    room = info["max_total_num_tokens"] // info["page_size"]
    return batch_size <= min(room // pages, info["max_running_requests"])


def _run_one(
    args: argparse.Namespace, engine: Any, ids: Ids, batch_size: int, input_len: int, output_len: int
) -> dict[str, Any]:
    prefix = args.profile_filename_prefix or "profile"
    path = f"{prefix}_batch{batch_size}_input{input_len}_output{output_len}.trace.json.gz"
    with profiled(path) if args.profile else contextlib.nullcontext():
        prefill, steps = _measure(engine, ids, batch_size, input_len, output_len)
    total = prefill + sum(steps)
    record = {
        "batch_size": batch_size,
        "input_len": input_len,
        "output_len": output_len,
        "prefill_latency": prefill,
        "prefill_throughput": input_len * batch_size / prefill,
    }
    print(f"Prefill. latency: {prefill:6.5f} s, throughput: {record['prefill_throughput']:9.2f} token/s")
    for seconds in steps[:SHOWN_STEPS]:
        print(f"Decode.  latency: {seconds:6.5f} s, throughput: {batch_size / seconds:9.2f} token/s")
    if steps:
        median = statistics.median(steps)
        record |= {"median_decode_latency": median, "median_decode_throughput": batch_size / median}
        print(
            f"Decode.  median latency: {median:6.5f} s, median throughput: {batch_size / median:9.2f} token/s"
        )
    throughput = (input_len + output_len) * batch_size / total
    record |= {"total_latency": total, "overall_throughput": throughput}
    print(f"Total. latency: {total:6.3f} s, throughput: {throughput:9.2f} token/s", flush=True)
    return record


def _measure(
    engine: Any, ids: Ids, batch_size: int, input_len: int, output_len: int
) -> tuple[float, list[float]]:
    """Seconds of the prefill, and of each of the ``output_len - 1`` decode steps."""
    prompts = [ids.draw(input_len) for _ in range(batch_size)]
    engine.flush_cache()
    start, times = _step_through(engine, prompts, 1)
    prefill = times[-1] - start
    if output_len == 1:
        return prefill, []
    _, times = _step_through(engine, prompts, output_len)
    return prefill, [after - before for before, after in itertools.pairwise(times)]


def _step_through(engine: Any, prompts: list[list[int]], num_tokens: int) -> tuple[float, list[float]]:
    """Run the prompts by hand; when it began and when each step that brought tokens was over."""
    params = {"temperature": 0, "max_new_tokens": num_tokens, "ignore_eos": True}
    for prompt in prompts:
        engine.submit(input_ids=prompt, sampling_params=params, stream=False)
    times, generated = [], engine.stats().num_generated_tokens
    start, more = time.perf_counter(), True
    while more:
        more = engine.step()
        now, before, generated = time.perf_counter(), generated, engine.stats().num_generated_tokens
        if generated > before:
            times.append(now)
    return start, times


def _print_answers(engine: Any, cut_len: int, output_len: int) -> None:
    """Likeliest tokens after a part of each fixed prompt and after all of it, and the texts that follow."""
    input_ids = [engine.tokenizer.encode(prompt) for prompt in PROMPTS]
    print(f"{input_ids=}\n")
    one = {"temperature": 0, "max_new_tokens": 1}
    for name, parts in (("first half", [ids[:cut_len] for ids in input_ids]), ("final", input_ids)):
        outputs = engine.generate(
            input_ids=parts, sampling_params=one, return_logprob=True, top_logprobs_num=5
        )
        print(f"prefill logits ({name}), the five largest as (log-probability, token id):")
        for output in outputs:
            print([(round(logprob, 5), token) for logprob, token, _ in output.output_top_logprobs[0]])
        print()
    params = {"temperature": 0, "max_new_tokens": output_len}
    for i, output in enumerate(engine.generate(input_ids=input_ids, sampling_params=params)):
        print(f"========== Prompt {i} ==========")
        print(PROMPTS[i] + output.text, "\n")
