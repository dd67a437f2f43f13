"""A module of transformers whose forward pass is the engine's, until that is undone."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Final

import torch
from torch import Tensor

from ..errors import InvalidRequestError
from ..kernels.threads import Team, default_threads
from .decoder import Decoder, describe
from .forward import Pass
from .logprobs import logprobs_of
from .modules import check_parameters, check_surroundings, device_of
from .products import product
from .sequences import Sequences, unpadded

_ATTRIBUTE: Final = "_rootlet_alignment"
_HARMLESS: Final = frozenset({"return_dict", "num_items_in_batch", "use_cache"})
"""Keyword arguments of a forward pass that change nothing about the states."""


def alignment_of(module: Any) -> Alignment | None:
    """The alignment of a module, if it is aligned."""
    found = getattr(module, _ATTRIBUTE, None)
    return found if isinstance(found, Alignment) else None


class Alignment:
    """A module that is aligned, until :meth:`undo`. Made by :func:`rootlet.align`; a context manager."""

    def __init__(self, module: Any, dtype: torch.dtype, context_length: int | None) -> None:
        self.dtype = dtype
        self._module = module
        self._context_length = context_length
        self._decoder: Decoder | None = None
        self._team: Team | None = None
        decoder = self.described()
        check_parameters(module, decoder)
        body, head = module.get_submodule(decoder.body), module.get_output_embeddings()
        self._replaced = ((body, self._body_forward), (head, self._head_forward))
        self._before = [part.__dict__.get("forward") for part, _ in self._replaced]
        for part, forward in self._replaced:
            part.forward = forward
        setattr(module, _ATTRIBUTE, self)

    def undo(self) -> None:
        """Give the module its own forward pass back. Idempotent."""
        if getattr(self._module, _ATTRIBUTE, None) is not self:
            return
        delattr(self._module, _ATTRIBUTE)
        for (part, _), before in zip(self._replaced, self._before):
            if before is None:
                del part.forward
            else:
                part.forward = before
        if self._team is not None:
            self._team.close()
            self._team = None

    def __enter__(self) -> Alignment:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.undo()

    def __deepcopy__(self, memo: dict[int, Any]) -> Alignment:
        """A copied module is aligned by itself, with threads of its own."""
        twin = object.__new__(Alignment)
        memo[id(self)] = twin
        for name, value in vars(self).items():
            shared = name in ("dtype", "_decoder", "_context_length")
            setattr(twin, name, value if shared else copy.deepcopy(value, memo) if name != "_team" else None)
        return twin

    def token_logprobs(self, sequences: Sequences, wanted: Tensor, temperature: float) -> Tensor:
        """Log-probabilities ``[R]`` fp32 of the tokens ``wanted`` ``[R]`` int64, none a sequence's first."""
        run = self._begin(sequences)
        hidden = run.hidden_states(sequences)[wanted - 1]
        with self._computing():
            return logprobs_of(hidden, run.head(), sequences.ids[wanted], temperature)

    def described(self) -> Decoder:
        """What the module computes where it is now."""
        device = device_of(self._module, self.dtype)
        if self._decoder is None or self._decoder.device != device:
            config = self._module.config.to_dict()
            name = type(self._module).__name__
            self._decoder = describe(name, config, self.dtype, device, self._context_length)
        return self._decoder

    def _begin(self, sequences: Sequences) -> Pass:
        """A pass over these sequences. Raises InvalidRequestError for tokens that there are not."""
        decoder, module = self.described(), self._module
        check_surroundings(module, decoder.device)
        low, high = torch.stack(torch.aminmax(sequences.ids)).tolist()
        if low < 0 or high >= decoder.vocab_size:
            raise InvalidRequestError(
                f"Token ids run from {low} to {high}; the model has 0 to {decoder.vocab_size - 1}."
            )
        if max(sequences.lengths) > decoder.context_length:
            raise InvalidRequestError(
                f"A sequence has {max(sequences.lengths)} tokens; the context has {decoder.context_length}."
            )
        recomputes = torch.is_grad_enabled() and module.training
        recomputes = recomputes and any(getattr(m, "gradient_checkpointing", False) for m in module.modules())
        return Pass(decoder, module, self._computing, recomputes)

    def _computing(self) -> AbstractContextManager[Any]:
        """On the GPU of the parameters; C kernels share their work among the threads that torch has here."""
        assert self._decoder is not None
        if self._decoder.device.type == "cuda":
            return torch.cuda.device(self._decoder.device)
        if self._team is None:
            self._team = Team(default_threads(), torch_threads=default_threads())
        return self._team.bound()

    def _body_forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        **more: Any,
    ) -> Any:
        """In place of the decoder's: states ``[B, T, H]`` after the last norm, zeros at padding."""
        from transformers.modeling_outputs import BaseModelOutputWithPast

        asked = {name: value for name, value in more.items() if name not in _HARMLESS}
        asked = {name: value for name, value in asked.items() if value is not None and value is not False}
        if input_ids is None or asked:
            raise InvalidRequestError(
                "An aligned model computes whole sequences from input_ids, attention_mask and position_ids;"
                f" got {', '.join(sorted(asked)) or 'no input_ids'}. Generate with the engine, or undo()."
            )
        device = self.described().device
        sequences, places = unpadded(input_ids.to(device), attention_mask, position_ids)
        hidden = self._begin(sequences).hidden_states(sequences)
        padded = hidden.new_zeros((input_ids.numel(), hidden.shape[1])).index_copy(0, places, hidden)
        return BaseModelOutputWithPast(last_hidden_state=padded.unflatten(0, input_ids.shape))

    def _head_forward(self, hidden: Tensor) -> Tensor:
        """In place of the head's: logits ``[..., V]`` fp32 of states ``[..., H]``."""
        run = Pass(self.described(), self._module, self._computing)
        with self._computing():
            rows = hidden.to(self.dtype).flatten(0, -2)
            return product(rows, run.head(), torch.float32).unflatten(0, hidden.shape[:-1])
