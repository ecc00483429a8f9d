"""One policy conditioned on the preference between two rewards, trained on a bandit."""

import jax
import jax.numpy as jnp

from jaxalign.moc import CombineConfig, combine, similarity_direction

REWARDS = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.2, 0.2]])  # of three actions
CONFIG = CombineConfig(rule="blend", form="distance")


def log_policy(theta, preference):
    """Log-probabilities of the actions, from parameters [3, 3] and a preference [2]."""
    return jax.nn.log_softmax(theta @ jnp.append(preference, 1.0))


def step(theta, key):
    """One preference, 64 sampled actions, and one step of policy gradient."""
    for_preference, for_actions = jax.random.split(key)
    second = jax.random.uniform(for_preference)
    preference = jnp.array([1 - second, second])
    actions = jax.random.categorical(for_actions, log_policy(theta, preference), shape=(64,))
    sampled = REWARDS[actions]
    mean = sampled.mean(0)
    advantages = sampled - mean[None]  # [64, 2]
    similarity = advantages @ similarity_direction(mean, preference, CONFIG.form)
    weights = combine(-advantages.T, -similarity, CONFIG, preference=preference)
    combined = advantages @ weights + (1 - weights.sum()) * similarity

    def objective(theta):
        return jnp.mean(combined * log_policy(theta, preference)[actions])

    return theta + 0.3 * jax.grad(objective)(theta), None


theta, _ = jax.lax.scan(step, jnp.zeros((3, 3)), jax.random.split(jax.random.key(0), 3000))
for share in (0.0, 0.25, 0.5, 0.75, 1.0):
    preference = jnp.array([share, 1 - share])
    achieved = jnp.exp(log_policy(theta, preference)) @ REWARDS
    print(f"requested {share:.2f}, {1 - share:.2f}: achieved {achieved[0]:.2f}, {achieved[1]:.2f}")
