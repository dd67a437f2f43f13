"""TRL's own trainers run on the engine: GRPO, GRPO with LoRA and RLOO, and the hook that TRL documents."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch

import rootlet
from rootlet.errors import ConfigError, InvalidParameterError, InvalidRequestError, WeightsError
from rootlet.kernels.matrices import packing

from ..models.hf import build_hf, one_thread  # noqa: F401

pytest.importorskip("trl")
# what TRL and its dependencies warn of is theirs to mend; what our own modules do is not
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.filterwarnings("error:::rootlet")]

PROMPTS = ["the quick brown fox", "a page, a tree", "a token and a fox", "brown bread"]
OPTIONS = {"dtype": "float32", "device": "cpu", "max_total_tokens": 2048}
GENERATIONS = 4
TOKENS = 12
STEPS = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Llama with random weights, large enough for its tokens to differ, and a tokenizer."""
    from tiny_text import write_tiny_text_model
    from transformers import AutoTokenizer

    path = tmp_path_factory.mktemp("policy")
    write_tiny_text_model(path)
    model = build_hf("Llama", vocab_size=len(AutoTokenizer.from_pretrained(path)), eos_token_id=2)
    model.save_pretrained(path)
    return str(path)


@pytest.fixture
def engine(folder):
    with rootlet.Engine(folder, **OPTIONS) as made:
        yield made


def even_tokens(completion_ids, **_):
    """The share of even token ids: a reward that rows differ in."""
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]


@pytest.fixture
def make_trainer(folder, tmp_path, monkeypatch):
    """``make_trainer(kind, **arguments of its config)``: a trainer of the tiny model."""
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")

    def make(kind="GRPO", prompts=PROMPTS, tokenizer=None, more=None, **args):
        settings = {
            "output_dir": str(tmp_path / "out"),
            "per_device_train_batch_size": 2 * GENERATIONS,
            "num_generations": GENERATIONS,
            "max_completion_length": TOKENS,
            "max_steps": STEPS,
            "learning_rate": 1e-2,
            "beta": 0.0,  # else the reference model is looked for by its name
            "bf16": False,
            "use_cpu": True,
            "report_to": "none",
            "save_strategy": "no",
            "logging_steps": 1,
            "seed": 3,
            "disable_tqdm": True,
        }
        return getattr(trl, f"{kind}Trainer")(
            model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
            processing_class=tokenizer or AutoTokenizer.from_pretrained(folder),
            reward_funcs=even_tokens,
            args=getattr(trl, f"{kind}Config")(**settings | args),
            train_dataset=Dataset.from_dict({"prompt": prompts}),
            **more or {},
        )

    return make


@pytest.fixture
def attach():
    from rootlet.integrations.trl import attach

    return attach


def steps_of(trainer):
    """What the trainer logged of its steps."""
    return [entry for entry in trainer.state.log_history if "reward" in entry]


def checksum_of(model, folder, path):
    """That of an engine which is built from ``model``, saved."""
    from transformers import AutoTokenizer

    model.save_pretrained(path)
    AutoTokenizer.from_pretrained(folder).save_pretrained(path)
    with rootlet.Engine(str(path), **OPTIONS) as fresh:
        return fresh.weights_checksum()


@pytest.mark.parametrize("kind", ["GRPO", "RLOO"])
def test_a_trainer_runs_on_the_engine(kind, make_trainer, attach, engine, folder, tmp_path):
    before = engine.weights_checksum()
    trainer = make_trainer(kind)
    with attach(trainer, engine) as generation:
        trainer.train()
        logged = steps_of(trainer)
        assert len(logged) == STEPS
        assert all(math.isfinite(entry["loss"]) and entry["grad_norm"] > 0 for entry in logged)
        assert engine.weights_version == STEPS  # of the weights with which the last step began
        assert engine.weights_checksum() != before
        generation.sync_weights()
    assert engine.weights_version == STEPS + 1
    assert engine.weights_checksum() == checksum_of(trainer.model, folder, tmp_path / "saved")
    if kind == "GRPO":  # RLOO does not look at log-probabilities of the engine
        assert 0 < max(e["sampling/sampling_logp_difference/max"] for e in logged) < 1e-5
        assert all(abs(e["sampling/importance_sampling_ratio/mean"] - 1) < 1e-4 for e in logged)


