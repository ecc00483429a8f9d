"""Utilities and targets: two types that refuse each other, and what stands between them."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign import mrm, personalize
from jaxalign.errors import InputError
from jaxalign.moc.value_table import ValueTable
from jaxalign.personalize import Target, Utility, known, target_for
from jaxalign.rewards.reward_scale import RewardIds, fit_scale

NAMES = ("kind", "brief", "harmless")
IDS = RewardIds(NAMES, "a" * 64)


def test_ids_are_those_of_the_scale():
    scale = fit_scale(np.random.default_rng(0).normal(size=(9, 3)), NAMES)
    assert scale.ids == RewardIds(NAMES, scale.digest)


def table(achieved=((0.9, 0.1, 0.0), (0.5, 0.6, 0.0), (0.1, 0.8, 0.5)), ids=IDS):
    """What a policy achieves for each of three preferences."""
    return ValueTable(np.eye(3), np.array(achieved), np.zeros(3), ids.names, ids.digest)


def test_a_target_comes_out_of_the_table_only():
    utility = known([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [-5.0, 0.0, 0.1]], IDS)
    found = target_for(utility, table())
    assert isinstance(found, Target)
    assert found.reward_ids == IDS
    np.testing.assert_array_equal(found.values, np.eye(3))
    # The weights are no target: normalised to levels they would be another row.
    assert not np.allclose(found.values[1], utility.mean[1] / 2)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Target(np.ones(3), IDS), "found a Target, expected a Utility"),
        (np.ones(3), "found a ndarray, expected a Utility"),
        (known(np.ones(3), RewardIds(NAMES, "b" * 64)), "found the scale bbbb"),
        (known(np.ones(3), RewardIds(NAMES[::-1], "a" * 64)), "found rewards harmless"),
    ],
)
def test_one_is_refused_where_the_other_is_meant(wrong, message):
    with pytest.raises(InputError, match=message):
        target_for(wrong, table())


def test_a_table_on_other_rewards_is_refused():
    with pytest.raises(InputError, match="scale"):
        target_for(known(np.ones(3), IDS), table(ids=RewardIds(NAMES, "b" * 64)))
    with pytest.raises(InputError, match="one finite row"):
        table(np.eye(2))
    with pytest.raises(InputError, match="one finite row"):
        table(np.ones((2, 3)))
    with pytest.raises(InputError, match="finite"):
        table(np.full((3, 3), np.nan))


def test_senseless_vectors_are_refused():
    with pytest.raises(InputError, match="NaN"):
        known([np.nan, 0, 0], IDS)
    with pytest.raises(InputError, match="found mean"):
        known([1.0, 2.0], IDS)
    with pytest.raises(InputError, match="negative variance"):
        Utility(np.zeros(3), -np.eye(3), IDS)
    with pytest.raises(InputError, match="no two alike"):
        RewardIds(("a", "a"), "")
    with pytest.raises(InputError, match="one per reward"):
        Target(np.ones(2), IDS)


# From choices ---------------------------------------------------------------------------------


def choices(seed, users=4, pairs=6):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(users, pairs, 3)).astype(np.float32), np.ones((users, pairs), bool)


PRIOR = mrm.Prior(
    jnp.asarray([0.5, -0.2, -0.4], jnp.float32),
    jnp.asarray([[1.0, 0.3, 0.2], [0.3, 0.8, 0.1], [0.2, 0.1, 0.6]], jnp.float32),
)


def test_choices_give_the_posterior_in_raw_units():
    differences, mask = choices(0)
    found = personalize.from_choices(PRIOR, differences, mask, IDS)
    mean, cov = mrm.posterior(PRIOR, jnp.asarray(differences), jnp.asarray(mask))
    np.testing.assert_allclose(found.mean, mean)
    np.testing.assert_allclose(found.cov, cov)
    nothing = personalize.from_choices(PRIOR, differences, 0 * mask, IDS)
    np.testing.assert_allclose(nothing.mean, np.broadcast_to(PRIOR.mean, (4, 3)), atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), floor=st.sampled_from([0.0, 0.25, 2.0]))
def test_no_choice_moves_a_protected_weight(seed, floor):
    differences, mask = choices(seed)
    differences[..., 2] -= 3  # everyone votes against it
    free = personalize.from_choices(PRIOR, differences, mask, IDS)
    held = personalize.from_choices(PRIOR, differences, mask, IDS, {"harmless": floor})
    assert (free.mean[:, 2] < 0).all()
    np.testing.assert_allclose(held.mean[:, 2], max(floor, -0.4), rtol=1e-6)
    assert not held.cov[:, 2].any()
    assert not held.cov[:, :, 2].any()
    np.testing.assert_array_equal(held.mean[:, :2], free.mean[:, :2])
    np.testing.assert_array_equal(held.cov[:, :2, :2], free.cov[:, :2, :2])


def test_floors_are_checked():
    with pytest.raises(InputError, match="expected 0 or more"):
        personalize.floors({"harmless": -0.1}, IDS)
    with pytest.raises(InputError, match="'harm'"):
        personalize.floors({"harm": 0.0}, IDS)
    assert personalize.floors({"brief": 0.5}, IDS).tolist() == [-np.inf, 0.5, -np.inf]


def test_choices_of_another_shape_are_refused():
    differences, mask = choices(0)
    with pytest.raises(InputError, match="differences: found shape"):
        personalize.from_choices(PRIOR, differences[..., :2], mask, IDS)
    with pytest.raises(InputError, match="mask: found"):
        personalize.from_choices(PRIOR, differences, mask[:, :2], IDS)
    with pytest.raises(InputError, match="nan"):
        personalize.from_choices(PRIOR, differences * np.nan, mask, IDS)


# By projection --------------------------------------------------------------------------------


def pool(noise, seed=0):
    """Features that are a turn of the named rewards, shifted by prompt, and something else."""
    rng = np.random.default_rng(seed)
    named, prompt = rng.normal(size=(300, 3)), np.repeat(np.arange(30), 10)
    turn = rng.normal(size=(3, 3))
    features = np.concatenate([named @ turn, noise * rng.normal(size=(300, 1))], axis=1)
    return features + rng.normal(size=(30, 1))[prompt], named, prompt, turn


def test_projection_finds_the_named_weights_whatever_the_basis():
    features, named, prompt, turn = pool(0.0)
    mean, root = np.random.default_rng(1).normal(size=(2, 5, 4, 4))
    mean, cov = mean[:, 0], root @ root.swapaxes(-1, -2)
    utility, explained = personalize.project(mean, cov, features, named, prompt, IDS)
    np.testing.assert_allclose(utility.mean, mean[:, :3] @ turn.T, atol=1e-9)
    np.testing.assert_allclose(utility.cov, turn @ cov[:, :3, :3] @ turn.T, atol=1e-8)
    np.testing.assert_allclose(explained, 1, atol=1e-9)


def test_projection_reports_what_the_names_explain_and_refuses_below_it():
    features, named, prompt, _ = pool(1.0)
    mean = np.array([[1.0, 0, 0, 0], [1.0, 0, 0, 2.0]])
    cov = np.zeros((2, 4, 4))
    with pytest.raises(InputError, match=r"R\^2 of 0.* \(1 of 2 users"):
        personalize.project(mean, cov, features, named, prompt, IDS, least=0.9)
    _, explained = personalize.project(mean, cov, features, named, prompt, IDS, least=0.0)
    within = features - np.stack([features[prompt == p].mean(0) for p in range(30)])[prompt]
    values, rest = within @ mean[1], 2 * within[:, 3]
    # The noise is nearly independent of the named rewards.
    assert explained[1] == pytest.approx(1 - rest.var() / values.var(), abs=0.05)
    assert explained[0] == pytest.approx(1)


def test_a_constant_function_is_explained_whatever_rounding_leaves_of_it():
    rng = np.random.default_rng(0)
    named, prompt = rng.normal(size=(30, 2)), np.repeat(np.arange(10), 3)
    features = np.column_stack([named @ [1.0, 2.0], np.repeat(rng.normal(size=10), 3)])
    ids = RewardIds(("a", "b"), "0" * 64)
    cov = np.stack([np.eye(2)] * 2)
    mean = [[0.0, 1.0], [1.0, 0.0]]
    utility, explained = personalize.project(mean, cov, features, named, prompt, ids)
    np.testing.assert_allclose(explained, 1)
    np.testing.assert_allclose(utility.mean, [[0, 0], [1, 2]], atol=1e-9)


def test_a_pool_that_cannot_tell_is_refused():
    features, named, prompt, _ = pool(0.0)
    named[:, 2] = np.arange(30)[prompt]  # the same for all answers to a prompt
    with pytest.raises(InputError, match="found 2 independent rewards"):
        personalize.project(np.ones(4), np.eye(4), features, named, prompt, IDS)
    with pytest.raises(InputError, match="features, named, cov"):
        personalize.project(np.ones(3), np.eye(3), features, named, prompt, IDS)
