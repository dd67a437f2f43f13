"""The ways of calling that SGLang's documentation shows offline, on the real small model.

Its pages "Offline Engine API" and "Sampling Parameters", the part "Skip Tokenizer and Detokenizer" of its
page "Native APIs", and what "Structured Outputs" and "Tool and Function Calling" say of offline engines: the
same calls with the same arguments.
"""

from __future__ import annotations

import asyncio
import json
import re

import pytest
from pydantic import BaseModel, Field

import rootlet as sgl

PROMPTS = ["Hello, my name is", "The president of the United States is", "The capital of France is"]
SHORT = {"max_new_tokens": 12}


@pytest.fixture(scope="module")
def llm(smollm2_gguf):
    engine = sgl.Engine(model_path=str(smollm2_gguf))
    yield engine
    engine.shutdown()


def test_generate_a_batch(llm):
    outputs = llm.generate(PROMPTS, {"temperature": 0.8, "top_p": 0.95} | SHORT)
    assert len(outputs) == len(PROMPTS)
    for output in outputs:
        assert isinstance(output["text"], str)
        assert output["meta_info"]["completion_tokens"] <= 12


def test_streams_without_overlap(llm):
    params = {"temperature": 0, "top_p": 0.9} | SHORT
    for prompt in PROMPTS:
        assert sgl.stream_and_merge(llm, prompt, params) == llm.generate(prompt, params)["text"]


def test_asyncio(llm):
    async def main():
        return await llm.async_generate(PROMPTS, {"temperature": 0.8, "top_p": 0.95} | SHORT)

    outputs = asyncio.run(main())
    assert [output["meta_info"]["prompt_tokens"] for output in outputs] == [
        output["meta_info"]["prompt_tokens"] for output in llm.generate(PROMPTS, SHORT)
    ]


def test_asyncio_streams(llm):
    params = {"temperature": 0} | SHORT

    async def main():
        answers = []
        for prompt in PROMPTS:
            answers.append([piece async for piece in sgl.async_stream_and_merge(llm, prompt, params)])
        return answers

    for prompt, pieces in zip(PROMPTS, asyncio.run(main())):
        assert "".join(pieces) == llm.generate(prompt, params)["text"]  # alone, as they were: bf16
        assert all(pieces)


def test_hidden_states(smollm2_gguf):
    llm = sgl.Engine(model_path=str(smollm2_gguf), return_hidden_states=True)
    params = {"temperature": 0.8, "top_p": 0.95, "max_new_tokens": 10, "ignore_eos": True}
    for output in llm.generate(PROMPTS, sampling_params=params):
        meta = output["meta_info"]
        shapes = [tuple(states.shape) for states in meta["hidden_states"]]
        assert shapes == [(meta["prompt_tokens"], 576)] + [(576,)] * (meta["completion_tokens"] - 1)
    llm.shutdown()


def test_a_request_of_the_sampling_page(llm):
    output = llm.generate("The capital of France is", {"temperature": 0, "max_new_tokens": 32})
    assert "Paris" in output["text"]
    shown = ""
    for chunk in llm.generate(
        "The capital of France is", {"temperature": 0, "max_new_tokens": 32}, stream=True
    ):
        assert chunk["text"].startswith(shown)
        shown = chunk["text"]
    assert shown == output["text"]


class DeterministicLogitProcessor(sgl.CustomLogitProcessor):
    """Samples the token that the request names."""

    def __call__(self, logits, custom_param_list):
        assert logits.shape[0] == len(custom_param_list)
        for i, params in enumerate(custom_param_list):
            logits[i, :] = -float("inf")
            logits[i, params["token_id"]] = 0.0
        return logits


def test_a_serialised_processor(llm):
    output = llm.generate(
        "The capital of France is",
        {"temperature": 0.0, "max_new_tokens": 32, "custom_params": {"token_id": 5}},
        custom_logit_processor=DeterministicLogitProcessor().to_str(),
    )
    assert set(output.token_ids) == {5}
    assert len(output.token_ids) == 32


def test_without_a_tokenizer(llm, smollm2_gguf):
    tokenizer = llm.tokenizer
    input_ids = tokenizer.encode("What is the capital of France?")
    params = {"temperature": 0, "max_new_tokens": 16, "stop_token_ids": [tokenizer.eos_token_id]}
    with sgl.Engine(model_path=str(smollm2_gguf), skip_tokenizer_init=True) as bare:
        output = bare.generate(input_ids=input_ids, sampling_params=params)
    assert "text" not in output
    text = tokenizer.decode(output["token_ids"], skip_special_tokens=False)
    shown = llm.generate(input_ids=input_ids, sampling_params=params)["text"]  # ends before the stop token
    assert text.removesuffix(tokenizer.eos_token) == shown
    assert output["meta_info"]["finish_reason"]["type"] in ("length", "stop")