@pytest.fixture
def lora():
    from peft import LoraConfig

    return LoraConfig(r=4, target_modules="all-linear")


def test_grpo_with_lora(make_trainer, attach, engine, folder, tmp_path, lora):
    trainer = make_trainer(more={"peft_config": lora})
    base = {name: p.clone() for name, p in trainer.model.named_parameters() if not p.requires_grad}
    with attach(trainer, engine) as generation:
        trainer.train()
        assert max(e["sampling/sampling_logp_difference/max"] for e in steps_of(trainer)) < 1e-5
        merged = copy.deepcopy(trainer.model).merge_and_unload()
        generation.sync_weights()
    assert engine.weights_checksum() == checksum_of(merged, folder, tmp_path / "merged")
    parameters = dict(trainer.model.named_parameters())
    for name, value in base.items():  # merged for the sync and taken out again
        torch.testing.assert_close(parameters[name], value, rtol=0, atol=1e-5)


def test_a_refused_sync_leaves_adapters_unmerged(make_trainer, attach, engine, lora, monkeypatch):
    lora.init_lora_weights = False  # else they add nothing yet
    trainer = make_trainer(more={"peft_config": lora})
    attach(trainer, engine)
    base = {name: p.clone() for name, p in trainer.model.named_parameters()}
    monkeypatch.setattr(type(trainer.vllm_generation), "_fix_param_name_to_vllm", lambda *_, **__: "wrong")
    with pytest.raises(WeightsError, match="wrong"):
        trainer.train()
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(parameter, base[name], rtol=0, atol=1e-5)
    assert not any(getattr(module, "merged", False) for module in trainer.model.modules())


@pytest.mark.parametrize("filters", [{"temperature": 0.7}, {"top_p": 0.8, "top_k": 20, "temperature": 1.3}])
def test_the_mismatch_stays_small_with_temperature_and_filters(make_trainer, attach, engine, filters):
    trainer = make_trainer(max_steps=1, **filters)
    with attach(trainer, engine):
        trainer.train()
    assert steps_of(trainer)[0]["sampling/sampling_logp_difference/max"] < 1e-5


def test_rows_of_a_prompt_differ_and_runs_are_equal(make_trainer, attach, engine):
    drawn = []

    def run(seed):
        trainer = make_trainer(seed=seed, learning_rate=0.0)
        with attach(trainer, engine) as generation:
            ids = trainer.processing_class(text=PROMPTS[:1] * 6)["input_ids"]
            batches = [generation.generate(ids)[1] for _ in range(2)]
            trainer.state.global_step = 1
            batches.append(generation.generate(ids)[1])
        drawn.append(batches)

    for seed in (3, 3, 4):
        run(seed)
    assert drawn[0] == drawn[1]
    rows = [tuple(row) for batches in (drawn[0], drawn[2]) for batch in batches for row in batch]
    assert len(set(rows)) == len(rows)  # by row, call, step and seed


def test_processes_draw_different_rows(make_trainer, attach, engine, monkeypatch):
    trainer = make_trainer()
    generation = attach(trainer, engine)
    prompts = [[5, 6, 7]] * 4
    first = generation.generate(prompts)[1]
    generation.rows._step = -1  # as another process begins
    monkeypatch.setattr(type(trainer.accelerator), "process_index", 1)
    second = generation.generate(prompts)[1]
    assert not set(map(tuple, first)) & set(map(tuple, second))


def test_completions_are_what_trl_expects(make_trainer, attach, engine):
    """Never empty; log-probabilities per token; those that end by eos keep it, the others have none."""
    trainer = make_trainer(max_completion_length=60)
    generation = attach(trainer, engine)
    prompts = [[token, 7] for token in range(10, 42)]
    returned, completions, logprobs, _ = generation.generate(prompts)
    assert returned == prompts
    ends = [ids[-1] in trainer.eos_token_ids for ids in completions]
    assert {True, False} == set(ends)
    for ids, values, ended in zip(completions, logprobs, ends):
        assert len(ids) == len(values) > 0
        assert all(len(value) == 1 and value[0] <= 0 for value in values)
        assert not set(ids[:-1]) & set(trainer.eos_token_ids)
        assert ended or len(ids) == 60


