"""The engine in process: rows of several users in one batch, streams, limits, refusals."""

import asyncio
import json
import logging

import jax
import numpy as np
import pytest
import tiny_lms
from running import CHAT, client_of

from jaxalign.errors import InputError
from jaxalign.models.chat import generate_texts
from jaxalign.models.language import load_language_model
from jaxalign.models.sampling import Sampling
from jaxalign.serve import EngineConfig, ServeConfig
from jaxalign.serve.api_errors import ApiError
from jaxalign.serve.engines import Call
from jaxalign.serve.engines.decode_pool import CHUNK, DecodePool
from jaxalign.serve.engines.local import LocalEngine

PROMPT = ({"role": "user", "content": "the thing"},)
GREEDY = {"temperature": 0, "max_tokens": 8}
LONG = 4 * CHUNK


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_lms.write(tmp_path_factory.mktemp("lm"), "llama")


@pytest.fixture(scope="module")
def client(folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("local")
    engine = EngineConfig("local", model=str(folder), most_waiting=4)
    with client_of(ServeConfig(engine=engine, database=f"sqlite:///{place}/s.sqlite")) as client:
        yield client


def in_engine(folder, use, **settings):
    """Return what a coroutine function makes of a started engine."""

    async def run():
        engine = LocalEngine(EngineConfig("local", model=str(folder), **settings))
        await engine.start()
        try:
            return await use(engine)
        finally:
            await engine.close()

    return asyncio.run(run())


def test_greedy_answers_are_the_library_s_own(client, folder):
    settings = Sampling(max_tokens=8, temperature=0.0)
    model = load_language_model(str(folder))
    (expected,) = generate_texts(model, [PROMPT], settings, jax.random.key(0), progress=False)
    body = {"model": str(folder), "messages": list(PROMPT), **GREEDY}
    found = client.post("/v1/chat/completions", json=body).json()
    assert found["choices"][0]["message"]["content"] == expected.text
    assert found["usage"]["completion_tokens"] == len(expected.tokens)
    assert found["choices"][0]["finish_reason"] == ("stop" if expected.stopped else "length")
    options = {"stream": True, "stream_options": {"include_usage": True}}
    pieces = client.post("/v1/chat/completions", json={**body, **options})
    lines = [line.removeprefix("data: ") for line in pieces.text.split("\n\n")[:-2]]
    choices = [choice for line in lines for choice in json.loads(line)["choices"]]
    assert "".join(choice["delta"].get("content") or "" for choice in choices) == expected.text
    assert choices[-1]["finish_reason"] == found["choices"][0]["finish_reason"]
    assert json.loads(lines[-1])["usage"] == found["usage"]


def test_rows_of_a_batch_do_not_depend_on_each_other(folder):
    calls = [call("the thing", 3, 1), call("in an inn, then", 8, 2), call("that", 5, 3)]

    async def alone(engine):
        return [await engine.complete(one) for one in calls]

    async def together(engine):
        return await asyncio.gather(*(engine.complete(one) for one in calls))

    each, both = in_engine(folder, alone), in_engine(folder, together)
    assert [one.choices[0].content() for one in each] == [one.choices[0].content() for one in both]
    drawn = [one.usage.completion_tokens for one in both]
    assert drawn == [one.usage.completion_tokens for one in each]
    assert (np.array(drawn) <= [3, 8, 5]).all()


def test_the_service_draws_and_chooses_in_process(client):
    body = {**CHAT, "user": "ann", "max_tokens": 8}
    found = client.post("/v1/chat/completions", json=body)
    assert found.status_code == 200, found.text
    assert found.json()["usage"]["completion_tokens"] > 8
    assert client.get("/readyz").json() == {"status": "ready"}


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"n": 5}, 400, "invalid_value"),
        ({"presence_penalty": 0.5}, 400, "not_supported"),
        ({"logprobs": 0}, 400, "not_supported"),
        ({"modalities": ["text", "audio"], "best_of": 1}, 400, "not_supported"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            400,
            "not_supported",
        ),
        ({"tools": [{"type": "function"}]}, 400, "not_supported"),
        ({"messages": [{"role": "user", "content": "x" * 500}]}, 400, "context_length_exceeded"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_drawn_is_refused(client, change, status, code, stream):
    found = client.post("/v1/chat/completions", json={**CHAT, **change, "stream": stream})
    assert (found.status_code, found.json()["error"]["code"]) == (status, code)


@pytest.mark.parametrize("stream", [False, True])
def test_prompts_that_are_refused_say_why_and_name_their_field(client, stream, monkeypatch):
    engine = client.service.service.engine
    body = {"model": engine.model, "stream": stream}
    refused = client.post("/v1/completions", json={**body, "prompt": "x" * 500}).json()["error"]
    assert (refused["code"], refused["param"]) == ("context_length_exceeded", "prompt")
    assert "--" not in refused["message"]
    strict = "{{ raise_exception('no such role') }}"
    monkeypatch.setattr(engine._language.tokenizer, "chat_template", strict)
    found = client.post("/v1/chat/completions", json={**CHAT, **body})
    refused = found.json()["error"]
    assert (found.status_code, refused["code"]) == (400, "invalid_prompt")
    assert refused["param"] == "messages"
    assert "no such role" in refused["message"]


def test_a_stop_text_ends_an_answer_and_is_left_out(folder):
    async def use(engine):
        whole = await engine.complete(Call("chat", GREEDY, PROMPT))
        text = whole.choices[0].content()
        stop = text[2:4]
        call = Call("chat", {**GREEDY, "stop": [stop]}, PROMPT)
        cut = await engine.complete(call)
        pieces = [chunk async for chunk in engine.stream(call)]
        return text, stop, cut.choices[0], pieces

    text, stop, cut, pieces = in_engine(folder, use)
    assert cut.content() == text[: text.index(stop)]
    assert cut.finish_reason == "stop"
    streamed = "".join(choice.content() for piece in pieces for choice in piece.choices)
    assert streamed == cut.content()


def test_the_queue_is_bounded(folder):
    async def use(engine):
        first = asyncio.ensure_future(engine.complete(Call("chat", GREEDY, PROMPT, n=2)))
        await asyncio.sleep(0)
        with pytest.raises(ApiError) as refused:
            await engine.complete(Call("chat", GREEDY, PROMPT))
        first.cancel()
        return refused.value.status

    assert in_engine(folder, use, most_waiting=2) == 429


def call(words, most, seed, **more):
    """Return a request whose answer is sampled, which seldom ends before its limit."""
    prompt = ({"role": "user", "content": words},)
    return Call("chat", {"max_tokens": most, "temperature": 1.5, "seed": seed, **more}, prompt)


def test_a_short_answer_waits_for_two_chunks_of_a_long_one_at_most(folder, chunks):
    async def use(engine):
        ended = []

        async def draw(name, one):
            await engine.complete(one)
            ended.append(name)

        chunks.gate.clear()
        long = asyncio.ensure_future(draw("long", call("the thing", LONG, 4)))
        await asyncio.to_thread(chunks.entered.wait, 60)
        short = asyncio.ensure_future(draw("short", call("that", 4, 2)))
        await asyncio.sleep(0)
        chunks.gate.set()
        await asyncio.gather(long, short)
        return ended

    assert in_engine(folder, use) == ["short", "long"]
    # It came during the first chunk, and is a row of the second.
    assert chunks.counts == [1, 2, 1, 1]


def test_rows_that_join_and_leave_do_not_change_an_answer(folder):
    calls = [call("the thing", LONG, 4), call("in an inn, then", 20, 2), call("that", 40, 3)]

    async def alone(engine):
        return [await engine.complete(one) for one in calls]

    async def joining(engine):
        pieces = engine.stream(calls[0])
        first = await anext(pieces)
        others = asyncio.gather(*(engine.complete(one) for one in calls[1:]))
        rest = [piece async for piece in pieces]
        text = "".join(c.content() for piece in (first, *rest) for c in piece.choices)
        return [text, *(one.choices[0].content() for one in await others)]

    expected = [one.choices[0].content() for one in in_engine(folder, alone)]
    assert in_engine(folder, joining) == expected


@pytest.mark.parametrize("streamed", [False, True])
def test_a_client_that_goes_away_frees_its_row(folder, chunks, streamed):
    async def use(engine):
        long = call("the thing", LONG, 4)

        async def read():
            async for _ in engine.stream(long):
                pass

        chunks.gate.clear()
        task = asyncio.ensure_future(read() if streamed else engine.complete(long))
        await asyncio.to_thread(chunks.entered.wait, 60)
        task.cancel()
        await asyncio.wait({task})
        chunks.gate.set()
        left = engine._waiting
        await engine.complete(call("that", 40, 3))
        return left

    assert in_engine(folder, use) == 0
    assert chunks.counts == [1, 1, 1, 1]


def test_where_an_answer_fails_the_others_of_its_request_are_drawn_no_further(
    folder, chunks, monkeypatch
):
    hand_out, failures = DecodePool._hand_out, [InputError("a failure")]

    def failing(pool, row, *found):
        if failures:
            raise failures.pop()
        return hand_out(pool, row, *found)

    async def use(engine):
        chunks.gate.clear()
        with pytest.raises(InputError, match="a failure"):
            await engine.complete(call("the thing", LONG, 4)._replace(n=2))
        chunks.gate.set()

    monkeypatch.setattr(DecodePool, "_hand_out", failing)
    in_engine(folder, use)
    assert sum(chunks.counts) <= 1


def test_lengths_of_one_bucket_compile_once(folder, caplog):
    async def use(engine):
        await engine.complete(call("the thing", 12, 4))
        with jax.log_compiles(), caplog.at_level(logging.WARNING, "jax"):
            for words, most, seed in (("that", 3, 1), ("the thing then", 16, 2), ("in", 9, 3)):
                await engine.complete(call(words, most, seed))
        return [record.message for record in caplog.records]

    assert in_engine(folder, use) == []
