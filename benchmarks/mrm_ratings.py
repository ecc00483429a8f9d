"""Ratings used as ratings beside the same ratings turned into pairs, and ties as ties.

Jester: a model sees the same jokes of a user either rated, on the scale of the data, or as pairs of
them, and is judged on pairs of the user's other jokes, the same in every way. Training users,
validation users, who choose strength and temperature, and test users are drawn anew for each seed.
UKPConvArg1: votes, with those for neither of two arguments left out, as half a vote for each, or as
the middle level of the ordered logit.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks import harness

SHOTS = (5, 10, 20)
DIRECTIONS, DRAWS = 32, 2000
MARGIN, QUERY = 3.0, 40
SCALE = (-10.0, 10.0)
WAYS = ("ratings", "pairs", "disjoint pairs", "population")
TIES = ("no ties", "half votes", "ties")
KEPT = "rows.jsonl"
MOST_VOTES = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--jester", type=Path, help="folder of jokes.jsonl and ratings.csv.gz")
    parser.add_argument("--ukpconvarg1", type=Path, help="folder of its arguments and judgments")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--shots", nargs="+", type=int, default=list(SHOTS), help="of Jester")
    parser.add_argument(
        "--users", nargs=3, type=int, default=[800, 300, 900], help="to train, validate and test"
    )


def run(arguments: argparse.Namespace) -> int:
    """Judges every seed and way, each written down; those that are there are not judged again."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    kept = _Kept(arguments.out / KEPT, arguments.users)
    if arguments.jester:
        _jester(arguments, kept)
    if arguments.ukpconvarg1:
        _ukpconvarg1(arguments, kept)
    result = {
        "benchmark": "mrm_ratings",
        "machine": harness.machine(),
        "units": "accuracy in % and nll in nats, means over test users and seeds; intervals of 95 "
        "% by a bootstrap over users, whose differences are paired",
        "settings": {"seeds": arguments.seeds, "users": arguments.users, "directions": DIRECTIONS},
        "rows": _summed(kept.rows, arguments.seeds),
    }
    harness.write(arguments.out, result, _table(result["rows"]))
    print(_table(result["rows"]))
    return 0


class _Kept:
    """Losses of users that were measured, in a file of JSON lines."""

    def __init__(self, path: Path, users: list[int]) -> None:
        self.path, self.users, self.rows = path, users, {}
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                if row["users"] == users:
                    self.rows[tuple(row["key"])] = row

    def add(self, key: tuple, found: dict[str, Any]) -> None:
        """Write what a way gives for each user."""
        row = {"key": list(key), "users": self.users, **found}
        self.rows[key] = row
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def _features(texts: tuple[str, ...]) -> np.ndarray:
    from jaxalign.models.embed import encode, load_encoder
    from jaxalign.mrm.config import FeatureConfig
    from jaxalign.mrm.reduce import fit_projection

    values = encode(load_encoder(FeatureConfig().model), texts)
    return np.asarray(fit_projection(values, DIRECTIONS, 0.5).apply(values))


# Jester -----------------------------------------------------------------------------------------


def _jester(arguments: argparse.Namespace, kept: _Kept) -> None:
    from jaxalign.data import sources

    console = Console(stderr=True)
    source = sources.jester(arguments.jester, fold_pairs=False).choices
    jokes = source.items
    users, ratings = sources.jester_ratings(arguments.jester)
    features = _features(source.texts)
    for seed in arguments.seeds:
        rng = np.random.default_rng([seed, 17])
        people = rng.permutation(len(users))[: sum(arguments.users)]
        drawn = [_draw(rng, ratings[user]) for user in people]
        roles = np.split(np.arange(len(people)), np.cumsum(arguments.users)[:-1])
        for shots in arguments.shots:
            for way in WAYS:
                key = ("jester", shots, way, seed)
                if key in kept.rows:
                    continue
                console.print(f"Jester, {shots} jokes, {way}, seed {seed} ...", highlight=False)
                table = _jester_table(drawn, shots, way, jokes, source.texts)
                kept.add(key, _judged(table, features, roles, way != "population"))


