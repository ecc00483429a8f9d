"""Regret of the demo's users by size of portfolio: PALM, uniform, random and k-center weights.

Portfolios are built on the demo's known prompts over the signed L1 ball, without a look at users.
Test users, 140 a seed, are routed on their true weights and on what 5, 10 and 20 choices tell, and
judged on held-out prompts against their own optimal policy. Values are in logits of a choice.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks import harness

METHODS = ("palm", "uniform", "random", "k_center")
SHOTS = (5, 10, 20)
DRAWS = {"palm": 1, "uniform": 1, "random": 20, "k_center": 20}
"""Portfolios a method and size: random ones, and k-center from random starts, are averaged."""
COLOURS = {"palm": "#0072B2", "uniform": "#009E73", "random": "#999999", "k_center": "#D55E00"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--sizes", nargs="+", type=int, default=list(range(1, 11)))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--users", type=int, default=600)
    parser.add_argument("--calls", type=int, default=50, help="oracle calls of a search")
    parser.add_argument("--time-limit", type=float, default=2.0, help="seconds of a selection")


def run(arguments: argparse.Namespace) -> int:
    """Every seed, size and method; the figures of all seeds, their mean and spread."""
    console, start = Console(stderr=True), time.perf_counter()
    result: dict[str, Any] = {
        "benchmark": "palm_regret",
        "machine": harness.machine(),
        "units": "logits of a choice, on held-out prompts; worst_ball: over all weights, on the "
        "prompts built on, against the best policy that any method solved",
        "settings": {"draws": DRAWS, "calls": arguments.calls, "users": arguments.users},
        "rows": [],
    }
    for seed in arguments.seeds:
        console.print(f"seed {seed} ...", highlight=False)
        result["rows"] += _one_seed(seed, arguments)
        result["seconds"] = time.perf_counter() - start
        result["summary"] = _summary(result["rows"])
        harness.write(arguments.out, result, _table(result["summary"]))
        _plot(result["summary"], arguments.out / "palm_regret.png")
    print(_table(result["summary"]))
    return 0


def _one_seed(seed: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows {"seed", "method", "size", figures}, averaged over the method's draws."""
    from jaxalign import palm
    from jaxalign.demo import portfolio as stage
    from jaxalign.demo.answers import read_answers
    from jaxalign.demo.people import draw_people
    from jaxalign.demo.study import design, simulate

    answers = read_answers()
    plan = design(arguments.users, len(answers.prompts), seed)
    world = simulate(draw_people("friendly", arguments.users, seed), answers, plan, seed)
    oracle = palm.ClosedForm(
        *stage.candidates(answers, plan.known), stage.BETA / stage.RADIUS, reward_range=None
    )
    config = replace(stage.CONFIG, max_calls=arguments.calls, time_limit=arguments.time_limit)
    known = {"true": world.people.weights[plan.test], **_inferred(answers, world)}
    solved = _members(oracle, config, arguments.sizes, seed)
    judge = _judge(answers, plan, oracle, solved, known)
    rows = []
    for method, by_size in solved.items():
        for size, portfolios in by_size.items():
            found = [judge(weights) for weights in portfolios]
            mean = {name: float(np.mean([one[name] for one in found])) for name in found[0]}
            rows.append({"seed": seed, "method": method, "size": size, **mean})
    return rows


def _inferred(answers: Any, world: Any) -> dict[str, np.ndarray]:
    """Posterior mean weights [U, 5] of the test users after some choices."""
    import jax.numpy as jnp

    from jaxalign import mrm
    from jaxalign.personalize import from_choices

    ids, traits = answers.scale.ids, answers.traits

    def differences(choices: Any) -> np.ndarray:
        return np.asarray(traits[choices.chosen] - traits[choices.rejected])

    fitted, support = differences(world.fitted), differences(world.support["test"])
    prior = mrm.fit_prior(jnp.asarray(fitted), jnp.ones(fitted.shape[:2], bool))
    found = {}
    for shots in SHOTS:
        mask = np.broadcast_to(np.arange(support.shape[1]) < shots, support.shape[:2])
        found[str(shots)] = from_choices(prior, support, mask, ids).mean
    return found


def _members(oracle: Any, config: Any, sizes: list[int], seed: int) -> dict[str, dict[int, list]]:
    """Method -> size -> weights [size, R] at which the members of each of its portfolios solve."""
    from jaxalign import palm
    from jaxalign.personalize import build_signed

    solved: dict[str, dict[int, list]] = {method: {} for method in METHODS}
    first = build_signed(oracle, replace(config, size=max(sizes)))
    state = palm.SearchState(first.solved, first.pool, np.full(len(first.solved), np.nan))
    for size in sizes:
        budget = replace(config, size=size, max_calls=len(state.weights))
        built = palm.build(oracle, budget, state)
        solved["palm"][size] = [built.members.payload["weight"][1:]]
        for method in METHODS[1:]:
            solved[method][size] = [
                palm.baseline_weights(method, oracle.num_rewards, size, "signed", 100 * seed + draw)
                for draw in range(DRAWS[method])
            ]
    return solved


