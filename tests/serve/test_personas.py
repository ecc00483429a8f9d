"""Personas of users: answers as of `pplug generate`, held-out choices, embeddings for a server."""

import asyncio
import base64
import io
import json
import shutil
from types import SimpleNamespace

import fake_upstream
import jax
import numpy as np
import persona_world
import pytest
import tiny_lms
import torch
from running import client_of

from jaxalign import pplug
from jaxalign.data.histories import Histories, Item, Sample
from jaxalign.errors import InputError
from jaxalign.experiments.pplug import ask
from jaxalign.models.sampling import Sampling
from jaxalign.personalize import ServingRule, Utility
from jaxalign.pplug.store import MemoryStore
from jaxalign.rewards import RewardIds
from jaxalign.serve import EngineConfig, ServeConfig, open_service, personas
from jaxalign.serve.engines import Call
from jaxalign.serve.engines.local import LocalEngine
from jaxalign.serve.engines.registry import SoftTokens
from jaxalign.serve.personas import Persona
from jaxalign.serve.store.events import Event
from jaxalign.serve.strategies import STRATEGIES, StrategyInputs
from jaxalign.serve.wire import Reply, ReplyChoice, TokenUsage

PROMPT = {"role": "user", "content": "say hen"}
GREEDY = {"model": "auto", "messages": [PROMPT], "temperature": 0, "max_tokens": 8}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return persona_world.build(tmp_path_factory.mktemp("personas"))


@pytest.fixture(scope="module", params=["before", pytest.param("after", marks=pytest.mark.slow)])
def plug(world, request):
    """The plug, with its soft tokens before and behind prompts."""
    folder = world.root / request.param
    if request.param == "after":
        shutil.copytree(world.plug, folder)
        persona_world.behind_prompts(folder)
    return folder


def config_of(folder, plug, engine="local", **changes):
    upstream = {} if engine == "local" else {"url": engine}
    kind = "openai" if upstream else "local"
    database = f"sqlite:///{folder}/service.sqlite"
    return ServeConfig(
        engine=EngineConfig(kind, plug=str(plug), **upstream), database=database, **changes
    )


@pytest.fixture(scope="module")
def client(plug, tmp_path_factory):
    config = config_of(tmp_path_factory.mktemp("local"), plug, strategy="persona")
    with client_of(config) as client:
        yield client


def ask_for(client, user, **changes):
    found = client.post("/v1/chat/completions", json={**GREEDY, "user": user, **changes})
    assert found.status_code == 200, found.text
    return found.json()


def text_of(body):
    return body["choices"][0]["message"]["content"]


def draw_two(client, user):
    """Return the ids and the texts of two answers that differ."""
    found = ask_for(client, user, n=2, temperature=1, model="auto")
    texts = [choice["message"]["content"] for choice in found["choices"]]
    ids = found["jaxalign"]["answers"]
    return list(zip(ids, texts, strict=True))


def prefer(client, user, chosen, rejected):
    body = {"response_id": rejected, "preferred": chosen, "user": user}
    assert client.post("/v1/feedback", json=body).status_code == 200


def histories(choices, question):
    """Choices in words, as `jaxalign pplug generate` reads them from a file."""
    texts = [
        words
        for chosen, rejected in choices
        for words in (f"I chose this answer: {chosen}", f"I rejected this answer: {rejected}")
    ]
    items = tuple(Item(str(place), {"text": text}) for place, text in enumerate(texts))
    sample = Sample("1", "user", question, None, tuple(range(len(items))))
    return Histories((sample,), items, "text")


def own_answer(plug, choices, question="say hen"):
    opened = ask.open_plug(plug).plug
    (found,) = pplug.generate_answers(
        opened, histories(choices, question), Sampling(max_tokens=8, temperature=0.0),
        jax.random.key(0), store=MemoryStore(opened.encoder.config.width), progress=False,
    )  # fmt: skip
    return found.text


