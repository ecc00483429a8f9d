"""Thumbs, stars and graded pairs as one likelihood, on simulated people whose truth is known.

Weights of 5 features are normal; a third of a user's rows each are choices with ties and two
strengths, thumbs, and five stars, the ratings on a level and a spread of the user's own. Posteriors
start from the true population. They are compared with posteriors from plain choices, so many that
their Fisher information on the weights at the truth is the same, level and spread integrated out.
"""

import argparse
from typing import Any

import numpy as np
from scipy.special import expit

from benchmarks import harness

SHOTS = (5, 10, 20, 40)
SIZE, LEVEL_SD, SPREAD_SD, QUERY = 5, 0.8, 0.4, 40
MEAN = np.array([0.8, -0.4, 0.0, 0.2, 0.0])
SDS = np.array([1.4, 1.0, 0.8, 0.6, 0.4])
# Edge below a strict choice, that of a clear one, a thumb, four edges of the stars.
THRESHOLDS = np.array([0.4, 1.5, 0.3, -2.0, -0.7, 0.6, 1.9])
MIXED, RATED = (1 / 3, 1 / 3, 1 / 3), (0.0, 0.0, 1.0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)


def run(arguments: argparse.Namespace) -> int:
    """Judges every number of rows, written down one by one."""
    result: dict[str, Any] = {
        "benchmark": "mrm_feedback",
        "machine": harness.machine(),
        "units": "cover: share of true weights inside 95 % intervals; variance: mean squared error "
        "over posterior variance; error_ratio: mean squared error over that of the plain choices "
        "of equal Fisher information; nll: expected, in nats per choice between new answers, after "
        "stars alone",
        "settings": {"users": arguments.users, "seed": arguments.seed},
        "rows": [],
    }
    for shots in SHOTS:
        result["rows"].append(judged(shots, arguments.users, arguments.seed))
        harness.write(arguments.out, result, _table(result["rows"]))
    print(_table(result["rows"]))
    return 0


def _levels() -> Any:
    from jaxalign.mrm import Levels

    return Levels(ties=True, strengths=2, ratings=(2, 5))


