"""An engine without a model, for what needs many runs or an exact moment: answers are hashes."""

from __future__ import annotations

import hashlib
import random
import threading

from rootlet.engine.chat.render import ChatRenderer
from rootlet.engine.config import EngineConfig
from rootlet.engine.replies.bells import Bells
from rootlet.engine.replies.handle import RequestHandle
from rootlet.engine.replies.outputs import RequestOutput
from rootlet.errors import InvalidRequestError, RequestTooLongError

MAX_PROMPT = 1000


class FakeTokenizer:
    """One token per character."""

    chat_template = "{{ messages }}"

    def encode(self, text, add_special_tokens=True):
        return [ord(c) for c in text]

    def decode(self, ids, skip_special_tokens=False):
        return "".join(map(chr, ids))

    def apply_chat_template(self, messages, tokenize, add_generation_prompt, tools=()):
        if [m["role"] for m in messages].count("system") > 1:
            raise RuntimeError("one system message is enough")
        return "".join(f"<{m['role']}>{m['content']}\n" for m in messages) + "<assistant>"


class FakeEngine:
    """``submit`` answers at once, or from a thread in a random order (``shuffled``).

    ``interrupt_at``: reading the result number n (0-based) raises ``interruption``, once.
    """

    def __init__(self, *, shuffled=False, interrupt_at=None, interruption=KeyboardInterrupt, **options):
        self.config = EngineConfig(model_path="fake", **options)
        self.tokenizer = FakeTokenizer()
        self.chat_renderer = ChatRenderer(self.tokenizer)
        self.prompts = []
        self.params = []
        self.aborted = []
        self.most_in_flight = self._in_flight = 0
        self._results_read = 0
        self._interrupt_at = interrupt_at
        self._interruption = interruption
        self._shuffled = shuffled
        self._pending = []
        self._lock = threading.Condition()
        self._random = random.Random(0)

    def get_server_info(self):
        return {"max_running_requests": 8}

    def stats(self):
        """It is open."""

    def submit(self, prompt=None, sampling_params=None, input_ids=None, *, stream=True, **logprobs):
        ids = tuple(self.tokenizer.encode(prompt)) if prompt is not None else tuple(input_ids)
        if not ids:
            raise InvalidRequestError("The prompt is empty: it must have at least one token.")
        if len(ids) > MAX_PROMPT:
            raise RequestTooLongError(f"The input ({len(ids)} tokens) is longer than {MAX_PROMPT}.")
        if ids == tuple(map(ord, "crash")):
            raise ZeroDivisionError("a fault of ours")
        handle = FakeHandle(self, len(self.prompts), self._answer(ids, sampling_params, logprobs))
        self.prompts.append(self.tokenizer.decode(ids))
        self.params.append(sampling_params)
        if not self._shuffled:
            handle.finish()
            return handle
        with self._lock:
            self._pending.append(handle)
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
            if len(self._pending) == 1:
                threading.Thread(target=self._finish_all).start()
        return handle

    def _finish_all(self):
        while True:
            with self._lock:
                handle = self._random.choice(self._pending)
                self._in_flight -= 1  # before anybody can hear of it and submit the next
            handle.finish()
            with self._lock:
                self._pending.remove(handle)
                if not self._pending:
                    return

    def _answer(self, ids, params, logprobs):
        seed = None if params.is_greedy else params.seed
        digest = hashlib.sha256(repr((ids, seed, params.max_new_tokens)).encode()).hexdigest()
        count = min(params.max_new_tokens or 99, 5)
        kinds = {}
        if logprobs.get("return_logprob"):
            triple = lambda i: (-float(i), i, chr(i) if logprobs["return_text_in_logprobs"] else None)  # noqa: E731
            kinds["output_token_logprobs"] = [triple(97 + i) for i in range(count)]
            kinds["input_token_logprobs"] = []
            if logprobs["logprob_start_len"] == 0:
                kinds["input_token_logprobs"] = [(None, *triple(ids[0])[1:]), *map(triple, ids[1:])]
            if logprobs["top_logprobs_num"]:
                kinds["output_top_logprobs"] = [
                    [triple(97 + i), (float("-inf"), *triple(65)[1:])] for i in range(count)
                ]
                kinds["input_top_logprobs"] = [
                    None if t[0] is None else [t] for t in kinds["input_token_logprobs"]
                ]
        return RequestOutput(
            rid=digest,
            text=f"<{digest[:12]}>",
            token_ids=tuple(range(97, 97 + count)),
            finish_reason={"type": "length", "length": count},
            prompt_tokens=len(ids),
            completion_tokens=count,
            cached_tokens=0,
            **kinds,
        )


class FakeLoop:
    """Who runs a request, as a handle knows it; here, not in tests/support, as scripts import this file."""

    is_forked = False
    pump = None

    def __init__(self, abort):
        self.abort = abort
        self.bells = Bells()

    def check_wait(self):
        pass


class FakeHandle(RequestHandle):
    def __init__(self, engine, number, output):
        super().__init__(str(number), FakeLoop(lambda rid: engine.aborted.append(engine.prompts[number])))
        self._engine = engine
        self._output = output

    def finish(self):
        self.deliver(self._output)

    def result(self, timeout=None):
        engine = self._engine
        engine._results_read += 1
        if engine._results_read - 1 == engine._interrupt_at:
            raise engine._interruption
        return super().result(timeout)
