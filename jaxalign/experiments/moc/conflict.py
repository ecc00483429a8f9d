"""How far the rewards of a run conflict, measured on the model's own answers before training."""

from collections.abc import Iterator, Sequence
from typing import TypedDict

import jax
import numpy as np
from numpy.typing import NDArray

from jaxalign.data.prompts import Prompt
from jaxalign.metrics.conflicts import Conflict, conflict
from jaxalign.moc.preferences import lattice
from jaxalign.models.language import LanguageModel
from jaxalign.models.sampling import Sampling
from jaxalign.progress import counted
from jaxalign.rewards.vector import TextReward
from jaxalign.rollout import ReferencePolicy, rollout_policies

_STREAM = 0x636F6E66  # other draws of a run are not these
_POINTS = {2: 21, 3: 11, 4: 5}  # along an edge of the simplex, by the number of rewards
_WEAK = 0.05  # sd in levels below which a reward can hardly be learned from samples
_MILD = 0.9  # share of the front's hypervolume above which one policy is nearly enough


class ConflictReport(TypedDict):
    """How far rewards conflict, see `jaxalign.metrics.Conflict`; `sd` in levels of the scale."""

    prompts: int
    samples: int
    sd: dict[str, float]
    single_share: float | None
    balance: float | None


def sample_rewards(
    model: LanguageModel,
    rewards: TextReward,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    count: int,
    samples: int,
    batch_size: int,
    show: bool = True,
) -> NDArray[np.float32]:
    """Sample several completions of each of some prompts by the model alone, and score them.

    They depend on model, prompts, rewards and sampling, and not on the seed of a run.

    Args:
        model: the reference.
        rewards: R of them.
        prompts: of which `count` are chosen.
        sampling: as in training.
        count: X, prompts; all where there are fewer.
        samples: n, completions of each prompt.
        batch_size: the most completions that are decoded at once.
        show: a bar on standard error.

    Returns:
        [X, n, R] raw rewards.

    Raises:
        InputError: a reward that fails.
    """
    order = np.random.Generator(np.random.PCG64([0, _STREAM])).permutation(len(prompts))
    found = rollout_policies(
        model,
        ReferencePolicy(),
        np.zeros((1, 0)),
        [prompts[place] for place in order[:count]],
        rewards,
        sampling,
        jax.random.key(_STREAM),
        samples=samples,
        batch_size=batch_size,
        title="measuring how far the rewards conflict",
        progress=show,
    )
    return found.rewards[0]


def conflict_report(names: Sequence[str], levels: NDArray[np.floating]) -> ConflictReport:
    """Return how far rewards conflict.

    Args:
        names: [R] names of the rewards.
        levels: [X, n, R] of n completions of each of X prompts.

    Example:
        >>> import numpy as np
        >>> from jaxalign.experiments.moc.conflict import conflict_report
        >>> found = conflict_report(("a", "b"), np.array([[[1.0, 0.0], [0.0, 1.0], [0.6, 0.6]]]))
        >>> found["balance"], found["single_share"]
        (0.6, 1.0)
    """
    weights = lattice(len(names), _POINTS.get(len(names), 3))
    found: Conflict = conflict(levels, weights)
    return {
        "prompts": len(levels),
        "samples": levels.shape[1],
        "sd": dict(zip(names, found.sd.tolist(), strict=True)),
        "single_share": found.single_share,
        "balance": found.balance,
    }


def conflict_lines(found: ConflictReport) -> Iterator[str]:
    """Yield what a report of conflict says, line by line.

    Args:
        found: of `conflict_report`.
    """
    sds = ", ".join(f"{name} {sd:.2f}" for name, sd in found["sd"].items())
    completions, prompts = (
        counted(found["samples"], "completion"),
        counted(found["prompts"], "prompt"),
    )
    yield f"{completions} of each of {prompts} by the model alone: standard deviations {sds} levels"
    for name, sd in found["sd"].items():
        if sd < _WEAK:
            yield f"{name} hardly varies in the model's answers: training has little to learn from"
    share, balance = found["single_share"], found["balance"]
    if balance is None:
        yield "the best answers for every preference have the same level of one of the rewards"
        return
    even = 1 / len(found["sd"])
    single = "no point has any" if share is None else f"one point keeps {share:.0%}"
    yield (
        f"of the best answers for each preference, {single} of the hypervolume, and the best "
        f"mixture has {balance:.0%} of every reward's range ({even:.0%} where a gain in one reward "
        "costs as much of another)"
    )
    if share is not None and share > _MILD:
        yield (
            "these rewards hardly conflict: a policy that ignores the preference would have nearly "
            "the same hypervolume; judge by the movement between corners"
        )
