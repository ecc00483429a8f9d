"""What stands behind a mask of 0 reaches neither results nor gradients; live NaN is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import mrm
from jaxalign.errors import InputError
from jaxalign.padding import over_kept

USERS, PAIRS, DIM = 2, 3, 2
EM = mrm.BayesConfig(em_steps=3, pseudo_users=(0.0,))
CONFIG = mrm.MRMConfig(hidden_sizes=(DIM,), link="signed", inner_lr=0.1, inner_steps=2)
MASK = np.array([[1.0, 0.5, 0.0], [1.0, 0.0, 0.0]], np.float32)
POISONS = (np.nan, np.inf, -np.inf)
# Squares of the second overflow, and sums of the third: what `over_kept` may run on uncleaned.
FINITE = (1e10, -1e20, 3e38)


def choices(padding=0.0):
    found = np.random.default_rng(0).standard_normal((USERS, PAIRS, DIM)).astype(np.float32)
    return np.where(MASK[..., None] > 0, found, np.float32(padding))


def prior():
    return mrm.Prior(jnp.array([0.5, -0.25]), jnp.array([[1.0, 0.25], [0.25, 2.0]]))


def params(key=0):
    return mrm.init(jax.random.key(key), CONFIG, DIM)


def adapted(form):
    return lambda d: mrm.adapt(params(), d, MASK, CONFIG, form)


def beliefs(d):
    belief = mrm.infer_beliefs(prior(), d, MASK)
    return jax.vmap(lambda one: mrm.belief_moments(prior(), one))(belief)


OF_CHOICES = {
    "posterior": lambda d: mrm.posterior(prior(), d, MASK),
    "infer_beliefs": beliefs,
    "predict": lambda d: mrm.predict(prior(), d, MASK, jnp.ones((USERS, 1, DIM))),
    "bradley_terry": lambda d: mrm.bradley_terry(d, MASK),
    "adapt, torch": adapted("torch"),
    "adapt, higher": adapted("higher"),
}


@pytest.mark.parametrize("name", OF_CHOICES)
def test_padding_changes_nothing(name):
    function = jax.jit(OF_CHOICES[name])
    expected = function(choices())
    for padding in (*POISONS, *FINITE):
        jax.tree.map(np.testing.assert_array_equal, function(choices(padding)), expected)


def test_padding_does_not_change_a_population():
    expected = mrm.fit_prior(choices(), MASK, EM)
    found = mrm.fit_prior(choices(np.nan), MASK, EM)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def batch(kind, padding):
    rng = np.random.default_rng(1)
    support, query = np.array([[1, 0, 0], [0.5, 0, 0]]), np.array([[0, 1, 0], [0, 2, 0]])
    live = ((support + query) > 0)[..., None]
    sides = rng.standard_normal((2, USERS, PAIRS, DIM)).astype(np.float32)
    chosen, rejected = (np.where(live, side, np.float32(padding)) for side in sides)
    masks = {"support_mask": support, "query_mask": query}
    if kind == "differences":
        return {"differences": np.where(live, sides[0], np.float32(padding)), **masks}
    return {"chosen": chosen, "rejected": rejected, **masks}


@pytest.mark.parametrize("kind", ["chosen", "differences"])
def test_gradients_of_the_meta_objective_do_not_see_padding(kind):
    value = jax.jit(jax.value_and_grad(lambda p, b: mrm.meta_objective(p, b, CONFIG)[0]))
    expected = value(params(), batch(kind, 0.0))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(expected))
    assert np.abs(expected[1]["base"]["layer0"]["kernel"]).max() > 0
    for poison in POISONS:
        found = value(params(), batch(kind, poison))
        jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("form", ["torch", "higher"])
def test_gradients_of_adaptation_do_not_see_padding(form):
    def total(start, d):
        return jnp.sum(mrm.adapt({**params(), "weight_init": start}, d, MASK, CONFIG, form) ** 2)

    gradient = jax.jit(jax.grad(total, argnums=(0, 1)))
    start = jnp.array([0.5, -0.5])
    expected = gradient(start, choices())
    assert np.isfinite(expected[0]).all()
    assert np.abs(expected[0]).max() > 0
    for poison in POISONS:
        jax.tree.map(np.testing.assert_array_equal, gradient(start, choices(poison)), expected)


def test_padding_is_cleaned_where_it_has_to_be_and_for_every_derivative():
    function = over_kept_total
    mask = jnp.array([[1.0, 0.0], [0.5, 2.0], [0.0, 0.0]])
    values = jnp.array([[2.0, jnp.nan], [4.0, 3.0], [jnp.inf, -jnp.inf]])
    finite = jnp.nan_to_num(values, nan=7.0, posinf=1e30, neginf=-1e30)
    expected = jnp.array([2.0, 8.0, 0.0])
    for form in (jax.vmap(function), jax.jit(jax.vmap(function))):
        for given in (values, finite):
            np.testing.assert_array_equal(form(mask, given), expected)
    # Forward, reverse, and one over the other.
    for derive in (jax.jacfwd, jax.jacrev):
        found = jax.jit(jax.vmap(derive(function, argnums=1)))(mask, values)
        np.testing.assert_array_equal(found, mask)
    squares = jax.hessian(lambda m, v: function(m, v) ** 2, argnums=1)
    found = jax.jit(jax.vmap(squares))(mask, values)
    np.testing.assert_array_equal(found, 2 * jnp.einsum("UP,UQ->UPQ", mask, mask))
    # A live value that is not finite stays what it is.
    assert not np.isfinite(jax.jit(function)(mask[1], jnp.array([jnp.nan, 3.0])))


def over_kept_total(mask, values):
    return over_kept(lambda values, mask: mask @ values, mask, values)


def test_pairs_that_are_excluded_may_hold_anything():
    mean, cov = prior()
    pairs = np.array([[np.nan, 1.0], [1.0, 0.0], [0.5, 0.0]], np.float32)
    for ask in (mrm.next_pair, jax.jit(mrm.next_pair)):
        assert int(ask(mean, cov, pairs, np.array([True, False, False]))) == 1
        assert int(ask(mean, cov, pairs[:0])) == -1
    # Traced, there is no value to refuse: the pair is not asked.
    assert int(jax.jit(mrm.next_pair)(mean, cov, pairs)) == 1
    assert int(jax.jit(mrm.next_pair)(mean, cov, pairs[:1])) == -1


def live(name, value=np.nan):
    d = choices()
    d[1, 0, 1] = value
    return lambda: OF_CHOICES[name](d)


def nan_prior():
    return prior()._replace(mean=np.array([0.0, np.nan]))


REFUSED = {
    "posterior": live("posterior"),
    "infer_beliefs": live("infer_beliefs"),
    "bradley_terry": live("bradley_terry"),
    "adapt": live("adapt, torch"),
    "fit_prior": lambda: mrm.fit_prior(live_choices(), MASK, EM),
}


def live_choices():
    d = choices()
    d[1, 0, 1] = np.nan
    return d


@pytest.mark.parametrize("name", REFUSED)
def test_live_nan_is_refused_with_its_place(name):
    with pytest.raises(InputError) as refused:
        REFUSED[name]()
    assert str(refused.value) == (
        "differences[1, 0, 1] is nan; expected finite numbers where the mask is above 0: correct "
        "it, or set the mask to 0 there."
    )


def test_a_mask_is_not_negative():
    mask = MASK.copy()
    mask[0, 1] = -1
    for function in (mrm.bradley_terry, mrm.fit_prior):
        with pytest.raises(InputError) as refused:
            function(choices(), mask)
        assert str(refused.value) == (
            "mask[0, 1] is -1; expected a finite weight of 0 or more: correct it, with 0 for what "
            "does not count."
        )


def test_questions_and_beliefs_refuse_nan():
    mean, cov = prior()
    pairs = jnp.array([[1.0, 0.0], [jnp.inf, 0.0]])
    for function in (mrm.information, mrm.next_pair):
        with pytest.raises(InputError, match=r"^candidates\[1, 0\] is infinity; expected finite"):
            function(mean, cov, pairs)
    with pytest.raises(InputError, match=r"^differences\[1, 0\] is infinity; expected finite"):
        mrm.choice_probability(mean, cov, pairs)
    with pytest.raises(InputError, match=r"^prior\.mean\[1\] is nan; expected finite numbers"):
        mrm.init_belief(nan_prior())
    with pytest.raises(InputError, match=r"^losses\[0\] is nan; expected finite numbers"):
        mrm.rpo(jnp.array([jnp.nan, 1.0]), 0.5, 0.5)


def test_a_large_margin_in_half_precision_is_no_coin_flip():
    mean, cov = jnp.ones(2, jnp.float16), jnp.eye(2, dtype=jnp.float16)
    pairs = jnp.array([[300.0, 300.0]], jnp.float16)
    found = mrm.choice_probability(mean, cov, pairs)
    assert found.dtype == jnp.float32
    wide = mrm.choice_probability(*(x.astype(jnp.float32) for x in (mean, cov, pairs)))
    np.testing.assert_allclose(found, wide, rtol=1e-6)
    assert 0.8 < float(found[0]) < 1


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_priors_of_every_float(dtype):
    half = mrm.Prior(*(leaf.astype(dtype) for leaf in prior()))
    d, one = choices(), choices()[0, 0]
    belief = mrm.update_belief(prior(), mrm.init_belief(prior()), one)
    calls = (
        lambda p: mrm.posterior(p, d, MASK),
        lambda p: mrm.choice_probability(*p, d[0]),
        lambda p: mrm.information(*p, d[0]),
        lambda p: mrm.belief_moments(p, belief),
        lambda p: mrm.rescaled(p, 2.0, 4.0),
    )
    for call in calls:  # quarters: halves hold this prior exactly
        jax.tree.map(np.testing.assert_array_equal, call(half), call(prior()))
    assert mrm.init_belief(half).differences.dtype == jnp.float32


def test_an_unknown_form_of_adam_is_refused():
    with pytest.raises(InputError) as refused:
        mrm.adapt(params(), choices(), MASK, CONFIG, "adam")
    assert str(refused.value) == ("form: found 'adam', expected one of torch, higher; correct it.")


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1e8, 1e18])
def test_weights_of_all_users_follow_the_units_of_the_features(scale):
    expected = mrm.bradley_terry(choices(), MASK, l2=0.1)
    found = mrm.bradley_terry(choices() * np.float32(scale), MASK, l2=0.1)
    np.testing.assert_allclose(found * np.float32(scale), expected, rtol=1e-4)
