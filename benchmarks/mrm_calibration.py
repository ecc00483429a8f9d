"""Hierarchical Bayes on simulated populations whose truth is known: prior, likelihood, intervals.

Weights are normal with a mean, choices logistic in them. The pairs' differences are standard
normal, and the covariance is scaled so that a logit's standard deviation over users is as stated.
New users are judged on new pairs, by the expected negative log-likelihood under their true weights.
"""

import argparse
import resource
import time
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks import harness

SHOTS = (5, 10, 20, 40)
QUERY, JUDGED = 20, 20
# Name, directions, standard deviation of a logit, choices, spectrum, degrees of freedom.
WORLDS = (
    *((f"E {size}, sd {sd}", size, sd, 30, "flat", 0) for size in (5, 8) for sd in (1, 2, 4, 8)),
    *((f"E 32, sd {sd}", 32, sd, 30, "flat", 0) for sd in (1, 2, 4, 8)),
    ("E 8, sd 2, 10 choices", 8, 2, 10, "flat", 0),
    ("E 8, sd 2, decaying", 8, 2, 30, "decaying", 0),
    ("E 32, sd 2, decaying", 32, 2, 30, "decaying", 0),
    ("E 8, sd 2, t with 4 degrees", 8, 2, 30, "flat", 4),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--worlds", nargs="+", default=[world[0] for world in WORLDS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--users", type=int, default=1500, help="that the population is fitted on")
    parser.add_argument("--new-users", type=int, default=1000, help="that are judged")


def run(arguments: argparse.Namespace) -> int:
    """Fits and judges every world, written down one by one."""
    console = Console(stderr=True)
    settings = {name: getattr(arguments, name) for name in ("seeds", "users", "new_users")}
    result = harness.empty_result(
        "mrm_calibration",
        "variance and mean: estimate over truth; excess_nll: nats per choice above the true "
        "prior's, after 20 choices; cover: share of truths inside 95 % intervals, by number of "
        "choices; cpu_seconds: of a fit with its choice of pseudo-users, once compiled",
        settings,
    )
    for world in WORLDS:
        if world[0] in arguments.worlds:
            for seed in arguments.seeds:
                console.print(f"{world[0]}, seed {seed} ...", highlight=False)
                result["rows"].append(judged(world, seed, arguments.users, arguments.new_users))
                harness.write(arguments.out, result, _table(result["rows"]))
    print(_table(result["rows"]))
    return 0


def population(
    rng: np.random.Generator, size: int, sd: float, spectrum: str
) -> tuple[np.ndarray, np.ndarray]:
    """Mean [E] and covariance [E, E] of the weights."""
    cov = np.eye(size)
    if spectrum == "decaying":
        turn = np.linalg.qr(rng.standard_normal((size, size)))[0]
        cov = (turn * 0.7 ** np.arange(size)) @ turn.T
    mean = 0.5 * sd * rng.standard_normal(size) / np.sqrt(size)
    return mean, sd**2 * cov / np.trace(cov)


def draw_weights(
    rng: np.random.Generator, users: int, mean: np.ndarray, cov: np.ndarray, freedom: int
) -> np.ndarray:
    """Weights [U, E], normal or (of the same covariance) from Student's t."""
    drawn = rng.standard_normal((users, len(mean)))
    if freedom:
        drawn /= np.sqrt(rng.chisquare(freedom, (users, 1)) / (freedom - 2))
    return mean + drawn @ np.linalg.cholesky(cov).T


def draw_choices(rng: np.random.Generator, theta: np.ndarray, count: int) -> np.ndarray:
    """Differences [U, P, E] of choices, chosen minus rejected."""
    d = rng.standard_normal((len(theta), count, theta.shape[1]))
    first = rng.random(d.shape[:2]) < _sigmoid(np.einsum("UPE,UE->UP", d, theta))
    return np.where(first[..., None], d, -d).astype(np.float32)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -x))