def people(rng: np.random.Generator, users: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights [U, E], levels [U] and spreads [U]."""
    theta = MEAN + rng.standard_normal((users, SIZE)) * SDS
    spread = np.exp(SPREAD_SD * rng.standard_normal(users))
    return theta, LEVEL_SD * rng.standard_normal(users), spread


def feedback(
    rng: np.random.Generator, person: tuple, rows: int, mix: tuple
) -> tuple[Any, np.ndarray]:
    """Rows of every user, and the information [U, E, E] on the weights that they hold."""
    from jaxalign.mrm import Feedback

    theta, level, spread = person
    levels, users = _levels(), len(theta)
    kind = rng.choice(3, (users, rows), p=mix)
    vectors = rng.standard_normal((users, rows, SIZE))
    vectors -= np.where(kind[..., None] == 0, rng.standard_normal(vectors.shape), 0)
    reward = np.einsum("UPE,UE->UP", vectors, theta)
    rating = kind > 0
    margin = np.where(rating, spread[:, None] * (reward - level[:, None]), reward)
    said = margin + rng.logistic(size=margin.shape)
    cuts = [np.array([-1.5, -0.4, 0.4, 1.5]), THRESHOLDS[2:3], THRESHOLDS[3:]]
    strength = np.where(abs(said) > THRESHOLDS[1], 2, 1)
    lower, upper = levels.choice(strength, abs(said) < THRESHOLDS[0])
    for scale in (0, 1):
        ends = levels.rating(scale, np.searchsorted(cuts[scale + 1], said))
        mine = kind == scale + 1
        lower, upper = np.where(mine, ends[0], lower), np.where(mine, ends[1], upper)
    information = np.choose(kind, [_information(margin, edges) for edges in cuts])
    slope = np.concatenate(
        [
            np.where(rating, spread[:, None], 1)[..., None] * vectors,
            np.where(rating, -spread[:, None], 0)[..., None],
            np.where(rating, margin, 0)[..., None],
        ],
        axis=-1,
    )
    whole = np.einsum("UP,UPi,UPj->Uij", information, slope, slope)
    nuisance = whole[:, SIZE:, SIZE:] + np.diag([LEVEL_SD**-2, SPREAD_SD**-2])
    cross = whole[:, :SIZE, SIZE:]
    lost = cross @ np.linalg.solve(nuisance, np.swapaxes(cross, 1, 2))
    turned = np.where(((kind == 0) & (said < 0))[..., None], -vectors, vectors)
    weight = np.ones((users, rows), np.float32)
    rows_ = Feedback(turned.astype(np.float32), rating, lower, upper, weight)
    return rows_, whole[:, :SIZE, :SIZE] - lost


def _information(margin: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """Fisher information on the margin of an ordered logit."""
    above = expit(margin[..., None] - cuts)
    ends = (np.ones_like(above[..., :1]), np.zeros_like(above[..., :1]))
    above = np.concatenate([ends[0], above, ends[1]], axis=-1)
    mass, slope = -np.diff(above), -np.diff(above * (1 - above))
    return (slope**2 / np.maximum(mass, 1e-12)).sum(-1)


def _prior(level_sd: float = LEVEL_SD, spread_sd: float = SPREAD_SD) -> Any:
    import jax.numpy as jnp

    from jaxalign.mrm import FeedbackPrior, Prior

    weights = Prior(jnp.asarray(MEAN, jnp.float32), jnp.asarray(np.diag(SDS**2), jnp.float32))
    edges = _levels().edges(jnp.asarray(THRESHOLDS, jnp.float32))
    return FeedbackPrior(weights, edges, *map(jnp.float32, (level_sd, 0.0, spread_sd)))


def judged(shots: int, users: int, seed: int) -> dict[str, Any]:
    """Return the figures after a number of rows per user."""
    from jaxalign import mrm

    rng = np.random.default_rng([seed, shots])
    person = people(rng, users)
    theta = person[0]
    rows, information = feedback(rng, person, shots, MIXED)
    found = mrm.feedback_posterior(_prior(), rows)
    mean, cov = np.asarray(found.mean), np.asarray(found.cov)
    variance = np.diagonal(cov, axis1=1, axis2=2)
    error = (mean - theta) ** 2
    # Plain choices: information of one on average, and so many.
    d = rng.standard_normal((users, 400, SIZE)) * np.sqrt(2)
    chance = expit(np.einsum("UPE,UE->UP", d, theta))
    one = (chance * (1 - chance))[..., None, None] * d[..., :, None] * d[..., None, :]
    count = max(1, round(_mean_trace(information) / _mean_trace(one)))
    first = rng.random((users, count)) < chance[:, :count]
    choices = np.where(first[..., None], d[:, :count], -d[:, :count]).astype(np.float32)
    plain = mrm.posterior(_prior().weights, choices, np.ones((users, count), np.float32))
    plain_error = (np.asarray(plain[0]) - theta) ** 2
    return {
        "rows": shots,
        "cover": float((error < 1.96**2 * variance).mean()),
        "variance": float((error / variance).mean()),
        "plain_choices": count,
        "error": float(error.sum(1).mean()),
        "plain_error": float(plain_error.sum(1).mean()),
        "error_ratio": float(error.sum(1).mean() / plain_error.sum(1).mean()),
        "nll": _scales(rng, person, shots),
    }


def _mean_trace(information: np.ndarray) -> float:
    return float(np.trace(information, axis1=-2, axis2=-1).mean())


def _scales(rng: np.random.Generator, person: tuple, shots: int) -> dict[str, float]:
    """Nll after stars alone: scales inferred, ignored, and known."""
    from jaxalign import mrm

    theta, level, spread = person
    rows, _ = feedback(rng, person, shots, RATED)
    posteriors = {
        "inferred": mrm.feedback_posterior(_prior(), rows),
        "ignored": mrm.feedback_posterior(_prior(1e-3, 1e-3), rows),
        "known": mrm.feedback_posterior(*_known(rows, level, spread)),
    }
    query = rng.standard_normal((len(theta), QUERY, SIZE)) * np.sqrt(2)
    return {name: _nll(found, theta, query) for name, found in posteriors.items()}


def _known(rows: Any, level: np.ndarray, spread: np.ndarray) -> tuple[Any, Any]:
    """A prior and rows under which every user's level and spread are given."""
    import jax.numpy as jnp

    # A sixth weight, 1 for certain, has the level for its feature.
    prior = _prior(1e-3, 1e-3)
    mean = jnp.append(prior.weights.mean, 1)
    cov = jnp.zeros((SIZE + 1, SIZE + 1)).at[:SIZE, :SIZE].set(prior.weights.cov)
    levels = np.broadcast_to(-level[:, None, None], (*rows.vectors.shape[:2], 1))
    vectors = spread[:, None, None] * np.concatenate([rows.vectors, levels], axis=-1)
    weights = prior.weights._replace(mean=mean, cov=cov)
    return prior._replace(weights=weights), rows._replace(vectors=vectors.astype(np.float32))


def _nll(found: Any, theta: np.ndarray, query: np.ndarray) -> float:
    import jax

    from jaxalign import mrm

    pairs = query.astype(np.float32)
    mean, cov = found.mean[:, :SIZE], found.cov[:, :SIZE, :SIZE]
    guess = np.asarray(jax.vmap(mrm.choice_probability)(mean, cov, pairs))
    truth = expit(np.einsum("UPE,UE->UP", query, theta))
    guess = np.clip(guess, 1e-7, 1 - 1e-7)
    return float(-(truth * np.log(guess) + (1 - truth) * np.log1p(-guess)).mean())


def _table(rows: list[dict[str, Any]]) -> str:
    header = ["rows", "cover", "variance", "error / that of plain choices (how many)"]
    header += ["nll inferred", "ignored", "known"]
    lines = [
        [
            str(row["rows"]),
            f"{100 * row['cover']:.1f} %",
            f"{row['variance']:.2f}",
            f"{row['error_ratio']:.2f} ({row['plain_choices']})",
            *(f"{row['nll'][name]:.4f}" for name in ("inferred", "ignored", "known")),
        ]
        for row in rows
    ]
    return harness.table(header, lines)
