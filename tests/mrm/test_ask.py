"""The next pair and one more choice, beside dense quadrature and refits in NumPy float64."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_numpy as ref
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxalign import mrm
from jaxalign.errors import InputError
from jaxalign.mrm.belief import updated_belief

few = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
information = jax.jit(mrm.information)
next_pair = jax.jit(mrm.next_pair)
moments = jax.jit(mrm.belief_moments)


def a_prior(rng, dim, rank=None, size=1.0):
    root = rng.standard_normal((dim, rank or dim)) * size
    return mrm.Prior(rng.standard_normal(dim), root @ root.T / dim)


def entropy(x):
    """Of the answer at the logit x, in nats."""
    size = np.abs(x)
    return np.logaddexp(0, -size) + size * ref.sigmoid(-size)


def dense(margin, spread):
    """Mutual information by 400,001 nodes; `margin` is not negative."""
    t = np.linspace(-12, 12, 400_001)
    density = np.exp(-t * t / 2) * (t[1] - t[0]) / np.sqrt(2 * np.pi)
    x = margin + spread * t
    rare = density @ ref.sigmoid(-x)
    return -rare * np.log(rare) - (1 - rare) * np.log1p(-rare) - density @ entropy(x)


def told(mean, cov, candidates):
    spread = np.sqrt(np.einsum("pi,ij,pj->p", candidates, cov, candidates))
    return np.array([dense(*pair) for pair in zip(np.abs(candidates @ mean), spread, strict=True)])


# Information.


@pytest.mark.parametrize("spread", [1e-3, 0.1, 0.6, 0.999, 1.0, 1.3, 3.0, 12.0, 200.0])
def test_information_is_dense_quadrature_at_any_width(spread, x64):
    margins = np.array([0.0, 0.01, 0.7, 2.0, 9.0, 45.0, 300.0])
    # One weight of standard deviation 1: the difference is the standard deviation of the logit.
    found = [
        float(information(np.array([m / spread]), np.eye(1), np.array([[spread]]))[0])
        for m in margins
    ]
    expected = [dense(m, spread) if m - 12 * spread < 600 else 0.0 for m in margins]
    np.testing.assert_allclose(found, np.nan_to_num(expected), atol=2e-8)


def test_information_is_that_of_the_weights(x64):
    """Over draws of the weights themselves, not of a logit."""
    rng = np.random.default_rng(0)
    prior = a_prior(rng, 3, size=2.0)
    candidates = rng.standard_normal((6, 3))
    theta = prior.mean + rng.standard_normal((200_000, 3)) @ np.linalg.cholesky(prior.cov).T
    x = theta @ candidates.T
    p = ref.sigmoid(x).mean(0)
    expected = -p * np.log(p) - (1 - p) * np.log1p(-p) - entropy(x).mean(0)
    np.testing.assert_allclose(information(*prior, candidates), expected, atol=3e-3)


@few
@given(
    hnp.arrays(np.float64, (4, 2), elements=st.floats(-30, 30)),
    hnp.arrays(np.float64, (2,), elements=st.floats(-30, 30)),
    st.floats(0, 30),
)
def test_a_reversed_pair_tells_the_same(candidates, mean, size):
    rng = np.random.default_rng(1)
    cov = (size * a_prior(rng, 2).cov).astype(np.float32)
    mean, candidates = mean.astype(np.float32), candidates.astype(np.float32)
    found = np.asarray(information(mean, cov, candidates))
    assert ((found >= 0) & (found <= np.log(2) + 1e-6)).all()
    flipped = candidates * np.array([[1], [-1], [-1], [1]], np.float32)
    np.testing.assert_array_equal(found, information(mean, cov, flipped))
    assert next_pair(mean, cov, candidates) == next_pair(mean, cov, flipped)


def test_what_is_certain_tells_nothing_and_what_is_open_most():
    cov = jnp.diag(jnp.array([4.0, 0.01]))
    mean = jnp.zeros(2)
    candidates = jnp.array([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0], [0.5, 0.0]])
    found = information(mean, cov, candidates)
    assert found[2] < 1e-6
    assert int(next_pair(mean, cov, candidates)) == 1
    sure = information(jnp.array([50.0, 0.0]), cov, candidates)
    assert sure[1] < 1e-6


def test_the_next_pair_is_the_best_that_was_not_asked(x64):
    rng = np.random.default_rng(2)
    prior, candidates = a_prior(rng, 4, size=2.0), rng.standard_normal((9, 4))
    order = np.argsort(-told(*prior, candidates))
    asked = np.zeros(9, bool)
    for expected in order:
        found = next_pair(*prior, candidates, asked)
        assert found.dtype == jnp.int32
        assert int(found) == expected
        asked[expected] = True
    assert int(next_pair(*prior, candidates, asked)) == -1


def test_many_users_at_once_are_each_alone():
    rng = np.random.default_rng(3)
    candidates = rng.standard_normal((20, 3)).astype(np.float32)
    mean = rng.standard_normal((5, 3)).astype(np.float32)
    cov = np.stack([a_prior(rng, 3).cov for _ in range(5)]).astype(np.float32)
    found = jax.jit(jax.vmap(mrm.next_pair, (0, 0, None)))(mean, cov, candidates)
    alone = [int(next_pair(*user, candidates)) for user in zip(mean, cov, strict=True)]
    assert found.tolist() == alone
    assert len(set(alone)) > 1


# One more choice.


def stream(rng, prior, count, scale=1.0):
    """Choices [count, E] of one person of this prior."""
    theta = prior.mean + ref.root_of(prior.cov) @ rng.standard_normal(
        np.linalg.matrix_rank(prior.cov)
    )
    d = scale * rng.standard_normal((count, len(theta)))
    return np.where((rng.random(count) < ref.sigmoid(d @ theta))[:, None], d, -d)


@pytest.mark.parametrize(
    # A room of 16 is widened on the way.
    ("dim", "rank", "room"),
    [(3, None, 16), (6, 2, 32), (40, None, 32)],
)
def test_each_choice_equals_a_refit_of_all(dim, rank, room, x64):
    rng = np.random.default_rng(dim)
    prior = a_prior(rng, dim, rank, size=2.0)
    choices = stream(rng, prior, 25)
    belief = mrm.init_belief(prior, room)
    for count, choice in enumerate(choices, 1):
        belief = mrm.update_belief(prior, belief, choice)
        assert int(belief.num_choices) == count
        if count in (1, 4, 5, 12, 25):
            expected = ref.posterior(*prior, choices[:count], np.ones(count))
            for ours, theirs in zip(moments(prior, belief), expected, strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


def test_choices_one_by_one_equal_all_at_once(x64):
    rng = np.random.default_rng(4)
    prior = a_prior(rng, 3, size=2.0)
    choices = stream(rng, prior, 20)
    belief = mrm.init_belief(prior, room=20)
    for choice in choices:
        belief = mrm.update_belief(prior, belief, choice)
    expected = jax.jit(mrm.posterior)(prior, choices[None], np.ones((1, 20)))
    for ours, theirs in zip(moments(prior, belief), expected, strict=True):
        np.testing.assert_allclose(ours, theirs[0], rtol=0, atol=1e-9)
    inferred = jax.jit(mrm.infer_beliefs)(prior, choices[None], np.ones((1, 20)))
    for ours, theirs in zip(belief, inferred, strict=True):
        np.testing.assert_allclose(ours, theirs[0], rtol=0, atol=1e-8)


@few
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([0.01, 1.0, 300.0]))
def test_order_does_not_matter_and_nothing_is_nan(seed, scale, x64):
    """Even for choices that contradict each other, at any scale of the features."""
    rng = np.random.default_rng(seed)
    prior = a_prior(rng, 3, size=2.0)
    choices = stream(rng, prior, 6, scale)
    choices[3] = -choices[0]
    ends = []
    for order in (np.arange(6), rng.permutation(6)):
        belief = mrm.init_belief(prior)
        for choice in choices[order]:
            belief = mrm.update_belief(prior, belief, choice)
        chex.assert_tree_all_finite(belief)
        ends.append(moments(prior, belief))
    chex.assert_trees_all_close(*ends, rtol=0, atol=1e-8)
    uncertain = np.linalg.eigvalsh(prior.cov - ends[0][1])
    assert uncertain.min() > -1e-9  # choices never widen what is known


def test_single_precision_stays_near_double():
    rng = np.random.default_rng(5)
    prior = a_prior(rng, 5, size=2.0)
    choices = stream(rng, prior, 30)
    single = mrm.Prior(*(part.astype(np.float32) for part in prior))
    belief = mrm.init_belief(single)
    for choice in choices:
        belief = mrm.update_belief(single, belief, choice)
    expected = ref.posterior(*prior, choices, np.ones(30))
    for ours, theirs in zip(moments(single, belief), expected, strict=True):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, theirs, atol=2e-4)


def test_ties_and_users_who_do_not_choose(x64):
    """Weights as in `posterior`: half for each order of a tie; 0 leaves a user as they were."""
    rng = np.random.default_rng(6)
    prior, choices = a_prior(rng, 3), rng.standard_normal((4, 2, 3))
    weight = np.array([[1.0, 0.0], [0.5, 1.0], [0.5, 0.0], [1.0, 0.0]])
    choices[2, 0] = -choices[1, 0]
    beliefs = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), mrm.init_belief(prior, room=2))
    for differences, weights in zip(choices, weight, strict=True):
        beliefs = mrm.update_belief(prior, beliefs, differences, weights)
    assert beliefs.num_choices.tolist() == [4, 1]
    for user in range(2):
        expected = ref.posterior(*prior, choices[:, user], weight[:, user])
        own = jax.tree.map(lambda leaf, user=user: leaf[user], beliefs)
        for ours, theirs in zip(moments(prior, own), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_a_stream_of_choices_compiles_once():
    rng = np.random.default_rng(7)
    prior = mrm.Prior(jnp.zeros(5), jnp.eye(5))
    update = jax.jit(chex.assert_max_traces(n=1)(updated_belief))
    ask_next = jax.jit(chex.assert_max_traces(n=1)(mrm.next_pair))
    candidates = jnp.asarray(rng.standard_normal((12, 5)), jnp.float32)
    belief, asked = mrm.init_belief(prior), np.zeros(12, bool)
    for _ in range(12):
        number = int(ask_next(*moments(prior, belief), candidates, asked))
        assert not asked[number]
        asked[number] = True
        sign = rng.choice([-1.0, 1.0])
        belief = update(prior, belief, jnp.float32(sign) * candidates[number], jnp.float32(1))


@pytest.mark.slow
def test_chosen_pairs_beat_random_ones():
    """Ten chosen choices tell more pairs' better side than ten random ones."""
    rng = np.random.default_rng(8)
    prior = mrm.Prior(np.zeros(5, np.float32), 2 * np.eye(5, dtype=np.float32))
    candidates = rng.standard_normal((200, 5)).astype(np.float32)
    right = {"chosen": [], "random": []}
    for _ in range(60):
        theta = np.sqrt(2) * rng.standard_normal(5)
        for way, found in right.items():
            belief, asked = mrm.init_belief(prior), np.zeros(200, bool)
            for _ in range(10):
                number = rng.integers(200)
                if way == "chosen":
                    number = int(next_pair(*moments(prior, belief), candidates, asked))
                asked[number] = True
                pair = candidates[number]
                first = rng.random() < ref.sigmoid(pair @ theta)
                belief = mrm.update_belief(prior, belief, pair if first else -pair)
            found.append(
                np.mean(
                    (candidates @ np.asarray(moments(prior, belief)[0])) * (candidates @ theta) > 0
                )
            )
    ahead = np.subtract(right["chosen"], right["random"])
    assert ahead.mean() > 3 * ahead.std() / np.sqrt(len(ahead))


def test_what_cannot_be_observed_is_refused():
    prior = mrm.Prior(jnp.zeros(3), jnp.eye(3))
    with pytest.raises(InputError, match="no spread"):
        mrm.init_belief(prior._replace(cov=jnp.zeros((3, 3))))
    belief = mrm.init_belief(prior)
    with pytest.raises(InputError, match=r"shape \(2,\)"):
        mrm.update_belief(prior, belief, np.ones(2))
    with pytest.raises(InputError, match="NaN"):
        mrm.update_belief(prior, belief, np.array([1.0, np.nan, 0.0]))
    with pytest.raises(InputError, match="negative weight"):
        mrm.update_belief(prior, belief, np.ones(3), -1.0)
