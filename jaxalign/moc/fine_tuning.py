"""Fine-tuning of a policy on completions that exist already: what RiC and MODPO share."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

import jax
import numpy as np
from numpy.typing import NDArray

from jaxalign.moc.config import MocConfig
from jaxalign.moc.likelihood import Frozen, Likelihood
from jaxalign.moc.policy import ConditionedPolicy, TrainedParams
from jaxalign.models import global_arrays
from jaxalign.models.buckets import padded
from jaxalign.models.chat import stop_ids
from jaxalign.progress import Progress
from jaxalign.train.loop import LoopConfig, Rows, fit
from jaxalign.train.mesh import batch_sharding, make_mesh, param_shardings
from jaxalign.train.optimiser import OptimiserConfig
from jaxalign.train.step import Batch, Sums
from jaxalign.train.trunk import init_train_state

PolicyLoss = Callable[[Likelihood, TrainedParams, Frozen, Batch, jax.Array | None], Sums]


class ConditionedCompletions(NamedTuple):
    """Completions, each under a preference.

    Attributes:
        prompts: [N] token ids of each prompt as the policy reads it.
        completions: [N] token ids of each completion, its stop token included.
        preferences: [N, R] on the simplex.
    """

    prompts: Sequence[Sequence[int]]
    completions: Sequence[Sequence[int]]
    preferences: NDArray[np.float32]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens [N] of prompt and completion."""
        pairs = zip(self.prompts, self.completions, strict=True)
        return np.array([len(prompt) + len(completion) for prompt, completion in pairs])


def fit_policy(
    policy: ConditionedPolicy,
    loss: PolicyLoss,
    rows: Rows,
    config: MocConfig,
    loop: LoopConfig,
    optimiser: OptimiserConfig,
    folder: Path,
    progress: Progress | None = None,
) -> ConditionedPolicy:
    """Train the adapter and soft token of a policy on rows, from the newest state in the folder.

    Args:
        policy: from `init_policy`; it is not changed.
        loss: called with the policy's likelihood before the arguments of
            `jaxalign.train.step.Loss`.
        rows: to learn.
        config: of the run; adapter, precision, devices and sampling are taken from it.
        loop: epochs, batches and intervals.
        optimiser: learning rate and schedule.
        folder: for metrics.jsonl, and states under state/.
        progress: where progress is shown; None shows nothing.

    Returns:
        The policy after the last step. Its value heads are as they were.

    Raises:
        InputError: a loss that is not finite.
        KeyboardInterrupt: at Ctrl-C, when the state is written.
    """
    mesh, decoder = make_mesh(config.trunk.mesh), config.trunk.decoder(policy.model.config)
    frozen = global_arrays.place(
        policy.model.params, param_shardings(policy.model.params, mesh, decoder)
    )
    # A copy: the state is donated, and the policy given stays. Value heads learn from rewards only.
    trained = {
        name: jax.tree.map(np.array, tree)
        for name, tree in policy.trained.items()
        if name != "heads"
    }
    found = fit(
        init_train_state(jax.random.key(loop.seed), trained, optimiser, mesh, decoder),
        frozen,
        partial(loss, Likelihood(config, decoder, stop_ids(policy.model), mesh)),
        rows,
        None,
        loop,
        optimiser,
        folder,
        (progress or Progress(False)).say,
        batch_sharding(mesh),
    )
    return replace(policy, trained=cast(TrainedParams, {**policy.trained, **found.params}))


def completion_arrays(
    learned: ConditionedCompletions, rows: NDArray[np.integer], longest: int
) -> dict[str, np.ndarray]:
    """Return the arrays of some completions, all batches of one shape.

    Args:
        learned: N completions.
        rows: [B] which of them, -1 for one without tokens, which weighs nothing.
        longest: M, to which completions are padded.

    Returns:
        `prompts` [B, T], `prompt_lengths` [B], `completions` [B, M], `completion_lengths` [B],
        int32, and `preferences` [B, R] float32.
    """
    width = max(map(len, learned.prompts))
    prompts = [learned.prompts[max(row, 0)] for row in rows]
    completions = [learned.completions[row] if row >= 0 else () for row in rows]
    return {
        "prompts": padded(prompts, (len(rows), width)),
        "prompt_lengths": np.array([len(row) for row in prompts], np.int32),
        "completions": padded(completions, (len(rows), longest)),
        "completion_lengths": np.array([len(row) for row in completions], np.int32),
        "preferences": learned.preferences[np.maximum(rows, 0)],
    }
