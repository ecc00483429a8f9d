"""Accuracy against number of choices: pairs chosen by `mrm.next_pair` beside random ones.

Simulated people of the demo, judged on held-out prompts; and raters of Jester,
asked about pairs of one half of the jokes they rated, 3 points apart or more, and judged on such
pairs of the other half. Both ways draw from the same pairs, a pair is answered alike whoever asks
it, and none is asked twice.
"""

import argparse
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from benchmarks import harness

PARTS = ("curves", "cost")
WAYS = ("chosen", "random")
SHOWN = (0, 5, 10, 20, 40)
QUERY = 40
JESTER_SUPPORT = 20  # of a validation user; the demo's have as many
COST_SIZES = (5, 128)
CALLS = 500
COLOURS = {"chosen": "#0072B2", "random": "#D55E00"}


class People(NamedTuple):
    """Test users of one world.

    Attributes:
        prior: of their weights, from training users, at the strength and temperature that
            validation users chose.
        features: [I, E].
        pool: [U, M] pairs they can be asked, as they would answer; weight 0 in padding.
        query: [U, Q] pairs they are judged on.
        accuracy: probabilities [U, Q] of the chosen answer -> accuracy [U].
    """

    prior: Any
    features: Any
    pool: Any
    query: Any
    accuracy: Callable[[np.ndarray], np.ndarray]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what is left out is kept"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--users", type=int, default=600, help="of the demo")
    parser.add_argument(
        "--pairs", type=int, default=1000, help="to choose from, a user of the demo"
    )
    parser.add_argument("--choices", type=int, default=40)
    parser.add_argument("--kinds", nargs="*", default=["named", "learned"], help="of the demo")
    parser.add_argument("--jester", type=Path, help="folder of jokes.jsonl and ratings.csv.gz")
    parser.add_argument("--jester-users", type=int, default=0, help="test users, 0 for all")


def run(arguments: argparse.Namespace) -> int:
    """Asks all users in both ways, and measures what a choice and a question cost."""
    path = arguments.out / "result.json"
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    result = {"rows": [], "cost": [], **result, "benchmark": "mrm_ask"}
    if "cost" in arguments.parts:
        result |= {"cost_machine": harness.machine(), "cost": _cost()}
    if "curves" in arguments.parts:
        _curves(result, arguments)
    harness.write(arguments.out, result, _table(result))
    print(_table(result))
    return 0