def _judge(
    answers: Any, plan: Any, oracle: Any, solved: dict[str, dict[int, list]], known: dict
) -> Callable[[np.ndarray], dict[str, float]]:
    """A function from a portfolio's weights to its figures; all policies are solved at once."""
    import jax.numpy as jnp

    from jaxalign import palm
    from jaxalign.demo import portfolio as stage

    every = [w for by_size in solved.values() for ws in by_size.values() for w in ws]
    weights = np.unique(np.concatenate([np.zeros((1, oracle.num_rewards)), *every]), axis=0)
    place = {(row + 0.0).tobytes(): index for index, row in enumerate(weights)}
    values = {}
    for name, prompts in (("known", plan.known), ("held_out", plan.held_out)):
        rewards, log_ref = map(jnp.asarray, stage.candidates(answers, prompts))
        found = palm.sweep(
            rewards, log_ref, jnp.asarray(weights * stage.RADIUS, jnp.float32), stage.BETA
        )
        values[name] = palm.coordinates("signed", found.expected, found.kl, stage.BETA)
    # The loop ends on the held-out prompts: those that users' optima are wanted on.
    best = palm.sweep(rewards, log_ref, jnp.asarray(known["true"], jnp.float32), stage.BETA).values
    corners = palm.corners("signed", oracle.num_rewards)
    corners[:, :-1] *= stage.RADIUS

    def scores(users: np.ndarray, members: np.ndarray) -> np.ndarray:
        return np.asarray(users @ members[:, :-1].T + members[:, -1], np.float64)

    def judge(portfolio: np.ndarray) -> dict[str, float]:
        rows = [place[(row + 0.0).tobytes()] for row in (np.zeros(oracle.num_rewards), *portfolio)]
        at = scores(known["true"], values["held_out"][rows])
        gain = float(np.mean(best - at[:, 0]))
        figures = {
            "worst_ball": palm.worst_gap(
                values["known"], values["known"][rows], corners=corners
            ).value
        }
        for name, users in known.items():
            member = np.argmax(scores(users, values["known"][rows]), axis=1)
            served = at[np.arange(len(at)), member]
            lost = np.sort(np.asarray(best) - served)
            figures |= {
                f"{name}_mean": float(lost.mean()),
                f"{name}_worst_tenth": float(lost[-max(len(lost) // 10, 1) :].mean()),
                f"{name}_share_lost": float(lost.mean()) / gain,
                f"{name}_below_reference": float(np.mean(served < at[:, 0] - 1e-4)),
            }
        return figures

    return judge


def _summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds, a row a method and size."""
    kinds = dict.fromkeys((row["method"], row["size"]) for row in rows)
    summary = []
    for method, size in kinds:
        some = [row for row in rows if (row["method"], row["size"]) == (method, size)]
        names = [name for name in some[0] if name not in ("seed", "method", "size")]
        figures = {
            name: {
                "mean": float(np.mean([row[name] for row in some])),
                "sd": float(np.std([row[name] for row in some])),
            }
            for name in names
        }
        summary.append({"method": method, "size": size, "seeds": len(some), **figures})
    return summary


def _table(summary: list[dict[str, Any]]) -> str:
    columns = ["true_mean", "true_worst_tenth", "5_mean", "10_mean", "10_worst_tenth", "20_mean"]
    columns += ["10_below_reference", "worst_ball"]
    header = ["method, size", *(name.replace("_", " ") for name in columns)]
    lines = [
        [f"{row['method']} {row['size']}", *(f"{row[name]['mean']:.2f}" for name in columns)]
        for row in sorted(summary, key=lambda row: (row["size"], METHODS.index(row["method"])))
    ]
    return harness.table(header, lines)


def _plot(summary: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = {
        "true_mean": "mean regret, true weights",
        "true_worst_tenth": "worst tenth, true weights",
        "10_mean": "mean regret, 10 choices",
        "10_worst_tenth": "worst tenth, 10 choices",
        "worst_ball": "worst of all weights",
    }
    figure = Figure(figsize=(15, 3.8), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, title) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for method in METHODS:
            rows = [row for row in summary if row["method"] == method]
            size = np.array([row["size"] for row in rows])
            mean, sd = (np.array([row[name][key] for row in rows]) for key in ("mean", "sd"))
            axes.plot(size, mean, marker="o", markersize=3.5, color=COLOURS[method], label=method)
            axes.fill_between(size, mean - sd, mean + sd, color=COLOURS[method], alpha=0.15)
        axes.set_title(title, fontsize=11)
        axes.set_xlabel("members beside the reference")
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("logits of a choice")
    figure.axes[0].legend(frameon=False, fontsize=9)
    aside = path.with_name(f".{path.name}.part")
    figure.savefig(aside, format="png")
    aside.replace(path)