def test_a_user_is_answered_with_the_persona_of_the_choices(client, plug, monkeypatch):
    unnamed = client.post("/v1/chat/completions", json=GREEDY).json()
    assert text_of(unnamed) == own_answer(plug, [])
    assert "user without choices" in unnamed["jaxalign"]["reason"]
    choices = []
    for _ in range(2):
        (first, chosen), (second, rejected) = draw_two(client, "ann")
        if not chosen.strip() or not rejected.strip():
            continue
        prefer(client, "ann", first, second)
        choices.append((chosen, rejected))
    found = ask_for(client, "ann")
    edit = {"response_id": found["jaxalign"]["answers"][0], "edited": "the hen", "user": "ann"}
    assert client.post("/v1/feedback", json=edit).status_code == 200
    if text_of(found).strip():
        choices.append(("the hen", text_of(found)))
    assert choices
    served = ask_for(client, "ann")
    assert text_of(served) == own_answer(plug, choices)
    about = served["jaxalign"]
    assert (about["strategy"], about["probability"]) == ("persona", None)
    assert about["reason"] == f"the persona made of {len(choices)} choices"
    monkeypatch.setattr(personas, "in_words", None)  # the choices are kept in words
    streamed = client.post("/v1/chat/completions", json={**GREEDY, "user": "ann", "stream": True})
    monkeypatch.undo()
    pieces = [json.loads(one[6:]) for one in streamed.text.split("\n\n")[:-2]]
    content = "".join(c["delta"].get("content") or "" for p in pieces for c in p["choices"])
    assert content == text_of(served)
    # What the user has erased is not in the next persona.
    assert client.delete("/v1/user", params={"id": "ann"}).status_code == 200
    assert text_of(ask_for(client, "ann")) == text_of(unnamed)


def test_rows_with_and_without_a_persona_share_a_batch(plug, chunks):
    opened = ask.open_plug(plug)
    behind = 0 if opened.plug.persona.place == "after" else None
    rng = np.random.default_rng(0)
    softs = [SoftTokens(rng.normal(0, 1, (2, 32)).astype("f"), behind) for _ in range(2)]

    async def run():
        engine = LocalEngine(EngineConfig("local", plug=str(plug)))
        await engine.start()
        try:
            calls = [
                Call("text", {"temperature": 0, "max_tokens": 8}, "the hen", soft=soft)
                for soft in (None, *softs)
            ]
            together = await asyncio.gather(*map(engine.complete, calls))
            alone = [await engine.complete(call) for call in calls]
            return [[one.choices[0].content() for one in some] for some in (together, alone)]
        finally:
            await engine.close()

    together, alone = asyncio.run(run())
    assert together == alone
    assert len(set(together)) > 1
    assert max(chunks.counts) > 1


def test_a_persona_and_a_long_prompt_fit_into_learned_positions(tmp_path):
    """Prompts are padded, but not beyond the positions that the soft tokens leave."""
    plug = persona_world.build(tmp_path, "gpt2", "n_layer").plug
    opened = ask.open_plug(plug).plug
    room = opened.model.config.positions - opened.persona.prefix_length
    soft = SoftTokens(np.ones((opened.persona.prefix_length, 32), np.float32), None)

    async def run():
        engine = LocalEngine(EngineConfig("local", plug=str(plug)))
        await engine.start()
        try:
            prompt = "b" * (room - 2)
            call = Call("text", {"temperature": 0, "max_tokens": 2}, prompt, soft=soft)
            return await engine.complete(call)
        finally:
            await engine.close()

    found = asyncio.run(run())
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (room - 2, 2)