def judged(world: tuple, seed: int, users: int, new_users: int) -> dict[str, Any]:
    """Return the figures of one world."""
    import jax.numpy as jnp

    from jaxalign import mrm
    from jaxalign.mrm.population import choices_of, fit_population

    name, size, sd, count, spectrum, freedom = world
    rng = np.random.default_rng([seed, size, sd, count])
    mean, cov = population(rng, size, sd, spectrum)
    d = draw_choices(rng, draw_weights(rng, users, mean, cov, freedom), count)
    buckets = (choices_of(d, np.ones(d.shape[:2])),)
    fit_population(buckets, mrm.BayesConfig())  # compiles
    begun, cpu = time.perf_counter(), _cpu()
    fitted = fit_population(buckets, mrm.BayesConfig())
    seconds, cpu = time.perf_counter() - begun, _cpu() - cpu
    truth = mrm.Prior(jnp.asarray(mean, jnp.float32), jnp.asarray(cov, jnp.float32))
    theta = draw_weights(rng, new_users, mean, cov, freedom)
    support = draw_choices(rng, theta, max(SHOTS))
    query = draw_choices(rng, theta, QUERY)
    found = fitted.prior
    nll = [_nll(prior, theta, support[:, :JUDGED], query) for prior in (found, truth)]
    cover = {shots: _cover(found, theta, support[:, :shots], query) for shots in SHOTS}
    return {
        "name": name,
        "seed": seed,
        "variance": float(np.trace(found.cov) / np.trace(cov)),
        "mean": float(np.asarray(found.mean) @ mean / (mean @ mean)),
        "pseudo_users": fitted.pseudo_users,
        "nll": nll[0],
        "excess_nll": nll[0] - nll[1],
        "cover_weights": {shots: pair[0] for shots, pair in cover.items()},
        "cover_margins": {shots: pair[1] for shots, pair in cover.items()},
        "cpu_seconds": cpu,
        "seconds": seconds,
    }


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _moments(prior: Any, support: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    import jax

    from jaxalign import mrm
    from jaxalign.train.blas import one_blas_thread

    infer = one_blas_thread(jax.jit(mrm.posterior))
    mean, cov = infer(prior, support, np.ones(support.shape[:2], np.float32))
    return np.asarray(mean), np.asarray(cov)


def _nll(prior: Any, theta: np.ndarray, support: np.ndarray, query: np.ndarray) -> float:
    """Expected over the answers of the query pairs."""
    import jax

    from jaxalign import mrm

    probability = np.asarray(jax.vmap(mrm.choice_probability)(*_moments(prior, support), query))
    true = _sigmoid(np.einsum("UQE,UE->UQ", query, theta))
    first = -true * np.log(np.maximum(probability, 1e-12))
    return float(np.mean(first - (1 - true) * np.log(np.maximum(1 - probability, 1e-12))))


def _cover(
    prior: Any, theta: np.ndarray, support: np.ndarray, query: np.ndarray
) -> tuple[float, float]:
    """Share of weights, and of the query pairs' margins, that lie in their 95 % interval."""
    mean, cov = _moments(prior, support)
    spread = np.sqrt(np.einsum("UEE->UE", cov))
    weights = np.abs(theta - mean) <= 1.96 * spread
    spread = np.sqrt(np.einsum("UQE,UEF,UQF->UQ", query, cov, query))
    margins = np.abs(np.einsum("UQE,UE->UQ", query, theta - mean)) <= 1.96 * spread
    return float(weights.mean()), float(margins.mean())


def _table(rows: list[dict[str, Any]]) -> str:
    shots = ", ".join(map(str, SHOTS))
    header = ["population", "seed", "variance", "mean", "pseudo-users", "excess nll"]
    header += [f"weights covered after {shots}", f"margins covered after {shots}", "CPU s"]
    lines = []
    for row in rows:
        cover = [
            ", ".join(f"{100 * share:.1f}" for share in row[name].values())
            for name in ("cover_weights", "cover_margins")
        ]
        figures = [f"{row['variance']:.2f}", f"{row['mean']:.2f}", f"{row['pseudo_users']:g}"]
        nll = f"{row['excess_nll']:+.4f}"
        lines.append(
            [row["name"], str(row["seed"]), *figures, nll, *cover, f"{row['cpu_seconds']:.1f}"]
        )
    return harness.table(header, lines)
