"""Members of a portfolio: each user is answered by the best one, in process and upstream."""

import asyncio
import json
from dataclasses import replace

import answer_world
import fake_upstream
import jax
import member_world
import numpy as np
import pytest
from cli_calls import call, refused
from member_world import ANSWERS, TASTES
from running import client_of
from scipy.stats import norm

from jaxalign import palm
from jaxalign.errors import InputError
from jaxalign.models import load_adapter, lora
from jaxalign.models.chat import generate_texts
from jaxalign.models.language import load_language_model
from jaxalign.models.sampling import Sampling
from jaxalign.personalize.saved import open_policies
from jaxalign.personalize.strategies.policies import PolicyValues
from jaxalign.rewards import rule_rewards
from jaxalign.serve import EngineConfig, ServeConfig, open_service
from jaxalign.serve.engines import Call
from jaxalign.serve.engines.local import LocalEngine

PROMPT = ({"role": "user", "content": "say hen"},)
GREEDY = {"temperature": 0, "max_tokens": 8}
ASKED = {"model": "auto", "messages": list(PROMPT), "max_tokens": 8}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return member_world.build(tmp_path_factory.mktemp("members"))


@pytest.fixture(scope="module")
def names(world):
    return open_policies(world.portfolio, None).names


def config_of(world, folder, engine, **changes):
    engine = replace(engine, portfolio=str(world.portfolio))
    database = f"sqlite:///{folder}/service.sqlite"
    return ServeConfig(engine=engine, database=database, users=str(world.run), **changes)


LOCAL = EngineConfig("local")


def upstream_engine(server):
    return EngineConfig("openai", url=server.url)


@pytest.fixture(scope="module")
def client(world, tmp_path_factory):
    with client_of(
        config_of(world, tmp_path_factory.mktemp("local"), LOCAL, strategy="member")
    ) as client:
        yield client


def teach(client, user, manner, times=5):
    """Edit the answers of the other manner into this one, as a user does who wants them so."""
    (other,) = set(ANSWERS) - {manner}
    portfolio = client.service.config.engine.portfolio
    name = names_of(client)[1 + member_world.member_of(portfolio, other)]
    for _ in range(times):
        found = ask(client, user, model=name, temperature=0)
        edit = {"response_id": found["jaxalign"]["answers"][0], "user": user}
        said = client.post("/v1/feedback", json={**edit, "edited": ANSWERS[manner]})
        assert said.status_code == 200, said.text


def names_of(client):
    return [one["id"] for one in client.get("/v1/models").json()["data"]]


def ask(client, user, **changes):
    found = client.post("/v1/chat/completions", json={**ASKED, "user": user, **changes})
    assert found.status_code == 200, found.text
    return found.json()


@pytest.mark.slow
def test_members_of_several_users_share_a_batch_and_answer_as_their_adapters(world, names, chunks):
    async def run():
        engine = LocalEngine(
            EngineConfig("local", model=str(world.base), portfolio=str(world.portfolio))
        )
        await engine.start()
        try:
            calls = [Call("chat", GREEDY, PROMPT, policy=name) for name in (None, *names[1:])]
            found = await asyncio.gather(*map(engine.complete, calls))
            pieces = [chunk async for chunk in engine.stream(calls[2])]
            return found, pieces
        finally:
            await engine.close()

    found, pieces = asyncio.run(run())
    assert max(chunks.counts) > 1
    texts = [reply.choices[0].content() for reply in found]
    model, settings = load_language_model(str(world.base)), Sampling(max_tokens=8, temperature=0.0)

    def alone(adapters):
        (one,) = generate_texts(
            model, [PROMPT], settings, jax.random.key(0), adapters=adapters, progress=False
        )
        return one.text

    assert texts[0] == alone(None)
    for name in ANSWERS:
        config, tree = load_adapter(world.root / name / "model", model.config)
        number = member_world.member_of(world.portfolio, name)
        assert texts[number] == alone(lora.scaled(tree, config)) == ANSWERS[name]
    streamed = "".join(choice.content() for piece in pieces for choice in piece.choices)
    assert streamed == texts[2]