def test_detach_gives_the_trainer_back(make_trainer, attach, engine):
    trainer = make_trainer(max_steps=1)
    before = dict(vars(trainer))
    generation = attach(trainer, engine)
    assert trainer.use_vllm
    with pytest.raises(ConfigError, match="has an engine already"):
        attach(trainer, engine)
    generation.detach()
    generation.detach()
    assert vars(trainer) == before
    trainer.train()  # by transformers' generation
    assert (engine.weights_version, engine.stats().num_generated_tokens) == (0, 0)


def test_two_trainers_in_turn_go_on_counting(make_trainer, attach, engine):
    for expected in (STEPS, 2 * STEPS):
        trainer = make_trainer()
        with attach(trainer, engine):
            trainer.train()
        assert engine.weights_version == expected


def test_ends_of_a_turn_that_only_the_engine_knows_are_no_truncation(make_trainer, attach, engine):
    trainer = make_trainer()
    assert trainer.eos_token_ids == [2]
    generation = attach(trainer, engine)
    assert set(trainer.eos_token_ids) == {2, engine.tokenizer.convert_tokens_to_ids("<|im_end|>")}
    generation.detach()
    assert trainer.eos_token_ids == [2]


def test_weights_that_are_shared_are_not_copied(make_trainer, attach, folder, monkeypatch):
    monkeypatch.setattr(packing, "is_multiplied_in_c", lambda dtype: False)  # matrices as on a GPU
    trainer = make_trainer()
    with rootlet.Engine(folder, **OPTIONS) as engine:
        engine.share_weights(trainer.model)
        with attach(trainer, engine) as generation:
            trainer.train()
        assert (generation.last_update.bytes, generation.last_update.version) == (0, STEPS + 1)
        parameter = dict(trainer.model.named_parameters())["model.layers.0.mlp.up_proj.weight"]
        assert torch.equal(engine.weight("model.layers.0.mlp.up_proj.weight"), parameter)
    assert max(e["sampling/sampling_logp_difference/max"] for e in steps_of(trainer)) < 1e-5


def test_memory_is_given_up_between_batches(make_trainer, attach, engine, monkeypatch):
    trainer = make_trainer()
    events = []

    def recorded(name, call):
        return lambda *args, **kwargs: (events.append(name), call(*args, **kwargs))[1]

    for name in ("release_memory", "resume_memory", "update_weights", "generate"):
        monkeypatch.setattr(engine, name, recorded(name, getattr(engine, name)))
    with attach(trainer, engine, release_between=True) as generation:
        trainer.train()
        first = ["update_weights", "generate", "release_memory"]
        again = ["resume_memory", "update_weights", "resume_memory", "generate", "release_memory"]
        assert events == first + again
        generation.generate([[5, 6]])  # within the step: the weights are pushed once more
        assert events == first + again * 2
    assert max(e["sampling/sampling_logp_difference/max"] for e in steps_of(trainer)) < 1e-5
    generation.sync_weights()
    assert engine.generate(input_ids=[5, 6], sampling_params={"max_new_tokens": 2}).token_ids


class Recorder:
    """What a trainer's reward function was given."""

    __name__ = "recorder"

    def __init__(self):
        self.calls = []

    def __call__(self, prompts, completion_ids, weights_version, **_):
        self.calls.append((prompts, completion_ids, weights_version))
        return even_tokens(completion_ids)


@pytest.mark.parametrize("attached", [False, True])
def test_rollout_func(make_trainer, attach, engine, attached):
    from rootlet.integrations.trl import rollout_func

    rollouts = []
    draw = rollout_func(engine)

    def record(prompts, trainer):
        rollouts.append((prompts, draw(prompts, trainer)))
        return rollouts[-1][1]

    trainer = make_trainer(more={"rollout_func": record})
    reward = Recorder()
    trainer.reward_funcs[0] = reward
    if attached:
        attach(trainer, engine)
    trainer.train()
    assert len(rollouts) == len(reward.calls) == STEPS
    for step, (prompts, rollout) in enumerate(rollouts):
        assert reward.calls[step] == (prompts, rollout["completion_ids"], rollout["weights_version"])
        assert rollout["weights_version"] == [step + 1] * len(prompts)
        assert rollout["prompt_ids"] == trainer.processing_class(text=prompts)["input_ids"]
    assert ("sampling/sampling_logp_difference/max" in steps_of(trainer)[0]) is attached
    # the engine still has the weights of the last rollout
    prompts, rollout = rollouts[-1]
    for prompt, ids, logprobs in zip(*(rollout[k] for k in ("prompt_ids", "completion_ids", "logprobs"))):
        scored = engine.generate(
            input_ids=prompt + ids, return_logprob=True, logprob_start_len=len(prompt),
            sampling_params={"max_new_tokens": 1},
        )  # fmt: skip
        expected = [value for value, *_ in scored.input_token_logprobs]
        torch.testing.assert_close(torch.tensor(logprobs), torch.tensor(expected), rtol=0, atol=1e-5)


