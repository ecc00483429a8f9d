"""Proximal policy optimisation on tokens: advantages, clipped losses, the KL coefficient."""

import jax
import jax.numpy as jnp


def gae(
    rewards: jax.Array, values: jax.Array, mask: jax.Array, gamma: float, lam: float
) -> jax.Array:
    """Return the GAE advantages of one completion and one stream of rewards; `vmap` for more.

    A_t = sum_k (gamma lam)^k d_{t+k} with d_t = r_t + gamma V_{t+1} - V_t. After the end of the
    completion everything is 0, the value that the last token bootstraps from included.

    Args:
        rewards: [M] of the tokens.
        values: [M] expected return before each token.
        mask: [M] set on the tokens of the completion, which come first.
        gamma: discount per token.
        lam: lambda of GAE; 1 gives the return less the value, 0 the one-step error.

    Returns:
        [M], at least float32, 0 after the end; added to the values, they are the returns.

    Source: Schulman et al. (arXiv 1506.02438), equation 16.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.moc.ppo import gae
        >>> rewards, values = jnp.array([0.0, 1.0, 0.0]), jnp.array([0.5, 0.5, 9.0])
        >>> gae(rewards, values, jnp.array([True, True, False]), gamma=1.0, lam=1.0).tolist()
        [0.5, 0.5, 0.0]
    """
    inside = mask.astype(bool)
    rewards, values = (
        jnp.where(inside, _at_least_float32(given), 0) for given in (rewards, values)
    )
    following = jnp.concatenate([values[1:], jnp.zeros(1, values.dtype)])
    errors = rewards + gamma * following - values

    def step(later: jax.Array, error: jax.Array) -> tuple[jax.Array, jax.Array]:
        advantage = error + gamma * lam * later
        return advantage, advantage

    _, advantages = jax.lax.scan(step, jnp.zeros((), errors.dtype), errors, reverse=True)
    return jnp.where(inside, advantages, 0)


def whiten(values: jax.Array, mask: jax.Array, divide: bool = True) -> jax.Array:
    """Return the values with mean 0 and variance 1 over the mask; TRL's `masked_whiten`.

    Args:
        values: [...] of any shape; statistics run over all of it.
        mask: [...] whether an entry counts.
        divide: by the standard deviation (of n - 1); False keeps the spread.

    Returns:
        [...], at least float32, 0 outside the mask; equal values give 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.moc.ppo import whiten
        >>> mask = jnp.array([True, True, False])
        >>> whiten(jnp.array([1.0, 3.0, 9.0]), mask, divide=False).tolist()
        [-1.0, 1.0, 0.0]
    """
    inside = mask.astype(bool)
    values = jnp.where(inside, _at_least_float32(values), 0)
    count = jnp.sum(inside.astype(values.dtype))
    mean = jnp.sum(values) / jnp.maximum(count, 1)
    centred = jnp.where(inside, values - mean, 0)
    if not divide:
        return centred
    variance = jnp.sum(centred**2) / jnp.maximum(count - 1, 1)
    return centred * jax.lax.rsqrt(variance + 1e-8)


def policy_loss(
    logprobs: jax.Array,
    old_logprobs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    clip: float,
) -> tuple[jax.Array, jax.Array]:
    """Return the clipped policy loss of one stream of advantages.

    max(-u A, -clip(u, 1 - eps, 1 + eps) A) with u = exp(logprobs - old_logprobs).

    Args:
        logprobs: [...] log-probabilities of the tokens under the policy that is trained, nats.
        old_logprobs: [...] under the policy that sampled them, nats.
        advantages: [...].
        mask: [...] whether a token counts.
        clip: eps, the clip range of the ratio u.

    Returns:
        The loss summed over the tokens (divide by their number once all are in), and the share of
        the tokens at which the clipped side was the larger.

    Source: Schulman et al. (arXiv 1707.06347), equation 7.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.moc.ppo import policy_loss
        >>> one = jnp.ones(1)
        >>> loss, clipped = policy_loss(jnp.log(2 * one), 0 * one, one, one > 0, clip=0.2)
        >>> print(f"{loss:.2f} {clipped:.0f}")
        -1.20 1
    """
    inside = mask.astype(bool)
    # Masked before the exponential: an infinite ratio would make the gradient NaN.
    log_ratio = _at_least_float32(logprobs) - _at_least_float32(old_logprobs)
    ratio = jnp.exp(jnp.where(inside, log_ratio, 0))
    advantages = jnp.where(inside, _at_least_float32(advantages), 0)
    unclipped = -ratio * advantages
    clipped = -jnp.clip(ratio, 1 - clip, 1 + clip) * advantages
    return _sum_of_larger(unclipped, clipped, inside)