def _draw(rng: np.random.Generator, row: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rated jokes that are seen with their ratings, and pairs [Q, 2] that a user is judged on."""
    rated = rng.permutation(np.flatnonzero(np.isfinite(row)))
    seen, judged = rated[: max(SHOTS)], rated[max(SHOTS) :]
    one, two = (judged[side] for side in np.triu_indices(len(judged), 1))
    apart = abs(row[one] - row[two]) >= MARGIN
    pairs = np.stack([one, two], axis=1)[apart]
    pairs = pairs[rng.permutation(len(pairs))[:QUERY]]
    better = row[pairs[:, 0]] > row[pairs[:, 1]]
    return seen, row[seen], np.where(better[:, None], pairs, pairs[:, ::-1])


def _jester_table(drawn: list, shots: int, way: str, jokes: tuple, texts: tuple) -> Any:
    """The table of one way: what users said of the seen jokes, and the pairs they are judged on."""
    from jaxalign.data.preferences import Preferences, RowDetails
    from jaxalign.data.ratings import rating_level, scale_levels

    parts, levels = [], []
    for user, (seen, rating, query) in enumerate(drawn):
        seen, rating = seen[:shots], rating[:shots]
        if way == "ratings":
            one = two = seen
            details = [rating_level(value, *SCALE) for value in rating]
        else:
            first, second = np.triu_indices(len(seen), 1)
            if way == "disjoint pairs":
                first, second = np.arange(0, len(seen) - 1, 2), np.arange(1, len(seen), 2)
            apart = abs(rating[first] - rating[second]) >= MARGIN
            first, second = first[apart], second[apart]
            up = rating[first] > rating[second]
            one, two = seen[np.where(up, first, second)], seen[np.where(up, second, first)]
            details = [-1] * len(one)
        parts.append((np.full(len(one) + len(query), user), np.append(one, query[:, 0]),
                      np.append(two, query[:, 1]), len(one)))  # fmt: skip
        levels += [*details, *([-1] * len(query))]
    user, chosen, rejected = (np.concatenate([part[i] for part in parts]) for i in range(3))
    held = np.concatenate([np.arange(len(part[0])) >= part[3] for part in parts])
    level, count = np.array(levels, np.int32), len(user)
    rated = level >= 0
    top = np.where(rated, scale_levels(*SCALE) - 1, 0).astype(np.int32)
    details = RowDetails(
        np.where(rated, 0, -1).astype(np.int32), np.maximum(level, 0), top,
        np.ones(count, np.float32), np.zeros(count, bool),
    )  # fmt: skip
    numbers = (array.astype(np.int32) for array in (user, chosen, rejected, np.arange(count)))
    return Preferences(
        tuple(f"{number}" for number in range(len(drawn))), jokes, texts, *numbers,
        np.full(count, -1, np.int32), np.zeros(count, bool), "jester", held,
        details=details if way == "ratings" else None, scales=(SCALE,) if way == "ratings" else (),
    )  # fmt: skip


def _judged(table: Any, features: np.ndarray, roles: list, reads: bool) -> dict[str, Any]:
    """Accuracy and nll of every test user, by hierarchical Bayes as `mrm train` has it."""
    import jax.numpy as jnp

    from jaxalign.mrm import make_method
    from jaxalign.mrm.config import ChoiceDataConfig
    from jaxalign.mrm.selection import predict, select, user_nll
    from jaxalign.mrm.support_query import (
        TrainingData,
        training_choices,
    )

    names = [tuple(table.users[number] for number in role) for role in roles]
    items = jnp.asarray(features)
    known = training_choices(table, names[0], ChoiceDataConfig(max_pairs=0), 0)
    method = make_method("bayes", replace(make_method("bayes").settings, em_steps=30))
    fitted = method.fit(TrainingData(items, items, known, scales=table.scales), 0)
    validation, test = (_known_and_judged(table, role) for role in names[1:])
    candidate, _ = select(method, fitted, items, validation)
    if not reads:
        candidate = {**candidate, "adapt": False}
    probability = predict(method, fitted, candidate, items, test)
    weight = test.query.padded.weight
    right = ((probability > 0.5) * weight).sum(1) / weight.sum(1)
    return {
        "accuracy": [round(float(value), 5) for value in right],
        "nll": [round(float(value), 5) for value in user_nll(probability[None], weight)[0]],
        "candidate": candidate,
    }


def _known_and_judged(table: Any, users: tuple[str, ...]) -> Any:
    """All users who can be judged, those of whom a way knows nothing among them."""
    from jaxalign.data.splits import rows_by_user
    from jaxalign.mrm.support_query import cut_support_query

    rows = [user for user in rows_by_user(table, users) if table.held_out[user].any()]
    support = [user[~table.held_out[user]] for user in rows]
    query = [user[table.held_out[user]] for user in rows]
    lengths = (np.array([*map(len, support)]), np.array([*map(len, query)]))
    return cut_support_query((table, table), (support, query), lengths)


# UKPConvArg1 ------------------------------------------------------------------------------------


def _ukpconvarg1(arguments: argparse.Namespace, kept: _Kept) -> None:
    from jaxalign.data import sources

    console = Console(stderr=True)
    table = sources.ukpconvarg1(arguments.ukpconvarg1).choices
    features = _features(table.texts)
    for seed in arguments.seeds:
        for way in TIES:
            key = ("ukpconvarg1", 20, way, seed)
            if key not in kept.rows:
                console.print(f"UKPConvArg1, {way}, seed {seed} ...", highlight=False)
                found = _judged_ties(table, features, way, seed, arguments.users)
                kept.add(key, found)


def _judged_ties(
    table: Any, features: np.ndarray, way: str, seed: int, users: list[int]
) -> dict[str, Any]:
    """Accuracy and nll of every test user on strict votes, ties read in one of three ways."""
    from jaxalign.data.splits import learned_from, split_users
    from jaxalign.mrm.config import BayesConfig, SplitConfig
    from jaxalign.mrm.feedback_population import fit_all_kinds
    from jaxalign.mrm.feedback_rows import population_arrays, prior_from
    from jaxalign.mrm.selection import user_nll
    from jaxalign.mrm.support_query import cut_episodes

    levels = _levels(way)
    split = split_users(table.users, seed)
    train, *judged = (
        role[:most]
        for role, most in zip((split.train, split.validation, split.test), users, strict=True)
    )
    rng = np.random.default_rng([seed, 29])
    known = [rng.permutation(rows)[:MOST_VOTES] for rows in learned_from(table, train)]
    rows = _votes(table, features, known, way)
    config = BayesConfig(em_steps=30, pseudo_users=(100.0, 500.0))
    population, _ = fit_all_kinds([rows], levels, config)
    arrays = population_arrays(population)
    cuts = [cut_episodes(table, SplitConfig(seed=seed), role) for role in judged]
    best, least = {}, np.inf
    settings = BayesConfig()
    for strength, heat in np.ndindex(len(settings.strengths), len(settings.temperatures)):
        candidate = {
            "strength": settings.strengths[strength],
            "temperature": settings.temperatures[heat],
        }
        chance, weight = _chances(
            table, features, cuts[0], way, prior_from(arrays, levels, candidate)
        )
        loss = float(np.nanmean(user_nll(chance[None], weight)[0]))
        if loss < least:
            best, least = candidate, loss
    chance, weight = _chances(table, features, cuts[1], way, prior_from(arrays, levels, best))
    right = ((chance > 0.5) * weight).sum(1) / weight.sum(1)
    return {
        "accuracy": [round(float(value), 5) for value in right],
        "nll": [round(float(value), 5) for value in user_nll(chance[None], weight)[0]],
        "candidate": best,
    }


def _levels(way: str) -> Any:
    from jaxalign.mrm import Levels

    return Levels(ties=way == "ties")


def _votes(table: Any, features: np.ndarray, rows: Any, way: str) -> Any:
    """Votes [U, P] of users as feedback."""
    import jax.numpy as jnp

    from jaxalign.data.batching import pad_pairs
    from jaxalign.mrm import Feedback

    rows = [user if way != "no ties" else user[~table.tie[user]] for user in rows]
    pairs = pad_pairs(table, rows)
    tie = pairs.weight == 0.5
    weight = np.asarray(pairs.weight)
    if way == "ties":
        # Of the two rows of a tie the second is not needed.
        first = np.cumsum(tie, axis=1) <= tie.sum(1, keepdims=True) // 2
        weight = np.where(tie, first, weight).astype(np.float32)
    vectors = features[pairs.chosen] - features[pairs.rejected]
    lower, upper = _levels(way).choice(None, tie & (way == "ties"))
    kinds = (vectors.astype(np.float32), np.zeros(tie.shape, bool), lower, upper, weight)
    return Feedback(*map(jnp.asarray, kinds))


def _chances(
    table: Any, features: np.ndarray, cut: Any, way: str, prior: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [U, Q] of the strict votes that users are judged on, and their weights."""
    import jax.numpy as jnp

    from jaxalign.data.batching import pad_pairs
    from jaxalign.mrm.feedback_rows import inferred
    from jaxalign.mrm.logistic_normal import choice_mass

    found = inferred(prior, _votes(table, features, cut.support, way))
    query = pad_pairs(table, cut.query)
    d = jnp.asarray(features[query.chosen] - features[query.rejected], jnp.float32)
    mean = jnp.einsum("UQE,UE->UQ", d, found.mean)
    variance = jnp.einsum("UQE,UEF,UQF->UQ", d, found.cov, d)
    # Edge 2 is the one below a strict vote.
    won, lost = (choice_mass(side * mean - prior.edges[2], variance) for side in (1, -1))
    return np.asarray(won / (won + lost)), np.asarray(query.weight)


def _summed(rows: dict[tuple, dict[str, Any]], seeds: list[int]) -> list[dict[str, Any]]:
    """Means over users and seeds, and paired differences to the ways beside."""
    found = []
    for data, shots, way in dict.fromkeys(key[:3] for key in rows):
        keys = [(data, shots, way, seed) for seed in seeds]
        if not all(key in rows for key in keys):
            continue
        rival = {"jester": "pairs", "ukpconvarg1": "half votes"}[data]
        row: dict[str, Any] = {"data": data, "rows": shots, "way": way, "against": rival}
        for name, scale in (("accuracy", 100.0), ("nll", 1.0)):
            mine = np.concatenate([rows[key][name] for key in keys]) * scale
            row[name] = _interval(mine)
            others = [(data, shots, rival, seed) for seed in seeds]
            if way != rival and all(key in rows for key in others):
                other = np.concatenate([rows[key][name] for key in others]) * scale
                row[f"{name}_gain"] = _interval(mine - other)
        found.append(row)
    return found


def _interval(values: np.ndarray) -> list[float]:
    """Mean, and the ends of its 95 % interval by a bootstrap over users."""
    rng = np.random.default_rng(0)
    draws = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(DRAWS)]
    return [float(x) for x in (values.mean(), *np.quantile(draws, (0.025, 0.975)))]


def _table(rows: list[dict[str, Any]]) -> str:
    header = ["data", "rows", "way", "accuracy %", "nll", "accuracy, points over", "nll over"]

    def cell(row: dict[str, Any], name: str, digits: int) -> str:
        if name not in row:
            return "-"
        mean, low, high = row[name]
        return f"{mean:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"

    lines = [
        [
            row["data"], str(row["rows"]), row["way"],
            f"{row['accuracy'][0]:.1f}", f"{row['nll'][0]:.4f}",
            cell(row, "accuracy_gain", 1), cell(row, "nll_gain", 4),
        ]
        for row in rows
    ]  # fmt: skip
    return harness.table(header, lines)
