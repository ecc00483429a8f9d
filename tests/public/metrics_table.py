"""Entries of `jaxalign.metrics`."""

import itertools

import numpy as np
from edge_table import Entry

from jaxalign import metrics

PROB = np.array([[0.75, 0.25, 0.5], [1.0, 0.5, 0.25]])
OTHER = np.array([[0.25, 0.75, 0.5], [1.0, 0.25, 0.75]])
MASK = np.array([[True, True, False], [True, True, True]])
POINTS = np.array([[0.5, 0.25], [0.25, 0.75], [0.25, 0.25], [1.0, 0.0]])
REQUESTED = np.array([[0.5, 0.5], [0.25, 0.75], [0.0, 1.0], [1.0, 0.0]])
ANSWERS = np.array(
    [[[0.5, 0.0], [0.25, 0.5]], [[1.0, 0.25], [0.0, 1.0]], [[0.75, 0.5], [0.5, 0.5]]]
)
SHARES = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
TINY = float(np.finfo(np.float32).tiny)

_OUTSIDE = "probability: expected probabilities from 0 to 1; found values outside or NaN."
_JUDGING = {
    "nan live": _OUTSIDE,
    "infinity live": _OUTSIDE,
    "scale 1e8": _OUTSIDE,
    "negative mask": "mask: expected [users, pairs] bool, found (2, 3) float64.",
    "zero rows": "mask: no pair to judge; expected at least one user with one strict pair.",
}
_SEEDS = {"wrong rank": "a leading axis is one of seeds"}


def _mended(row: int, found: str) -> str:
    return (
        f"point {row}: found {found}, expected finite numbers; leave it out or mend what measured "
        "it."
    )


def _of_points(last: float, row: int = 3) -> dict[str, str]:
    shape = "points: found shape {}, expected [W, R], a row a point and a column an objective."
    return {
        "nan live": _mended(row, f"[{last}, nan]"),
        "infinity live": _mended(row, f"[{last}, inf]"),
        "zero rows": shape.format("(0, 2)"),
        "wrong rank": shape.format("(1, 4, 2)"),
    }


def right(p):
    return (np.sign(p - 0.5) + 1) / 2


def by_user(function, *arrays, mask):
    mask = mask > 0
    rows = zip(*arrays, mask, strict=True)
    return np.array([function(*(a[m] for a in parts)).mean() for *parts, m in rows])


def user_accuracy(probability, mask):
    return by_user(right, probability, mask=mask)


def user_nll(probability, mask):
    return by_user(lambda p: -np.log(np.maximum(p, TINY)), probability, mask=mask)


def gain(probability, baseline, mask):
    return user_accuracy(probability, mask) - user_accuracy(baseline, mask)


def flipped(probability, unadapted, mask):
    changed = right(probability) != right(unadapted)
    return changed[mask > 0].mean()


def calibration(probability, mask):
    """Both orders of each pair in two bins, with one half in the upper one and its mirror."""
    p = probability[mask > 0]
    sure, hit = np.maximum(p, 1 - p), right(p)
    return np.abs(sure.mean() - hit.mean())


def bins(probability, mask):
    p = probability[mask > 0]
    sure, hit = np.maximum(p, 1 - p).mean(), right(p).mean()
    return (
        np.array([0.25, 0.75]), np.array([1 - sure, sure]), np.array([1 - hit, hit]),
        np.array([p.size, p.size]),
    )  # fmt: skip


def harm_floor(probability, unadapted, mask):
    """By every outcome of every pair that adaptation changes."""
    shares = []
    for p, before, m in zip(probability, unadapted, mask > 0, strict=True):
        change, chance = (right(p) - right(before))[m], p[m]
        loss = 0.0
        for outcome in itertools.product((0, 1), repeat=len(chance)):
            wins = np.array(outcome)
            weight = np.prod(np.where(wins == 1, chance, 1 - chance))
            # In the other outcome of a pair the other answer was chosen.
            loss += weight * (np.sum(np.where(wins == 1, change, -change)) < 0)
        shares.append(loss)
    return np.mean(shares)


def best_front(rewards):
    """Of the best answers under three weightings: one reward, the other, and both alike."""
    found = []
    for weights in SHARES:
        best = [answers[np.argmax([row @ weights for row in answers])] for answers in rewards]
        found.append(np.mean(best, axis=0))
    return np.array(found)


def balance(rewards):
    front = best_front(rewards)
    low, high = front.min(axis=0), front.max(axis=0)
    if (high <= low).any():
        return None
    shares = (front - low) / (high - low)
    return max(best_mixture(a, b) for a in shares for b in shares)


