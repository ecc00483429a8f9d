"""Hierarchical Bradley-Terry as user-reward methods: on features of items, and on their numbers."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.data.batching import Pairs
from jaxalign.mrm import bayes
from jaxalign.mrm.config import BayesConfig
from jaxalign.mrm.registry import (
    Candidate,
    Fitted,
    PosteriorMethod,
    UserRewardMethod,
    register,
)
from jaxalign.mrm.sites import Sites
from jaxalign.mrm.support_query import TrainingData, differences
from jaxalign.train.blas import one_blas_thread


@functools.partial(jax.jit, static_argnames="config")
def _em(features: jax.Array, buckets: tuple[Pairs, ...], config: BayesConfig) -> bayes.Prior:
    d = tuple(differences(features, pairs) for pairs in buckets)
    return bayes.em_path(d, tuple(pairs.weight for pairs in buckets), config)


_probability = jax.jit(bayes.predict)


@jax.jit
def _posterior(
    prior: bayes.Prior, differences: jax.Array, weight: jax.Array
) -> tuple[jax.Array, Sites]:
    """Posterior means [U, D] and the sites [U, P] that they follow from, at the mode."""
    mean, _ = bayes.posterior(prior, differences, weight)
    margin = jnp.einsum("UPD,UD->UP", differences, mean)
    precision = weight * jax.nn.sigmoid(margin) * jax.nn.sigmoid(-margin)
    return mean, Sites(precision, precision * margin + weight * jax.nn.sigmoid(-margin))


@one_blas_thread
def fit_priors(features: jax.Array, buckets: tuple[Pairs, ...], config: BayesConfig) -> Fitted:
    """Return the priors along EM that validation chooses from.

    Args:
        features: [I, D].
        buckets: choices of the training users.
        config: `em_every` iterations lie between two priors.

    Returns:
        "mean" [T, D], "cov" [T, D, D] and "step" [T], the EM iteration of each.
    """
    path = _em(features, buckets, config)
    keep = np.arange(config.em_steps, 0, -config.em_every)[::-1]
    priors = [bayes.Prior(path.mean[step], path.cov[step]) for step in keep]
    covs = [np.asarray(bayes.truncate(prior, config.rank).cov) for prior in priors]
    return {"mean": np.asarray(path.mean)[keep], "cov": np.stack(covs), "step": keep}


class _PriorMethod(UserRewardMethod[BayesConfig]):
    """What both forms share."""

    seeded = False

    def fit(self, data: TrainingData, seed: int = 0) -> Fitted:
        """Return priors along EM, see `fit_priors`."""
        return fit_priors(data.inputs(self.inputs), data.buckets, self.settings)

    def candidates(self, fitted: Fitted) -> list[Candidate]:
        """Return every kept EM iteration, and the last one without adaptation."""
        count = len(fitted["step"])
        none: Candidate = {"em": count - 1, "adapt": False}
        return [*({"em": i, "adapt": True} for i in range(count)), none]

    @one_blas_thread
    def predict(
        self, fitted: Fitted, candidates: Sequence[Candidate], features: jax.Array,
        support: Pairs, query: Pairs,
    ) -> np.ndarray:  # fmt: skip
        """Return probabilities [C, U, Q], the users' weights integrated out."""
        known, wanted = differences(features, support), differences(features, query)
        rows = []
        for candidate in candidates:
            prior = _prior(fitted, candidate)
            weight = support.weight if candidate["adapt"] else jnp.zeros_like(support.weight)
            rows.append(np.asarray(_probability(prior, known, weight, wanted)))
        return np.stack(rows)

    def describe(self, fitted: Fitted, candidate: Candidate) -> Candidate:
        """Return the candidate with its EM iteration in place of a number."""
        return {"adapt": candidate["adapt"], "em_step": int(fitted["step"][candidate["em"]])}


def _prior(fitted: Fitted, candidate: Candidate) -> bayes.Prior:
    place = candidate["em"]
    return bayes.Prior(jnp.asarray(fitted["mean"][place]), jnp.asarray(fitted["cov"][place]))


@register("bayes", BayesConfig())
class HierarchicalBayes(_PriorMethod, PosteriorMethod[BayesConfig]):
    """Hierarchical Bradley-Terry on features: the one method that knows how sure it is."""

    capabilities = frozenset({"new_items", "weights", "posterior", "streaming"})

    def save(self, fitted: Fitted, candidate: Candidate) -> tuple[Fitted, Candidate]:
        """Return the chosen prior alone."""
        place = [candidate["em"]]
        return {name: leaf[place] for name, leaf in fitted.items()}, {**candidate, "em": 0}

    def prior(self, fitted: Fitted, candidate: Candidate) -> bayes.Prior:
        """Return the population that users come from."""
        return _prior(fitted, candidate)

    @one_blas_thread
    def infer(
        self, fitted: Fitted, candidate: Candidate, differences: jax.Array, mask: jax.Array
    ) -> tuple[jax.Array, Sites]:
        """Return the posterior mean of every user, and the sites of the choices."""
        weight = mask if candidate["adapt"] else jnp.zeros_like(mask)
        return jax.block_until_ready(_posterior(_prior(fitted, candidate), differences, weight))


@register("item_ids", BayesConfig())
class ItemIds(_PriorMethod):
    """The same on items by their numbers: a control that reads no text, for known items alone."""

    capabilities = frozenset()
    inputs = "ids"
    most_items = 256
