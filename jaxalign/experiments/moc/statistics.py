"""The report on speakers that were judged on the same prompts: every figure, with intervals."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxalign.errors import InputError
from jaxalign.experiments.moc.evaluation import FORMAT, Evaluation
from jaxalign.metrics import agreement, pareto
from jaxalign.metrics.pareto import Floats
from jaxalign.version import __version__

Figures = dict[str, float | None]

_LEVELS = (0.025, 0.975)
_SHOWN_PREFERENCES, _SHOWN_PROMPTS = 5, 3


class _Told(NamedTuple):
    """One part of what a speaker was told: preferences [W, R], and the rows [n] of the part."""

    told: Floats
    rows: NDArray[np.intp]


class _Means(NamedTuple):
    """Mean rewards of a speaker over all prompts [W, R], and over two halves of them [2, W, R]."""

    whole: Floats
    halves: Floats


def report(
    evaluations: Sequence[Evaluation],
    reference_point: ArrayLike | None = None,
    draws: int = 500,
    seed: int = 0,
) -> dict[str, Any]:
    """Return every figure on speakers, those of the first first; ready for JSON.

    Figures are in the scale's units, those of one `part` of the preferences each: `seen`,
    `held_out`, and `shared`, those that all speakers of more than one preference were told, where
    these are not the same for all: fronts of few points and of many are compared on them.

    - `tau`: Kendall's tau-b of preference and reward, an entry an objective; `tau_cap`, the most
      that it can be where no rewards tie.
    - `squared_error`: mean (R - p)^2.
    - `corner_error`: what is left behind, of the most that any speaker reached of an objective,
      where that objective alone was asked for.
    - `regret`: of users whose weights are the preferences of the part. `table_*`: told what the
      speaker's value table says is best for them, chosen on one half of the prompts, judged on the
      other, both ways; `direct_*`: told their weights as if they were a target; `*_own` to the best
      of this speaker's points, `*_all` to the best of all speakers'.
    - `hypervolume` above the reference point; `sparsity`; `nondominated`, the share of points that
      no other of the part dominates; `entropy` of the set of points, nats.
    - `kl`, nats an answer; `answer_entropy`, nats a token; `tokens` of an answer.

    Each is {"value", "low", "high"}, ends at 95 % over prompts, the same resamples for all, widened
    to hold the value; or None where it cannot be measured, such as tau of a constant reward.
    `hypervolume_less_first` is the difference to the first speaker's, resample by resample.

    Args:
        evaluations: of S speakers with different names, on the same prompts, rewards and scale.
        reference_point: [R] of hypervolume, in the scale's units; None for zeros, the level that
            the scale calls low.
        draws: bootstrap resamples of the prompts.
        seed: of the resamples and of the halves.

    Returns:
        `speakers` {name: {"points": one a preference, "parts": {part: figures}}}, `examples` of the
        first speaker's answers, and what the figures rest on.

    Raises:
        InputError: none is given, two have one name, or they were judged on different things.
    """
    _check_alike(evaluations)
    first = evaluations[0]
    size, count = len(first.names), len(first.prompts)
    point = np.zeros(size) if reference_point is None else np.asarray(reference_point, np.float64)
    shared = _shared(evaluations)
    parts = [
        {name: _Told(one.preferences, rows) for name, rows in _parts(one, shared).items()}
        for one in evaluations
    ]
    halves = np.random.default_rng(seed).permutation(count) % 2

    def measured(weights: NDArray[np.int64]) -> list[dict[str, Figures]]:
        means = [_means(one.rewards, weights, halves) for one in evaluations]
        rivals = _Means(
            np.concatenate([mean.whole for mean in means]),
            np.concatenate([mean.halves for mean in means], axis=1),
        )
        return [
            {name: _figures(part, mean, rivals, point, first.names) for name, part in own.items()}
            for own, mean in zip(parts, means, strict=True)
        ]

    found = measured(np.ones(count, np.int64))
    drawn = [measured(weights) for weights in _resamples(seed, halves, draws)]
    return {
        "format": FORMAT,
        "version": __version__,
        "rewards": list(first.names),
        "scale": first.digest,
        "reference_point": point.tolist(),
        "prompts": count,
        "draws": draws,
        "speakers": {
            one.speaker: {
                "samples": one.samples,
                "temperature": one.temperature,
                "points": _points(one),
                "parts": {
                    name: {
                        **_nested(found, drawn, number, name),
                        **_plain_means(one, part.rows),
                        "points": len(part.rows),
                        "tau_cap": _named(first.names, agreement.tau_cap(part.told[part.rows])),
                    }
                    for name, part in parts[number].items()
                },
            }
            for number, one in enumerate(evaluations)
        },
        "examples": _examples(first),
    }


def _figures(
    part: _Told, mean: _Means, rivals: _Means, point: Floats, names: Sequence[str]
) -> dict[str, float | None]:
    """Figures of one part, keys joined by '/'; None where there is nothing to measure."""
    told, reached = part.told[part.rows], mean.whole[part.rows]
    taus = agreement.tau_b(told, reached)
    gaps = pareto.sparsity(reached)
    return {
        **{f"tau/{name}": tau for name, tau in zip(names, taus, strict=True)},
        "squared_error": agreement.squared_error(told, reached),
        "corner_error": agreement.corner_error(told, reached, rivals.whole),
        **_regrets(part, mean.halves, rivals.halves),
        "hypervolume": pareto.hypervolume(reached, point),
        # 0 is a single point, not a dense front.
        "sparsity": gaps if gaps > 0 else None,
        "nondominated": float(pareto.nondominated(reached).mean()),
        "entropy": pareto.entropy(reached),
    }


def _regrets(part: _Told, own: Floats, rivals: Floats) -> dict[str, float | None]:
    """Linear regret, chosen on one half and judged on the other, both ways averaged."""
    weights = part.told[part.rows]
    sums = dict.fromkeys(("table_own", "table_all", "direct_own", "direct_all"), 0.0)
    for chosen, judged, every in zip(own, own[::-1], rivals[::-1], strict=True):
        through = judged[np.argmax(weights @ chosen.T, axis=1)]
        for way, values in (("table", through), ("direct", judged[part.rows])):
            sums[f"{way}_own"] += agreement.linear_regret(weights, values, judged) / 2
            sums[f"{way}_all"] += agreement.linear_regret(weights, values, every) / 2
    # Of a single point nothing can be chosen: it is its own best, which says nothing.
    alone = len(part.told) < 2
    return {
        f"regret/{name}": None if alone and name.endswith("own") else value
        for name, value in sums.items()
    }


def _means(rewards: Floats, weights: NDArray[np.int64], halves: NDArray[np.intp]) -> _Means:
    """Means of rewards [W, X, R] over prompts that count weights [X] times."""

    def mean(counts: NDArray[np.int64]) -> Floats:
        return np.asarray(np.einsum("WXR,X->WR", rewards, counts / counts.sum()))

    return _Means(mean(weights), np.stack([mean(weights * (halves == half)) for half in (0, 1)]))


def _resamples(seed: int, halves: NDArray[np.intp], draws: int) -> Iterator[NDArray[np.int64]]:
    """How often each prompt counts [X]; halves are resampled apart, so that none is in both."""
    random = np.random.default_rng([seed, 1])
    for _ in range(draws):
        weights = np.zeros(len(halves), np.int64)
        for half in (0, 1):
            rows = np.flatnonzero(halves == half)
            weights[rows] = random.multinomial(len(rows), np.full(len(rows), 1 / len(rows)))
        yield weights


def _nested(
    found: list[dict[str, Figures]],
    drawn: list[list[dict[str, Figures]]],
    number: int,
    part: str,
) -> dict[str, Any]:
    """Figures of a speaker and part with their intervals, as a tree."""
    tree: dict[str, Any] = {}
    for name in found[number][part]:
        head, _, tail = name.partition("/")
        entry = _interval(found[number][part][name], [one[number][part][name] for one in drawn])
        if tail:
            tree.setdefault(head, {})[tail] = entry
        else:
            tree[head] = entry
    if number and part in found[0]:

        def less(one: list[dict[str, Figures]]) -> float | None:
            own, first = one[number][part]["hypervolume"], one[0][part]["hypervolume"]
            return None if own is None or first is None else own - first

        tree["hypervolume_less_first"] = _interval(less(found), [less(one) for one in drawn])
    return tree


def _interval(value: float | None, drawn: Sequence[float | None]) -> dict[str, float | None] | None:
    """A figure and its interval over the resamples; no interval where most have no such figure."""
    if value is None:
        return None
    values = [other for other in drawn if other is not None]
    ends: list[float | None] = [None, None]
    if 2 * len(values) > len(drawn):
        low, high = (float(end) for end in np.quantile(values, _LEVELS))
        # Of a best of noisy points, all resamples may lie to one side.
        ends = [min(low, value), max(high, value)]
    return {"value": value, "low": ends[0], "high": ends[1]}


def _plain_means(one: Evaluation, rows: NDArray[np.intp]) -> dict[str, float]:
    return {
        "kl": float(one.kl[rows].mean()),
        "answer_entropy": float(one.entropy[rows].mean()),
        "tokens": float(one.tokens[rows].mean()),
    }


def _points(one: Evaluation) -> list[dict[str, Any]]:
    front = pareto.nondominated(one.reached)
    return [
        {
            "told": one.preferences[row].tolist(),
            "seen": bool(one.seen[row]),
            "reached": one.reached[row].tolist(),
            "stderr": one.stderr[row].tolist(),
            "kl": float(one.kl[row].mean()),
            "kl_stderr": float(one.kl_stderr[row]),
            "entropy": float(one.entropy[row]),
            "tokens": float(one.tokens[row]),
            "nondominated": bool(front[row]),
        }
        for row in range(len(one.preferences))
    ]


def _parts(one: Evaluation, shared: set[tuple[float, ...]]) -> dict[str, NDArray[np.intp]]:
    keys = _keys(one)
    rows = {
        "seen": np.flatnonzero(one.seen),
        "held_out": np.flatnonzero(~one.seen),
        "shared": np.array([row for row, key in enumerate(keys) if key in shared], np.intp),
    }
    if len(keys) == 1:
        del rows["shared"]
    return {name: found for name, found in rows.items() if len(found)}


def _shared(evaluations: Sequence[Evaluation]) -> set[tuple[float, ...]]:
    """Preferences that all speakers of several were told, if some were told others."""
    told = [set(_keys(one)) for one in evaluations if len(one.preferences) > 1]
    both = set.intersection(*told) if told else set()
    return both if len(both) > 1 and any(own != both for own in told) else set()


def _keys(one: Evaluation) -> list[tuple[float, ...]]:
    return [tuple(row) for row in one.preferences.round(5).tolist()]


def _named(names: Sequence[str], values: Sequence[float | None]) -> dict[str, float | None]:
    return dict(zip(names, values, strict=True))


def _examples(one: Evaluation) -> list[dict[str, Any]]:
    """Answers to the first prompts under preferences that lie far apart."""
    rows = spread(one.preferences, _SHOWN_PREFERENCES)
    return [
        {
            "prompt": prompt,
            "answers": [
                {"told": one.preferences[row].tolist(), "answer": one.answers[row][place]}
                for row in rows
            ],
        }
        for place, prompt in enumerate(one.prompts[:_SHOWN_PROMPTS])
    ]


def spread(preferences: Floats, count: int) -> list[int]:
    """Return rows of preferences that lie far apart: each next one farthest from those before.

    Args:
        preferences: [W, R].
        count: how many, at most.

    Returns:
        Rows, from the most of the first objective to the least.
    """
    centre = np.linalg.norm(preferences - preferences.mean(axis=0)[None], axis=1)
    chosen = [int(np.argmax(centre.round(5)))]
    while len(chosen) < min(count, len(preferences)):
        gaps = np.linalg.norm(preferences[:, None] - preferences[chosen][None], axis=2).min(axis=1)
        chosen.append(int(np.argmax(gaps.round(5))))
    return sorted(chosen, key=lambda row: tuple(-preferences[row]))


def _check_alike(evaluations: Sequence[Evaluation]) -> None:
    if not evaluations:
        raise InputError("report: found no evaluation, expected at least one.")
    first, seen = evaluations[0], set()
    for one in evaluations:
        if one.speaker in seen:
            raise InputError(
                f"report: found {one.speaker} twice, expected a name of its own for each speaker."
            )
        seen.add(one.speaker)
        if (one.names, one.digest) != (first.names, first.digest):
            raise InputError(
                f"report: {one.speaker} was judged by {', '.join(one.names)} on the scale "
                f"{one.digest[:12]}, {first.speaker} by {', '.join(first.names)} on "
                f"{first.digest[:12]}; expected the same, so evaluate one of them again."
            )
        if one.prompts != first.prompts:
            raise InputError(
                f"report: {one.speaker} answered other prompts than {first.speaker}; expected the "
                "same in the same order, so evaluate one of them again."
            )
