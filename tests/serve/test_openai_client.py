"""The official client of OpenAI against the service, unchanged."""

from types import SimpleNamespace

import fake_upstream
import openai
import pytest

from jaxalign.serve.answering import Streaming
from jaxalign.serve.wire import ReplyChoice

MESSAGES = [{"role": "user", "content": "How was your day?"}]


@pytest.fixture
def sdk(served, client):
    with openai.OpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0) as sdk:
        yield sdk


def test_models_are_the_engine_s_and_auto(sdk):
    assert [model.id for model in sdk.models.list()] == ["auto", fake_upstream.MODEL]


def test_a_chat_is_answered_and_says_how(sdk, user, upstream):
    found = sdk.chat.completions.create(model="auto", messages=MESSAGES, user=user)
    assert found.choices[0].message.content in fake_upstream.ANSWERS
    assert found.object == "chat.completion"
    assert found.model == "auto"
    about = found.model_extra["jaxalign"]
    assert about["strategy"] in ("best_of", "plain")
    assert about["reason"].endswith(
        "no feedback is known yet, so the taste of the whole population decides"
    )
    assert len(about["answers"]) == 1
    assert about["answers"][0].startswith(found.id)
    # All four draws are counted, and the engine is not told who asks.
    assert found.usage.completion_tokens == 28
    assert upstream.requests[0].body == {
        "messages": MESSAGES, "n": 4, "model": fake_upstream.MODEL
    }  # fmt: skip


def test_the_engine_s_own_model_answers_plainly(sdk, user, upstream):
    found = sdk.chat.completions.create(model=fake_upstream.MODEL, messages=MESSAGES, user=user)
    assert found.choices[0].message.content == fake_upstream.ANSWERS[0]
    about = found.model_extra["jaxalign"]
    assert about["strategy"] == "plain"
    assert about["reason"] == "the plain answer: the request names the engine's own model"
    assert "n" not in upstream.requests[0].body


@pytest.mark.parametrize("model", ["auto", fake_upstream.MODEL])
def test_streaming_gives_the_same_text_in_pieces(sdk, user, model):
    pieces = list(sdk.chat.completions.create(
        model=model, messages=MESSAGES, user=user, stream=True,
        stream_options={"include_usage": True},
    ))  # fmt: skip
    text = "".join(c.delta.content or "" for piece in pieces for c in piece.choices)
    assert text in fake_upstream.ANSWERS
    finishes = [c.finish_reason for piece in pieces for c in piece.choices]
    assert finishes[-1] == "stop"
    assert set(finishes[:-1]) == {None}
    assert pieces[-1].usage.completion_tokens > 0
    assert not pieces[-1].choices
    roles = [c.delta.role for piece in pieces for c in piece.choices]
    assert (roles[0], set(roles[1:])) == ("assistant", {None})
    about = pieces[-2].model_extra["jaxalign"]
    assert about["answers"] == [f"{pieces[0].id}.0"]
    assert len({piece.id for piece in pieces}) == 1


@pytest.mark.parametrize("model", ["auto", fake_upstream.MODEL])
@pytest.mark.parametrize("end", ["\u2028", "\u2029", "\u0085", "\r\n", "\x0b"])
def test_ends_of_lines_in_an_answer_end_no_line_of_the_stream(
    sdk, client, upstream, monkeypatch, model, end
):
    answer = f"Well,{end}it was fine: 😀."
    monkeypatch.setattr(fake_upstream, "ANSWERS", (answer,))
    asked = {"model": model, "messages": MESSAGES, "stream": True}
    pieces = sdk.chat.completions.create(**asked)
    assert "".join(c.delta.content or "" for piece in pieces for c in piece.choices) == answer
    with client.stream("POST", "/v1/chat/completions", json=asked) as found:
        lines = [line for line in found.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)


def test_n_gives_n_plain_answers(sdk, user):
    found = sdk.chat.completions.create(model="auto", messages=MESSAGES, user=user, n=3)
    assert [c.message.content for c in found.choices] == list(fake_upstream.ANSWERS[:3])
    assert [c.index for c in found.choices] == [0, 1, 2]
    about = found.model_extra["jaxalign"]
    assert about["strategy"] == "plain"
    assert "n of its own" in about["reason"]
    assert len(set(about["answers"])) == 3


def test_n_is_streamed_too(sdk, user):
    pieces = sdk.chat.completions.create(
        model="auto", messages=MESSAGES, user=user, n=2, stream=True
    )
    texts = {0: "", 1: ""}
    for piece in pieces:
        for choice in piece.choices:
            texts[choice.index] += choice.delta.content or ""
    assert list(texts.values()) == list(fake_upstream.ANSWERS[:2])


def test_text_completions(sdk, user):
    found = sdk.completions.create(model="auto", prompt="Once", user=user, max_tokens=8)
    assert found.choices[0].text in fake_upstream.ANSWERS
    assert found.object == "text_completion"
    pieces = sdk.completions.create(
        model=fake_upstream.MODEL, prompt="Once", user=user, stream=True
    )
    assert "".join(c.text for piece in pieces for c in piece.choices) in fake_upstream.ANSWERS


def test_tools_and_formats_are_passed_on_and_answered_plainly(sdk, user, upstream):
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    found = sdk.chat.completions.create(
        model="auto", messages=MESSAGES, user=user, tools=[tool], metadata={"a": "b"}
    )
    assert found.model_extra["jaxalign"]["reason"] == "the plain answer: the request has tools"
    assert upstream.requests[0].body["tools"] == [tool]
    assert upstream.requests[0].body["metadata"] == {"a": "b"}


def test_an_engine_that_ignores_n_is_asked_n_times(sdk, user, upstream, served):
    upstream.mode = "ignores_n"
    found = sdk.chat.completions.create(model="auto", messages=MESSAGES, user=user, n=3, seed=5)
    assert sorted(c.message.content for c in found.choices) == sorted(fake_upstream.ANSWERS[:3])
    # Of one seed, all draws would be alike.
    assert sorted(request.body["seed"] for request in upstream.requests) == [5, 6, 7]
    assert found.usage.completion_tokens == 21
    # From then on it is asked for single answers at once.
    sdk.chat.completions.create(model="auto", messages=MESSAGES, user=user, n=2)
    assert len(upstream.requests) == 5


def test_the_client_s_own_errors(sdk, user):
    with pytest.raises(openai.NotFoundError) as refused:
        sdk.chat.completions.create(model="gpt-x", messages=MESSAGES, user=user)
    assert refused.value.code == "model_not_found"
    assert refused.value.param == "model"
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.chat.completions.create(model="auto", messages=[], user=user)
    assert refused.value.param == "messages"


def test_an_answer_in_one_piece_keeps_its_tool_calls_and_log_probabilities():
    calls = [{"id": name, "type": "function"} for name in "ab"]
    message = {"role": "assistant", "content": None, "tool_calls": calls}
    choice = ReplyChoice.model_validate({"message": message, "logprobs": {"content": []}})
    found = Streaming(SimpleNamespace(endpoint="chat")).whole(1, choice)
    assert (found["index"], found["logprobs"]) == (1, {"content": []})
    assert found["delta"]["tool_calls"] == [
        {"index": place, **one} for place, one in enumerate(calls)
    ]
