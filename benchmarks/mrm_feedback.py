"""Thumbs, stars and graded pairs as one likelihood, on simulated people whose truth is known.

Weights of 5 features are normal; a third of a user's rows each are choices with ties and two
strengths, thumbs, and five stars, the ratings on a level and a spread of the user's own. Posteriors
start from the true population. They are compared with posteriors from plain choices whose Fisher
information on the weights at the truth is the same, level and spread integrated out: the same on
average over users, and the same of every user. How much people's information varies costs accuracy
by itself: the mean of tr (prior precision + information)^-1 over users says how much, without any
posterior. Importance sampling gives the exact posterior means, independently of expectation
propagation.
"""

import argparse
from typing import Any

import numpy as np
from scipy.special import expit, log_expit, softmax

from benchmarks import harness

SHOTS = (5, 10, 20, 40)
SIZE, LEVEL_SD, SPREAD_SD, QUERY = 5, 0.8, 0.4, 40
MEAN = np.array([0.8, -0.4, 0.0, 0.2, 0.0])
SDS = np.array([1.4, 1.0, 0.8, 0.6, 0.4])
# Edge below a strict choice, that of a clear one, a thumb, four edges of the stars.
THRESHOLDS = np.array([0.4, 1.5, 0.3, -2.0, -0.7, 0.6, 1.9])
SAMPLES, EXACT_USERS, SCORES = 1000, 200, 5000
MIXED, RATED = (1 / 3, 1 / 3, 1 / 3), (0.0, 0.0, 1.0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)


def run(arguments: argparse.Namespace) -> int:
    """Judges every number of rows, written down one by one."""
    result = harness.empty_result(
        "mrm_feedback",
        "cover: share of true weights inside 95 % intervals; variance: mean squared error over "
        "posterior variance; information: mean trace at the truth, less what level and spread "
        "take; marginal_information: the same from scores, level and spread integrated out; "
        "error_ratio: mean squared error over that of the plain choices of equal mean Fisher "
        "information; expected_ratio: the same of tr (prior precision + information)^-1 alone; "
        "matched_ratio: mean squared error over that of plain choices of each user's own "
        "information, matched_expected of the traces; exact_ratio: over that of the exact "
        "posterior means, exact_ess the median effective share of the samples, and exact_shift the "
        "root mean square difference of the means in posterior sds, both of the first users alone; "
        "nll: expected, in nats per choice between new answers, after stars alone",
        {"users": arguments.users, "seed": arguments.seed},
    )
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
    utility = margin + rng.logistic(size=margin.shape)
    cuts = [np.array([-1.5, -0.4, 0.4, 1.5]), THRESHOLDS[2:3], THRESHOLDS[3:]]
    strength = np.where(abs(utility) > THRESHOLDS[1], 2, 1)
    lower, upper = levels.choice(strength, abs(utility) < THRESHOLDS[0])
    for scale in (0, 1):
        ends = levels.rating(scale, np.searchsorted(cuts[scale + 1], utility))
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
    turned = np.where(((kind == 0) & (utility < 0))[..., None], -vectors, vectors)
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
    slope = chance * (1 - chance)
    first = rng.random(chance.shape) < chance
    choices = np.where(first[..., None], d, -d).astype(np.float32)
    each = slope * (d**2).sum(-1)
    count = max(1, round(_mean_trace(information) / float(each.mean())))
    same = np.arange(d.shape[1]) < count
    # Of every user as many as come nearest to the user's own information.
    trace = np.trace(information, axis1=1, axis2=2)
    own = np.argmin(abs(np.cumsum(each, axis=1) - trace[:, None]), axis=1) + 1
    matched = np.arange(d.shape[1]) < own[:, None]
    plain, plain_bound = {}, {}
    for name, there in (("mean", np.broadcast_to(same, matched.shape)), ("own", matched)):
        widest = int(there.sum(1).max())
        some, weight = choices[:, :widest], there[:, :widest].astype(np.float32)
        posterior = mrm.posterior(_prior().weights, some, weight)
        plain[name] = float(((np.asarray(posterior[0]) - theta) ** 2).sum(1).mean())
        plain_bound[name] = _bound(np.einsum("UP,UPi,UPj->Uij", slope * there, d, d))
    total, bound = float(error.sum(1).mean()), _bound(information)
    return {
        "rows": shots,
        "cover": float((error < 1.96**2 * variance).mean()),
        "variance": float((error / variance).mean()),
        "plain_choices": count,
        "information": _mean_trace(information),
        "marginal_information": _marginal_trace(rng, shots),
        "error": total,
        "plain_error": plain["mean"],
        "error_ratio": total / plain["mean"],
        "expected_ratio": bound / plain_bound["mean"],
        "matched_error": plain["own"],
        "matched_ratio": total / plain["own"],
        "matched_expected": bound / plain_bound["own"],
        **_exact(rng, theta, rows, mean, cov),
        "nll": _scales(rng, person, shots),
    }


def _bound(information: np.ndarray) -> float:
    """Mean over users of the trace of the inverse of prior precision and information."""
    whole = information + np.diag(1 / SDS**2)
    return float(np.trace(np.linalg.inv(whole), axis1=1, axis2=2).mean())