def test_the_models_are_listed_and_a_member_answers_by_its_name(client, names, world):
    assert names_of(client) == ["auto", str(world.base), *names[1:]]
    number = member_world.member_of(world.portfolio, "long")
    found = ask(client, "zoe", model=names[number], temperature=0)
    assert found["choices"][0]["message"]["content"] == ANSWERS["long"]
    about = found["jaxalign"]
    assert (about["strategy"], about["choice"]) == ("member", f"member {number}")
    missing = client.post("/v1/chat/completions", json={**ASKED, "model": "member-9"})
    assert missing.status_code == 404
    assert names[1] in missing.json()["error"]["message"]


def test_each_user_is_answered_by_the_member_that_is_best_for_the_user(client, world):
    """By feedback; with the feedback of the other user, each is answered by the worse member."""
    gains = member_world.member_rewards(world.portfolio)
    own, other = [], []
    for manner, taste in TASTES.items():
        teach(client, manner, manner)
        utility = client.service.run(client.service.service.taste(f"local:{manner}")).utility
        value = gains @ utility.mean
        best = int(value.argmax())
        assert best == member_world.member_of(world.portfolio, manner)
        found = ask(client, manner, temperature=0)
        about = found["jaxalign"]
        assert found["choices"][0]["message"]["content"] == ANSWERS[manner]
        assert about["choice"] == f"member {best}"
        sd = np.sqrt(gains[best] @ utility.cov @ gains[best])
        assert about["gain"] == pytest.approx(value[best], rel=1e-4)
        assert about["gain_sd"] == pytest.approx(sd, rel=1e-4)
        assert about["probability"] == pytest.approx(norm.cdf(value[best] / sd), abs=1e-5)
        own.append(gains[best] @ taste)
        (swapped,) = [gains[best] @ t for name, t in TASTES.items() if name != manner]
        other.append(swapped)
    assert min(own) > 0
    assert np.mean(other) < 0


def test_members_are_compared_once_for_each_belief(client, monkeypatch):
    teach(client, "kim", "long")
    first = ask(client, "kim", temperature=0)["jaxalign"]["choice"]
    monkeypatch.setattr(PolicyValues, "choose", None)
    assert ask(client, "kim", temperature=0)["jaxalign"]["choice"] == first


def test_a_member_is_streamed_as_it_is_drawn(client, world):
    teach(client, "sam", "long")
    body = {**ASKED, "user": "sam", "temperature": 0, "stream": True}
    pieces = client.post("/v1/chat/completions", json=body).text.split("\n\n")[:-2]
    found = [json.loads(piece.removeprefix("data: ")) for piece in pieces]
    text = "".join(c["delta"].get("content") or "" for one in found for c in one["choices"])
    assert text == ANSWERS["long"]
    assert found[-1]["jaxalign"]["strategy"] == "member"
    assert len(found[-1]["jaxalign"]["answers"]) == 1


def test_auto_serves_members_where_draws_are_alike(world, tmp_path):
    with client_of(config_of(world, tmp_path, LOCAL, samples=2)) as client:
        teach(client, "long", "long", times=8)
        found = ask(client, "long", temperature=0)
        assert found["jaxalign"]["strategy"] == "member", found["jaxalign"]
        assert found["choices"][0]["message"]["content"] == ANSWERS["long"]
        plain = ask(client, "long", temperature=0, model=str(world.base))["usage"]
        # What the member drew is counted beside the plain answer.
        assert found["usage"]["completion_tokens"] > plain["completion_tokens"]
        # Of whom nothing is known, nothing but the plain answer is likely enough to be better.
        held = ask(client, "new", temperature=0)["jaxalign"]
        assert held["strategy"] == "plain"
        assert "no other one is likely enough to be better" in held["reason"]


@pytest.fixture
def listing(upstream, names):
    upstream.models = {fake_upstream.MODEL: None} | dict.fromkeys(names[1:], fake_upstream.MODEL)
    return upstream


