"""Hierarchical Bradley-Terry as user-reward methods: on features of items, and on their numbers."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.data.batching import Pairs
from jaxalign.mrm import bayes
from jaxalign.mrm.belief import belief_moments, infer_beliefs
from jaxalign.mrm.config import BayesConfig
from jaxalign.mrm.population import choices_of, fit_population
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

_probability = jax.jit(bayes.predict)


@jax.jit
def _posterior(
    prior: bayes.Prior, differences: jax.Array, weight: jax.Array
) -> tuple[jax.Array, Sites]:
    """Posterior means [U, D] and the sites [U, P] that they follow from."""
    found = infer_beliefs(prior, differences, weight)
    mean, _ = jax.vmap(belief_moments, (None, 0))(prior, found)
    return mean, Sites(weight * found.site_precision, weight * found.site_shift)


class _PriorMethod(UserRewardMethod[BayesConfig]):
    """What both forms share."""

    seeded = False
    warm_start = True
    refits = True
    own_temperature = True

    def fit(self, data: TrainingData, seed: int = 0) -> Fitted:
        """Return "mean" [D] and "cov" [D, D] of the population, and its "pseudo_users"."""
        features = data.inputs(self.inputs)
        buckets = tuple(
            choices_of(differences(features, pairs), pairs.weight) for pairs in data.buckets
        )
        earlier = data.start_of(self.name)
        start = None if earlier is None else bayes.Prior(earlier["mean"], earlier["cov"])
        prior, pseudo_users = fit_population(buckets, self.settings, start)
        mean, cov = map(np.asarray, prior)
        return {"mean": mean, "cov": cov, "pseudo_users": np.float32(pseudo_users)}

    def candidates(self, fitted: Fitted) -> list[Candidate]:
        """Return every strength with every temperature, and each of these without adaptation."""
        settings = itertools.product(self.settings.strengths, self.settings.temperatures)
        return [
            {"strength": strength, "temperature": temperature, "adapt": adapt}
            for adapt, (strength, temperature) in itertools.product((True, False), settings)
        ]

    @one_blas_thread
    def predict(
        self, fitted: Fitted, candidates: Sequence[Candidate], features: jax.Array,
        support: Pairs, query: Pairs,
    ) -> np.ndarray:  # fmt: skip
        """Return probabilities [C, U, Q], the users' weights integrated out."""
        known, wanted = differences(features, support), differences(features, query)
        rows = []
        for candidate in candidates:
            prior = prior_of(fitted, candidate)
            weight = support.weight if candidate["adapt"] else jnp.zeros_like(support.weight)
            rows.append(np.asarray(_probability(prior, known, weight, wanted)))
        return np.stack(rows)

    def settled(self, fitted: Fitted) -> "_PriorMethod":
        """Return the method with the number of pseudo-users that a fit chose."""
        pseudo_users = (float(fitted["pseudo_users"]),)
        return type(self)(replace(self.settings, pseudo_users=pseudo_users), self.name)

    def describe(self, fitted: Fitted, candidate: Candidate) -> Candidate:
        """Return the candidate with the number of pseudo-users that the fit chose."""
        return {**candidate, "pseudo_users": float(fitted["pseudo_users"])}


def prior_of(fitted: Fitted, candidate: Candidate) -> bayes.Prior:
    """Return the fitted population at the strength and temperature of a candidate."""
    prior = bayes.Prior(jnp.asarray(fitted["mean"]), jnp.asarray(fitted["cov"]))
    return bayes.rescaled(prior, candidate["strength"], candidate["temperature"])


@register("bayes", BayesConfig())
class HierarchicalBayes(_PriorMethod, PosteriorMethod[BayesConfig]):
    """Hierarchical Bradley-Terry on features: the one method that knows how sure it is."""

    capabilities = frozenset({"new_items", "weights", "posterior", "streaming"})

    def prior(self, fitted: Fitted, candidate: Candidate) -> bayes.Prior:
        """Return the population that users come from."""
        return prior_of(fitted, candidate)

    @one_blas_thread
    def infer(
        self, fitted: Fitted, candidate: Candidate, differences: jax.Array, mask: jax.Array
    ) -> tuple[jax.Array, Sites]:
        """Return the posterior mean of every user, and the sites of the choices."""
        weight = mask if candidate["adapt"] else jnp.zeros_like(mask)
        return jax.block_until_ready(_posterior(prior_of(fitted, candidate), differences, weight))


@register("item_ids", BayesConfig())
class ItemIds(_PriorMethod):
    """The same on items by their numbers: a control that reads no text, for known items alone."""

    capabilities = frozenset()
    inputs = "ids"