def reference_favours(plug, choices, question, pair):
    """Whether the persona of some choices favours the first of two answers, by torch."""
    opened = ask.open_plug(plug).plug
    soft = pplug.prefixes(
        opened, histories(choices, question), MemoryStore(opened.encoder.config.width)
    )[0]
    model = tiny_lms.hf_model("llama", num_hidden_layers=1)
    tokenizer = tiny_lms.tokenizer()
    chat = f"<|user|>{question}<|end|><|assistant|>"
    prompt = tokenizer(chat, add_special_tokens=False)["input_ids"]
    start = 0 if opened.persona.place == "before" else len(prompt) - 1
    table = model.get_input_embeddings().weight.detach()

    def logprob(answer, tokens):
        embeddings = table[torch.tensor(prompt + answer)].float()
        with torch.no_grad():
            whole = torch.cat([embeddings[:start], tokens, embeddings[start:]])
            logits = model.float()(inputs_embeds=whole[None]).logits[0].log_softmax(-1)
        first = len(prompt) + len(tokens) - 1
        return sum(float(logits[first + place, word]) for place, word in enumerate(answer))

    shifts = []
    for text in pair:
        answer = tokenizer(text, add_special_tokens=False)["input_ids"][:8]
        with_soft = logprob(answer, torch.tensor(soft))
        shifts.append(with_soft - logprob(answer, torch.zeros((0, 32))))
    return shifts[0] - shifts[1]


def test_auto_serves_a_persona_where_held_out_choices_say_so(plug, tmp_path):
    """Ann chooses what her persona favours, each time anew; Bob chooses the other answer."""
    with client_of(config_of(tmp_path, plug)) as client:
        for user, sign in (("ann", 1), ("bob", -1)):
            choices = []
            while len(choices) < 3:
                two = draw_two(client, user)
                texts = [text for _, text in two]
                if not all(text.strip() for text in texts):
                    continue
                margin = sign * reference_favours(plug, choices, PROMPT["content"], texts)
                if abs(margin) < 1e-4:
                    continue
                (chosen, won), (rejected, lost) = two if margin > 0 else two[::-1]
                prefer(client, user, chosen, rejected)
                choices.append((won, lost))
            found = ask_for(client, user)
            about = found["jaxalign"]
            if user == "ann":
                assert about["strategy"] == "persona"
                assert "in 2 of 2 held-out choices" in about["reason"]
                assert text_of(found) == own_answer(plug, choices)
                # Both answers were drawn.
                assert found["usage"]["completion_tokens"] > 0
            else:
                assert about["strategy"] == "plain"


def test_a_choice_that_cannot_be_judged_is_left_out_once(world, monkeypatch):
    """Such as of a chat that the template of the present model does not take."""
    rows = [
        (
            Event(f"f{n}", n, "ann", "preferred", f"{n:032x}",
                  {"preferred": 0, "rejected": 1}, "s"),
            json.dumps([PROMPT]), json.dumps([{"text": "a hen"}, {"text": "a cow"}]),
        )
        for n in range(3)
    ]  # fmt: skip
    asked = []

    def refuse(_, prompt):
        asked.append(prompt)
        raise InputError("a role that the template does not know")

    monkeypatch.setattr(personas, "tokenize_prompt", refuse)
    made = personas.Personas(str(world.plug), ask.open_plug(world.plug))
    database = SimpleNamespace(read_now=lambda _: rows)
    for _ in range(2):
        assert made.make(database, "ann", "1", (PROMPT,), 0.8) is None
    assert len(asked) == 2


class Drawing:
    """An engine whose draws say how they were drawn."""

    async def complete(self, call):
        texts = ["persona"] if call.soft is not None else [f"draw {n}" for n in range(call.n)]
        choices = [ReplyChoice(index=n, text=text) for n, text in enumerate(texts)]
        return Reply(choices=choices, usage=TokenUsage(completion_tokens=len(texts)))


def inputs_of(mean, engine):
    ids = RewardIds(("brevity",), "0" * 64)
    persona = Persona(SoftTokens(np.zeros((1, 4), np.float32)), 3, 2, 2)

    async def read(texts):
        return np.array([[0.0], [1.0]])

    return StrategyInputs(
        "auto", engine, Call("text", {}, "hen"), "hen", Utility([mean], [[1.0]], ids), read,
        ServingRule(0.0, 0.8), 2, lambda values: None, persona=persona,
    )  # fmt: skip


def test_draws_beside_one_that_fails_are_cancelled():
    ended = []

    class Failing(Drawing):
        async def complete(self, call):
            if call.soft is not None:
                raise InputError("a failure")
            try:
                await asyncio.sleep(60)
            finally:
                ended.append(call.n)

    async def run():
        with pytest.raises(InputError, match="a failure"):
            await STRATEGIES["auto"](inputs_of(1.0, Failing()))
        await asyncio.sleep(0)
        return list(ended)

    assert asyncio.run(run()) == [2]


