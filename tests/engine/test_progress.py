"""``progress=True``: one bar over the finished requests, on the thread that waits."""

from __future__ import annotations

import asyncio
import re
import threading

import pytest
from fake_owner import FakeOwner

import rootlet
import rootlet.engine.replies.progress_bar as progress_bar
from rootlet.engine.replies.handle import RequestHandle
from rootlet.engine.replies.outputs import RequestOutput
from rootlet.engine.replies.streams import Stream
from rootlet.errors import InvalidRequestError

PARAMS = {"temperature": 0, "max_new_tokens": 6, "ignore_eos": True}
PROMPTS = [[5, 6, i] for i in range(7, 14)]
ENDLESS = PARAMS | {"max_new_tokens": 400}


@pytest.fixture(params=[False, True], ids=["thread", "by_hand"])
def engine(request, tiny_model):
    options = {"load_format": "dummy", "skip_tokenizer_init": True, "max_total_tokens": 4096}
    with rootlet.Engine(tiny_model, step_by_hand=request.param, **options) as engine:
        yield engine


@pytest.fixture
def bars(monkeypatch):
    """Every bar made, each with the list of threads that moved it."""
    made = []

    class Recorded(progress_bar.ProgressBar):
        def __init__(self, **options):
            super().__init__(**options)
            self.threads = []
            made.append(self)

        def update(self, n=1):
            self.threads.append(threading.current_thread())
            return super().update(n)

    monkeypatch.setattr(progress_bar, "ProgressBar", Recorded)
    return made


def tokens(outputs):
    return [out.token_ids for out in outputs]


def test_counts_every_request_and_changes_no_result(engine, bars, capsys):
    plain = engine.generate(input_ids=PROMPTS, sampling_params=PARAMS)
    assert not bars
    assert "requests" not in capsys.readouterr().err
    shown = engine.generate(input_ids=PROMPTS, sampling_params=PARAMS, progress=True)
    assert tokens(shown) == tokens(plain)
    [bar] = bars
    assert (bar.n, bar.total, bar.disable) == (7, 7, True)  # a closed bar is disabled
    assert set(bar.threads) == {threading.current_thread()}
    assert re.search(r"7/7 .* requests.*[1-9]\d* tokens/s", capsys.readouterr().err)


def test_from_an_event_loop(tiny_model, bars):
    async def main(engine):
        return await engine.async_generate(
            input_ids=PROMPTS, sampling_params=PARAMS | {"n": 2}, progress=True
        )

    with rootlet.Engine(tiny_model, load_format="dummy", skip_tokenizer_init=True) as engine:
        assert len(asyncio.run(main(engine))) == 14
    assert bars[0].n == 14


def test_one_prompt_is_a_bar_of_one(engine, bars):
    assert len(engine.generate(input_ids=[5, 6], sampling_params=PARAMS, progress=True).token_ids) == 6
    assert (bars[0].n, bars[0].total) == (1, 1)


def test_embeddings_and_scores_count_the_tokens_they_read(tiny_model, bars, capsys):
    options = {"load_format": "dummy", "skip_tokenizer_init": True}
    with rootlet.Engine(tiny_model, is_embedding=True, **options) as engine:
        engine.encode(input_ids=PROMPTS, progress=True)
        vectors = asyncio.run(engine.async_encode(input_ids=PROMPTS, progress=True))
        assert [len(one.embedding) for one in vectors] == [64] * 7
        assert engine.encode(input_ids=[5, 6], progress=True).prompt_tokens == 2
    with rootlet.Engine(tiny_model, **options) as engine:
        endings = [[5, 6], [7], [8, 9, 10]]
        expected = [score.logprob for score in engine.score([3, 4], endings)]
        for scores in (
            engine.score([3, 4], endings, progress=True),
            asyncio.run(engine.async_score([3, 4], endings, progress=True)),
        ):
            assert [score.logprob for score in scores] == pytest.approx(expected, abs=1e-5)
    assert [bar.n for bar in bars] == [7, 7, 1, 3, 3]
    assert len(re.findall(r"[1-9][\d,]* tokens/s", capsys.readouterr().err)) >= 5


def test_refused_together_with_stream(engine):
    for call in (engine.generate, lambda **given: asyncio.run(engine.async_generate(**given))):
        with pytest.raises(InvalidRequestError, match=r"progress=True .* stream=True"):
            call(input_ids=[5], stream=True, progress=True)
    assert engine.generate(input_ids=[5], sampling_params=PARAMS).completion_tokens == 6


def test_an_interrupt_aborts_the_requests_and_closes_the_bar(engine, bars, monkeypatch):
    def interrupted(self, *args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(progress_bar.ProgressBar, "set_postfix_str", interrupted)
    params = [PARAMS, ENDLESS]
    with pytest.raises(KeyboardInterrupt):
        engine.generate(input_ids=PROMPTS[:2], sampling_params=params, progress=True)
    assert bars[0].disable
    monkeypatch.undo()
    engine.generate(input_ids=[5], sampling_params=PARAMS)  # the abort stood before it in the queue
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting) == (0, 0)
    assert stats.num_generated_tokens < 400


def test_a_final_output_is_read_once_however_late_its_mark():
    final = RequestOutput(
        rid="r",
        text="",
        token_ids=(1,),
        finish_reason={"type": "stop"},
        prompt_tokens=1,
        completion_tokens=1,
        cached_tokens=0,
    )

    class EndsBetweenTheReads(RequestHandle):
        is_read = False  # set when the next to ask is the reader

        def done(self):
            ended = super().done()
            if not ended and self.is_read:
                self.is_read = False
                self.deliver(final)
            return ended

    handle = EndsBetweenTheReads("r", FakeOwner())
    stream = Stream([handle], FakeOwner())
    handle.is_read = True
    assert list(stream) == [final]
