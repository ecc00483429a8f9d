"""How likely completions are under a policy that is given preferences."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from jaxalign.moc.config import MocConfig
from jaxalign.moc.policy import TrainedParams, conditioned_inputs
from jaxalign.models import families
from jaxalign.models.completions import (
    CompletionBatch,
    SamplingDistribution,
    completion_logprobs,
    completion_states,
    sampling_distribution,
    state_logprobs,
)
from jaxalign.models.decoder import unembedding
from jaxalign.train.mesh import batch_sharding

Frozen = Mapping[str, Any]
"""Parameters of the reference, which no step changes."""


class Likelihood(NamedTuple):
    """Log-probabilities under a policy and its reference, as pure functions of their parameters.

    Attributes:
        config: of the run.
        decoder: of the model.
        stops: the model's stop ids.
        mesh: where the rows of a batch lie.
    """

    config: MocConfig
    decoder: families.Config
    stops: tuple[int, ...]
    mesh: Mesh

    @property
    def distribution(self) -> SamplingDistribution:
        """The distribution that completions are sampled from."""
        return sampling_distribution(self.config.sampling(self.stops), self.decoder.vocab_size)

    def states(
        self,
        trained: TrainedParams,
        params: Frozen,
        completions: CompletionBatch,
        preferences: jax.Array,
        key: jax.Array | None,
    ) -> jax.Array:
        """Return the hidden states before each token of completions, each under its preference.

        Args:
            trained: what training changes.
            params: of the model.
            completions: B of them, after prompts as the policy reads them.
            preferences: [B, R] on the simplex.
            key: of the adapter's dropout; None drops nothing.

        Returns:
            [B, M, D], as of `completion_states`.
        """
        lora = self.config.trunk.lora
        return completion_states(
            self.decoder,
            params,
            completions,
            **conditioned_inputs(trained, params["embed"]["table"], lora, preferences),
            adapter_dropout=lora.dropout,
            dropout_key=key,
            sharding=batch_sharding(self.mesh),
        )

    def logprobs(
        self,
        trained: TrainedParams,
        params: Frozen,
        completions: CompletionBatch,
        preferences: jax.Array,
        key: jax.Array | None,
    ) -> jax.Array:
        """Return the log-probabilities [B, M] of completions under their preferences, nats.

        Args:
            trained, params, completions, preferences, key: as of `states`.
        """
        states = self.states(trained, params, completions, preferences, key)
        found, _ = state_logprobs(states, unembedding(params), completions, self.distribution)
        return found

    def reference_logprobs(self, params: Frozen, completions: CompletionBatch) -> jax.Array:
        """Return the log-probabilities [B, M] of completions under the model alone, nats."""
        found, _ = completion_logprobs(
            self.decoder, params, completions, self.distribution,
            sharding=batch_sharding(self.mesh),
        )  # fmt: skip
        return found
