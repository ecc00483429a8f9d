"""The inner loop: a user's weights from the shared start, by full-batch Adam on a few choices."""

from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from jaxalign.arrays import Sizes, check_array
from jaxalign.errors import InputError
from jaxalign.mrm.base import Params, effective_weights
from jaxalign.mrm.bayes import check_padded_choices
from jaxalign.mrm.config import MRMConfig
from jaxalign.padding import over_kept

AdamForm = Literal["torch", "higher"]
_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8


def bradley_terry_loss(margins: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of softplus(-margin) over the pairs of one user.

    Args:
        margins: [P] reward of the chosen minus reward of the rejected.
        mask: [P] bool or non-negative weights; a tie is two rows of weight 1/2 in both orders.

    Returns:
        Scalar; 0 for a user without pairs.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.mrm.inner import bradley_terry_loss
        >>> round(float(bradley_terry_loss(jnp.zeros(3), jnp.array([1, 1, 0]))), 4)
        0.6931
    """
    weight = mask.astype(margins.dtype)
    total = jnp.sum(weight)
    loss = jnp.sum(weight * jax.nn.softplus(-margins))
    return loss / jnp.where(total > 0, total, 1)


def _safe_sqrt(v: jax.Array) -> jax.Array:
    # Double where: the gradient of sqrt at 0 is taken as 0, as the authors' optimiser does.
    positive = v > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, v, 1.0)), 0.0)


def _adam_step(
    form: AdamForm, lr: jax.Array, t: jax.Array, m: jax.Array, v: jax.Array
) -> jax.Array:
    """Adam's update in one of two forms: eps before the bias correction ("higher") or after."""
    correction1 = 1 - _BETA1**t
    correction2 = jnp.sqrt(1 - _BETA2**t)
    if form == "higher":
        return -(lr * correction2 / correction1) * m / (_safe_sqrt(v) + _EPS)
    return -(lr / correction1) * m / (_safe_sqrt(v) / correction2 + _EPS)


def adapt_trajectory(
    loss: Callable[[jax.Array], jax.Array],
    start: jax.Array,
    rates: jax.Array,
    form: AdamForm,
    second_order: bool = True,
) -> jax.Array:
    """Weights before and after each of S full-batch Adam steps.

    Args:
        loss: of the weights [K].
        start: [K].
        rates: [S] rate of each step.
        form: "higher" (in training) or "torch" (in evaluation).
        second_order: keep the gradient through the inner gradients.

    Returns:
        [S + 1, K], the first row being `start`.
    """

    def step(carry: tuple, inputs: tuple) -> tuple:
        weights, m, v = carry
        rate, t = inputs
        gradient = jax.grad(loss)(weights)
        if not second_order:
            gradient = jax.lax.stop_gradient(gradient)
        m = _BETA1 * m + (1 - _BETA1) * gradient
        v = _BETA2 * v + (1 - _BETA2) * gradient**2
        weights = weights + _adam_step(form, rate, t, m, v)
        return (weights, m, v), weights

    zeros = jnp.zeros_like(start)
    times = jnp.arange(1, rates.shape[0] + 1).astype(start.dtype)
    path: jax.Array
    _, path = jax.lax.scan(step, (start, zeros, zeros), (rates.astype(start.dtype), times))
    return jnp.concatenate([start[None], path])


def inner_rates(params: Params, config: MRMConfig, steps: int) -> jax.Array:
    """The rate of each of `steps` inner steps [steps]; the last learned rate serves beyond them."""
    if "log_inner_lr" not in params:
        return jnp.full((steps,), config.inner_lr, params["weight_init"].dtype)
    learned = jnp.exp(params["log_inner_lr"])
    return learned[jnp.minimum(jnp.arange(steps), learned.shape[0] - 1)]


def adapt_path(
    params: Params,
    differences: jax.Array,
    mask: jax.Array,
    config: MRMConfig,
    rates: jax.Array,
    form: AdamForm,
) -> jax.Array:
    """Every user's weights along the inner loop.

    Args:
        params: as from `init`.
        differences: [U, P, K] base rewards, chosen minus rejected; finite in padding too.
        mask: [U, P] bool or weights of the support pairs.
        config: link and order of differentiation.
        rates: [S].
        form: which Adam.

    Returns:
        [U, S + 1, K] raw weights (before the link).
    """

    def one_user(pairs: jax.Array, weight: jax.Array) -> jax.Array:
        def loss(raw: jax.Array) -> jax.Array:
            return bradley_terry_loss(pairs @ effective_weights(raw, config), weight)

        return adapt_trajectory(loss, params["weight_init"], rates, form, config.second_order)

    return jax.vmap(one_user)(differences, mask)


def adapt(
    params: Params,
    differences: jax.Array,
    mask: jax.Array,
    config: MRMConfig,
    form: AdamForm = "torch",
) -> jax.Array:
    """Each user's weights from that user's choices.

    Args:
        params: as from `init`.
        differences: [U, P, K] base rewards, chosen minus rejected.
        mask: [U, P] bool, or non-negative weights of the pairs; where it is 0, differences may
            hold any value.
        config: `eval_steps` steps of rate `inner_lr` (or the learned rates).
        form: "torch" takes Adam as PyTorch does, eps after the bias correction, `eval_steps` steps
            (what the authors evaluate with); "higher" puts eps before it and takes `inner_steps`
            (what they train with).

    Returns:
        [U, K] raw weights, before the link (`score(..., config)` applies it). A user without
        choices gets `weight_init`.

    Raises:
        InputError: a form of another name, shapes that disagree, a negative weight, NaN or
            infinity; values are looked at only where they are concrete, so not under `jit`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.mrm import MRMConfig, adapt
        >>> config = MRMConfig(hidden_sizes=(), link="signed", inner_lr=0.1, eval_steps=2)
        >>> params = {"base": {}, "weight_init": jnp.zeros(2)}
        >>> differences = jnp.array([[[1.0, 0.0]], [[0.0, -1.0]]])  # two users, one choice
        >>> weights = adapt(params, differences, jnp.ones((2, 1)), config)
        >>> weights.shape, bool(weights[0, 0] > 0 > weights[1, 1])
        ((2, 2), True)
    """
    if form not in get_args(AdamForm):
        raise InputError(
            f"form: found {form!r}, expected one of {', '.join(get_args(AdamForm))}; correct it."
        )
    sizes = Sizes()
    start = check_array('params["weight_init"]', params["weight_init"], "K", sizes)
    names = ("differences", "mask")
    pairs, weight = check_padded_choices(differences, mask, "U P", sizes, names, feature="K")

    def weights(pairs: jax.Array, weight: jax.Array, params: Params) -> jax.Array:
        return adapted(params, pairs, weight, config, form)

    return over_kept(weights, weight, pairs, {**params, "weight_init": start})


def adapted(
    params: Params, differences: jax.Array, mask: jax.Array, config: MRMConfig, form: AdamForm
) -> jax.Array:
    """`adapt` without its checks, for the trainers.

    Args:
        params: as from `init`.
        differences: [U, P, K].
        mask: [U, P].
        config: the model.
        form: which Adam.
    """
    steps = config.inner_steps if form == "higher" else config.eval_steps
    rates = inner_rates(params, config, steps)
    return adapt_path(params, differences, mask, config, rates, form)[:, -1]
