"""Personal best of n on the demo's people: the true utility of the answer that is given.

Simulated users, from 10 choices each, are given one of the first N answers to held-out prompts; the
first answer is the plain one. What it is worth to a user is known, and stated as the gain over the
plain answer, in logits of a choice. Beside the user's own posterior stand one model for all, the
posterior of another user's choices, and the best of the N answers.
"""

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from benchmarks import harness

SIZES = (1, 2, 4, 8, 16)
CAUTIONS = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0)
SHOTS = 10
WAYS = {
    "oracle": "oracle: true utility",
    "own": "the user's own choices",
    "other": "another user's choices",
    "one_model": "one model for all",
}


class Beliefs(NamedTuple):
    """What is believed of U users' weights on K features.

    Attributes:
        mean: [U, K].
        cov: [U, K, K].
    """

    mean: np.ndarray
    cov: np.ndarray


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--users", type=int, default=600, help="of the demo")
    parser.add_argument("--kinds", nargs="+", default=["named", "learned"], help="of rewards")


def run(arguments: argparse.Namespace) -> int:
    """Judge every population with every kind of rewards, written down one by one."""
    console = Console(stderr=True)
    result = harness.empty_result(
        "mrm_best_of",
        "gain: true utility of the given answer less that of the first one, in logits of a "
        "choice, mean over held-out prompts, then over test users, with its 95 % interval over "
        "users; share: of the oracle's gain; k: standard deviations of caution, by the gain of "
        "validation users at the most answers",
        {"seeds": arguments.seeds, "users": arguments.users, "choices": SHOTS},
    )
    for population in ("friendly", "misspecified"):
        for kind in arguments.kinds:
            begun = time.perf_counter()
            parts = []
            for seed in arguments.seeds:
                console.print(f"{population}, {kind} rewards, seed {seed} ...", highlight=False)
                parts.append(judged(population, kind, seed, arguments.users))
            name = f"{population}, {kind} rewards"
            seconds = time.perf_counter() - begun
            result["rows"].append({"name": name, **_row(parts), "seconds": seconds})
            harness.write(arguments.out, result, _table(result["rows"]))
            plot(result["rows"], arguments.out / "mrm_best_of.png")
    print(_table(result["rows"]))
    return 0


# One population -------------------------------------------------------------------------------


def judged(population: str, kind: str, seed: int, users: int) -> dict[str, Any]:
    """Return the gains of one seed's test users, and the k that its validation users chose.

    Args:
        population: "friendly" or "misspecified".
        kind: "named" rewards, or "learned" ones.
        seed: of people, choices, splits and the order of the answers.
        users: simulated users, of whom two thirds train, a tenth validate and the others are test
            users.

    Returns:
        "gains": way -> [U, sizes]; "k"; "by_k": gain of test users at the most answers by k.
    """
    from jaxalign.demo import study
    from jaxalign.demo.answers import encode_answers, read_answers
    from jaxalign.demo.people import draw_people

    answers = read_answers()
    plan = study.design(users, len(answers.prompts), seed)
    people = draw_people(population, users, seed)
    world = study.simulate(people, answers, plan, seed)
    features = answers.traits
    if kind == "learned":
        encoded, _ = encode_answers(answers.texts, show=False)
        features = study.learned_features(encoded, answers, plan)["within prompts, 0.5"][1]
    features = np.asarray(features, np.float32)
    theta, beliefs = fitted(features, world)
    rng = np.random.default_rng([seed, 6])
    rows = [np.flatnonzero(answers.prompt == prompt) for prompt in plan.held_out]
    shown = np.stack([rng.permutation(row)[: max(SIZES)] for row in rows if len(row) >= max(SIZES)])
    values, utility = features[shown], people.utility(answers.traits)
    true = {role: utility[users][:, shown] for role, users in _users(plan).items()}

    known = gains(beliefs["validation"], values)
    by_validation = [reached(true["validation"], *known, k)[:, -1].mean() for k in CAUTIONS]
    k = CAUTIONS[int(np.argmax(by_validation))]
    test, own = true["test"], gains(beliefs["test"], values)
    # Every user gets the choices of another one, the next in a random order.
    order = rng.permutation(len(test))
    next_user = np.empty(len(test), int)
    next_user[order] = np.roll(order, 1)
    other = gains(Beliefs(*(array[next_user] for array in beliefs["test"])), values)
    common = np.broadcast_to(values @ theta, test.shape)
    return {
        "gains": {
            "oracle": reached(test, test, np.zeros_like(test), 0.0),
            "own": reached(test, *own, k),
            "other": reached(test, *other, k),
            "one_model": reached(test, common, np.zeros_like(test), 0.0),
        },
        "k": k,
        "by_k": {k: reached(test, *own, k)[:, -1] for k in CAUTIONS},
    }


def _users(plan: Any) -> dict[str, np.ndarray]:
    return {"validation": plan.validation, "test": plan.test}


