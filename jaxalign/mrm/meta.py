"""Meta reward modelling (arXiv 2601.18731) as methods: regularised, and as published."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.data.batching import Pairs
from jaxalign.mrm.base import Params, base_rewards, effective_weights
from jaxalign.mrm.config import REGULARISED, MRMConfig
from jaxalign.mrm.inner import adapt_path
from jaxalign.mrm.registry import Candidate, Fitted, WeightsMethod, register
from jaxalign.mrm.support_query import TrainingData
from jaxalign.mrm.train import fit_mrm, one_seed


@functools.partial(jax.jit, static_argnames=("config", "steps"))
def _mrm_paths(
    params: Params, rate: float, features: jax.Array, pairs: tuple, config: MRMConfig, steps: int
) -> jax.Array:
    """Probabilities [steps + 1, U, Q] along the inner loop."""
    support, query = pairs
    base = base_rewards(params, features, config)
    rates = jnp.full((steps,), rate)
    known = base[support.chosen] - base[support.rejected]
    path = adapt_path(params, known, support.weight, config, rates, "torch")
    weights = effective_weights(path, config)
    wanted = base[query.chosen] - base[query.rejected]
    return jax.nn.sigmoid(jnp.einsum("USK,UQK->SUQ", weights, wanted))


@register("mrm", REGULARISED)
class MetaRewardModel(WeightsMethod[MRMConfig]):
    """Meta reward modelling; validation chooses epoch and adaptation strength, none included.

    Attributes:
        moments: the epochs after which a fit keeps its parameters; empty for evenly spaced ones.
    """

    warm_start = True
    moments: tuple[int, ...] = ()

    def settled(self, fitted: Fitted) -> "MetaRewardModel":
        """Return the method that keeps its parameters after the same epochs as an earlier fit.

        A run that was made longer has kept them at moments that its settings do not give, and
        candidates name these by their number.
        """
        method = type(self)(self.settings, self.name)
        method.moments = tuple(map(int, fitted.get("moments", ())))  # a saved fit has none
        return method

    def start_settings(self) -> tuple[str, ...]:
        """Return those that say what the parameters mean."""
        model = ("hidden_sizes", "use_bias", "activation", "input_scale", "link", "learn_inner_lr")
        return (*model, "inner_steps") if self.settings.learn_inner_lr else model

    def fit(self, data: TrainingData, seed: int) -> Fitted:
        """Return `params`, every leaf [T, ...], their `moments` [T], and `losses` [epochs]."""
        return self.fit_seeds(data, (seed,))[0]

    def fit_seeds(
        self,
        data: TrainingData,
        seeds: Sequence[int],
        checkpoint: Path | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> list[Fitted]:
        """Return one fit per seed; all seeds are trained in one program."""
        features = data.inputs(self.inputs)
        earlier = data.start_of(self.name)
        start = None if earlier is None else jax.tree.map(lambda leaf: leaf[0], earlier["params"])
        fitted = fit_mrm(
            features, data.pairs, self.settings, seeds, checkpoint, say, start, self.moments
        )
        return [one_seed(fitted, place) for place in range(len(seeds))]

    def candidates(self, fitted: Fitted) -> list[Candidate]:
        """Return every snapshot with every rate and number of steps."""
        settings = self.settings
        steps = sorted({1, 3, settings.inner_steps, settings.eval_steps})
        grid = [(rate, count) for rate in settings.rates for count in steps]
        return [
            {"snapshot": snapshot, "rate": rate, "steps": count}
            for snapshot in range(len(fitted["params"]["weight_init"]))
            for rate, count in [(settings.rates[0], 0), *grid]
        ]

    def predict(
        self, fitted: Fitted, candidates: Sequence[Candidate], features: jax.Array,
        support: Pairs, query: Pairs,
    ) -> np.ndarray:  # fmt: skip
        """Return probabilities [C, U, Q]; one inner loop serves all numbers of steps."""
        paths: dict[tuple, np.ndarray] = {}
        most = max(candidate["steps"] for candidate in candidates)
        rows = []
        for candidate in candidates:
            key = (candidate["snapshot"], candidate["rate"])
            if key not in paths:
                params = _params(fitted, candidate)
                both = (support, query)
                path = _mrm_paths(params, key[1], features, both, self.settings, most)
                paths[key] = np.asarray(path)
            rows.append(paths[key][candidate["steps"]])
        return np.stack(rows)

    def save(self, fitted: Fitted, candidate: Candidate) -> tuple[Fitted, Candidate]:
        """Return the parameters of the chosen snapshot alone."""
        place = candidate["snapshot"]
        params = jax.tree.map(lambda leaf: leaf[place : place + 1], fitted["params"])
        return {"params": params}, {**candidate, "snapshot": 0}

    @property
    def on_inputs(self) -> bool:
        """Whether there is no base reward network."""
        return not self.settings.hidden_sizes

    def base(self, fitted: Fitted, candidate: Candidate, features: jax.Array) -> jax.Array:
        """Return the base rewards [..., K] that the network gives."""
        return _base_rewards(_params(fitted, candidate), features, self.settings)

    def infer(
        self, fitted: Fitted, candidate: Candidate, differences: jax.Array, mask: jax.Array
    ) -> tuple[jax.Array, None]:
        """Return users' weights after the inner loop."""
        params = _params(fitted, candidate)
        rates = jnp.full((candidate["steps"],), candidate["rate"], jnp.float32)
        path = adapt_path(params, differences, mask, self.settings, rates, "torch")
        return effective_weights(path[:, -1], self.settings), None


_base_rewards = jax.jit(base_rewards, static_argnames="config")


def _params(fitted: Fitted, candidate: Candidate) -> Params:
    return jax.tree.map(lambda leaf: leaf[candidate["snapshot"]], fitted["params"])


@register("mrm_published", MRMConfig())
class PublishedMRM(MetaRewardModel):
    """Meta reward modelling as published: on the encoded features, at its own strength.

    Only the epoch is chosen, on validation users.
    """

    inputs = "encoded"

    def candidates(self, fitted: Fitted) -> list[Candidate]:
        """Return every snapshot at the rate and the steps of the recipe."""
        strength = {"rate": self.settings.inner_lr, "steps": self.settings.eval_steps}
        count = len(fitted["params"]["weight_init"])
        return [{"snapshot": index, **strength} for index in range(count)]
