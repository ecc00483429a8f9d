"""How often the test lets hierarchical Bayes adapt: to people who do not differ, and who do.

Users choose between items with normal features, logistic in their weights. In some populations all
have the same weights; in the others weights differ so much that the true prior gains the stated
nats per choice from a user's support. The test is the one of `jaxalign mrm train`: each user is
judged by fits to the other folds, and one model for all users is among what adaptation must beat.
"""

import argparse
import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from benchmarks import harness
from jaxalign.progress import track

USERS, VALIDATION, FOLDS = 130, 26, 5
SUPPORT, QUERY, ITEMS = 20, 20, 200
LEVEL = 0.05
DRAWS = "draws.jsonl"
_CALIBRATION_USERS, _HALVINGS = 2000, 10
# Directions, and nats per choice that are to be gained.
WORLDS = tuple((size, nats) for nats in (0.0, 0.015) for size in (4, 8, 16))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--draws", type=int, default=100, help="populations of each kind")
    parser.add_argument("--directions", nargs="+", type=int, default=[4, 8, 16])


def run(arguments: argparse.Namespace) -> int:
    """Draws and tests every population, written down kind by kind; other kinds' rows are kept."""
    console = Console(stderr=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {
        "benchmark": "mrm_adaptation",
        "machine": harness.machine(),
        "units": "adapts: draws in which the test lets the method adapt; by_mean: draws in which "
        "the mean alone would; gain: mean over draws of the out-of-fold gain, in nats per choice",
        "settings": {"users": USERS, "folds": FOLDS, "support": SUPPORT, "query": QUERY},
    }
    earlier, rows = _earlier(arguments.out / "result.json", result["settings"])
    result["earlier"] = earlier
    for size, nats in WORLDS:
        if size in arguments.directions:
            console.print(f"E {size}, {nats:g} nats ...", highlight=False)
            draws = range(arguments.draws)
            rows[size, nats] = judged(size, nats, draws, arguments.out / DRAWS)
            result["rows"] = [rows[world] for world in WORLDS if world in rows]
            harness.write(arguments.out, result, _table(result["rows"]))
    print(_table(result["rows"]))
    return 0


def _earlier(
    path: Path, settings: dict[str, int]
) -> tuple[list[Any], dict[tuple[int, float], dict[str, Any]]]:
    """Machines and rows of a result with the same settings, the rows by directions and nats."""
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if before.get("settings") != settings:
        return [], {}
    rows = {(row["directions"], row["nats"]): row for row in before["rows"]}
    return [*before.get("earlier", []), before["machine"]], rows


def judged(size: int, nats: float, seeds: range, kept: Path | None = None) -> dict[str, Any]:
    """Return in how many populations, one per seed, the test lets hierarchical Bayes adapt.

    Args:
        size: directions E of the weights.
        nats: per choice that the true prior gains; 0 for people who do not differ.
        seeds: of the populations.
        kept: file of the draws that were made before with the same settings, one JSON line each, to
            which new ones are added; None keeps none.
    """
    spread = spread_for(size, nats)
    kind = [_settings(), size, nats]
    tests, title = _kept_tests(kept, kind), f"E {size}, {nats:g} nats"
    for seed in track(title, seeds, len(seeds), lambda _: 1, kept is not None):
        if seed in tests:
            continue
        tests[seed] = decided(size, spread, seed)._asdict()
        if kept is not None:
            with kept.open("a", encoding="utf-8") as file:
                file.write(json.dumps([*kind, seed, tests[seed]]) + "\n")
    found = [tests[seed] for seed in seeds]
    return {
        "directions": size,
        "nats": nats,
        "sd_of_weights": spread,
        "draws": len(found),
        "adapts": sum(test["p"] <= LEVEL for test in found),
        "by_mean": sum(test["gain"] > 0 for test in found),
        "gain": float(np.mean([test["gain"] for test in found])),
    }


def _settings() -> str:
    """Digest of all settings that decide a draw's test."""
    from jaxalign.mrm.config import BayesConfig

    sizes = [USERS, VALIDATION, FOLDS, SUPPORT, QUERY, ITEMS, _CALIBRATION_USERS, _HALVINGS]
    text = json.dumps([asdict(BayesConfig()), sizes], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _kept_tests(path: Path | None, kind: list[object]) -> dict[int, dict[str, float]]:
    """Tests of populations of a kind (settings, directions, nats) that a file has, by seed."""
    if path is None or not path.exists():
        return {}
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {seed: test for *found, seed, test in lines if found == kind}


class People(NamedTuple):
    """Users of a simulated population.

    Attributes:
        features: [I, E] of the items.
        mean: [E] of the weights.
        chosen: [U, P] numbers of items.
        rejected: [U, P].
    """

    features: np.ndarray
    mean: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray


def draw(seed: int, size: int, spread: float, users: int) -> People:
    """Return users whose weights have a standard deviation of `spread` in each direction."""
    rng = np.random.default_rng([seed, size])
    features = rng.standard_normal((ITEMS, size)) / np.sqrt(2)
    mean = rng.standard_normal(size) / np.sqrt(size)
    theta = mean + spread * rng.standard_normal((users, size))
    one, two = (rng.integers(0, ITEMS, (users, SUPPORT + QUERY)) for _ in range(2))
    two = np.where(one == two, (two + 1) % ITEMS, two)
    margin = np.einsum("UPE,UE->UP", features[one] - features[two], theta)
    first = rng.random(margin.shape) < 1 / (1 + np.exp(-margin))
    return People(features, mean, np.where(first, one, two), np.where(first, two, one))


def spread_for(size: int, nats: float) -> float:
    """Return the standard deviation of the weights at which the true prior gains so many nats."""
    if not nats:
        return 0.0
    low, high = 0.0, 2.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _true_gain(size, middle) < nats else (low, middle)
    return (low + high) / 2


def _true_gain(size: int, spread: float) -> float:
    import jax
    import jax.numpy as jnp

    from jaxalign import mrm

    people = draw(0, size, spread, _CALIBRATION_USERS)
    d = jnp.asarray(people.features[people.chosen] - people.features[people.rejected], jnp.float32)
    prior = mrm.Prior(jnp.asarray(people.mean, jnp.float32), spread**2 * jnp.eye(size))
    support, query = d[:, :SUPPORT], d[:, SUPPORT:]
    mask = jnp.ones(support.shape[:2])
    predict = jax.jit(mrm.predict)
    adapted, unadapted = (predict(prior, support, weight, query) for weight in (mask, 0 * mask))
    return float(jnp.mean(jnp.log(adapted) - jnp.log(unadapted)))


def decided(size: int, spread: float, seed: int) -> Any:
    """Return the test of one population, as `jaxalign mrm train` makes it."""
    import jax.numpy as jnp

    from jaxalign.data.batching import Pairs
    from jaxalign.mrm.out_of_fold import (
        FoldFit,
        adaptation_test,
        fold_data,
        out_of_fold,
        user_folds,
    )
    from jaxalign.mrm.registry import make_method
    from jaxalign.mrm.support_query import SupportQueryData, TrainingData, one_bucket

    people = draw(seed, size, spread, USERS)
    weight = np.ones(people.chosen.shape, np.float32)
    pairs = Pairs(people.chosen, people.rejected, weight, np.zeros(weight.shape, np.int32))
    cut = [
        one_bucket(Pairs(*(array[:, side] for array in pairs)))
        for side in (slice(None, SUPPORT), slice(SUPPORT, None))
    ]
    users = SupportQueryData(*cut)
    features = jnp.asarray(people.features, jnp.float32)
    pooled = TrainingData(features, features, one_bucket(pairs))
    training = Pairs(*(array[:-VALIDATION] for array in pairs))
    fold = user_folds(users, FOLDS, seed)
    common, bayes = make_method("bt"), make_method("bayes")
    fitted = bayes.fit(TrainingData(features, features, one_bucket(training)), 0)
    parts = fold_data(pooled, np.arange(USERS), fold)
    one_for_all, losses = (
        out_of_fold([FoldFit(method, method.fit(p, 0), features) for p in parts], users, fold)
        for method in (common, bayes.settled(fitted))
    )
    return adaptation_test(losses, [one_for_all])


def _table(rows: list[dict[str, Any]]) -> str:
    header = ["directions", "nats to gain", "adapts", "the mean alone", "gain, nats"]
    lines = [
        [
            str(row["directions"]),
            f"{row['nats']:g}",
            f"{row['adapts']} of {row['draws']}",
            f"{row['by_mean']} of {row['draws']}",
            f"{row['gain']:+.4f}",
        ]
        for row in rows
    ]
    return harness.table(header, lines)