def _marginal_trace(rng: np.random.Generator, shots: int) -> float:
    """Trace of the information of the rows, each user's level and spread integrated out.

    The mean over users of the squared score, whose terms are averaged over the posterior of level
    and spread given the true weights, on a grid.
    """
    total, users = 0.0, 250
    levels, spreads = (np.linspace(-3.2, 3.2, n) for n in (15, 11))
    grid = np.stack(np.meshgrid(levels, spreads, indexing="ij"), axis=-1).reshape(-1, 2)
    for _ in range(SCORES // users):
        person = people(rng, users)
        rows = feedback(rng, person, shots, MIXED)[0]
        edges = np.asarray(_prior().edges, np.float64)
        lower, upper = edges[rows.lower], edges[rows.upper]
        reward = np.einsum("UPE,UE->UP", rows.vectors, person[0])
        log, scores = [], []
        for level, spread in grid:
            by = np.where(rows.rating, np.exp(SPREAD_SD * spread), 1)
            margin = by * (reward - np.where(rows.rating, LEVEL_SD * level, 0))
            low, high = margin - lower, margin - upper
            gap = np.where(np.isfinite(lower) & np.isfinite(upper), upper - lower, np.inf)
            each = log_expit(low) + log_expit(-high) + np.log(-np.expm1(-gap))
            log.append(each.sum(1) - 0.5 * (level**2 + spread**2))
            slope = by * (1 - expit(low) - expit(high))
            scores.append(np.einsum("UP,UPE->UE", slope, rows.vectors))
        share = softmax(np.stack(log), axis=0)
        score = np.einsum("GU,GUE->UE", share, np.stack(scores))
        total += float((score**2).sum())
    return total / (SCORES // users * users)


def _exact(
    rng: np.random.Generator, theta: np.ndarray, rows: Any, mean: np.ndarray, cov: np.ndarray
) -> dict[str, float]:
    """Error of exact posterior means, by importance sampling from a wider t around the others.

    Level and spread are drawn from their population, and weights from a t of 6 degrees of freedom.
    """
    edges = np.asarray(_prior().edges, np.float64)
    lower, upper = edges[np.asarray(rows.lower)], edges[np.asarray(rows.upper)]
    some = min(EXACT_USERS, len(mean))
    found, share = np.empty((some, SIZE)), np.empty(some)
    for user in range(some):
        root = np.linalg.cholesky(1.1 * cov[user].astype(np.float64))
        normal = rng.standard_normal((SAMPLES, SIZE))
        wide = normal / np.sqrt(rng.chisquare(6, (SAMPLES, 1)) / 6)
        draws = mean[user] + wide @ root.T
        levels, spreads = (np.linspace(-3.2, 3.2, n) for n in (15, 11))
        masses = np.add.outer(-(levels**2) / 2, -(spreads**2) / 2)
        log = np.full(SAMPLES, -np.inf)
        reward = draws @ rows.vectors[user].T.astype(np.float64)
        is_rating = np.asarray(rows.rating)[user]
        choice = _log_levels(
            reward[:, ~is_rating], lower[user, ~is_rating], upper[user, ~is_rating]
        )
        for i, j in np.ndindex(masses.shape):
            margin = np.exp(SPREAD_SD * spreads[j]) * (reward[:, is_rating] - LEVEL_SD * levels[i])
            rated = _log_levels(margin, lower[user, is_rating], upper[user, is_rating])
            log = np.logaddexp(log, masses[i, j] + rated)
        log += choice - 0.5 * (((draws - MEAN) / SDS) ** 2).sum(1)
        log += 0.5 * (6 + SIZE) * np.log1p((wide**2).sum(1) / 6)
        weight = np.exp(log - log.max())
        weight /= weight.sum()
        found[user], share[user] = weight @ draws, 1 / (weight**2).sum() / SAMPLES
    error = ((found - theta[:some]) ** 2).sum(1).mean()
    mine = ((mean[:some] - theta[:some]) ** 2).sum(1).mean()
    away = (found - mean[:some]) ** 2 / np.diagonal(cov[:some], axis1=1, axis2=2)
    return {
        "exact_ratio": float(mine / error),
        "exact_ess": float(np.median(share)),
        "exact_shift": float(np.sqrt(away.mean())),
    }


def _log_levels(margin: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """Log probability [S] of the levels, by margins [S, P]."""
    low, high = margin - lower, upper - margin
    # sigmoid(margin - lower) - sigmoid(margin - upper), as a product without cancellation
    gap = np.where(np.isfinite(lower) & np.isfinite(upper), upper - lower, np.inf)
    logs = log_expit(low) + log_expit(high) + np.log(-np.expm1(-gap))
    return np.asarray(logs.sum(1))


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
    header += ["expected of their information", "error / that of choices with each user's own"]
    header += [
        "expected",
        "error / that of the exact posterior",
        "nll inferred",
        "ignored",
        "known",
    ]
    lines = [
        [
            str(row["rows"]),
            f"{100 * row['cover']:.1f} %",
            f"{row['variance']:.2f}",
            f"{row['error_ratio']:.2f} ({row['plain_choices']})",
            *(f"{row[name]:.2f}" for name in ("expected_ratio", "matched_ratio")),
            f"{row['matched_expected']:.2f}",
            f"{row['exact_ratio']:.3f}",
            *(f"{row['nll'][name]:.4f}" for name in ("inferred", "ignored", "known")),
        ]
        for row in rows
    ]
    return harness.table(header, lines)
