"""Multi-objective direct preference optimisation (MODPO): one weighting, learned from scored pairs.

One reward labels which completion of a pair is preferred, and the others enter as a margin. Nothing
is sampled.

Source: Zhou et al. 2023, https://arxiv.org/abs/2310.03708.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxalign.config_fields import checks_fields
from jaxalign.errors import InputError
from jaxalign.moc.fine_tuning import ConditionedCompletions, completion_arrays
from jaxalign.moc.likelihood import Frozen, Likelihood
from jaxalign.moc.policy import TrainedParams
from jaxalign.models.completions import CompletionBatch
from jaxalign.train.loop import Rows
from jaxalign.train.step import Batch, Sums


@dataclass(frozen=True)
@checks_fields
class ModpoConfig:
    """Preference optimisation on pairs of scored completions.

    Attributes:
        beta: weight of the KL to the reference, above 0. 0.1 is usual.
        pairs: pairs of each prompt, at least 1; fewer where a prompt has fewer.
    """

    beta: float = 0.1
    pairs: int = 16

    def __post_init__(self) -> None:
        if not 0 < self.beta < float("inf") or self.pairs < 1:
            raise InputError(
                f"modpo: found beta {self.beta} and pairs {self.pairs}, expected a positive beta "
                "and at least 1 pair; correct it."
            )


class ScoredPairs(NamedTuple):
    """Pairs of completions, and how far their other rewards differ.

    Attributes:
        chosen: [P] rows of the completions with more of the labelling reward.
        rejected: [P] rows of the others.
        margins: [P] w_rest . (r(chosen) - r(rejected)), of the other rewards.
        share: w_k, the weight of the labelling reward.
    """

    chosen: NDArray[np.intp]
    rejected: NDArray[np.intp]
    margins: NDArray[np.float32]
    share: float


def scored_pairs(
    levels: NDArray[np.floating],
    groups: NDArray[np.integer],
    weight: NDArray[np.floating],
    most: int,
    seed: int = 0,
) -> ScoredPairs:
    """Draw pairs of completions of the same prompt, labelled by the reward of the largest weight.

    Args:
        levels: [N, R] rewards of N completions.
        groups: [N] the prompt of each.
        weight: [R] on the simplex.
        most: pairs of each prompt.
        seed: of the draw.

    Returns:
        The pairs; those with equal labelling rewards are left out.

    Example:
        >>> import numpy as np
        >>> from jaxalign.moc.modpo import scored_pairs
        >>> levels = np.array([[0.2, 1.0], [0.7, 0.0]])
        >>> found = scored_pairs(levels, np.array([0, 0]), np.array([0.75, 0.25]), most=4)
        >>> found.chosen.tolist(), found.rejected.tolist(), found.margins.tolist()
        ([1], [0], [-0.25])
    """
    label = int(np.argmax(weight))
    rest = np.where(np.arange(len(weight)) == label, 0, weight)
    random = np.random.default_rng(seed)
    first, second = [], []
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        pairs = np.stack(np.triu_indices(len(rows), 1), axis=1)
        drawn = random.permutation(len(pairs))[:most]
        first.append(rows[pairs[drawn, 0]])
        second.append(rows[pairs[drawn, 1]])
    one, other = np.concatenate(first), np.concatenate(second)
    gap = levels[one, label] - levels[other, label]
    one, other, gap = one[gap != 0], other[gap != 0], gap[gap != 0]
    chosen, rejected = np.where(gap > 0, one, other), np.where(gap > 0, other, one)
    margins = (levels[chosen] - levels[rejected]) @ rest
    return ScoredPairs(chosen, rejected, margins.astype(np.float32), float(weight[label]))


def loss(
    scale: tuple[float, float],
    likelihood: Likelihood,
    trained: TrainedParams,
    frozen: Frozen,
    batch: Batch,
    key: jax.Array | None,
) -> Sums:
    """Return -log sigmoid(beta / w_k (difference of log ratios) - margin / w_k), summed over pairs.

    Args:
        scale: beta / w_k and 1 / w_k, see `loss_scale`; static.
        likelihood: of the policy; static.
        trained: the adapter.
        frozen: parameters of the model, which is the reference.
        batch: of pairs: `margins` [B], `kept` [B] bool, and the arrays of `completion_arrays` with
            the prefixes `chosen_` and `rejected_`.
        key: of dropout; None drops nothing.

    Returns:
        `loss` in nats; `weight`, the number of pairs; and `accuracy`, how many of the pairs have a
        positive argument of the sigmoid, the difference of the labelling reward that the policy
        implies; all [].
    """

    def log_ratio(side: str) -> jax.Array:
        completions = CompletionBatch(
            *(batch[f"{side}_{name}"] for name in CompletionBatch._fields)
        )
        preferences = batch[f"{side}_preferences"]
        own = likelihood.logprobs(trained, frozen, completions, preferences, key)
        return jnp.sum(own - likelihood.reference_logprobs(frozen, completions), axis=1)

    gap = log_ratio("chosen") - log_ratio("rejected")
    logits = scale[0] * gap - scale[1] * batch["margins"]
    kept = batch["kept"]
    return {
        "loss": -jnp.sum(jnp.where(kept, jax.nn.log_sigmoid(logits), 0)),
        "weight": jnp.sum(kept, dtype=logits.dtype),
        "accuracy": jnp.sum(kept & (logits > 0), dtype=logits.dtype),
    }


def loss_scale(config: ModpoConfig, pairs: ScoredPairs) -> tuple[float, float]:
    """Return what the loss multiplies log ratios and margins by: beta / w_k and 1 / w_k."""
    return config.beta / pairs.share, 1 / pairs.share


def pair_rows(completions: ConditionedCompletions, pairs: ScoredPairs, longest: int) -> Rows:
    """Return pairs as the loop takes them.

    Args:
        completions: N of them, which the pairs number.
        pairs: P of them.
        longest: M, to which completions are padded.
    """

    def assemble(rows: np.ndarray, _: int) -> dict[str, np.ndarray]:
        kept = rows >= 0
        own = np.where(kept, rows, 0)
        found = {"kept": kept, "margins": pairs.margins[own]}
        for side, numbers in (("chosen", pairs.chosen), ("rejected", pairs.rejected)):
            arrays = completion_arrays(completions, np.where(kept, numbers[own], -1), longest)
            found |= {f"{side}_{name}": value for name, value in arrays.items()}
        return found

    lengths = completions.lengths
    return Rows(lengths[pairs.chosen] + lengths[pairs.rejected], assemble)
