"""Fine-tuning on scored completions: what is learned under which preference, and the loss."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import moc_world as world
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from moc_world import STOP
from scipy.special import log_softmax
from test_moc_policy import moved

from jaxalign.errors import InputError
from jaxalign.moc import init_policy
from jaxalign.moc.combination import SMALLEST_TOTAL
from jaxalign.moc.fine_tuning import ConditionedCompletions, fit_policy
from jaxalign.moc.likelihood import Likelihood
from jaxalign.moc.preferences import lattice
from jaxalign.moc.warm_start import WarmStartConfig, completion_rows, loss, met_preferences
from jaxalign.models import families, lora
from jaxalign.models.buckets import padded
from jaxalign.train.loop import LoopConfig
from jaxalign.train.mesh import MeshConfig, make_mesh
from jaxalign.train.optimiser import OptimiserConfig

OPTIONS = lattice(2, 5)
# Longer completions under one preference than under the other.
PROMPTS = ((20, 21, 22), (23, 24), (20, 21, 22), (25,))
COMPLETIONS = ((26, 27, 28, STOP), (27, 27, STOP), (29, STOP), (29, 29, STOP))
PREFERENCES = np.array([[1, 0], [1, 0], [0, 1], [0.5, 0.5]], np.float32)
LEARNED = ConditionedCompletions(PROMPTS, COMPLETIONS, PREFERENCES)


def config(**changes):
    return world.config(
        conditioning="adapters", advantage_baseline="group", answer_tokens=4, **changes
    )


@pytest.fixture(scope="module")
def policy():
    return moved(init_policy(jax.random.key(0), world.language_model(), world.NAMES, config()))


def batch():
    return {
        "prompts": padded(PROMPTS, (4, 3)),
        "prompt_lengths": np.array([3, 2, 3, 1], np.int32),
        "completions": padded(COMPLETIONS, (4, 4)),
        "completion_lengths": np.array([4, 3, 2, 3], np.int32),
        "preferences": PREFERENCES,
    }


@jax.jit
def logits_of(params, tokens):
    hidden, _ = families.forward(world.CONFIG, params, tokens)
    return families.logits(params, hidden)


def sums(policy, arrays, **changes):
    made = config(**changes)
    decoder = made.trunk.decoder(policy.model.config)
    one = partial(loss, Likelihood(made, decoder, (STOP,), make_mesh(MeshConfig())))
    return jax.value_and_grad(
        lambda trained: one(trained, policy.model.params, arrays, None)["loss"]
    )({"adapter": policy.trained["adapter"]})


@given(
    hnp.arrays(np.float64, (12, 2), elements=st.floats(-1, 1, width=32)),
    st.floats(0.1, 1.0),
)
def test_what_is_kept_meets_its_preference_best(levels, keep):
    rows, met = met_preferences(levels, OPTIONS, keep)
    assert (np.diff(rows) > 0).all()
    positive = np.maximum(levels, 0)
    for row, option in zip(rows, met, strict=True):
        shares = positive[row] / positive[row].sum()
        gaps = np.abs(OPTIONS - shares[None]).sum(axis=1)
        assert gaps[option] <= gaps.min() + 1e-6
    everyone, everything = met_preferences(levels, OPTIONS, 1.0)
    assert len(everyone) == (positive.sum(axis=1) >= SMALLEST_TOTAL).sum()
    for option in range(len(OPTIONS)):
        own, all_of_it = rows[met == option], everyone[everything == option]
        assert len(own) == np.ceil(keep * len(all_of_it))
        left = np.setdiff1d(all_of_it, own)
        if len(left):
            worth = levels @ OPTIONS[option]
            assert worth[own].min() >= worth[left].max() - 1e-9


def test_the_loss_is_that_of_each_row_alone_under_its_preference(policy):
    total, _ = sums(policy, batch())
    expected = 0.0
    for prompt, completion, preference in zip(*LEARNED, strict=True):
        scaled = lora.scaled(policy.trained["adapter"], policy.lora)
        adapted = lora.merge(policy.model.params, lora.concatenate(scaled, preference))
        tokens = jnp.asarray(padded([[*prompt, *completion]], (1, 7)))
        logits = np.asarray(logits_of(adapted, tokens), np.float64)[0] / config().temperature
        logits[len(prompt) - 1, STOP] = -np.inf  # no stop before the first token
        before = slice(len(prompt) - 1, len(prompt) + len(completion) - 1)
        logprobs = log_softmax(logits[before], axis=1)
        expected -= logprobs[np.arange(len(completion)), completion].sum()
    assert float(total) == pytest.approx(expected, rel=1e-5)


def test_a_corner_teaches_its_own_adapter_alone(policy):
    arrays = batch() | {"preferences": np.array([[1, 0]] * 4, np.float32)}
    _, gradient = sums(policy, arrays)
    for leaf in jax.tree.leaves(gradient):
        assert np.abs(leaf[:, 0]).max() > 0
        assert (leaf[:, 1] == 0).all()


def test_a_missing_row_weighs_nothing(policy):
    whole, gradient = sums(policy, batch())
    lengths = batch()["completion_lengths"].copy()
    lengths[3] = 0
    part, less = sums(policy, batch() | {"completion_lengths": lengths})
    three = {name: value[:3] for name, value in batch().items()}
    alone, own = sums(policy, three)
    chex.assert_trees_all_close((part, less), (alone, own), rtol=1e-5, atol=1e-5)
    chex.assert_tree_all_finite(gradient)
    assert whole > part


def test_a_warm_start_learns_and_resumes_to_the_same_bytes(policy, tmp_path):
    def started(folder, epochs):
        loop = LoopConfig(epochs=epochs, batch_size=2, checkpoint_every=3)
        optimiser = OptimiserConfig(rate=1e-2, schedule="constant", warmup=0.0)
        rows = completion_rows(LEARNED, 4)
        return fit_policy(policy, loss, rows, config(), loop, optimiser, tmp_path / folder)

    before, _ = sums(policy, batch())
    through = started("through", 6)
    after, _ = sums(through, batch())
    assert after < 0.7 * before
    started("stopped", 2)
    again = started("stopped", 6)
    chex.assert_trees_all_equal(again.trained, through.trained)
    chex.assert_trees_all_equal(policy.model.params, through.model.params)


def test_a_share_to_keep_is_a_share():
    with pytest.raises(InputError, match=r"keep: found 0.0, expected a share above 0"):
        WarmStartConfig(keep=0.0)
