"""Preference optimisation on scored pairs: which pairs, the loss, and that it learns."""

from functools import partial

import jax
import moc_world as world
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from moc_world import STOP
from scipy.special import expit
from test_moc_policy import moved
from test_warm_start import COMPLETIONS, PROMPTS

from jaxalign.errors import InputError
from jaxalign.moc import init_policy
from jaxalign.moc.fine_tuning import (
    ConditionedCompletions,
    completion_arrays,
    fit_policy,
)
from jaxalign.moc.likelihood import Likelihood
from jaxalign.moc.modpo import (
    ModpoConfig,
    ScoredPairs,
    loss,
    loss_scale,
    pair_rows,
    scored_pairs,
)
from jaxalign.models import lora
from jaxalign.models.completions import (
    CompletionBatch,
    completion_logprobs,
    sampling_distribution,
)
from jaxalign.train.loop import LoopConfig
from jaxalign.train.mesh import MeshConfig, make_mesh
from jaxalign.train.optimiser import OptimiserConfig

WEIGHT = np.array([0.75, 0.25], np.float32)
LEARNED = ConditionedCompletions(PROMPTS, COMPLETIONS, np.tile(WEIGHT, (4, 1)))
PAIRS = ScoredPairs(
    np.array([0, 1, 3]), np.array([2, 0, 1]), np.array([0.2, -0.1, 0.0], np.float32), 0.75
)


def config():
    return world.config(conditioning="none", advantage_baseline="group", answer_tokens=4)


@pytest.fixture(scope="module")
def policy():
    return moved(init_policy(jax.random.key(0), world.language_model(), world.NAMES, config()))


def batch(kept=(True, True, True)):
    found = {"kept": np.array(kept), "margins": PAIRS.margins}
    for side, rows in (("chosen", PAIRS.chosen), ("rejected", PAIRS.rejected)):
        arrays = completion_arrays(LEARNED, rows, 4)
        found |= {f"{side}_{name}": value for name, value in arrays.items()}
    return found


def losses(policy, arrays, beta=0.1):
    made = config()
    decoder, mesh = made.trunk.decoder(policy.model.config), make_mesh(MeshConfig())
    likelihood = Likelihood(made, decoder, (STOP,), mesh)
    one = partial(loss, loss_scale(ModpoConfig(beta), PAIRS), likelihood)
    return one({"adapter": policy.trained["adapter"]}, policy.model.params, arrays, None)


def sums_of_logprobs(policy, adapters):
    arrays = completion_arrays(LEARNED, np.arange(4), 4)
    completions = CompletionBatch(*(arrays[name] for name in CompletionBatch._fields))
    distribution = sampling_distribution(config().sampling((STOP,)), world.CONFIG.vocab_size)
    found, _ = completion_logprobs(
        world.CONFIG, policy.model.params, completions, distribution, adapters=adapters
    )
    return np.asarray(found, np.float64).sum(axis=1)


def test_the_loss_is_the_papers(policy):
    own = sums_of_logprobs(policy, lora.scaled(policy.trained["adapter"], policy.lora))
    ratio = own - sums_of_logprobs(policy, None)
    gap = ratio[PAIRS.chosen] - ratio[PAIRS.rejected]
    expected = -np.log(expit((0.1 * gap - PAIRS.margins) / 0.75))
    found = losses(policy, batch())
    assert float(found["loss"]) == pytest.approx(expected.sum(), rel=1e-4)
    ordered = 0.1 * gap > PAIRS.margins
    assert (ordered != (gap > 0)).any()  # the margin counts
    assert (float(found["weight"]), float(found["accuracy"])) == (3, ordered.sum())
    part = losses(policy, batch((True, False, True)))
    assert float(part["loss"]) == pytest.approx(expected[[0, 2]].sum(), rel=1e-4)


@given(
    hnp.arrays(np.float64, (9, 3), elements=st.sampled_from([0.0, 0.25, 0.5, 1.0])),
    st.integers(1, 40),
)
def test_pairs_are_of_one_prompt_and_ordered_by_the_largest_weight(levels, most):
    groups = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2])
    weight = np.array([0.2, 0.5, 0.3])
    found = scored_pairs(levels, groups, weight, most, seed=1)
    assert (groups[found.chosen] == groups[found.rejected]).all()
    assert (levels[found.chosen, 1] > levels[found.rejected, 1]).all()
    gaps = levels[found.chosen] - levels[found.rejected]
    np.testing.assert_allclose(found.margins, 0.2 * gaps[:, 0] + 0.3 * gaps[:, 2], atol=1e-6)
    assert found.share == 0.5
    assert max(np.bincount(groups[found.chosen], minlength=3)) <= most
    pairs = {frozenset(pair) for pair in zip(found.chosen, found.rejected, strict=True)}
    assert len(pairs) == len(found.chosen)
    if most >= 6:  # all of four completions
        ordered = sum(
            levels[a, 1] != levels[b, 1]
            for a in range(9)
            for b in range(a)
            if groups[a] == groups[b]
        )
        assert len(pairs) == ordered


def test_training_orders_the_pairs(policy, tmp_path):
    loop = LoopConfig(epochs=12, batch_size=3)
    optimiser = OptimiserConfig(rate=1e-2, schedule="constant", warmup=0.0)
    # With beta 1 a few nats settle a pair; with 0.1 a model this small needs long.
    before = losses(policy, batch(), beta=1.0)
    scaled = partial(loss, loss_scale(ModpoConfig(1.0), PAIRS))
    rows = pair_rows(LEARNED, PAIRS, 4)
    trained = fit_policy(policy, scaled, rows, config(), loop, optimiser, tmp_path)
    after = losses(trained, batch(), beta=1.0)
    assert float(after["loss"]) < 0.1 * float(before["loss"])
    assert float(after["accuracy"]) == 3


def test_settings_are_checked():
    with pytest.raises(InputError, match=r"modpo: found beta 0.0 and pairs 16"):
        ModpoConfig(beta=0.0)
    with pytest.raises(InputError, match=r"found beta 0.1 and pairs 0"):
        ModpoConfig(pairs=0)