def best_mixture(a, b):
    """Of two points in two dimensions, the most that the least coordinate of a mixture can be."""
    gaps = a[0] - a[1], b[0] - b[1]
    found = max(a.min(), b.min())
    if gaps[0] * gaps[1] < 0:  # where both coordinates are equal in between
        part = gaps[1] / (gaps[1] - gaps[0])
        found = max(found, (part * a + (1 - part) * b)[0])
    return found


def beats(a, b):
    return (a >= b).all() and (a > b).any()


def nondominated(points):
    return np.array([not any(beats(b, a) for b in points) for a in points], float)


def hypervolume(points):
    """In two dimensions: strips from the best first objective down."""
    volume, height = 0.0, 0.0
    for x, y in sorted(points.tolist(), reverse=True):
        if x > 0 and y > height:
            volume, height = volume + x * (y - height), y
    return volume


def sparsity(points):
    front = np.unique(points[nondominated(points) > 0], axis=0)
    if len(front) < 2:
        return 0.0
    return (np.diff(np.sort(front, axis=0), axis=0) ** 2).sum() / (len(front) - 1)


def entropy(points):
    rows = [
        np.log(np.mean([np.exp(-np.sum((a - b) ** 2) / (2 * 0.05**2)) for b in points]))
        for a in points
    ]
    return -np.mean(rows)


def tau(requested, achieved):
    found = []
    for wanted, got in zip(np.round(requested.T, 5), achieved.T, strict=True):
        pairs = list(itertools.combinations(range(len(wanted)), 2))
        up = np.array([np.sign(wanted[i] - wanted[j]) for i, j in pairs])
        same = np.array([np.sign(got[i] - got[j]) for i, j in pairs])
        scale = np.sqrt((up**2).sum() * (same**2).sum())
        found.append((up * same).sum() / scale if scale else None)
    return tuple(found)


def cap(requested):
    found = []
    for wanted in np.round(requested.T, 5):
        pairs = list(itertools.combinations(wanted, 2))
        share = np.mean([a != b for a, b in pairs]) if pairs else 0
        found.append(np.sqrt(share) if share else None)
    return tuple(found)


def corner(requested, achieved):
    best = np.maximum(achieved.max(0), [1.0, 0.5])
    rows = [np.flatnonzero((requested == unit).all(1)) for unit in np.eye(2)]
    if not all(len(row) for row in rows):
        return None
    return np.mean([best[i] - achieved[row[0], i] for i, row in enumerate(rows)])


def movement(requested, achieved):
    rows = [np.flatnonzero((requested == unit).all(1)) for unit in np.eye(2)]
    if not all(len(row) for row in rows):
        return None, None
    first, second = achieved[rows[0][0]], achieved[rows[1][0]]
    return first[0] - second[0], second[1] - first[1]


def regret(weights, values):
    best = (weights @ np.array([[1.0, 0.0], [0.0, 1.0]])).max(1)
    return np.maximum(best - (weights * values).sum(1), 0).mean()


def judging(call, reference, *names, **more):
    """An entry of probabilities [U, P]."""
    arrays = dict(zip(names, (PROB, OTHER), strict=False)) | {"mask": MASK}
    return Entry(
        call, arrays, reference, "probability", "mask", (*names, "mask"), _JUDGING,
        {**_SEEDS, **more}, tolerance=1e-9, least=1e-12,
    )  # fmt: skip


def of_points(call, reference, **more):
    """An entry of points [W, R]."""
    return Entry(
        call, {"points": POINTS}, reference, "points", rows=("points",),
        refused=_of_points(1.0), skipped=more, tolerance=1e-9,
    )  # fmt: skip


def of_preferences(call, reference, refused, **more):
    """An entry of requested and achieved [W, R]."""
    return Entry(
        call, {"requested": REQUESTED, "achieved": POINTS}, reference, "achieved",
        rows=("requested", "achieved"), refused=refused, typed=("achieved",), skipped=more,
        tolerance=1e-9,
    )  # fmt: skip


def of_answers(call, reference):
    """A function of several answers to each prompt."""
    sentence = (
        "rewards: found shape {}, expected [X, n, R] finite numbers, n answers to each of X "
        "prompts; correct or leave out those that are not."
    )
    shapes = {"zero rows": (0, 2, 2), "wrong rank": (1, 3, 2, 2)}
    shapes |= {"nan live": (3, 2, 2), "infinity live": (3, 2, 2)}
    refused = {probe: sentence.format(shape) for probe, shape in shapes.items()}
    return Entry(
        lambda rewards: call(rewards, SHARES), {"rewards": ANSWERS}, reference, "rewards",
        rows=("rewards",), refused=refused, tolerance=1e-9,
    )  # fmt: skip


