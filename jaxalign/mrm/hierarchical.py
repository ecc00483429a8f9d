"""Hierarchical Bradley-Terry as user-reward methods: on features of items, and on their numbers."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.data.batching import Pairs
from jaxalign.data.preferences import RowDetails
from jaxalign.mrm import bayes
from jaxalign.mrm.belief import belief_moments, infer_beliefs
from jaxalign.mrm.config import BayesConfig
from jaxalign.mrm.feedback import Feedback, FeedbackPrior, Levels
from jaxalign.mrm.feedback_population import FeedbackPopulation, fit_all_kinds
from jaxalign.mrm.feedback_rows import (
    feedback_of,
    inferred,
    levels_of,
    log_likelihood,
    population_arrays,
    population_from,
    prior_from,
    probabilities,
    vectors_of,
)
from jaxalign.mrm.population import choices_of, fit_population
from jaxalign.mrm.registry import (
    Candidate,
    Fitted,
    Inferred,
    RatingsMethod,
    UserRewardMethod,
    register,
)
from jaxalign.mrm.sites import Sites
from jaxalign.mrm.support_query import TrainingData, differences, without_choices
from jaxalign.train.blas import one_blas_thread

_POPULATIONS, _IMPLICIT = "populations", "implicit"
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
        start = None if earlier is None else prior_of(earlier, {"strength": 1, "temperature": 1})
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
        pseudo_users = (float(_population(fitted, {})["pseudo_users"]),)
        return type(self)(replace(self.settings, pseudo_users=pseudo_users), self.name)

    def describe(self, fitted: Fitted, candidate: Candidate) -> Candidate:
        """Return the candidate with the number of pseudo-users that the fit chose."""
        found = _population(fitted, candidate)
        return {**candidate, "pseudo_users": float(found["pseudo_users"])}


def _key(fitted: Fitted, candidate: Candidate) -> str:
    """Name of the population of a candidate, among those of a fit to more than choices."""
    first: str = next(iter(fitted[_POPULATIONS]))
    return f"{candidate[_IMPLICIT]:g}" if _IMPLICIT in candidate else first


def _population(fitted: Fitted, candidate: Candidate) -> Fitted:
    if _POPULATIONS not in fitted:
        return fitted
    found: Fitted = fitted[_POPULATIONS][_key(fitted, candidate)]
    return found


def _levels(fitted: Fitted) -> Levels:
    counts = np.asarray(fitted["levels"]).tolist()
    ties = bool(fitted.get("ties", False))  # which models of before have not
    return Levels(ties, int(fitted["strengths"]), tuple(counts))


def _implicit_weights(weights: Sequence[float], details: Sequence[RowDetails]) -> Sequence[float]:
    """The weights of implicit choices that leave rows to fit, 1 where there are no such choices."""
    if not any(bool(part.implicit.any()) for part in details):
        return (1.0,)
    explicit = any(bool((~part.implicit & (part.weight > 0)).any()) for part in details)
    return weights if explicit else [one for one in weights if one > 0] or weights


def _start_of(earlier: Fitted | None, levels: Levels) -> FeedbackPopulation | bayes.Prior | None:
    """Where EM starts: at an earlier population of the same levels, or of the weights alone."""
    if earlier is None:
        return None
    found = _population(earlier, {})
    if _POPULATIONS in earlier and _levels(earlier) == levels:
        return population_from(found)
    return bayes.Prior(jnp.asarray(found["mean"]), jnp.asarray(found["cov"]))


def prior_of(fitted: Fitted, candidate: Candidate) -> bayes.Prior:
    """Return the fitted population at the strength and temperature of a candidate."""
    found = _population(fitted, candidate)
    prior = bayes.Prior(jnp.asarray(found["mean"]), jnp.asarray(found["cov"]))
    return bayes.rescaled(prior, candidate["strength"], candidate["temperature"])


@register("bayes", BayesConfig())
class HierarchicalBayes(_PriorMethod, RatingsMethod[BayesConfig]):
    """Hierarchical Bradley-Terry on features: the method with a posterior of users' weights.

    Where training has more than plain choices and ties, all rows go through the one likelihood of
    `feedback`, and there is a population for each weight of implicit choices.
    """

    capabilities = frozenset({"new_items", "weights", "posterior", "streaming", "ratings"})

    def fit(self, data: TrainingData, seed: int = 0) -> Fitted:
        """Return the population, and where there are more than choices, the levels of all rows."""
        details = data.choices.details
        if not details:
            return super().fit(data, seed)
        levels = levels_of(data.scales, details)
        features = data.inputs(self.inputs)
        vectors = [vectors_of(features, *part) for part in zip(data.buckets, details, strict=True)]
        weights = _implicit_weights(self.settings.implicit_weights, details)
        found, start = {}, _start_of(data.start_of(self.name), levels)
        for weight in weights:
            both = zip(vectors, details, strict=True)
            rows = [feedback_of(levels, *part, weight) for part in both]
            population, number = fit_all_kinds(rows, levels, self.settings, start)
            kept = population_arrays(population)
            found[f"{weight:g}"] = {**kept, "pseudo_users": np.float32(number)}
        return {
            _POPULATIONS: found,
            "scales": np.asarray(data.scales, np.float32).reshape(-1, 2),
            "levels": np.asarray(levels.ratings, np.int32),
            "strengths": np.int32(levels.strengths),
            "ties": np.int32(levels.ties),
        }

    def candidates(self, fitted: Fitted) -> list[Candidate]:
        """Return the candidates of choices, each with every weight of implicit choices."""
        plain = super().candidates(fitted)
        weights = [float(weight) for weight in fitted.get(_POPULATIONS, ())]
        if weights in ([], [1.0]):
            return plain
        return [{**candidate, _IMPLICIT: weight} for weight in weights for candidate in plain]

    def each_prediction(
        self, fitted: Fitted, candidates: Sequence[Candidate], features: jax.Array,
        support: Pairs, query: Pairs, details: RowDetails | None = None,
    ) -> Iterator[np.ndarray]:  # fmt: skip
        """Yield probabilities [U, Q], the users' weights, levels and spreads integrated out."""
        if details is None or _POPULATIONS not in fitted:
            yield from self.predict(fitted, candidates, features, support, query)
            return
        vectors, wanted = vectors_of(features, support, details), differences(features, query)
        for candidate in candidates:
            yield self._predicted(fitted, candidate, vectors, details, wanted)

    @one_blas_thread
    def _predicted(
        self,
        fitted: Fitted,
        candidate: Candidate,
        vectors: jax.Array,
        details: RowDetails,
        query: jax.Array,
    ) -> np.ndarray:
        prior, rows = self._as_feedback(fitted, candidate, vectors, details)
        return np.asarray(probabilities(prior, rows, query))

    def _as_feedback(
        self, fitted: Fitted, candidate: Candidate, vectors: jax.Array, details: RowDetails
    ) -> tuple[FeedbackPrior, Feedback]:
        levels = _levels(fitted)
        if not candidate["adapt"]:
            details = without_choices(details)
        rows = feedback_of(levels, vectors, details, candidate.get(_IMPLICIT, 1.0))
        return prior_from(_population(fitted, candidate), levels, candidate), rows

    def scales(self, fitted: Fitted) -> tuple[tuple[float, float], ...] | None:
        """Return the scales of the ratings that the fit has seen; None if of plain choices."""
        if _POPULATIONS not in fitted:
            return None
        return tuple((float(low), float(high)) for low, high in np.asarray(fitted["scales"]))

    @one_blas_thread
    def infer_feedback(
        self, fitted: Fitted, candidate: Candidate, vectors: jax.Array, details: RowDetails
    ) -> Inferred:
        """Return the posterior moments of every user."""
        found = inferred(*self._as_feedback(fitted, candidate, vectors, details))
        return jax.block_until_ready(found)

    @one_blas_thread
    def rating_log_likelihood(
        self, fitted: Fitted, candidate: Candidate, vectors: jax.Array, details: RowDetails,
        held_out: RowDetails,
    ) -> np.ndarray:  # fmt: skip
        """Return the log probability [U, P] of each row that is held out, 0 of all others."""
        prior, rows = self._as_feedback(fitted, candidate, vectors, details)
        wanted = feedback_of(_levels(fitted), vectors, held_out)
        return np.asarray(log_likelihood(prior, rows, wanted))

    def save(self, fitted: Fitted, candidate: Candidate) -> tuple[Fitted, Candidate]:
        """Return the arrays that one candidate needs, the population of its weight alone."""
        if _POPULATIONS not in fitted:
            return fitted, candidate
        kept = {_key(fitted, candidate): _population(fitted, candidate)}
        return {**fitted, _POPULATIONS: kept}, candidate

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
