"""PAL: a latent space where a user prefers what lies near their ideal point.

Source: Chen, Chen, Rege, Vinayak, "PAL: Pluralistic Alignment Framework for Learning from
Heterogeneous Preferences", arXiv 2406.08469, form A (fixed prototypes): user u has the ideal point
a_u = sum_k w_uk p_k, w_u on the simplex, and u's reward of x is -|f(x) - a_u|^2. Here f is linear
(the paper's may be a network) and the loss is logistic. A new user's weights are fitted with f and
the prototypes fixed.

As the weights sum to one, |f - sum_k w_k p_k|^2 = sum_k w_k |f - p_k|^2 - c(w), where c(w) does not
depend on x and cancels in differences: PAL is a convex combination of K rewards, one a prototype.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.config_fields import checks_fields
from jaxalign.data.batching import Pairs
from jaxalign.mrm.baselines import simplex
from jaxalign.mrm.baselines.common import Buckets
from jaxalign.mrm.config import check_range
from jaxalign.mrm.diverged import all_finite, training_diverged
from jaxalign.mrm.registry import Candidate, Fitted, WeightsMethod, register
from jaxalign.mrm.support_query import TrainingData


@dataclass(frozen=True)
@checks_fields
class PALConfig:
    """Prototypes and ideal points.

    Attributes:
        prototypes: numbers of prototypical ideal points that validation chooses from, each at
            least 1.
        width: width of the latent space, at least 1.
        steps: Adam steps on the map, the prototypes and the users' weights together, at least 1.
        learning_rate: learning rate of these steps, above 0.
        decay: weight decay of the map and the prototypes, at least 0.
        few_shot_rate: learning rate of the Adam steps that fit a new user's weights, above 0.
        few_shot_steps: numbers of these steps that validation chooses from, beside none.
        snapshots: parameter snapshots at evenly spaced steps, at least 1, and with fewer steps one
            after each; validation chooses one.
    """

    prototypes: tuple[int, ...] = (2, 4, 8)
    width: int = 16
    steps: int = 200
    learning_rate: float = 0.03
    decay: float = 1e-4
    few_shot_rate: float = 0.1
    few_shot_steps: tuple[int, ...] = (1, 2, 4, 10, 30)
    snapshots: int = 5

    def __post_init__(self) -> None:
        check_range(self, "prototypes width steps snapshots few_shot_steps", 1)
        check_range(self, "learning_rate few_shot_rate", 0, above=True)
        check_range(self, "decay", 0)


def rewards(params: simplex.Params, features: jax.Array) -> jax.Array:
    """Minus the squared distances [I, K] of items to prototypes.

    Args:
        params: `map` [D, d], `prototypes` [K, d].
        features: [I, D].
    """
    latent = features @ params["map"]
    apart = latent[:, None, :] - params["prototypes"][None, :, :]
    return -jnp.sum(apart * apart, axis=-1)


def _start(
    key: jax.Array, features: jax.Array, buckets: Buckets, count: int, width: int
) -> tuple[simplex.Params, tuple[jax.Array, ...]]:
    map_key, prototype_key, *keys = jax.random.split(key, 2 + len(buckets))
    size, dtype = features.shape[1], features.dtype
    spread = jnp.sqrt(jnp.mean(jnp.sum(features * features, axis=1)))
    shape = (size, width)
    start = {
        # Items then have unit mean squared norm in the latent space, prototypes too.
        "map": jax.random.normal(map_key, shape, dtype) / jnp.sqrt(width) / spread,
        "prototypes": jax.random.normal(prototype_key, (count, width), dtype) / np.sqrt(width),
    }
    logits = tuple(
        jax.random.normal(one, (len(pairs.weight), count), dtype)
        for one, pairs in zip(keys, buckets, strict=True)
    )
    return start, logits


def fit_pal(features: jax.Array, buckets: Buckets, config: PALConfig, seed: int) -> Fitted:
    """Maps and prototypes of every number of prototypes, at the snapshots T.

    Args:
        features: [I, D].
        buckets: choices of the training users.
        config: numbers of prototypes, width of the latent space, steps.
        seed: of all that training starts from.

    Returns:
        {number: {"map" [T, D, d], "prototypes" [T, K, d], "log_weights" [T, K]}}.

    Raises:
        InputError: training diverged, with the number of prototypes.
    """
    dtype = features.dtype
    fitted: Fitted = {}
    for count in config.prototypes:
        start, logits = _start(jax.random.key(seed), features, buckets, count, config.width)
        kept = simplex.fit_population(
            start, jax.tree.map(jnp.zeros_like, start), logits, features, buckets,
            jnp.asarray(config.decay, dtype), jnp.asarray(config.learning_rate, dtype),
            rewards, config.steps, config.snapshots,
        )  # fmt: skip
        one = {**kept["params"], "log_weights": kept["log_weights"]}
        if not all_finite(one):
            where = f"one of {config.steps} steps ({count} prototypes)"
            raise training_diverged("pal", where, f"lower learning_rate ({config.learning_rate:g})")
        fitted[f"{count}"] = jax.tree.map(np.asarray, one)
    return fitted


_items = jax.jit(rewards)


@register("pal", PALConfig())
class PAL(WeightsMethod[PALConfig]):
    """Prototypes and ideal points; validation chooses their number, the snapshot and the steps."""

    def fit(self, data: TrainingData, seed: int) -> Fitted:
        """Return maps and prototypes of every number of prototypes, see `fit_pal`."""
        return fit_pal(data.inputs(self.inputs), data.buckets, self.settings, seed)

    def candidates(self, fitted: Fitted) -> list[Candidate]:
        """Return every number of prototypes, snapshot and number of few-shot steps, 0 included."""
        return [
            {"prototypes": int(count), "snapshot": snapshot, "steps": steps}
            for count, kept in fitted.items()
            for snapshot in range(len(kept["log_weights"]))
            for steps in (0, *self.settings.few_shot_steps)
        ]

    def predict(
        self, fitted: Fitted, candidates: Sequence[Candidate], features: jax.Array,
        support: Pairs, query: Pairs,
    ) -> np.ndarray:  # fmt: skip
        """Return probabilities [C, U, Q]; one path of steps serves all numbers of steps."""
        rate = jnp.asarray(self.settings.few_shot_rate, features.dtype)
        steps = tuple(sorted({candidate["steps"] for candidate in candidates}))
        paths: dict[tuple, np.ndarray] = {}
        rows = []
        for candidate in candidates:
            key = (candidate["prototypes"], candidate["snapshot"])
            if key not in paths:
                params, start = _snapshot(fitted, candidate)
                items = _items(params, features)
                path = simplex.user_probabilities(items, start, support, query, rate, steps)
                paths[key] = np.asarray(path)
            rows.append(paths[key][steps.index(candidate["steps"])])
        return np.stack(rows)

    def save(self, fitted: Fitted, candidate: Candidate) -> tuple[Fitted, Candidate]:
        """Return the chosen prototypes at the chosen snapshot alone."""
        name, place = f"{candidate['prototypes']}", candidate["snapshot"]
        one = {key: leaf[place : place + 1] for key, leaf in fitted[name].items()}
        return {name: one}, {**candidate, "snapshot": 0}

    def base(self, fitted: Fitted, candidate: Candidate, features: jax.Array) -> jax.Array:
        """Return minus the squared distances [..., K] to the prototypes."""
        flat = features.reshape(-1, features.shape[-1])
        items = _items(_snapshot(fitted, candidate)[0], flat)
        return items.reshape(*features.shape[:-1], items.shape[-1])

    def infer(
        self, fitted: Fitted, candidate: Candidate, differences: jax.Array, mask: jax.Array
    ) -> tuple[jax.Array, None]:
        """Return each user's convex weights of the prototypes."""
        start = _snapshot(fitted, candidate)[1]
        rate = jnp.asarray(self.settings.few_shot_rate, differences.dtype)
        return simplex.user_weights(start, differences, mask, rate, candidate["steps"]), None


def _snapshot(fitted: Fitted, candidate: Candidate) -> tuple[simplex.Params, jax.Array]:
    """Parameters of `rewards`, and the log weights [K] that users start from."""
    kept = fitted[f"{candidate['prototypes']}"]
    one = {name: leaf[candidate["snapshot"]] for name, leaf in kept.items()}
    return one, one.pop("log_weights")
