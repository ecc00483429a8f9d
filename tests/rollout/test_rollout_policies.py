"""Rollouts of many policies: the reference without scoring, and one order of the three parts."""

import jax
import moc_world as world
import numpy as np
import pytest

from jaxalign.errors import InputError
from jaxalign.models.completions import CompletionBatch
from jaxalign.models.sampling import Sampling
from jaxalign.rewards.vector import TextReward, TokenReward
from jaxalign.rollout import (
    ReferencePolicy,
    judging,
    rollout_policies,
    sample_and_score,
    token_rewards,
)

SAMPLING = Sampling(max_tokens=4, min_tokens=1)
LENGTH = TextReward(("length",), lambda prompts, texts: [len(x.split()) for x in texts], "1")


def rollout(prompts, **changes):
    options = {"samples": 2, "batch_size": 8, "progress": False} | changes
    return rollout_policies(
        world.language_model(), ReferencePolicy(), np.zeros((1, 0)), prompts, LENGTH, SAMPLING,
        jax.random.key(0), **options,
    )  # fmt: skip


def test_the_reference_has_no_kl_and_is_not_scored(monkeypatch):
    monkeypatch.setattr(judging, "reference_logprobs", None)
    prompts = ["a b", "c", "d e f", "g"]
    found = rollout(prompts)
    assert found.rewards.shape == (1, 4, 2, 1)
    np.testing.assert_array_equal(found.logprobs, found.ref_logprobs)
    assert (found.logprobs < 0).all()
    words = [len(text.split()) for text in found.texts.ravel()]
    np.testing.assert_array_equal(found.rewards.ravel(), words)
    # A completion depends on its prompt and its number, not on the batch.
    again = rollout(prompts, batch_size=3)
    np.testing.assert_array_equal(again.texts, found.texts)


def test_scoring_is_dispatched_before_the_rewards():
    order = []

    def part(name):
        return lambda *_: order.append(name) or name

    found = sample_and_score(part("sample"), part("score"), part("reward"))
    assert order == ["sample", "score", "reward"]
    assert found == ("sample", "score", "reward")


def test_token_rewards_of_another_shape_are_refused():
    batch = CompletionBatch(*(np.ones(shape, np.int32) for shape in ((2, 3), 2, (2, 4), 2)))
    wide = TokenReward(("a",), lambda prompts, lengths, tokens, ends: np.ones((2, 2)), "1")
    with pytest.raises(InputError, match=r"the reward a gave shape \(2, 2\) where \(2, 1\)"):
        token_rewards(wide, batch)


@pytest.mark.parametrize(
    ("prompts", "changes", "match"),
    [
        ([], {}, "prompts: found none"),
        (["a"], {"samples": 0}, "samples: found 0"),
        (["a"], {"batch_size": 0}, "batch_size: found 0"),
    ],
)
def test_rollouts_of_nothing_are_refused(prompts, changes, match):
    with pytest.raises(InputError, match=match):
        rollout(prompts, **changes)
