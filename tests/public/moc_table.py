"""Entries of `jaxalign.moc`."""

import numpy as np
from edge_table import Entry, empty, refusals
from scipy.optimize import minimize

from jaxalign import moc
from jaxalign.moc.combination import SMALLEST_TOTAL

VECTORS = np.array([[1.0, 0.5, 0.0], [-0.5, 1.0, 0.25]])
LAST = np.array([0.25, -0.5, 1.0])
MEAN, PREFERENCE = np.array([0.5, 1.0]), np.array([0.25, 0.75])
LEVELS = np.array([[0.5, 1.0], [0.25, 0.0], [1.0, 0.75]])
RATIO, MASK = np.array([1.0, 1.5, 0.75]), np.array([1.0, 1.0, 0.0])
ADVANTAGES = np.array([[1.0, -0.5, 2.0], [0.25, 1.5, -1.0]])


def least(gram):
    """The weights of least norm on the simplex, by a general solver."""
    count = len(gram)
    gram = gram / max(np.diagonal(gram).max(), 1e-300)
    found = minimize(
        lambda c: c @ gram @ c, np.full(count, 1 / count), jac=lambda c: 2 * gram @ c,
        bounds=[(0, 1)] * count, constraints={"type": "eq", "fun": lambda c: c.sum() - 1},
        method="SLSQP", options={"ftol": 1e-15, "maxiter": 500},
    )  # fmt: skip
    return found.x


def blend(directions, similarity):
    mixed = directions + 3 * similarity[None]
    return least(mixed @ mixed.T) / 4


def share(mean):
    return mean / max(np.abs(mean).sum(), SMALLEST_TOTAL)


def error(mean, preference):
    return np.mean((share(mean) - preference) ** 2)


def direction(mean, preference):
    """Minus the gradient, by the quotient rule."""
    total = np.abs(mean).sum()
    wrong = 2 * (share(mean) - preference)
    if total < SMALLEST_TOTAL:
        return -wrong / SMALLEST_TOTAL
    return -(wrong / total - np.where(mean < 0, -1, 1) * (wrong @ mean) / total**2)


def directions(rewards, preference):
    others = [np.delete(rewards, row, axis=0).mean(0) for row in range(len(rewards))]
    return np.stack([direction(other, preference) for other in others])


def policy_directions(ratio, advantages, mask):
    inside = (np.abs(ratio - 1) <= 0.5) & (mask > 0)
    return np.stack([np.where(inside, -ratio * np.where(inside, row, 0), 0) for row in advantages])


def shares_in(text):
    """The numbers of a tag, two decimals each."""
    return [float(word) for word in text.split() if word[0].isdigit()]


def written(preference):
    return np.round(preference / preference.sum(), 2).tolist()


def _no_preference(found):
    return f"preference: found {found}, expected numbers of at least 0."


_TAGS = {
    "nan live": _no_preference("[0.25, nan]"), "infinity live": _no_preference("[0.25, inf]"),
    "wrong rank": "preference: found shape (1, 2), expected [R], one preference.",
    "scale 1e-8": "preference: [2.5e-09, 7.500000000000001e-09] sums to 1e-08, expected 1.",
    "scale 1e8": "preference: [25000000.0, 75000000.0] sums to 1e+08, expected 1.",
}  # fmt: skip
_ONE = {"zero rows": "one group", "one row": "one group"}
_ROWS = "a group has {} row; expected 2 or more, raise the rows of a group."

MOC = {
    "min_norm": Entry(
        moc.min_norm, {"gram": np.array([[1.25, -0.25], [-0.25, 1.5]])}, least, "gram",
        refused=refusals("gram", "1, 1", "R R", "1, 2, 2"),
        skipped={"zero rows": "a square matrix", "one row": "a square matrix"}, tolerance=1e-4,
    ),
    "combine": Entry(
        lambda directions, similarity: moc.combine(
            directions, similarity, moc.CombineConfig("blend", strength=3.0)
        ),
        {"directions": VECTORS, "similarity": LAST}, blend, "directions", rows=("directions",),
        refused={
            **refusals("directions", "1, 2", "", ""),
            "wrong rank": "the directions have shape (1, 2, 3) and the similarity (3,); expected "
            "[R, ...] and [...].",
            "zero rows": "directions: found shape [0, 3], expected [R, ...] with R 1 or more; "
            "correct it.",
        },
        scaled=("directions", "similarity"), tolerance=1e-3,
    ),
    "policy_directions": Entry(
        lambda **a: moc.policy_directions(**a, clip=0.5),
        {"ratio": RATIO, "advantages": ADVANTAGES, "mask": MASK}, policy_directions, "advantages",
        rows=("advantages",), typed=("advantages",),
        refused={
            **empty("advantages", "0, 3", "R T0", "R"),
            "wrong rank": refusals("advantages", "", "R T0", "1, 2, 3")["wrong rank"],
        },
    ),
    "preference_tag": Entry(
        lambda preference: shares_in(moc.preference_tag(("kind", "brief"), preference, 2)),
        {"preference": PREFERENCE}, written, "preference", refused=_TAGS, skipped=_ONE,
    ),
    "insert_preference_tag": Entry(
        lambda preference: shares_in(
            moc.insert_preference_tag(("kind", "brief"), preference, "Hello", 2)
        ),
        {"preference": PREFERENCE}, written, "preference", refused=_TAGS, skipped=_ONE,
    ),
    "similarity_error": Entry(
        lambda mean, preference: moc.similarity_error(mean, preference, "ratio"),
        {"mean": MEAN, "preference": PREFERENCE}, error, "mean", typed=("mean",),
        refused=refusals("mean", "1", "R", "1, 2"), skipped=_ONE,
    ),
    "similarity_direction": Entry(
        lambda mean, preference: moc.similarity_direction(mean, preference, "ratio"),
        {"mean": MEAN, "preference": PREFERENCE}, direction, "mean", typed=("mean",),
        refused=refusals("mean", "1", "R", "1, 2"), skipped=_ONE,
    ),
    "similarity_directions": Entry(
        lambda rewards, preference: moc.similarity_directions(rewards, preference, "ratio"),
        {"rewards": LEVELS, "preference": PREFERENCE}, directions, "rewards", rows=("rewards",),
        typed=("rewards",),
        refused={
            **refusals("rewards", "2, 1", "rows R", "1, 3, 2"),
            "zero rows": _ROWS.format(0), "one row": _ROWS.format(1),
        },
    ),
}  # fmt: skip
