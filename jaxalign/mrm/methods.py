"""Every way to serve a user, behind one shape: fit on training users, predict after a few choices.

A fitted method is a dict of arrays. Its *settings* are what validation users choose from: the
adaptation strength, the EM iteration, the ridge; predictions for all settings come at once.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.data.batching import Pairs
from jaxalign.mrm import bayes
from jaxalign.mrm.base import base_rewards, effective_weights
from jaxalign.mrm.config import BayesConfig, MRMConfig, MRMRunConfig
from jaxalign.mrm.inner import adapt_path
from jaxalign.train.blas import one_blas_thread

Fitted = dict[str, Any]
Setting = dict[str, Any]
RIDGES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
USER_RIDGES = (1.0, 0.3, 0.1, 0.03)


class Method(NamedTuple):
    """One way to serve a user.

    Attributes:
        predict: fitted, settings, features [I, D], support Pairs [U, P], query Pairs [U, Q] ->
            probability that the chosen item wins [C, U, Q], one row a setting.
        settings: fitted -> what validation chooses from.
        unadapted: a setting -> the same without the user's choices.
    """

    predict: Callable[..., np.ndarray]
    settings: Callable[[Fitted], list[Setting]]
    unadapted: Callable[[Setting], Setting]


def differences(features: jax.Array, pairs: Pairs) -> jax.Array:
    """Feature differences [U, P, D], chosen minus rejected."""
    return features[pairs.chosen] - features[pairs.rejected]


def as_buckets(pairs: Pairs | tuple[Pairs, ...]) -> tuple[Pairs, ...]:
    """Users in buckets of about equal length; all of them in one, if they come so."""
    return (pairs,) if isinstance(pairs, Pairs) else pairs


# One Bradley-Terry model for all -------------------------------------------------------------


@jax.jit
def _fit_ridges(features: jax.Array, buckets: tuple[Pairs, ...]) -> jax.Array:
    size = features.shape[1]
    d = jnp.concatenate([differences(features, p).reshape(-1, size) for p in buckets])
    weight = jnp.concatenate([p.weight.reshape(-1) for p in buckets])
    return jax.lax.map(lambda l2: bayes.bradley_terry(d, weight, l2, 8), jnp.asarray(RIDGES))


@one_blas_thread
def fit_bt(features: jax.Array, pairs: Pairs | tuple[Pairs, ...]) -> Fitted:
    """Bradley-Terry weights [len(RIDGES), D] for every ridge that validation may choose."""
    return {"theta": np.asarray(_fit_ridges(features, as_buckets(pairs)))}


@jax.jit
def _bt_probability(theta: jax.Array, features: jax.Array, query: Pairs) -> jax.Array:
    return jax.nn.sigmoid(jnp.einsum("UPD,D->UP", differences(features, query), theta))


def _predict_bt(
    fitted: Fitted, settings: list[Setting], features: jax.Array, support: Pairs, query: Pairs
) -> np.ndarray:
    thetas = [fitted["theta"][setting["ridge"]] for setting in settings]
    return np.stack([np.asarray(_bt_probability(t, features, query)) for t in thetas])


BT = Method(
    _predict_bt, lambda fitted: [{"ridge": i} for i in range(len(fitted["theta"]))], lambda s: s
)


# One Bradley-Terry model per user -------------------------------------------------------------


@jax.jit
def _per_user(l2: jax.Array, features: jax.Array, support: Pairs, query: Pairs) -> jax.Array:
    def one_user(inputs: tuple) -> jax.Array:
        d, weight, q = inputs
        return jax.nn.sigmoid(q @ bayes.bradley_terry(d, weight, l2, steps=8))

    arrays = (differences(features, support), support.weight, differences(features, query))
    return jax.lax.map(one_user, arrays, batch_size=128)


@one_blas_thread
def _predict_per_user(
    fitted: Fitted, settings: list[Setting], features: jax.Array, support: Pairs, query: Pairs
) -> np.ndarray:
    half = np.full(query.weight.shape, 0.5, np.float32)
    return np.stack(
        [
            half if s["l2"] is None else np.asarray(_per_user(s["l2"], features, support, query))
            for s in settings
        ]
    )


PER_USER = Method(
    _predict_per_user,
    lambda fitted: [{"l2": l2} for l2 in USER_RIDGES],
    lambda setting: {"l2": None},
)


# Hierarchical Bayes ---------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames="config")
def _em(features: jax.Array, buckets: tuple[Pairs, ...], config: BayesConfig) -> bayes.Prior:
    d = tuple(differences(features, pairs) for pairs in buckets)
    return bayes.em_path(d, tuple(pairs.weight for pairs in buckets), config)


@one_blas_thread
def fit_bayes(
    features: jax.Array, pairs: Pairs | tuple[Pairs, ...], config: MRMRunConfig
) -> Fitted:
    """Priors along EM, every `em_every` iterations: mean [T, D], cov [T, D, D]."""
    path = _em(features, as_buckets(pairs), config.bayes)
    keep = np.arange(config.bayes.em_steps, 0, -config.em_every)[::-1]
    priors = [bayes.Prior(path.mean[step], path.cov[step]) for step in keep]
    covs = [np.asarray(bayes.truncate(prior, config.bayes.rank).cov) for prior in priors]
    return {"mean": np.asarray(path.mean)[keep], "cov": np.stack(covs), "step": keep}


_bayes_probability = jax.jit(bayes.predict)


@one_blas_thread
def _predict_bayes(
    fitted: Fitted, settings: list[Setting], features: jax.Array, support: Pairs, query: Pairs
) -> np.ndarray:
    given, asked = differences(features, support), differences(features, query)
    rows = []
    for setting in settings:
        cov = fitted["cov"][setting["em"]]
        prior = bayes.Prior(jnp.asarray(fitted["mean"][setting["em"]]), jnp.asarray(cov))
        weight = support.weight if setting["adapt"] else jnp.zeros_like(support.weight)
        rows.append(np.asarray(_bayes_probability(prior, given, weight, asked)))
    return np.stack(rows)


def _bayes_settings(fitted: Fitted) -> list[Setting]:
    count = len(fitted["step"])
    none = [{"em": count - 1, "adapt": False}]
    return [{"em": i, "adapt": True} for i in range(count)] + none


BAYES = Method(_predict_bayes, _bayes_settings, lambda s: {**s, "adapt": False})


# MRM ------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("config", "steps"))
def _mrm_paths(
    params: Any, rate: Any, features: jax.Array, pairs: tuple, config: MRMConfig, steps: int
) -> jax.Array:
    """Probabilities [steps + 1, U, Q] along the inner loop."""
    support, query = pairs
    base = base_rewards(params, features, config)
    rates = jnp.full((steps,), rate)
    given = base[support.chosen] - base[support.rejected]
    path = adapt_path(params, given, support.weight, config, rates, "torch")
    weights = effective_weights(path, config)
    asked = base[query.chosen] - base[query.rejected]
    return jax.nn.sigmoid(jnp.einsum("USK,UQK->SUQ", weights, asked))


def _predict_mrm(
    config: MRMConfig,
    fitted: Fitted,
    settings: list[Setting],
    features: jax.Array,
    support: Pairs,
    query: Pairs,
) -> np.ndarray:
    cached: dict[tuple, np.ndarray] = {}
    rows = []
    for setting in settings:
        key = (setting["snapshot"], setting["rate"])
        if key not in cached:
            params = jax.tree.map(lambda leaf, i=key[0]: leaf[i], fitted["params"])
            steps = max(s["steps"] for s in settings)
            paths = _mrm_paths(params, key[1], features, (support, query), config, steps)
            cached[key] = np.asarray(paths)
        rows.append(cached[key][setting["steps"]])
    return np.stack(rows)


def _snapshots(fitted: Fitted) -> int:
    return len(fitted["params"]["weight_init"])


def mrm_method(config: MRMConfig, rates: tuple[float, ...]) -> Method:
    """MRM with the adaptation strength (rate, steps), none included, and the epoch chosen."""

    def settings(fitted: Fitted) -> list[Setting]:
        steps = sorted({1, 3, config.inner_steps, config.eval_steps})
        grid = [(rate, count) for rate in rates for count in steps]
        return [
            {"snapshot": snapshot, "rate": rate, "steps": count}
            for snapshot in range(_snapshots(fitted))
            for rate, count in [(rates[0], 0), *grid]
        ]

    return Method(
        functools.partial(_predict_mrm, config), settings, lambda setting: {**setting, "steps": 0}
    )


def published_method(config: MRMConfig) -> Method:
    """MRM as published: its own strength; only the epoch is chosen, on validation users."""

    def settings(fitted: Fitted) -> list[Setting]:
        strength = {"rate": config.inner_lr, "steps": config.eval_steps}
        return [{"snapshot": index, **strength} for index in range(_snapshots(fitted))]

    return Method(
        functools.partial(_predict_mrm, config), settings, lambda setting: {**setting, "steps": 0}
    )


# Choosing -------------------------------------------------------------------------------------


def user_mean_nll(probability: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Negative log-likelihood [C] of probabilities [C, U, Q], averaged in users, then over them."""
    # On the host: NumPy times a JAX array would be float32 on the device.
    weight = np.asarray(weight, np.float64)
    loss = -np.log(np.clip(probability.astype(np.float64), 1e-12, None))
    total = weight.sum(-1)
    per_user = np.sum(loss * weight, -1) / np.maximum(total, 1)
    return per_user[..., total > 0].mean(-1)


def choose(
    method: Method, fitted: Fitted, features: jax.Array, support: Pairs, query: Pairs
) -> tuple[Setting, float]:
    """The setting with the least validation loss, and that loss.

    Args:
        method: what was fitted.
        fitted: its arrays.
        features: [I, D].
        support: [U, P] choices of validation users to adapt on.
        query: [U, Q] their choices to judge on.
    """
    settings = method.settings(fitted)
    losses = user_mean_nll(method.predict(fitted, settings, features, support, query), query.weight)
    best = int(np.argmin(losses))
    return settings[best], float(losses[best])