def test_rollout_func_renders_messages(make_trainer, engine):
    from rootlet.integrations.trl import rollout_func

    messages = [[{"role": "user", "content": text}] for text in PROMPTS]
    trainer = make_trainer(prompts=messages, max_steps=1, more={"rollout_func": rollout_func(engine)})
    ids = trainer.rollout_func(messages, trainer)["prompt_ids"]
    theirs = trainer.processing_class.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True
    )["input_ids"]
    assert ids == theirs
    trainer.train()
    trainer.chat_template_kwargs = {"enable_thinking": False}
    with pytest.raises(InvalidRequestError, match=r"chat_template_kwargs.* use attach"):
        trainer.rollout_func(messages, trainer)


def test_an_aborted_row_is_named(make_trainer, attach, engine, monkeypatch):
    generation = attach(make_trainer(), engine)
    generate = engine.generate

    def aborting(**arguments):
        outputs = generate(**arguments)
        object.__setattr__(outputs[1], "finish_reason", {"type": "abort", "message": "somebody"})
        return outputs

    monkeypatch.setattr(engine, "generate", aborting)
    with pytest.raises(InvalidRequestError, match="Row 1 of 3 was aborted"):
        generation.generate([[5, 6]] * 3)


def test_images_are_refused(make_trainer, attach, engine):
    with pytest.raises(InvalidRequestError, match="takes no images"):
        attach(make_trainer(), engine).generate([[5]], images=[["picture"]])


# ---- what does not fit is refused before anything is changed ------------------------------------------


def refused(trainer, engine, attach, error, match, **options):
    before = dict(vars(trainer))
    with pytest.raises(error, match=match):
        attach(trainer, engine, **options)
    assert vars(trainer) == before


def test_another_tokenizer(make_trainer, attach, engine, folder):
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    state = json.loads(AutoTokenizer.from_pretrained(folder).backend_tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    other = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)), bos_token="<s>", eos_token="</s>"
    )
    trainer = make_trainer(tokenizer=other)
    refused(trainer, engine, attach, ConfigError, "another one than the engine's: 2 tokens .* first is 'a'")


def test_a_tokenizer_with_further_tokens(make_trainer, attach, engine, folder):
    from transformers import AutoTokenizer

    more = AutoTokenizer.from_pretrained(folder)
    more.add_tokens(["<call>"])
    attach(make_trainer(tokenizer=more), engine).detach()


def test_another_dtype(make_trainer, attach, engine):
    refused(
        make_trainer(bf16=True), engine, attach, ConfigError, r"computes in bfloat16 .*bf16 is on.*float32"
    )
    attach(make_trainer(bf16=True), engine, allow_dtype_mismatch=True).detach()


def test_generation_kwargs(make_trainer, attach, engine):
    for kwargs, error, match in (
        ({"seed": 1}, ConfigError, "rows of one prompt would be equal"),
        ({"top_p": 2}, InvalidParameterError, "top_p"),
        ({"max_tokens": 2}, rootlet.errors.UnknownOptionError, "max_tokens"),
    ):
        refused(make_trainer(generation_kwargs=kwargs), engine, attach, error, match)
    generation = attach(make_trainer(generation_kwargs={"min_new_tokens": 3, "max_new_tokens": 3}), engine)
    assert {len(ids) for ids in generation.generate([[5, 6]] * 8)[1]} == {3}


def test_what_is_no_trainer(attach, engine):
    with pytest.raises(ConfigError, match=r"GRPOTrainer.*got int"):
        attach(5, engine)