def _curves(result: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Asks all users in both ways, written down world by world."""
    console, start = Console(stderr=True), time.perf_counter()
    names = ("seeds", "users", "pairs", "choices", "jester_users")
    settings = {name: getattr(arguments, name) for name in names}
    result["machine"] = harness.machine()
    for name, makes in _worlds(arguments).items():
        figures: dict[str, list[np.ndarray]] = {way: [] for way in WAYS}
        for seed, make in makes:
            console.print(f"{name}, seed {seed} ...", highlight=False)
            people = make()
            for way in WAYS:
                figures[way].append(_curve(people, way, arguments.choices, seed))
        curves = {way: np.concatenate(parts, axis=1) for way, parts in figures.items()}
        row = {**_row(name, curves), "settings": settings}
        row["seconds"] = time.perf_counter() - start
        result["rows"] = [r for r in result["rows"] if r["name"] != name] + [row]
        start = time.perf_counter()
        harness.write(arguments.out, result, _table(result))
        _plot(result["rows"], arguments.out / "mrm_ask.png")


def _worlds(arguments: argparse.Namespace) -> dict[str, list[tuple[int, Callable[[], People]]]]:
    """Name -> (seed, what makes its people) of every seed."""
    worlds: dict[str, list[tuple[int, Callable[[], People]]]] = {}
    for population in ("friendly", "misspecified") if arguments.kinds else ():
        for kind in arguments.kinds:
            worlds[f"demo, {population}, {kind} rewards"] = [
                (seed, functools.partial(_demo, population, kind, seed, arguments))
                for seed in arguments.seeds
            ]
    if arguments.jester:
        worlds["Jester"] = [
            (seed, functools.partial(_jester, seed, arguments)) for seed in arguments.seeds
        ]
    return worlds


# Worlds ---------------------------------------------------------------------------------------


def _demo(population: str, kind: str, seed: int, arguments: argparse.Namespace) -> People:
    from jaxalign.demo import study
    from jaxalign.demo.answers import encode_answers, read_answers
    from jaxalign.demo.people import choose, draw_people

    answers = read_answers()
    plan = study.design(arguments.users, len(answers.prompts), seed)
    people = draw_people(population, arguments.users, seed)
    world = study.simulate(people, answers, plan, seed)
    features = answers.traits
    if kind == "learned":
        encoded, _ = encode_answers(answers.texts, show=False)
        features = study.learned_features(encoded, answers, plan)["within prompts, 0.5"][1]
    rng = np.random.default_rng([seed, 4])
    pool, count = answers.pairs(plan.known), arguments.pairs
    asked = choose(people, plan.test, answers.traits, pool, count, rng)
    parts = (world.fitted, world.support["validation"], world.query["validation"])
    prior = _prior(features, *(_pairs(part.chosen, part.rejected) for part in parts))
    judged = world.query["test"]
    return People(
        prior,
        features,
        _pairs(asked.chosen, asked.rejected),
        _pairs(judged.chosen, judged.rejected),
        lambda probability: study.expected_accuracy(probability, judged),
    )


def _jester(seed: int, arguments: argparse.Namespace) -> People:
    """As configs/mrm/jester.yaml, with all pairs of a half to ask; the seed is of the users."""
    from jaxalign import data
    from jaxalign.data.batching import pad_pairs
    from jaxalign.data.splits import episodes, rows_by_user, split_users
    from jaxalign.models.embed import encode, load_encoder
    from jaxalign.mrm.config import FeatureConfig
    from jaxalign.mrm.reduce import fit_projection

    choices = data.jester(arguments.jester, pairs_per_half=1225, fold_pairs=False).choices
    split = split_users(choices.users, seed)
    encoded = encode(load_encoder(FeatureConfig.model), choices.texts)
    features = fit_projection(encoded, 128, 0.5).apply(encoded)

    def first_of_each_half(rows: np.ndarray) -> np.ndarray:
        halves = [rows[choices.group[rows] == half] for half in np.unique(choices.group[rows])]
        return np.concatenate([rows[:0], *(half[:40] for half in halves)])

    def cut(users: tuple[str, ...], support: int = 0) -> tuple[Any, Any]:
        parts = episodes(choices, users, seed, support, QUERY, 0.5, 20, QUERY)
        return pad_pairs(choices, parts.support), pad_pairs(choices, parts.query)

    training = [first_of_each_half(rows) for rows in rows_by_user(choices, split.train)]
    validating = cut(split.validation, JESTER_SUPPORT)
    prior = _prior(features, pad_pairs(choices, training), *validating)
    users = split.test[: arguments.jester_users or None]
    return People(prior, features, *cut(users), _accuracy)


def _pairs(chosen: np.ndarray, rejected: np.ndarray) -> Any:
    from jaxalign.data.batching import Pairs

    weight = np.ones(chosen.shape, np.float32)
    numbers = (chosen.astype(np.int32), rejected.astype(np.int32))
    return Pairs(*numbers, weight, np.zeros(chosen.shape, np.int32))


def _accuracy(probability: np.ndarray) -> np.ndarray:
    return np.where(probability == 0.5, 0.5, probability > 0.5).mean(axis=1)


def _prior(features: np.ndarray, training: Any, support: Any, query: Any) -> Any:
    """As `mrm train` makes it: of training users, at the strength that validation users chose."""
    import jax.numpy as jnp

    from jaxalign.mrm.config import BayesConfig
    from jaxalign.mrm.hierarchical import HierarchicalBayes
    from jaxalign.mrm.selection import select
    from jaxalign.mrm.support_query import SupportQueryData, TrainingData, one_bucket

    table = jnp.asarray(features, jnp.float32)
    method = HierarchicalBayes(BayesConfig(), "bayes")
    fitted = method.fit(TrainingData(table, table, one_bucket(training)))
    users = SupportQueryData(one_bucket(support), one_bucket(query))
    return method.prior(fitted, select(method, fitted, table, users)[0])


# Asking ---------------------------------------------------------------------------------------


def _curve(people: People, way: str, choices: int, seed: int) -> np.ndarray:
    """Accuracy [choices + 1, U] after 0, 1, ... choices."""
    lots = np.random.default_rng([seed, 5]).random(people.pool.weight.shape, np.float32)
    found = asked(people, lots, choices, way == "chosen")
    return np.stack([people.accuracy(found[:, count]) for count in range(choices + 1)])


def asked(people: People, lots: np.ndarray, choices: int, chosen: bool) -> np.ndarray:
    """Probability of the query choices [U, choices + 1, Q] after each answer.

    Args:
        people: whom.
        lots: [U, M] the random way asks in the order of these, the greatest first.
        choices: asked of each, fewer where the pool is smaller.
        chosen: ask the pair of most expected information instead.
    """
    import jax
    import jax.numpy as jnp

    from jaxalign import mrm
    from jaxalign.train.blas import one_blas_thread

    start = mrm.init_belief(people.prior, room=choices)
    users = jax.tree.map(jnp.asarray, (people.pool, people.query, lots))
    given = (people.prior, start, jnp.asarray(people.features), users, choices, chosen)
    found = one_blas_thread(lambda: jax.block_until_ready(_compiled()(*given)))()
    return np.asarray(found)


@functools.cache
def _compiled() -> Any:
    """`_asked`, compiled once for all seeds; JAX is imported only where a benchmark runs."""
    import jax

    return jax.jit(_asked, static_argnames=("choices", "chosen"))


def _asked(prior: Any, start: Any, features: Any, users: tuple, choices: int, chosen: bool) -> Any:
    import jax
    import jax.numpy as jnp

    from jaxalign import mrm
    from jaxalign.mrm.belief import updated_belief

    def one_user(inputs: tuple) -> jax.Array:
        pool, query, lot = inputs
        pairs = features[pool.chosen] - features[pool.rejected]
        judged = features[query.chosen] - features[query.rejected]

        def step(carry: tuple, _: None) -> tuple:
            belief, done = carry
            number = jnp.argmax(jnp.where(done, -1, lot))
            if chosen:
                number = mrm.next_pair(*mrm.belief_moments(prior, belief), pairs, done)
            weight = (~done[number]).astype(pairs.dtype)
            belief = updated_belief(prior, belief, pairs[number], weight)
            return (belief, done.at[number].set(True)), predicted(belief)

        def predicted(belief: mrm.Belief) -> jax.Array:
            return mrm.choice_probability(*mrm.belief_moments(prior, belief), judged)

        after: jax.Array
        _, after = jax.lax.scan(step, (start, pool.weight == 0), None, length=choices)
        return jnp.concatenate([predicted(start)[None], after])

    return jax.lax.map(one_user, users, batch_size=16)


# What it costs ----------------------------------------------------------------------------------


def _cost() -> list[dict[str, Any]]:
    """Seconds of one more choice after twenty, beside fitting all again, and of a question.

    Each call is timed by itself, the three in turn, and the median is of calls: what else the
    machine does interrupts few of them.
    """
    import jax
    import jax.numpy as jnp

    from jaxalign import mrm

    rows = []
    for size in COST_SIZES:
        rng = np.random.default_rng(size)
        draws = rng.standard_normal((1064, size), np.float32) / np.float32(np.sqrt(size / 5))
        prior = mrm.Prior(jnp.zeros(size), jnp.eye(size))
        belief = mrm.init_belief(prior)
        for difference in draws[:20]:
            belief = mrm.update_belief(prior, belief, difference)
        told, pairs = jnp.asarray(draws[:21])[None], jnp.asarray(draws[64:])
        mask, question = jnp.ones((1, 21)), jax.jit(mrm.next_pair)
        refit, moments = jax.jit(mrm.posterior), mrm.belief_moments(prior, belief)

        sides: dict[str, Callable[[], Any]] = {
            "one more choice": functools.partial(_one_more, prior, belief, draws[21:64], [0]),
            "all 21 choices anew": functools.partial(_waited, refit, prior, told, mask),
            "next of 1,000 pairs": functools.partial(_waited, question, *moments, pairs),
        }
        for call in sides.values():
            call()  # compiles
        times: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(CALLS):
            for side, call in sides.items():
                times[side].append(_elapsed(call))
        quartiles = {s: np.quantile(t, [0, 0.25, 0.5, 0.75]).tolist() for s, t in times.items()}
        keys = ("best", "low", "median", "high")
        rows.append(
            {
                "name": f"E = {size}",
                "calls": CALLS,
                "seconds": {s: dict(zip(keys, q, strict=True)) for s, q in quartiles.items()},
            }
        )
    return rows


def _one_more(prior: Any, belief: Any, draws: np.ndarray, made: list[int]) -> Any:
    """One more choice, another one at every call."""
    from jaxalign import mrm

    made[0] += 1
    return harness.wait(mrm.update_belief(prior, belief, draws[made[0] % len(draws)]))


def _elapsed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _waited(function: Callable[..., Any], *arguments: Any) -> Any:
    return harness.wait(function(*arguments))


# Written ----------------------------------------------------------------------------------------


def _row(name: str, curves: dict[str, np.ndarray]) -> dict[str, Any]:
    """Mean accuracy with 95 % intervals over users, and how far chosen pairs are ahead."""
    from jaxalign.metrics.bootstrap import mean_interval

    means = {way: curve.mean(axis=1) for way, curve in curves.items()}
    intervals = {
        way: [list(mean_interval(0, users)[:3]) for users in curve] for way, curve in curves.items()
    }
    row = {"name": name, "users": int(curves["chosen"].shape[1]), "accuracy": intervals}
    if len(means["chosen"]) > 10:
        reached = np.flatnonzero(means["random"] >= means["chosen"][10])
        row["random_needs_for_10_chosen"] = int(reached[0]) if len(reached) else None
    if len(means["chosen"]) > 20:
        ahead = curves["chosen"][10] - curves["random"][20]
        row["chosen_10_less_random_20"] = list(mean_interval(0, ahead)[:3])
        same = curves["chosen"][10] - curves["random"][10]
        row["chosen_10_less_random_10"] = list(mean_interval(0, same)[:3])
    return row


def _table(result: dict[str, Any]) -> str:
    parts = []
    if result["rows"]:
        parts.append(_accuracy_table(result["rows"]))
    if result["cost"]:
        sides = list(result["cost"][0]["seconds"])
        lines = [
            [f"{row['name']}, {what}"]
            + [harness.shown(row["seconds"][side][key]) for side in sides]
            for row in result["cost"]
            for what, key in (("median call", "median"), ("fastest call", "best"))
        ]
        parts.append(harness.table(["one user", *sides], lines))
    return "\n".join(parts)


def _accuracy_table(found: list[dict[str, Any]]) -> str:
    last = min(len(row["accuracy"]["chosen"]) for row in found) - 1
    shown = [count for count in SHOWN if count <= last]
    header = ["accuracy after", *map(str, shown), "chosen 10 less random 20", "random as good at"]
    rows = []
    for row in found:
        for way in WAYS:
            cells = [f"{100 * row['accuracy'][way][count][0]:.1f}" for count in shown]
            ahead, needs = (
                row.get("chosen_10_less_random_20"),
                row.get("random_needs_for_10_chosen"),
            )
            last_two = ["", ""]
            if way == "chosen":
                if ahead:
                    mean, low, high = (100 * figure for figure in ahead)
                    last_two[0] = f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"
                last_two[1] = f"more than {last}" if needs is None else str(needs)
            rows.append([f"{row['name']} ({row['users']} users), {way}", *cells, *last_two])
    return harness.table(header, rows)


def _plot(rows: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    across = 2 if len(rows) in (2, 4) else min(len(rows), 3)
    down = -(-len(rows) // across)
    figure = Figure(figsize=(4.2 * across, 3.4 * down), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for axes, row in zip(panels, rows, strict=False):
        for way, points in row["accuracy"].items():
            mean, low, high = 100 * np.array(points).T
            counts = np.arange(len(mean))
            axes.plot(counts, mean, color=COLOURS[way], label=f"{way} pairs")
            axes.fill_between(counts, low, high, color=COLOURS[way], alpha=0.2, linewidth=0)
        axes.set_title(f"{row['name']} ({row['users']} users)", fontsize=10)
        axes.set_xlabel("choices")
        axes.set_ylabel("accuracy, %")
        axes.grid(alpha=0.3)
    for axes in panels[len(rows) :]:
        axes.set_axis_off()
    panels[0].legend(loc="lower right")
    aside = path.with_name(f".{path.name}.part.png")
    figure.savefig(aside, dpi=110)
    aside.replace(path)