def fitted(features: np.ndarray, world: Any) -> tuple[np.ndarray, dict[str, Beliefs]]:
    """Fit on training users, choose on validation users, and return what is believed of users.

    Args:
        features: [N, K] of the answers.
        world: the demo's choices, `jaxalign.demo.study.DemoData`.

    Returns:
        One model for all [K], and beliefs after SHOTS choices of "validation" and "test" users.
    """
    import jax
    import jax.numpy as jnp

    from jaxalign import mrm
    from jaxalign.mrm.hierarchical import prior_of
    from jaxalign.mrm.selection import select
    from jaxalign.mrm.support_query import SupportQueryData, TrainingData, differences, one_bucket
    from jaxalign.train.blas import one_blas_thread

    table = jnp.asarray(features)
    data = TrainingData(table, table, one_bucket(_pairs(world.fitted)))
    support = {role: _pairs(choices, SHOTS) for role, choices in world.support.items()}
    validation = SupportQueryData(
        one_bucket(support["validation"]), one_bucket(_pairs(world.query["validation"]))
    )
    one_model, bayes = mrm.make_method("bt"), mrm.make_method("bayes")
    common, population = one_model.fit(data, 0), bayes.fit(data, 0)
    ridge, _ = select(one_model, common, table, validation)
    setting, _ = select(bayes, population, table, validation)
    prior = prior_of(population, setting)
    infer = one_blas_thread(jax.jit(mrm.posterior))
    beliefs = {}
    for role, pairs in support.items():
        weight = pairs.weight * setting["adapt"]
        found = infer(prior, differences(table, pairs), weight)
        beliefs[role] = Beliefs(*map(np.asarray, found))
    return np.asarray(common["theta"][ridge["ridge"]]), beliefs


def _pairs(choices: Any, shots: int | None = None) -> Any:
    from jaxalign.data.batching import Pairs

    weight = np.zeros(choices.chosen.shape, np.float32)
    weight[:, :shots] = 1
    numbers = (choices.chosen.astype(np.int32), choices.rejected.astype(np.int32))
    return Pairs(*numbers, weight, np.zeros(weight.shape, np.int32))


def gains(beliefs: Beliefs, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation [U, X, N] of the gains over the first answer.

    Args:
        beliefs: of U users.
        values: [X, N, K] features of the answers to X prompts.
    """
    from jaxalign import mrm

    found = [
        [mrm.expected_gains(mean, cov, options)[:2] for options in values]
        for mean, cov in zip(*beliefs, strict=True)
    ]
    mean, sd = np.moveaxis(np.asarray(found), 2, 0)
    return mean, sd


def reached(true: np.ndarray, mean: np.ndarray, sd: np.ndarray, k: float) -> np.ndarray:
    """Return the true gain [U, sizes] of the answers that `mrm.best_option` gives.

    Args:
        true: [U, X, N] utility of the answers.
        mean: [U, X, N] posterior mean of their gain.
        sd: [U, X, N] and its standard deviation.
        k: standard deviations of caution.
    """
    score = mean - k * sd
    found = []
    for size in SIZES:
        given = np.argmax(score[..., :size], axis=-1)
        gain = np.take_along_axis(true, given[..., None], axis=-1)[..., 0] - true[..., 0]
        found.append(gain.mean(axis=1))
    return np.stack(found, axis=1)


# Written --------------------------------------------------------------------------------------


def _row(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the test users of all seeds, with 95 % intervals over users."""
    from jaxalign.metrics.bootstrap import mean_interval

    all_users = {way: np.concatenate([part["gains"][way] for part in parts]) for way in WAYS}
    by_k = {k: np.concatenate([part["by_k"][k] for part in parts]) for k in CAUTIONS}
    best = all_users["oracle"].mean(axis=0)
    return {
        "users": len(all_users["own"]),
        "sizes": SIZES,
        "gain": {
            way: [list(mean_interval(0, column)[:3]) for column in found.T]
            for way, found in all_users.items()
        },
        "share": {
            way: (found.mean(axis=0)[1:] / best[1:]).tolist() for way, found in all_users.items()
        },
        "k": [part["k"] for part in parts],
        "gain_by_k": {str(k): list(mean_interval(0, found)[:3]) for k, found in by_k.items()},
        "worse_than_plain": {
            way: float((found[:, -1] < 0).mean()) for way, found in all_users.items()
        },
    }


def _table(rows: list[Mapping[str, Any]]) -> str:
    header = ["true gain over the plain answer, logits", *(f"N = {size}" for size in SIZES[1:])]
    header += ["share of the oracle's, %", "worse than plain, % of users", "k by seed"]
    lines = []
    for row in rows:
        for way, label in WAYS.items():
            cells = [
                f"{mean:.2f} ({low:.2f} to {high:.2f})" for mean, low, high in row["gain"][way][1:]
            ]
            more = [
                f"{100 * row['share'][way][-1]:.0f}",
                f"{100 * row['worse_than_plain'][way]:.0f}",
            ]
            chosen = ", ".join(f"{k:g}" for k in row["k"]) if way == "own" else ""
            lines.append([f"{row['name']} ({row['users']} users), {label}", *cells, *more, chosen])
    return harness.table(header, lines)


def plot(rows: list[Mapping[str, Any]], path: Path) -> None:
    """Draw the gain against the number of answers, a panel for each population and rewards."""
    from jaxalign.runs.plots import draw_curve, legend_below, new_figure, save_png, tidy

    across = min(len(rows), 2)
    down = -(-len(rows) // across)
    figure = new_figure(4.6 * across, 3.2 * down + 0.4, dpi=110)
    panels = figure.subplots(down, across, squeeze=False, sharey=True).ravel()
    for axes, row in zip(panels, rows, strict=False):
        for place, (way, label) in enumerate(WAYS.items()):
            mean, low, high = np.array(row["gain"][way]).T
            draw_curve(axes, row["sizes"], mean, (low, high), label, place)
        axes.axhline(0, color="0.4", linewidth=1, linestyle=":")
        axes.set_xscale("log", base=2)
        axes.set_xticks(row["sizes"], [str(size) for size in row["sizes"]])
        axes.set_title(f"{row['name']} ({row['users']} users)", fontsize=10)
        axes.set_xlabel("answers to choose from; 1: the plain one")
        axes.set_ylabel("true gain, logits")
        tidy(axes)
    for axes in panels[len(rows) :]:
        axes.set_axis_off()
    legend_below(figure, panels[0], 2)
    save_png(figure, path)
