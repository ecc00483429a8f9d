"""The weights of the objectives and of the similarity to the preference in one step of the policy.

"Direction" has two meanings here:

- `similarity_direction` returns R numbers, one for each reward: by how much the similarity to the
  preference rises with that reward. They turn advantages of the rewards into advantages of the
  similarity, before the updates.
- `policy_directions` returns one number for each token: the gradient of an objective's loss in the
  log-probability of that token. `combine` finds the weights of the objectives from these, where
  other methods take gradients in the parameters, so that one backward pass serves any number of
  objectives.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxalign.arrays import Sizes, check_array, check_mask, check_number
from jaxalign.config_fields import checks_fields
from jaxalign.errors import InputError
from jaxalign.moc.min_norm_solver import min_norm
from jaxalign.moc.preferences import check_simplex

Rule = Literal["linear", "minnorm", "two", "blend", "gate", "similarity"]
Form = Literal["ratio", "distance"]

Rewards = TypeVar("Rewards", jax.Array, NDArray[np.floating])

SMALLEST_TOTAL = 0.05
"""Least |r|_1 that shares are divided by, in levels; below it, shares sum to less than 1."""


@dataclass(frozen=True)
@checks_fields
class CombineConfig:
    """How the objectives and the similarity to the preference are combined in each step.

    Attributes:
        rule: "blend", the default, takes min-norm weights over the objectives, each blended with
            the similarity (PreCo); "linear" weighs the objectives by the preference; "minnorm"
            takes min-norm weights over the objectives and the similarity; "two" takes them over two
            directions, the preference-weighted objective and the similarity; "gate" follows the
            similarity alone while its error is above `gate`, then min-norm weights over the
            objectives; "similarity" follows the similarity alone.
        form: what is compared with the preference: "ratio", the shares r / |r|_1 of the mean
            rewards r of a group, which are negative where a mean level is; or "distance", r itself,
            for targets.
        strength: lambda (not GAE's), weight of the similarity in "blend" beside an objective's 1,
            at least 0. 3 follows the preference closely; 1 leaves more to the objectives.
        strength_last: strength at the end of the training, reached linearly, at least 0; null keeps
            it constant.
        gate: squared error of the similarity below which "gate" turns to the objectives, at least
            0. The error is that of the mean of a group's completions, so it holds their noise, in
            the form "distance" the variance of a completion's levels over `rows`: 0.01 needs 25
            completions where the standard deviation is 0.5.
    """

    rule: Rule = "blend"
    form: Form = "ratio"
    strength: float = 3.0
    strength_last: float | None = None
    gate: float = 0.01

    def __post_init__(self) -> None:
        for name in ("strength", "strength_last", "gate"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise InputError(
                    f"{name}: found {value}, expected a finite number of at least 0; correct it."
                )


def reward_shares(rewards: Rewards) -> Rewards:
    """Return the shares of rewards, r / |r|_1, which a preference is compared with.

    A negative reward has a negative share. Counted as 0 it would have no gradient, and the
    similarity would never raise it.

    Args:
        rewards: [..., R] in levels.

    Returns:
        [..., R]; they sum to 1 where no reward is negative and |r|_1 is at least `SMALLEST_TOTAL`,
        the least that is divided by.

    Example:
        >>> import numpy as np
        >>> from jaxalign.moc.combination import reward_shares
        >>> reward_shares(np.array([[1.0, 3.0], [-1.0, 3.0], [0.0, 0.0]])).tolist()
        [[0.25, 0.75], [-0.25, 0.75], [0.0, 0.0]]
    """
    return rewards / abs(rewards).sum(axis=-1, keepdims=True).clip(SMALLEST_TOTAL)


def similarity_error(mean: jax.Array, preference: jax.Array, form: Form) -> jax.Array:
    """Return the mean squared error between a group's mean rewards and its preference.

    mean_i (s_i - p_i)^2, with s the `reward_shares` of the mean rewards r in the ratio form, and
    s = r in the distance form.

    Args:
        mean: [R] mean rewards of the group, in levels.
        preference: [R] on the simplex.
        form: "ratio" or "distance".

    Returns:
        Scalar, at least float32; finite also where the mean is zero.

    Raises:
        InputError: shapes that disagree, or a concrete value that is not finite.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.moc import similarity_error
        >>> mean, preference = jnp.array([0.8, 0.8]), jnp.array([0.5, 0.5])
        >>> [round(float(similarity_error(mean, preference, f)), 4) for f in ("ratio", "distance")]
        [0.0, 0.09]
    """
    mean, preference = _checked_pair(mean, preference)
    return jnp.mean((_compared(mean, form) - preference) ** 2)


def similarity_direction(mean: jax.Array, preference: jax.Array, form: Form) -> jax.Array:
    """Return the direction, in rewards, in which the squared distance to the preference falls.

    Minus the gradient of sum_i (s_i - p_i)^2 in the mean rewards, where `similarity_error` is the
    mean over i; in the distance form -2 (mean - preference). The advantage of the similarity is
    sum_j direction_j A_j, with advantages A_j of the rewards; `combine` takes directions of another
    kind.

    Args:
        mean: [R] mean rewards of the group, in levels.
        preference: [R] on the simplex.
        form: as in `similarity_error`.

    Returns:
        [R], at least float32; finite also where the mean is zero.

    Raises:
        InputError: as `similarity_error`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.moc import similarity_direction
        >>> similarity_direction(jnp.array([1.0, 0.5]), jnp.array([0.5, 0.5]), "distance").tolist()
        [-1.0, -0.0]
    """
    return _direction(*_checked_pair(mean, preference), form)


@partial(jax.jit, static_argnames="form")
def _direction(mean: jax.Array, preference: jax.Array, form: Form) -> jax.Array:
    return -jax.grad(lambda at: jnp.sum((_compared(at, form) - preference) ** 2))(mean)


def similarity_directions(rewards: jax.Array, preference: jax.Array, form: Form) -> jax.Array:
    """Return `similarity_direction` for each completion of a group, at the mean of the others.

    At the mean of all, a completion's own reward would be in its direction: in the distance form
    that adds -2 |reward - mean|^2 / rows, a penalty on every reward that is not the mean, and in
    small groups the policy learns the dullest completion. This leave-one-out estimate has no such
    term.

    Args:
        rewards: [rows, R] of a group, in levels.
        preference: [R] on the simplex.
        form: as in `similarity_error`.

    Returns:
        [rows, R], at least float32.

    Raises:
        InputError: a group of one completion, which has no others; shapes that disagree, or a
            concrete value that is not finite.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.moc import similarity_directions
        >>> rewards, preference = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([1.0, 0.0])
        >>> similarity_directions(rewards, preference, "distance").tolist()
        [[2.0, -2.0], [-0.0, -0.0]]
    """
    sizes = Sizes()
    rewards = check_array("rewards", rewards, "rows R", sizes, empty="rows")
    preference = check_array("preference", preference, "R", sizes)
    rows = len(rewards)
    if rows < 2:
        raise InputError(f"a group has {rows} row; expected 2 or more, raise the rows of a group.")
    others = (jnp.sum(rewards, axis=0, keepdims=True) - rewards) / (rows - 1)
    return jax.vmap(partial(_direction, form=form), (0, None))(others, preference)


def policy_directions(
    ratio: jax.Array, advantages: jax.Array, mask: jax.Array, clip: float
) -> jax.Array:
    """Return the gradient of each objective's loss in the log-probabilities of the tokens.

    -u A where the ratio u lies in [1 - clip, 1 + clip] and the mask is set, else 0, also on the
    side where PPO's clipped loss has a gradient. It points uphill in the loss, and has one number
    for each token, so that no gradient in the parameters is needed for each objective.

    Args:
        ratio: [...] new over old probability of each token.
        advantages: [R, ...] of each objective and token; or of other streams.
        mask: [...] whether a token counts.
        clip: clip range of the ratio.

    Returns:
        [R, ...], at least float32, without a gradient of its own.

    Raises:
        InputError: shapes that disagree, a negative mask, or a concrete advantage that is not
            finite where the mask is set.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.moc import policy_directions
        >>> ratio, advantages = jnp.array([1.0, 1.5]), jnp.array([[2.0, 2.0]])
        >>> policy_directions(ratio, advantages, jnp.array([True, True]), clip=0.2).tolist()
        [[-2.0, -0.0]]
    """
    axes = " ".join(f"T{axis}" for axis in range(np.ndim(ratio)))
    sizes = Sizes()
    # A ratio that is no number lies outside the range of the clip.
    ratio = check_array("ratio", ratio, axes, sizes, empty=axes, finite=False)
    live = check_mask("mask", mask, axes, sizes, empty=axes)
    every = jnp.broadcast_to(live[None], (len(advantages), *live.shape))
    advantages = check_array("advantages", advantages, f"R {axes}", sizes, mask=every, empty=axes)
    inside = (jnp.abs(ratio - 1) <= clip) & (live > 0)
    # Both factors are masked: 0 times an infinite ratio would be NaN.
    gradient = -jnp.where(inside, ratio, 0)[None] * jnp.where(inside[None], advantages, 0)
    return jax.lax.stop_gradient(gradient)


def combine(
    directions: jax.Array,
    similarity: jax.Array,
    config: CombineConfig,
    *,
    preference: jax.Array | None = None,
    error: jax.Array | None = None,
    progress: float | jax.Array = 0.0,
) -> jax.Array:
    """Return the weights of the objectives in the step of one group; `vmap` for more.

    "minnorm" takes the weights c on the simplex that minimise |sum_i c_i g_i|^2 over the directions
    g_i of the objectives and of the similarity. "blend" takes the minimum over the directions
    (g_i + lambda g_similarity) / (1 + lambda), with lambda the strength; the weight of objective i
    is then c_i / (1 + lambda), and that of the similarity is lambda / (1 + lambda). The rules are
    listed in `CombineConfig`.

    Args:
        directions: [R, ...] of the objectives, see `policy_directions`.
        similarity: [...] `policy_directions` of the similarity's advantages, not
            `similarity_direction`.
        config: the rule.
        preference: [R] on the simplex; for "linear" and "two".
        error: scalar, `similarity_error` of the group; for "gate".
        progress: share of the training that is done, in [0, 1].

    Returns:
        [R], at least float32, non-negative, sum at most 1; 1 minus the sum is the weight of the
        similarity. NaN where a traced direction is not finite.

    Raises:
        InputError: the rule needs a preference or an error that is not given, the shapes do not
            fit, or a concrete value is not finite or a preference not on the simplex.

    Source: the min-norm step of arXiv 2604.04497; the blend is that of PreCo's public code.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.moc import CombineConfig, combine
        >>> directions, similarity = jnp.eye(2), jnp.array([1.0, 1.0])
        >>> combine(directions, similarity, CombineConfig("blend", strength=3.0)).tolist()
        [0.125, 0.125]
    """
    check_number("progress", progress)
    gram = _gram(
        check_array("directions", directions, "R ..."), check_array("similarity", similarity, "...")
    )
    objectives = len(directions)
    if config.rule == "similarity":
        return jnp.zeros(objectives, gram.dtype)
    if config.rule == "minnorm":
        return min_norm(gram)[:-1]
    if config.rule == "gate":
        squared_error = _given(error, "error", config.rule, ())
        check_number("error", squared_error, 0)
        return jnp.where(squared_error > config.gate, 0, min_norm(gram[:-1, :-1]))
    if config.rule == "blend":
        last = config.strength if config.strength_last is None else config.strength_last
        strength = config.strength + jnp.clip(progress, 0, 1) * (last - config.strength)
        each = jnp.eye(objectives, dtype=gram.dtype)
        # Not divided by 1 + strength: a common factor leaves the minimum where it is.
        mix = jnp.concatenate([each, jnp.full((objectives, 1), strength, gram.dtype)], axis=1)
        return min_norm(_mixed(gram, mix)) / (1 + strength).astype(gram.dtype)
    shares = _given(preference, "preference", config.rule, (objectives,)).astype(gram.dtype)
    if not isinstance(shares, jax.core.Tracer):
        check_simplex(shares)
    if config.rule == "linear":
        return shares
    # "two": the preference-weighted objective, and the similarity.
    mix = jnp.zeros((2, objectives + 1), gram.dtype).at[0, :-1].set(shares).at[1, -1].set(1)
    return min_norm(_mixed(gram, mix))[0] * shares


def _checked_pair(mean: jax.Array, preference: jax.Array) -> tuple[jax.Array, jax.Array]:
    sizes = Sizes()
    return check_array("mean", mean, "R", sizes), check_array("preference", preference, "R", sizes)


def _gram(directions: jax.Array, similarity: jax.Array) -> jax.Array:
    """Gram matrix [R + 1, R + 1] of the objectives' directions and, last, the similarity's."""
    if not directions.shape[:1] or directions.shape[1:] != similarity.shape:
        raise InputError(
            f"the directions have shape {directions.shape} and the similarity {similarity.shape}; "
            "expected [R, ...] and [...]."
        )
    flat = _at_least_float32(directions).reshape(len(directions), -1)
    rows = jnp.concatenate([flat, _at_least_float32(similarity).reshape(1, -1)])
    # Scaled before the products, so that long or large directions do not overflow them.
    largest = jnp.max(jnp.abs(rows), initial=0.0)
    rows = rows / jnp.where(largest > 0, largest, 1)
    return jnp.matmul(rows, rows.T, precision="highest")


def _mixed(gram: jax.Array, mix: jax.Array) -> jax.Array:
    """Gram matrix [n, n] of the combinations `mix` [n, R + 1] of the directions."""
    return jnp.einsum("nR,RS,mS->nm", mix, gram, mix, precision="highest")


def _given(value: jax.Array | None, name: str, rule: str, shape: tuple[int, ...]) -> jax.Array:
    if value is None or jnp.shape(value) != shape:
        found = "none" if value is None else f"shape {jnp.shape(value)}"
        raise InputError(f"{name}: found {found}, expected shape {shape} for the rule {rule!r}.")
    return jnp.asarray(value)


def _compared(mean: jax.Array, form: Form) -> jax.Array:
    """What is compared with the preference."""
    if form == "distance":
        return mean
    return reward_shares(mean)


def _at_least_float32(value: jax.Array) -> jax.Array:
    return jnp.asarray(value).astype(jnp.promote_types(jnp.asarray(value).dtype, jnp.float32))
