"""The chat templates known by name: the published formats of model families."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from .conversation import ConversationTemplate

_ASSISTANT: Final = "You are a helpful assistant."
_VICUNA: Final = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_LLAVA: Final = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the "
    "user provides, and assist the user with a variety of tasks using natural language."
)


def _chatml(name: str, *stop: str, system_message: str | None = _ASSISTANT) -> ConversationTemplate:
    return ConversationTemplate(
        name=name,
        style="CHATML",
        system=("<|im_start|>system\n", ""),
        system_message=system_message,
        user="<|im_start|>user",
        assistant="<|im_start|>assistant",
        sep="<|im_end|>",
        stop=stop,
    )


def _llama3(name: str) -> ConversationTemplate:
    return ConversationTemplate(
        name=name,
        style="LLAMA3",
        system=("<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>"),
        system_message=_LLAVA,
        user="user",
        assistant="assistant",
        stop=("<|end_of_text|>", "<|eot_id|>"),
    )


_TEMPLATES: Final = (
    ConversationTemplate(
        name="llama-2",
        style="LLAMA2",
        system=("[INST] <<SYS>>\n", "\n<</SYS>>\n\n"),
        user="[INST]",
        assistant="[/INST]",
        sep=" ",
        sep2=" </s><s>",
        stop=("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"),
    ),
    _chatml("chatml", "<|endoftext|>", "<|im_end|>"),
    ConversationTemplate(
        name="vicuna_v1.1",
        style="ADD_COLON_TWO",
        system_message=_VICUNA,
        user="USER",
        assistant="ASSISTANT",
        sep=" ",
        sep2="</s>",
    ),
    _chatml("internlm2-chat", "<|im_end|>", "<|action_end|>", system_message=None),
    _chatml("qwen2-vl", "<|im_end|>"),
    _chatml("minicpmv", "<|im_end|>", "<|endoftext|>"),
    _llama3("llama_3_vision"),
    _llama3("llava_llama_3"),
    _chatml("chatml-llava", "<|endoftext|>", "<|im_end|>"),
)

BUILT_IN: Final[Mapping[str, ConversationTemplate]] = MappingProxyType({t.name: t for t in _TEMPLATES})
"""Name -> template."""
