"""How the worst-served users fare, as published and without the selection effect."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from jaxalign.errors import InputError
from jaxalign.metrics.scores import Bools, Floats, correct, over_pairs

FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5)


def worst_groups(
    probability: ArrayLike,
    baseline_probability: ArrayLike,
    mask: ArrayLike,
    fractions: Sequence[float] = FRACTIONS,
    seed: int = 0,
    splits: int = 20,
) -> dict[str, float]:
    """Return mean accuracy in the worst tenth to the worst half of users, chosen in two ways.

    `worst_10` is the published form: the tenth with the lowest accuracy, scored on the same pairs.
    Mostly it shows noise: users who are all alike would show a bad tenth too. `worst_10_split` has
    no such selection effect: the *baseline's* worst tenth on a random half of each user's pairs,
    scored on the other half, both directions and several splits averaged; and every method is
    judged on the same people. Where users tie at the border of a group they share its last places,
    so groups hold exactly the fraction asked for, but at least one user.

    Args:
      probability: [..., U, P], of the chosen item. The published form is computed for each seed
        and averaged, as tables do; the split form scores the average over seeds.
      baseline_probability: [..., U, P], of one Bradley-Terry model for all.
      mask: [U, P] bool, real strict pairs.
      fractions: sizes of the groups, above 0 and at most 1.
      seed: of the random halves; the same seed gives all methods the same halves.
      splits: random halvings to average over, at least 1.

    Returns:
      {"worst_10": ..., "worst_10_split": ...} with the percentage in each key. Users without pairs
      are left out, from the split form also users with one pair; its keys are missing if no user
      has two.

    Raises:
      InputError: shapes differ, nothing to judge, a fraction outside (0, 1], or no split.

    Example:
        >>> import numpy as np
        >>> from jaxalign.metrics import worst_groups
        >>> mask = np.ones((2, 1), bool)
        >>> worst_groups([[0.9], [0.2]], [[0.9], [0.9]], mask, fractions=(0.5,))
        {'worst_50': 0.0}
    """
    if splits < 1 or not all(0 < fraction <= 1 for fraction in fractions):
        raise InputError("fractions, splits: expected fractions in (0, 1] and at least one split.")
    keep = np.asarray(mask)
    right = correct(probability, keep).reshape(-1, *keep.shape)
    reference = correct(baseline_probability, keep, "baseline_probability")
    reference = reference.reshape(-1, *keep.shape).mean(0)
    names = [f"worst_{100 * fraction:.4g}" for fraction in fractions]
    published = _published(right, keep, fractions)
    result = dict(zip(names, published.tolist(), strict=True))
    if (keep.sum(-1) >= 2).any():
        rng = np.random.default_rng(seed)
        held_out = _split(rng, right.mean(0), reference, keep, fractions, splits)
        result |= {f"{name}_split": value for name, value in zip(names, held_out, strict=True)}
    return result


def _published(right: Floats, mask: Bools, fractions: Sequence[float]) -> Floats:
    present = mask.any(-1)
    own = over_pairs(right[:, present], mask[present])
    return np.mean([[_group_mean(row, row, share) for share in fractions] for row in own], axis=0)


def _split(
    rng: np.random.Generator,
    right: Floats,
    reference: Floats,
    mask: Bools,
    fractions: Sequence[float],
    splits: int,
) -> list[float]:
    """Return the mean accuracy [fractions] of groups chosen on the other half."""
    enough = mask.sum(-1) >= 2
    right, reference, mask = _compact(right[enough], reference[enough], mask[enough])
    scores = []
    for _ in range(splits):
        half = _random_half(rng, mask)
        for choose, score in ((half, mask & ~half), (mask & ~half, half)):
            order, value = over_pairs(reference, choose), over_pairs(right, score)
            scores.append([_group_mean(order, value, share) for share in fractions])
    return np.mean(scores, axis=0).tolist()


def _compact(right: Floats, reference: Floats, mask: Bools) -> tuple[Floats, Floats, Bools]:
    """Move real pairs to the front, so that padding has no say in the random halves."""
    width = int(mask.sum(-1).max())
    order = np.argsort(~mask, axis=-1, kind="stable")[:, :width]
    moved = [np.take_along_axis(array, order, -1) for array in (right, reference)]
    return moved[0], moved[1], np.take_along_axis(mask, order, -1)


def _random_half(rng: np.random.Generator, mask: Bools) -> Bools:
    """Return a random half of each user's real pairs, the smaller one where their number is odd."""
    lot = np.where(mask, rng.random(mask.shape), 2.0)
    rank = np.argsort(np.argsort(lot, axis=-1), axis=-1)
    return rank < mask.sum(-1, keepdims=True) // 2


def _group_mean(order: Floats, value: Floats, share: float) -> float:
    """Return the mean value of the share of users lowest in order; ties share the last places."""
    places = max(share * len(order), 1.0)
    # Less a hair: .3 * 10 is a rounding error above 3.
    last = int(np.ceil(places - 1e-9)) - 1
    border = np.partition(order, last)[last]
    below, tied = order < border, order == border
    rest = (places - below.sum()) / tied.sum()
    return float((value[below].sum() + rest * value[tied].sum()) / places)