def means(judged):
    return tuple(judged[name] for name in ("accuracy", "gain", "nll", "flipped"))


METRICS = {
    "accuracy": judging(
        metrics.accuracy, lambda **a: user_accuracy(**a).mean(), "probability"
    ),
    "nll": judging(metrics.nll, lambda **a: user_nll(**a).mean(), "probability"),
    "user_accuracy": judging(metrics.user_accuracy, user_accuracy, "probability"),
    "user_nll": judging(metrics.user_nll, user_nll, "probability"),
    "user_gain": judging(metrics.user_gain, gain, "probability", "baseline"),
    "flipped": judging(metrics.flipped, flipped, "probability", "unadapted"),
    "calibration_error": judging(
        lambda probability, mask: metrics.calibration_error(probability, mask, bins=2),
        calibration, "probability",
    ),
    "reliability": judging(
        lambda probability, mask: metrics.reliability(probability, mask, bins=2),
        bins, "probability",
    ),
    "harmed": judging(
        lambda **a: metrics.harmed(**a, draws=2).mean,
        lambda probability, unadapted, mask: np.mean(gain(probability, unadapted, mask) < 0),
        "probability", "unadapted",
    ),
    "harm_floor": judging(metrics.harm_floor, harm_floor, "probability", "unadapted"),
    "paired_bootstrap": judging(
        lambda **a: metrics.paired_bootstrap(0, **a, draws=2).mean,
        lambda **a: gain(**a).mean(), "probability", "baseline",
    ),
    "judge": judging(
        lambda probability, unadapted, mask: means(
            metrics.judge(probability, unadapted, unadapted, mask, draws=2)
        ),
        lambda probability, unadapted, mask: (
            user_accuracy(probability, mask).mean(), gain(probability, unadapted, mask).mean(),
            user_nll(probability, mask).mean(), flipped(probability, unadapted, mask),
        ),
        "probability", "unadapted",
    ),
    "worst_groups": judging(
        lambda probability, baseline_probability, mask: metrics.worst_groups(
            probability, baseline_probability, mask, (1.0,), splits=1
        )["worst_100"],
        lambda probability, baseline_probability, mask: user_accuracy(probability, mask).mean(),
        "probability", "baseline_probability",
    ),
    "mean_interval": Entry(
        lambda values: metrics.mean_interval(0, values, draws=2).mean,
        {"values": np.array([0.25, 0.5, 1.0])}, lambda values: values[~np.isnan(values)].mean(),
        "values", rows=("values",), tolerance=1e-9,
        refused={
            "zero rows": "users: none with a pair; expected at least one.",
            "infinity live": "values[2] is infinity; expected finite numbers: correct it.",
            "wrong rank": "values: found shape [1, 3], expected [U]; give an array of 1 axis.",
        },
    ),
    "best_of_front": of_answers(metrics.best_of_front, best_front),
    "conflict": of_answers(lambda *a: metrics.conflict(*a).balance, balance),
    "nondominated": of_points(metrics.nondominated, nondominated),
    "hypervolume": of_points(
        lambda points: metrics.hypervolume(points, [0.0, 0.0]), hypervolume
    ),
    "sparsity": of_points(metrics.sparsity, sparsity),
    "entropy": of_points(metrics.entropy, entropy),
    "tau_b": of_preferences(metrics.tau_b, tau, _of_points(1.0)),
    "tau_cap": Entry(
        metrics.tau_cap, {"requested": REQUESTED}, cap, "requested", rows=("requested",),
        refused=_of_points(1.0), tolerance=1e-9,
    ),
    "squared_error": of_preferences(
        metrics.squared_error, lambda requested, achieved: ((requested - achieved) ** 2).mean(),
        _of_points(1.0),
    ),
    "corner_error": of_preferences(
        lambda requested, achieved: metrics.corner_error(requested, achieved, [1.0, 0.5]),
        corner, _of_points(1.0),
    ),
    "corner_movement": of_preferences(metrics.corner_movement, movement, _of_points(1.0)),
    "linear_regret": Entry(
        lambda weights, values: metrics.linear_regret(weights, values, np.eye(2)),
        {"weights": REQUESTED, "values": POINTS}, regret, "values", rows=("weights", "values"),
        refused=_of_points(1.0), typed=("values",), tolerance=1e-9,
    ),
}  # fmt: skip