# ---- the page "Structured Outputs", its part "Offline Engine API" -------------------------------------


@pytest.fixture(scope="module", params=["xgrammar", "llguidance"])
def constrained(request, smollm2_gguf):
    engine = sgl.Engine(model_path=str(smollm2_gguf), grammar_backend=request.param)
    yield engine
    engine.shutdown()


CAPITALS = [
    f"Give me the information of the capital of {country} in the JSON format."
    for country in ("China", "France", "Ireland")
]


class CapitalInfo(BaseModel):
    name: str = Field(..., pattern=r"^\w+$", description="Name of the capital city")
    population: int = Field(..., description="Population of the capital city")


DIRECT = {
    "type": "object",
    "properties": {"name": {"type": "string", "pattern": "^[\\w]+$"}, "population": {"type": "integer"}},
    "required": ["name", "population"],
}


@pytest.mark.parametrize("schema", [CapitalInfo.model_json_schema(), DIRECT], ids=["pydantic", "direct"])
def test_json_of_a_schema(constrained, schema):
    params = {"temperature": 0.1, "top_p": 0.95, "json_schema": json.dumps(schema), "seed": 0}
    for output in constrained.generate(CAPITALS, params):
        capital_info = CapitalInfo.model_validate_json(output["text"])
        assert capital_info.model_dump().keys() == {"name", "population"}


def test_a_grammar(constrained):
    prompts = [f"Give me the information of the capital of {c}." for c in ("France", "Germany", "Italy")]
    params = {
        "temperature": 0.8,
        "top_p": 0.95,
        "ebnf": (
            "root ::= city | description\n"
            'city ::= "London" | "Paris" | "Berlin" | "Rome"\n'
            'description ::= city " is " status\n'
            'status ::= "the capital of " country\n'
            'country ::= "England" | "France" | "Germany" | "Italy"'
        ),
    }
    city, country = "(London|Paris|Berlin|Rome)", "(England|France|Germany|Italy)"
    for output in constrained.generate(prompts, params):
        assert re.fullmatch(f"{city}( is the capital of {country})?", output["text"])


def test_a_regular_expression(constrained):
    prompts = [
        f"Please provide information about {city} as a major global city:" for city in ("London", "Paris")
    ]
    params = {"temperature": 0.8, "top_p": 0.95, "regex": "(France|England)"}
    for output in constrained.generate(prompts, params):
        assert output["text"] in ("France", "England")


# ---- the page "Tool and Function Calling", its part "Offline Engine API" ------------------------------


def test_function_calling(llm):
    tools = [
        {
            "type": "function",
            "function": {
                "name": "get_current_weather",
                "description": "Get the current weather in a given location",
                "parameters": {
                    "type": "object",
                    "properties": {
                        "city": {"type": "string"},
                        "state": {"type": "string"},
                        "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
                    },
                    "required": ["city", "state", "unit"],
                },
            },
        }
    ]
    messages = [{"role": "user", "content": "What's the weather like in Boston today?"}]
    tokenizer = llm.tokenizer_manager.tokenizer
    input_ids = tokenizer.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, tools=tools
    )
    params = {"max_new_tokens": 128, "temperature": 0.3, "top_p": 0.95, "skip_special_tokens": False}
    result = llm.generate(input_ids=input_ids, sampling_params=params)
    generated_text = result["text"]

    def convert_dict_to_tool(tool_dict):
        function_dict = tool_dict.get("function", {})
        return sgl.Tool(
            type=tool_dict.get("type", "function"),
            function=sgl.Function(
                name=function_dict.get("name"),
                description=function_dict.get("description"),
                parameters=function_dict.get("parameters"),
            ),
        )

    parser = sgl.FunctionCallParser(
        tools=[convert_dict_to_tool(raw_tool) for raw_tool in tools], tool_call_parser="llama3"
    )
    normal_text, calls = parser.parse_non_stream(generated_text)
    assert (normal_text, calls) == (generated_text, [])  # this model is too small to call anything
    call = (
        '{"name": "get_current_weather", "parameters": {"city": "Boston", "state": "MA", "unit": "celsius"}}'
    )
    normal_text, calls = parser.parse_non_stream("<|python_tag|>" + call)
    assert [(call.name, call.parameters) for call in calls] == [
        ("get_current_weather", '{"city": "Boston", "state": "MA", "unit": "celsius"}')
    ]
    assert normal_text == ""
