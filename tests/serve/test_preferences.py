"""A policy under the preferences of its value table: in process, each user by the best one."""

import asyncio
from dataclasses import replace

import answer_world
import jax
import numpy as np
import pytest
import tiny_lms
from running import client_of
from scipy.stats import norm

from jaxalign import moc
from jaxalign.moc.config import MocConfig
from jaxalign.moc.policy import init_policy
from jaxalign.moc.value_table import ValueTable
from jaxalign.models import load_language_model, lora
from jaxalign.models.sampling import Sampling
from jaxalign.personalize.policies import Conditioned, answer_as
from jaxalign.personalize.saved import open_policies
from jaxalign.serve import EngineConfig, ServeConfig
from jaxalign.serve.engines import Call
from jaxalign.serve.engines.local import LocalEngine
from jaxalign.train.trunk import TrunkConfig

NAMES = ("brevity", "simplicity")
SCALE = answer_world.scale_of(NAMES)
PREFERENCES = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
ACHIEVED = np.array([[1.0, -0.5], [0.4, 0.4], [-0.5, 1.0]])
PROMPT = ({"role": "user", "content": "say hen"},)
GREEDY = {"temperature": 0, "max_tokens": 8}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_language_model(str(tiny_lms.write(tmp_path_factory.mktemp("base"), "llama")))


def saved(folder, model, conditioning):
    """A policy away from its start, as if it had been trained, with its value table."""
    trunk = TrunkConfig(lora=lora.LoraConfig(3, 5.0, targets=("query", "up")))
    made = init_policy(
        jax.random.key(1), model, NAMES, MocConfig(conditioning=conditioning, trunk=trunk), SCALE
    )
    rng = np.random.default_rng(2)
    tree = jax.tree.map(
        lambda x: x + rng.normal(0, 0.5, x.shape).astype("f"), made.trained["adapter"]
    )
    made = replace(made, trained={**made.trained, "adapter": tree})
    moc.save(folder, made)
    ValueTable(PREFERENCES, ACHIEVED, np.ones(3), NAMES, SCALE.digest).save(folder)
    return made


@pytest.mark.parametrize("conditioning", ["tags", "token", "adapters"])
def test_preferences_of_several_users_share_a_batch(tmp_path, model, conditioning):
    made = saved(tmp_path, model, conditioning)
    names = open_policies(None, tmp_path).names
    weights = np.concatenate([np.zeros((1, 2)), PREFERENCES])

    async def run():
        engine = LocalEngine(EngineConfig("local", model=model.name, policy=str(tmp_path)))
        await engine.start()
        try:
            calls = [Call("chat", GREEDY, PROMPT, policy=name) for name in (None, *names[1:])]
            found = await asyncio.gather(*map(engine.complete, calls))
            pieces = [chunk async for chunk in engine.stream(calls[1])]
            return [reply.choices[0].content() for reply in found], pieces
        finally:
            await engine.close()

    texts, pieces = asyncio.run(run())
    own = answer_as(
        model, Conditioned(made, PREFERENCES), weights, range(4), [PROMPT] * 4,
        Sampling(max_tokens=8, temperature=0.0), jax.random.key(0), progress=False,
    )  # fmt: skip
    assert texts == [completion.text for completion in own]
    assert "".join(c.content() for piece in pieces for c in piece.choices) == texts[1]


def test_each_user_is_given_the_preference_that_is_best_for_the_user(tmp_path, model):
    saved(tmp_path / "policy", model, "adapters")
    run = answer_world.save_run(tmp_path / "run", SCALE)
    engine = EngineConfig("local", policy=str(tmp_path / "policy"))
    database = f"sqlite:///{tmp_path}/service.sqlite"
    config = ServeConfig(engine=engine, database=database, users=str(run), strategy="conditioned")
    body = {"messages": list(PROMPT), "max_tokens": 8, "user": "ann"}
    with client_of(config) as client:
        listed = [one["id"] for one in client.get("/v1/models").json()["data"]]
        names = open_policies(None, tmp_path / "policy").names
        assert listed == ["auto", model.name, *names[1:]]
        about = client.post("/v1/chat/completions", json={**body, "model": "auto"}).json()
        utility = client.service.run(client.service.service.taste("local:ann")).utility
    about = about["jaxalign"]
    gain = ACHIEVED @ utility.mean
    best = ACHIEVED[np.argmax(gain)]
    assert (about["strategy"], about["choice"]) == ("conditioned", "brevity=1, simplicity=0")
    assert about["gain"] == pytest.approx(gain.max(), rel=1e-4)
    sd = np.sqrt(best @ utility.cov @ best)
    assert about["probability"] == pytest.approx(norm.cdf(gain.max() / sd), abs=1e-5)
