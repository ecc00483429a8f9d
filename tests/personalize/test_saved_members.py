"""Users of many tastes in one decode call: every row as its member alone would answer."""

import shutil
from dataclasses import replace

import adapted_pair as tiny
import chex
import jax
import numpy as np
import pytest

from jaxalign import palm
from jaxalign.errors import InputError
from jaxalign.models import generate as generation
from jaxalign.models.sampling import Sampling
from jaxalign.personalize import saved_members
from jaxalign.personalize.policies import Mixing, Soups, answer_as
from jaxalign.personalize.policy_oracle import AnswerOracle
from jaxalign.runs.artifact import load_artifact, save_artifact

GREEDY = Sampling(max_tokens=5, temperature=0.0, suppressed_ids=(tiny.UNKNOWN,))
KEY = jax.random.key(5)
KIND = "set of policies"


@pytest.fixture(scope="module", params=["soups", "mixing"])
def serving(request):
    """Built on answers: members for users of either taste, and the reference."""
    policies = {"soups": Soups, "mixing": Mixing}[request.param](tiny.adapters())
    oracle = AnswerOracle(
        tiny.language_model(), policies, tiny.PROMPTS, tiny.REWARD, 0.01, tiny.SETTINGS, KEY,
        samples=32, batch_size=256,
    )  # fmt: skip
    config = palm.PalmConfig(eps=0.9, delta=0.5, prune_eps=0.0, prune_delta=1e-4, search="full")
    return saved_members.Serving(palm.build(oracle, config), policies, tiny.language_model())


def said_by(serving, members, prompts):
    weights = serving.portfolio.members.payload["weight"]
    return answer_as(
        serving.model, serving.policies, weights, members, prompts, GREEDY, KEY, progress=False
    )


def users(count, seed=0):
    return np.random.default_rng(seed).dirichlet((0.5, 0.5), count)


def alone(kind, weight, prompts):
    """Greedy answers by full passes, without cache, stacks or batches of others."""
    lines = [tiny.prompt_tokens(prompt) for prompt in prompts]
    answers = [[] for _ in prompts]
    for _ in range(GREEDY.max_tokens):
        logits = tiny.next_logits(
            kind, weight, [p + a for p, a in zip(lines, answers, strict=True)]
        )
        logits[:, tiny.UNKNOWN] = -np.inf
        for answer, token in zip(answers, logits.argmax(axis=1), strict=True):
            if tiny.STOP not in answer:
                answer.append(int(token))
    return answers


def test_each_row_is_what_its_member_alone_would_say(serving):
    count = len(serving.portfolio.members)
    assert count >= 3
    members = np.arange(24) % count
    prompts = [tiny.PROMPTS[i % 8] for i in np.random.default_rng(0).permutation(24)]
    found = said_by(serving, members, prompts)
    assert len({tuple(answer.tokens) for answer in found}) > count  # the members differ
    for member in range(count):
        weight = serving.portfolio.members.payload["weight"][member]
        own = np.flatnonzero(members == member)
        expected = alone(serving.policies.kind, weight, [prompts[row] for row in own])
        assert [found[row].tokens.tolist() for row in own] == expected


def test_one_compilation_serves_whoever_comes(serving):
    prompts = [tiny.PROMPTS[i % 8] for i in range(24)]
    before = None
    for seed in range(3):
        members = np.asarray(serving.portfolio.route(users(24, seed))[1])
        assert len(set(members.tolist())) > 1
        said_by(serving, members, prompts)
        before = before or generation.decode_jit._cache_size()
    nobody = np.zeros(24, int)
    said_by(serving, nobody, prompts)
    assert generation.decode_jit._cache_size() == before


def test_saved_here_and_served_elsewhere(serving, tmp_path):
    folder = tmp_path / "served"
    serving.save(folder)
    loaded = saved_members.load(folder, tiny.language_model())
    assert loaded.policies.kind == serving.policies.kind
    members = np.arange(24) % len(serving.portfolio.members)
    one, other = (said_by(each, members, tiny.PROMPTS * 3) for each in (serving, loaded))
    assert [a.tokens.tolist() for a in one] == [a.tokens.tolist() for a in other]
    chex.assert_trees_all_close(loaded.portfolio.values, serving.portfolio.values)


def test_what_was_not_saved_together_is_refused(serving, tmp_path):
    serving.save(tmp_path / "whole")
    model = tiny.language_model()

    def refused(match, change, model=model, **changes):
        folder = tmp_path / "other"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "whole", folder)
        change(folder)
        found = load_artifact(folder / saved_members.FILE, KIND, saved_members.AboutPolicies, "")
        save_artifact(
            folder / saved_members.FILE, KIND, replace(found.about, **changes), found.arrays
        )
        with pytest.raises(InputError, match=match):
            saved_members.load(folder, model)

    def same(folder):
        """Nothing but what the file states is changed."""

    def swap(folder):
        shutil.rmtree(folder / "adapters" / "0")
        shutil.copytree(folder / "adapters" / "1", folder / "adapters" / "0")

    refused("is not the one", swap)
    refused("found policies of kind 'mix'", same, kind="mix")
    refused("load that model", same, replace(model, sha256="1" * 64))
    refused("different builds", same, fingerprint="x")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "policies.json").write_text("{}")
    with pytest.raises(InputError, match=r"no such file; expected a set of policies"):
        saved_members.load(tmp_path / "old", model)


def test_members_and_prompts_must_match(serving):
    with pytest.raises(InputError, match=r"which: found shape .*as in the prompts"):
        said_by(serving, [0, 1, 0], tiny.PROMPTS)
    with pytest.raises(InputError, match="numbers from 0"):
        said_by(serving, [99], ["a"])
    assert said_by(serving, [], []) == []
    with pytest.raises(InputError, match="one for each adapter"):
        saved_members.Serving(serving.portfolio, Soups(tiny.adapters()[:1]), serving.model)
