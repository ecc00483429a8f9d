"""Hidden states of completions under a policy that is given preferences."""

from typing import Any

import jax
from jax.sharding import Mesh

from jaxalign.moc.config import MocConfig
from jaxalign.moc.policy import TrainedParams, conditioned_inputs
from jaxalign.models import families
from jaxalign.models.completions import CompletionBatch, completion_states
from jaxalign.train.mesh import batch_sharding


def conditioned_states(
    config: MocConfig,
    decoder: families.Config,
    mesh: Mesh,
    trained: TrainedParams,
    params: Any,
    completions: CompletionBatch,
    preferences: jax.Array,
    key: jax.Array | None,
) -> jax.Array:
    """Return the hidden states before each token of completions, each under its preference.

    Args:
        config: of the run; static.
        decoder: of the model; static.
        mesh: where the rows lie.
        trained: what training changes.
        params: of the model.
        completions: B of them, after prompts as the policy reads them.
        preferences: [B, R] on the simplex.
        key: of the adapter's dropout; None drops nothing.

    Returns:
        [B, M, D], as of `completion_states`.
    """
    conditioned = conditioned_inputs(
        trained, params["embed"]["table"], config.trunk.lora, preferences
    )
    return completion_states(
        decoder,
        params,
        completions,
        **conditioned,
        adapter_dropout=config.trunk.lora.dropout,
        dropout_key=key,
        sharding=batch_sharding(mesh),
    )
