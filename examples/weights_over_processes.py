"""Two trainers and an engine in three processes: the engine writes, the trainers learn and send it weights.

    python examples/weights_over_processes.py --steps 6
    python examples/weights_over_processes.py --devices cuda:0,cuda:1,cuda:2     # two trainers, the engine

A step of this REINFORCE on a tiny random Llama: the engine continues some prompts and judges what it wrote
(the reward is the share of token ids below 24); each trainer takes half of it, gradients are averaged in the
trainers' own group, and trainer 0 broadcasts the weights to the engine. Printed are the mean reward, which
rises, and how far the log-probabilities of both sides are apart: rounding, if the weights are the same.
"""

from __future__ import annotations

import argparse
import multiprocessing
import socket
import sys
import tempfile
from multiprocessing import connection
from typing import Any

PROMPTS = [[1 + one, 5, 9] for one in range(32)]
NUM_TOKENS = 12
SAMPLING = {"temperature": 1.0, "max_new_tokens": NUM_TOKENS, "ignore_eos": True}


def serve(pipe: Any, folder: str, port: int, device: str, backend: str) -> None:
    """The engine's process: do what trainer 0 asks for, until it closes the pipe."""
    import rootlet

    pipe.recv()  # the model is there
    options = {"dtype": "float32", "skip_tokenizer_init": True, "max_total_tokens": 4096}
    with rootlet.Engine(folder, device=device, **options) as engine:
        joined, message = engine.init_weights_update_group("127.0.0.1", port, 1, 2, backend=backend)
        if not joined:
            raise SystemExit(message)
        for asked in iter(pipe.recv, None):
            if isinstance(asked, dict):  # what will be broadcast
                pipe.send(engine.update_weights_from_distributed(**asked))
                continue
            outputs = engine.generate(
                input_ids=PROMPTS,
                sampling_params=[{**SAMPLING, "seed": asked + row} for row in range(len(PROMPTS))],
                return_logprob=True,
            )
            pipe.send(
                {
                    "tokens": [list(output.token_ids) for output in outputs],
                    "logprobs": [[one[0] for one in output.output_token_logprobs] for output in outputs],
                    "rewards": [sum(t < 24 for t in output.token_ids) / NUM_TOKENS for output in outputs],
                    "version": outputs[0].weights_version,
                }
            )


def train(
    rank: int, pipe: Any, folder: str, port: int, device: str, backend: str, own: str, steps: int
) -> None:
    """A trainer's process; rank 0 speaks with the engine."""
    import torch
    import torch.distributed as dist

    import rootlet

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{own}", rank=rank, world_size=2)
    model = build_model()
    group = None
    if rank == 0:  # beside the trainers' own group
        model.save_pretrained(folder)
        pipe.send("saved")
        group = rootlet.WeightsGroup("127.0.0.1", port, 0, 2, backend=backend, device=device)
    model.to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(steps):
        sent: list[Any] = [None]
        if rank == 0:
            pipe.send(step * len(PROMPTS))
            sent = [pipe.recv()]
        dist.broadcast_object_list(sent)
        rollout = sent[0]
        tokens = torch.tensor([p + t for p, t in zip(PROMPTS, rollout["tokens"])], device=device)
        rewards = torch.tensor(rollout["rewards"], device=device)
        mine = slice(rank, None, 2)
        logits = model(tokens[mine]).logits[:, len(PROMPTS[0]) - 1 : -1].float()
        chosen = tokens[mine, len(PROMPTS[0]) :, None]
        logprobs = logits.log_softmax(-1).gather(-1, chosen)[..., 0]
        advantage = (rewards[mine] - rewards.mean()) / (rewards.std() + 1e-6)
        optimizer.zero_grad()
        (-advantage[:, None] * logprobs).mean().backward()
        for parameter in model.parameters():
            dist.all_reduce(parameter.grad)
            parameter.grad /= 2
        optimizer.step()
        if group is not None:
            written = torch.tensor(rollout["logprobs"], device=device)[mine]
            apart = (written - logprobs.detach()).abs().max().item()
            print(
                f"step {step}: reward {rewards.mean().item():.3f}, log-probabilities {apart:.1e} apart,"
                f" by weights {rollout['version']}",
                flush=True,
            )
            send_weights(model, group, pipe)
    if pipe is not None:
        pipe.send(None)
    dist.destroy_process_group()


def send_weights(model: Any, group: Any, pipe: Any) -> None:
    """Tell the engine what comes, send it, and hear whether it took it."""
    state = model.state_dict()
    pipe.send(
        {
            "names": list(state),
            "dtypes": [str(tensor.dtype).removeprefix("torch.") for tensor in state.values()],
            "shapes": [list(tensor.shape) for tensor in state.values()],
        }
    )
    group.send(state.values())
    done, message = pipe.recv()
    if not done:
        raise SystemExit(message)


def build_model() -> Any:
    """A tiny Llama with random weights, the same in both trainers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )
    return LlamaForCausalLM(config)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def main() -> None:
    """Start the three processes, and end all of them if one fails."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--devices", default="cpu,cpu,cpu", help="of trainer 0, trainer 1 and the engine")
    args = parser.parse_args()
    devices = args.devices.split(",")
    backend = "nccl" if "cpu" not in devices and devices[0] != devices[2] else "gloo"
    context = multiprocessing.get_context("spawn")
    trainers_end, engines_end = context.Pipe()
    with tempfile.TemporaryDirectory() as folder:
        port, own = free_port(), f"{folder}/trainers"
        processes = [context.Process(target=serve, args=(engines_end, folder, port, devices[2], backend))]
        for rank, pipe in enumerate((trainers_end, None)):
            options = (rank, pipe, folder, port, devices[rank], backend, own, args.steps)
            processes.append(context.Process(target=train, args=options))
        for process in processes:
            process.start()
        try:
            left = {process.sentinel: process for process in processes}
            while left:
                for sentinel in connection.wait(left):
                    ended = left.pop(sentinel)
                    ended.join()
                    if ended.exitcode:
                        sys.exit(1)
        finally:
            for process in processes:
                process.kill()


if __name__ == "__main__":
    main()