@pytest.mark.parametrize(
    ("mean", "expected"), [(2.0, "draw 1"), (0.5, "persona"), (-2.0, "persona")]
)
def test_a_draw_that_gains_is_served_before_a_persona(mean, expected):
    served = asyncio.run(STRATEGIES["auto"](inputs_of(mean, Drawing())))
    assert served.reply.choices[0].content() == served.answer.text == expected
    assert served.reply.usage.completion_tokens == 3


@pytest.mark.parametrize("persona", [True, False])
def test_at_temperature_0_one_draw_is_requested_beside_a_persona(persona):
    """vLLM refuses several."""
    drawn = []

    class Greedy(Drawing):
        async def complete(self, call):
            drawn.append(call.n)
            return await super().complete(call)

    async def read(texts):
        return np.zeros((len(texts), 1))

    given = inputs_of(0.5, Greedy())
    given = given._replace(call=Call("text", {"temperature": 0}, "hen"), read=read)
    served = asyncio.run(STRATEGIES["auto"](given if persona else given._replace(persona=None)))
    assert served.answer.strategy == ("persona" if persona else "plain")
    assert set(drawn) == {1}


@pytest.fixture
def embeddings(upstream):
    upstream.takes_embeddings = True
    return upstream


def test_a_server_gets_the_prompt_as_embeddings(world, tmp_path, upstream_server, embeddings):
    config = config_of(tmp_path, world.plug, upstream_server.url, strategy="persona")
    with client_of(config) as client:
        embeddings.requests.clear()
        body = {**GREEDY, "user": "ann", "max_tokens": None, "max_completion_tokens": 5}
        found = client.post("/v1/chat/completions", json=body).json()
        assert found["object"] == "chat.completion"
        assert text_of(found) in fake_upstream.ANSWERS
        (sent,) = embeddings.requests
        assert sent.path.endswith("/v1/completions")
        assert sent.body.keys() == {"model", "temperature", "max_tokens", "prompt_embeds"}
        assert sent.body["max_tokens"] == 5
        values = torch.load(
            io.BytesIO(base64.b64decode(sent.body["prompt_embeds"])), weights_only=True
        )
        opened = ask.open_plug(world.plug)
        expected = ask.embed_question(opened, histories([], "say hen"), tmp_path / "store")
        np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-6)
        stream = client.post("/v1/chat/completions", json={**GREEDY, "stream": True}).text
        pieces = [json.loads(one[6:]) for one in stream.split("\n\n")[:-2]]
        assert "".join(c["delta"].get("content") or "" for p in pieces for c in p["choices"])
        assert pieces[-1]["jaxalign"]["strategy"] == "persona"


def test_a_server_that_takes_no_embeddings_is_refused(world, tmp_path, upstream_server, upstream):
    config = config_of(tmp_path, world.plug, upstream_server.url)
    with pytest.raises(InputError, match="--enable-prompt-embeds"):
        asyncio.run(open_service(config))


def test_plugs_that_cannot_be_served_are_refused(world, tmp_path):
    with pytest.raises(InputError, match="found no --plug"):
        ServeConfig(strategy="persona")
    with pytest.raises(InputError, match="--plug with --store features"):
        config_of(tmp_path, world.plug, store="features")
    other = tiny_lms.write(tmp_path / "other", "llama")
    engine = EngineConfig("local", plug=str(world.plug), model=str(other))
    with pytest.raises(InputError, match="give the one it was trained with"):
        asyncio.run(open_service(ServeConfig(engine=engine, database=f"sqlite:///{tmp_path}/s")))
    scored = tmp_path / "scored"
    shutil.copytree(world.plug, scored)
    path = scored / "sources.json"
    path.write_text(path.read_text().replace('"text"', '"LaMP_3"'))
    with pytest.raises(InputError, match="LaMP_3"):
        asyncio.run(open_service(config_of(tmp_path, scored)))