def test_a_server_answers_as_the_member_by_name(world, names, tmp_path, upstream_server, listing):
    config = config_of(world, tmp_path, upstream_engine(upstream_server), strategy="member")
    with client_of(config) as client:
        for manner in ANSWERS:
            teach(client, manner, manner)
            listing.requests.clear()
            about = ask(client, manner)["jaxalign"]
            number = member_world.member_of(world.portfolio, manner)
            assert about["choice"] == f"member {number}"
            assert [one.body["model"] for one in listing.requests] == [names[number]]
            stream = {**ASKED, "user": manner, "stream": True}
            assert "DONE" in client.post("/v1/chat/completions", json=stream).text
            assert listing.requests[-1].body["model"] == names[number]


def test_auto_serves_the_larger_expected_gain(world, names, tmp_path, upstream_server, listing):
    scale, samples = palm.load(world.portfolio).scale, len(fake_upstream.ANSWERS)
    raw = rule_rewards(member_world.NAMES).function([""] * samples, list(fake_upstream.ANSWERS))
    options = {
        "best_of": (raw - raw[0]) / scale.std,
        "member": member_world.member_rewards(world.portfolio),
    }
    with client_of(
        config_of(world, tmp_path, upstream_engine(upstream_server), samples=samples)
    ) as client:
        for manner in ANSWERS:
            teach(client, manner, manner, times=8)
            utility = client.service.run(client.service.service.taste(f"local:{manner}")).utility
            gain = {"plain": 0.0}
            for strategy, beyond in options.items():
                best = beyond[np.argmax(beyond @ utility.mean)]
                mean, sd = best @ utility.mean, np.sqrt(best @ utility.cov @ best)
                if norm.cdf(mean / sd) >= 0.8:
                    gain[strategy] = mean
            listing.requests.clear()
            about = ask(client, manner)["jaxalign"]
            assert about["strategy"] == max(gain, key=gain.get)
            assert about["gain"] == pytest.approx(max(gain.values()), rel=1e-4)
            # A member that is not likely enough to be better is not drawn from.
            drawn = sorted(one.body["model"] for one in listing.requests)
            assert len(drawn) == 1 + ("member" in gain)


def test_an_engine_without_the_members_is_refused(
    world, names, tmp_path, upstream_server, upstream
):
    config = config_of(world, tmp_path, upstream_engine(upstream_server))

    def said(models):
        upstream.models = {fake_upstream.MODEL: None} | models
        with pytest.raises(InputError, match="jaxalign export vllm") as caught:
            asyncio.run(open_service(config))
        return str(caught.value)

    assert names[2] in said({names[1]: fake_upstream.MODEL})
    assert names[1] in said(dict.fromkeys(names[1:], "another-base"))
    upstream.mode = "fail_models"
    with pytest.raises(InputError, match="its models cannot be listed"):
        asyncio.run(open_service(config))
    assert not (tmp_path / "service.sqlite").exists()


def test_portfolios_that_cannot_be_served_are_refused(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    serve = ("serve", "--port", 0)
    portfolio = ("--portfolio", world.portfolio)
    refused(call(*serve, "--strategy", "member"), "found no --portfolio")
    refused(call(*serve, "--strategy", "conditioned", *portfolio), "found no --policy")
    refused(call(*serve, *portfolio), "found rewards brevity, simplicity, expected brevity, posit")
    scale = palm.load(world.portfolio).scale
    other = answer_world.save_run(tmp_path / "run", replace(scale, std=scale.std * 2))
    refused(call(*serve, *portfolio, "--users", other), "portfolio: found the scale")
    candidates = tmp_path / "candidates"
    palm.load(world.portfolio).save(candidates)
    refused(call(*serve, "--portfolio", candidates), "a portfolio of candidates")
    users = ("--users", world.run)
    another = ("--engine.model", world.root / "brief" / "model")
    refused(call(*serve, *portfolio, *users, *another), "load that model")
    both = (*portfolio, "--policy", world.portfolio)
    refused(call(*serve, *both), "found both of --portfolio and --policy")
    refused(call(*serve, *portfolio, "--samples", 64), "--samples 64 needs 65 answers")
    assert {path.name for path in tmp_path.iterdir()} == {"run", "candidates"}