def value_loss(
    values: jax.Array, old_values: jax.Array, returns: jax.Array, mask: jax.Array, clip: float
) -> tuple[jax.Array, jax.Array]:
    """Return the clipped loss of one value head.

    max((V - G)^2, (clip(V, V_old - eps, V_old + eps) - G)^2) / 2 with returns G.

    Args:
        values: [...] of the head that is trained.
        old_values: [...] of the head when the completions were sampled.
        returns: [...] targets.
        mask: [...] whether a token counts.
        clip: eps, the clip range of the value, in its units.

    Returns:
        The loss summed over the tokens, and the share of the tokens at which the clipped side was
        the larger.

    Source: PPO2 of OpenAI's baselines, as in TRL.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.moc.ppo import value_loss
        >>> one = jnp.ones(1)
        >>> value_loss(one, 0 * one, one, one > 0, clip=0.5)[0].item()
        0.125
    """
    inside = mask.astype(bool)
    values, old_values, returns = (
        jnp.where(inside, _at_least_float32(given), 0) for given in (values, old_values, returns)
    )
    near = jnp.clip(values, old_values - clip, old_values + clip)
    return _sum_of_larger((values - returns) ** 2 / 2, (near - returns) ** 2 / 2, inside)


def adapt_kl_coef(
    kl_coef: float | jax.Array,
    kl: float | jax.Array,
    target: float,
    horizon: float,
    samples: int,
) -> jax.Array:
    """Return the KL coefficient after a step, raised where the KL lies above its target.

    kl_coef (1 + clip(kl / target - 1, -0.2, 0.2) samples / horizon).

    Args:
        kl_coef: of the step.
        kl: mean over the completions of their summed log-ratio to the reference, nats.
        target: KL to aim at, nats.
        horizon: completions over which the coefficient may change by a fifth of itself.
        samples: completions of the step.

    Returns:
        Scalar, at least float32.

    Source: Ziegler et al. (arXiv 1909.08593), section 2.2; TRL's `AdaptiveKLController`.

    Example:
        >>> from jaxalign.moc.ppo import adapt_kl_coef
        >>> print(f"{adapt_kl_coef(0.2, kl=6.0, target=3.0, horizon=100.0, samples=50):.2f}")
        0.22
    """
    error = jnp.clip(_at_least_float32(kl) / target - 1, -0.2, 0.2)
    return _at_least_float32(kl_coef) * (1 + error * (samples / horizon))


def _sum_of_larger(
    unclipped: jax.Array, clipped: jax.Array, inside: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The larger of two losses, summed; and the share of the tokens where it is the clipped one."""
    count = jnp.maximum(jnp.sum(inside.astype(unclipped.dtype)), 1)
    chosen = jnp.where(clipped > unclipped, 1, 0).astype(unclipped.dtype)
    total = jnp.sum(jnp.maximum(unclipped, clipped))
    return total, jnp.sum(jnp.where(inside, chosen, 0)) / count


def _at_least_float32(value: float | jax.Array) -> jax.Array:
    value = jnp.asarray(value)
    return value.astype(jnp.promote_types(value.dtype, jnp.float32))
