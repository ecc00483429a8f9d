"""Fine-tuning on scored completions before any rollout: rewards-in-context (RiC) for a policy.

Each completion is learned under the preference that its own rewards meet, by the way that the
policy is given preferences. The loss is that of supervised fine-tuning, under the distribution that
the policy samples from.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from numpy.typing import NDArray

from jaxalign.errors import InputError
from jaxalign.moc.config import MocConfig
from jaxalign.moc.likelihood import conditioned_states
from jaxalign.moc.policy import ConditionedPolicy, TrainedParams
from jaxalign.models import families, global_arrays
from jaxalign.models.buckets import padded
from jaxalign.models.chat import stop_ids
from jaxalign.models.completions import CompletionBatch, sampling_distribution, state_logprobs
from jaxalign.models.decoder import unembedding
from jaxalign.progress import Progress
from jaxalign.train.loop import LoopConfig, Rows, fit
from jaxalign.train.mesh import batch_sharding, make_mesh, param_shardings
from jaxalign.train.optimiser import OptimiserConfig
from jaxalign.train.step import Batch, Sums
from jaxalign.train.trunk import init_train_state


@dataclass(frozen=True)
class WarmStartConfig:
    """Fine-tuning on scored completions, before or instead of PPO.

    Attributes:
        data: file or data set with columns `prompt` and `completion`, texts. The rewards of the run
            score them. null for no warm start.
        keep: share of the completions that are learned, above 0 and at most 1: of those that meet
            one preference, the ones with the highest rewards.
        loop: epochs, batches and intervals.
        optimiser: learning rate and schedule.
    """

    data: str | None = None
    keep: float = 0.5
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(epochs=2, batch_size=16, evaluate_every=1_000_000)
    )
    optimiser: OptimiserConfig = field(
        default_factory=lambda: OptimiserConfig(rate=5e-4, schedule="constant", clip_norm=1.0)
    )

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise InputError(
                f"warm_start.keep: found {self.keep}, expected a share above 0 and at most 1; "
                "correct it."
            )


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


def met_preferences(
    levels: NDArray[np.floating], options: NDArray[np.floating], keep: float
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return which completions are learned, and under which preference each.

    A completion meets the option that is nearest to the shares of its rewards, r / |r|_1, negative
    rewards counting as 0. Of the completions of one option p, those with the largest p . r are
    kept.

    Args:
        levels: [N, R] rewards of N completions.
        options: [W, R] preferences.
        keep: share that is kept of each option's completions, at least one.

    Returns:
        Rows [M], in order, and the options [M] that they meet. Completions without any positive
        reward meet none.

    Example:
        >>> import numpy as np
        >>> from jaxalign.moc.warm_start import met_preferences
        >>> levels = np.array([[1.0, 0.1], [0.2, 0.0], [0.0, 0.7], [0.0, 0.0]])
        >>> rows, options = met_preferences(levels, np.eye(2), keep=0.5)
        >>> rows.tolist(), options.tolist()
        ([0, 2], [0, 1])
    """
    positive = np.maximum(levels, 0)
    total = positive.sum(axis=1)
    shares = positive / np.where(total > 0, total, 1)[:, None]
    met = np.abs(shares[:, None] - options[None]).sum(axis=2).argmin(axis=1)
    kept = []
    for option in range(len(options)):
        rows = np.flatnonzero((met == option) & (total > 0))
        best = rows[np.argsort(-(levels[rows] @ options[option]), kind="stable")]
        kept.append(best[: int(np.ceil(keep * len(rows)))])
    rows = np.sort(np.concatenate(kept))
    return rows, met[rows]


def warm_start(
    policy: ConditionedPolicy,
    learned: ConditionedCompletions,
    config: MocConfig,
    warm: WarmStartConfig,
    folder: Path,
    progress: Progress | None = None,
) -> ConditionedPolicy:
    """Fine-tune a policy on completions under preferences, going on from the state in the folder.

    Args:
        policy: from `init_policy`; it is not changed.
        learned: N completions, none longer than `config.answer_tokens`.
        config: of the run; adapter, precision, devices and sampling are taken from it.
        warm: of the fine-tuning.
        folder: for metrics.jsonl, and states under state/.
        progress: where progress is shown; None shows nothing.

    Returns:
        The policy after the last step. Its value heads are as they were.

    Raises:
        InputError: fewer completions than a batch, or a loss that is not finite.
        KeyboardInterrupt: at Ctrl-C, when the state is written.

    Source: Yang et al. 2024 (Rewards-in-Context), https://arxiv.org/abs/2402.10207.
    """
    rows = _rows(learned, config.answer_tokens)
    return fit_policy(policy, loss, rows, config, warm, folder, progress)


def fit_policy(
    policy: ConditionedPolicy,
    loss: Callable[..., Sums],
    rows: Rows,
    config: MocConfig,
    warm: WarmStartConfig,
    folder: Path,
    progress: Progress | None = None,
) -> ConditionedPolicy:
    """Train what a policy is conditioned by on rows, going on from the state in the folder.

    Args:
        policy: from `init_policy`; it is not changed.
        loss: called with the config, the decoder, its stop ids and the mesh before the arguments of
            `jaxalign.train.step.Loss`.
        rows: to learn.
        config: of the run; adapter, precision, devices and sampling are taken from it.
        warm: loop and optimiser.
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
        init_train_state(jax.random.key(warm.loop.seed), trained, warm.optimiser, mesh, decoder),
        frozen,
        partial(loss, config, decoder, stop_ids(policy.model), mesh),
        rows,
        None,
        warm.loop,
        warm.optimiser,
        folder,
        (progress or Progress(False)).say,
        batch_sharding(mesh),
    )
    return replace(policy, trained=cast(TrainedParams, {**policy.trained, **found.params}))


def loss(
    config: MocConfig,
    decoder: families.Config,
    stops: tuple[int, ...],
    mesh: Mesh,
    trained: TrainedParams,
    frozen: dict[str, jax.Array],
    batch: Batch,
    key: jax.Array | None,
) -> Sums:
    """Return the negative log-probability of completions under their preferences, summed.

    Args:
        config: of the run; static.
        decoder: of the model; static.
        stops: the model's stop ids; static.
        mesh: where parameters and rows lie.
        trained: what training changes.
        frozen: parameters of the model.
        batch: `prompts` [B, T], `prompt_lengths` [B], `completions` [B, M], `completion_lengths`
            [B], int32, and `preferences` [B, R].
        key: of dropout; None drops nothing.

    Returns:
        `loss` in nats and `weight`, the tokens of the completions, both [] and at least float32.
    """
    completions = CompletionBatch(
        batch["prompts"],
        batch["prompt_lengths"],
        batch["completions"],
        batch["completion_lengths"],
    )
    states = conditioned_states(
        config, decoder, mesh, trained, frozen, completions, batch["preferences"], key
    )
    distribution = sampling_distribution(config.sampling(stops), decoder.vocab_size)
    logprobs, _ = state_logprobs(states, unembedding(frozen), completions, distribution)
    return {"loss": -jnp.sum(logprobs), "weight": jnp.sum(completions.mask, dtype=logprobs.dtype)}


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


def _rows(learned: ConditionedCompletions, longest: int) -> Rows:
    lengths = np.array(
        [len(p) + len(c) for p, c in zip(learned.prompts, learned.completions, strict=True)]
    )
    return Rows(lengths, lambda rows, _: completion_arrays(learned, rows, longest))
