"""Every number of the report on policies that were judged on the same prompts, with intervals."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, NotRequired, TypedDict, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxalign.errors import InputError
from jaxalign.experiments.moc.evaluation import Evaluation
from jaxalign.metrics import agreement, pareto
from jaxalign.metrics.diversity import distinct_n
from jaxalign.metrics.pareto import Floats
from jaxalign.rewards.reward_scale import RewardScale
from jaxalign.version import __version__

FORMAT = 4
"""Version of report.json, raised when its keys change."""


class Estimate(TypedDict):
    """A statistic with the ends of its 95 % interval; None where most resamples have none."""

    value: float
    low: float | None
    high: float | None


class PointReport(TypedDict):
    """What a policy achieves under one preference; errors are over prompts.

    `entropy` is that of what is sampled, nats per token, `token_entropy` in `PartReport`.
    """

    preference: list[float]
    seen: bool
    achieved_rewards: list[float]
    stderr: list[float]
    kl: float
    kl_stderr: float
    entropy: float
    tokens: float
    nondominated: bool


class PartReport(TypedDict):
    """Statistics of one policy over one part of its preferences, see `evaluation_report`.

    `entropy` is that of the set of points, nats.
    """

    tau: dict[str, Estimate | None]
    squared_error: Estimate
    corner_error: Estimate | None
    movement: dict[str, Estimate | None]
    regret: dict[str, Estimate | None]
    hypervolume: Estimate
    sparsity: Estimate | None
    nondominated: Estimate
    entropy: Estimate | None
    single_point: Estimate
    hypervolume_less_first: NotRequired[Estimate | None]
    kl: float
    token_entropy: float
    tokens: float
    distinct_2: float | None
    points: int
    tau_cap: dict[str, float | None]


class PolicyReport(TypedDict):
    """One judged policy."""

    samples: int
    temperature: float
    points: list[PointReport]
    parts: dict[str, PartReport]


class ExampleCompletion(TypedDict):
    """A completion and the preference that the policy was given."""

    preference: list[float]
    completion: str


class Example(TypedDict):
    """Completions of one prompt under preferences that lie far apart."""

    prompt: str
    completions: list[ExampleCompletion]


class MocEvaluationReport(TypedDict):
    """The content of report.json."""

    format: int
    version: str
    rewards: list[str]
    scale: str
    reference_point: list[float]
    prompts: int
    draws: int
    policies: dict[str, PolicyReport]
    examples: list[Example]


Statistics = dict[str, float | None]

_LEVELS = (0.025, 0.975)
_SHOWN_PREFERENCES, _SHOWN_PROMPTS = 5, 3


class _Part(NamedTuple):
    """One part of the preferences of a policy: all preferences [W, R], and the part's rows [n]."""

    preferences: Floats
    rows: NDArray[np.intp]


class _Means(NamedTuple):
    """Mean rewards of a policy over all prompts [W, R], and over two halves of them [2, W, R]."""

    whole: Floats
    halves: Floats


def evaluation_report(
    evaluations: Sequence[Evaluation],
    reference_point: ArrayLike | None = None,
    draws: int = 500,
    seed: int = 0,
) -> MocEvaluationReport:
    """Return all statistics of judged policies, the first policy first; ready for JSON.

    They are in levels of the scale, for each part of the preferences: `seen`, `held_out`, and
    `shared`, the preferences that all policies of more than one preference have in common, where
    these differ: fronts of few points and of many are compared on them.

    - `tau`: Kendall's tau-b of preference and reward, an entry an objective; `tau_cap`, the most
      that it can be where no rewards tie.
    - `squared_error`: mean (R - p)^2.
    - `corner_error`: how far a reward stays behind the most that any policy achieved of it, where
      the preference is that reward alone.
    - `movement`: how much higher a reward is where it alone is preferred than at the other corners,
      an entry an objective; 0 for a policy that ignores the preference.
    - `regret`: of users whose weights are the preferences of the part. `table_*`: served under the
      preference that the policy's value table gives, chosen on one half of the prompts and judged
      on the other, both ways; `direct_*`: served under their weights as if they were a preference;
      `*_own` against the best of this policy's points, `*_all` against the best of all policies'.
    - `hypervolume` above the reference point, and `single_point`, the largest that one of the
      points has alone: a policy that ignores the preference can reach it; `sparsity`;
      `nondominated`, the share of points that no other of the part dominates; `entropy` of the set
      of points, nats.
    - `kl`, nats per completion; `token_entropy`, nats per token; `tokens` per completion;
      `distinct_2` of a completion of each prompt, mean over the preferences.

    Each is an `Estimate`, with ends at 95 % over prompts, the same resamples for all, widened
    to hold the value and None on fewer than four prompts; or None where it cannot be measured,
    such as tau of a constant reward.
    `hypervolume_less_first` is the difference to the first policy's, resample by resample.

    Args:
        evaluations: of policies with different names, on the same prompts, rewards and scale.
        reference_point: [R] of hypervolume, in the scale's units; None for zeros, the level that
            the scale calls low.
        draws: bootstrap resamples of the prompts.
        seed: of the resamples and of the halves.

    Returns:
        The report; `examples` are completions of the first policy.

    Raises:
        InputError: none is given, two have one name, or they were judged on different things.
    """
    _check_alike(evaluations)
    first = evaluations[0]
    size, count = len(first.names), len(first.prompts)
    point = np.zeros(size) if reference_point is None else np.asarray(reference_point, np.float64)
    shared = _shared(evaluations)
    parts = [
        {name: _Part(one.preferences, rows) for name, rows in _parts(one, shared).items()}
        for one in evaluations
    ]
    halves = np.random.default_rng(seed).permutation(count) % 2

    def measured(weights: NDArray[np.int64]) -> list[dict[str, Statistics]]:
        means = [_means(one.rewards, weights, halves) for one in evaluations]
        rivals = _Means(
            np.concatenate([mean.whole for mean in means]),
            np.concatenate([mean.halves for mean in means], axis=1),
        )
        return [
            {
                name: _statistics(part, mean, rivals, point, first.names)
                for name, part in own.items()
            }
            for own, mean in zip(parts, means, strict=True)
        ]

    found = measured(np.ones(count, np.int64))
    drawn = [measured(weights) for weights in _resamples(seed, halves, draws)]
    return {
        "format": FORMAT,
        "version": __version__,
        "rewards": list(first.names),
        "scale": first.scale.digest,
        "reference_point": point.tolist(),
        "prompts": count,
        "draws": draws,
        "policies": {
            one.policy: {
                "samples": one.samples,
                "temperature": one.temperature,
                "points": _points(one),
                "parts": {
                    name: _part_report(one, part, _nested(found, drawn, number, name))
                    for name, part in parts[number].items()
                },
            }
            for number, one in enumerate(evaluations)
        },
        "examples": _examples(first),
    }


def _statistics(
    part: _Part, mean: _Means, rivals: _Means, point: Floats, names: Sequence[str]
) -> dict[str, float | None]:
    """Statistics of one part, keys joined by '/'; None where there is nothing to measure."""
    preferences, achieved = part.preferences[part.rows], mean.whole[part.rows]
    taus = agreement.tau_b(preferences, achieved)
    gaps = pareto.sparsity(achieved)
    return {
        **{f"tau/{name}": tau for name, tau in zip(names, taus, strict=True)},
        "squared_error": agreement.squared_error(preferences, achieved),
        "corner_error": agreement.corner_error(preferences, achieved, rivals.whole),
        **{
            f"movement/{name}": moved
            for name, moved in zip(
                names, agreement.corner_movement(preferences, achieved), strict=True
            )
        },
        **_regrets(part, mean.halves, rivals.halves),
        "hypervolume": pareto.hypervolume(achieved, point),
        "single_point": max(pareto.hypervolume(row[None], point) for row in achieved),
        # 0 is a single point, not a dense front.
        "sparsity": gaps if gaps > 0 else None,
        "nondominated": float(pareto.nondominated(achieved).mean()),
        "entropy": pareto.entropy(achieved),
    }


def _regrets(part: _Part, own: Floats, rivals: Floats) -> dict[str, float | None]:
    """Linear regret, chosen on one half and judged on the other, both ways averaged."""
    weights = part.preferences[part.rows]
    sums = dict.fromkeys(("table_own", "table_all", "direct_own", "direct_all"), 0.0)
    for chosen, judged, every in zip(own, own[::-1], rivals[::-1], strict=True):
        through = judged[np.argmax(weights @ chosen.T, axis=1)]
        for way, values in (("table", through), ("direct", judged[part.rows])):
            sums[f"{way}_own"] += agreement.linear_regret(weights, values, judged) / 2
            sums[f"{way}_all"] += agreement.linear_regret(weights, values, every) / 2
    # Of a single point nothing can be chosen: it is its own best, which says nothing.
    alone = len(part.preferences) < 2
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
    """How often each prompt counts [X]; halves are resampled apart, so that none is in both.

    There are none where a half is a single prompt, whose resamples are all the same.
    """
    if np.bincount(halves, minlength=2).min() < 2:
        return
    random = np.random.default_rng([seed, 1])
    for _ in range(draws):
        weights = np.zeros(len(halves), np.int64)
        for half in (0, 1):
            rows = np.flatnonzero(halves == half)
            weights[rows] = random.multinomial(len(rows), np.full(len(rows), 1 / len(rows)))
        yield weights


def _nested(
    found: list[dict[str, Statistics]],
    drawn: list[list[dict[str, Statistics]]],
    number: int,
    part: str,
) -> Mapping[str, object]:
    """Statistics of a policy and part with their intervals, as a tree."""
    tree: dict[str, object] = {}
    groups: dict[str, dict[str, Estimate | None]] = {}
    for name in found[number][part]:
        head, _, tail = name.partition("/")
        entry = _interval(found[number][part][name], [one[number][part][name] for one in drawn])
        if tail:
            groups.setdefault(head, {})[tail] = entry
        else:
            tree[head] = entry
    if number and part in found[0]:

        def less(one: list[dict[str, Statistics]]) -> float | None:
            own, first = one[number][part]["hypervolume"], one[0][part]["hypervolume"]
            return None if own is None or first is None else own - first

        tree["hypervolume_less_first"] = _interval(less(found), [less(one) for one in drawn])
    return tree | groups


def _interval(value: float | None, drawn: Sequence[float | None]) -> Estimate | None:
    """A statistic and its interval over the resamples; no interval where most have none."""
    if value is None:
        return None
    values = [other for other in drawn if other is not None]
    ends: list[float | None] = [None, None]
    if 2 * len(values) > len(drawn):
        low, high = (float(end) for end in np.quantile(values, _LEVELS))
        # Of a best of noisy points, all resamples may lie to one side.
        ends = [min(low, value), max(high, value)]
    return {"value": value, "low": ends[0], "high": ends[1]}


def _part_report(one: Evaluation, part: _Part, statistics: Mapping[str, object]) -> PartReport:
    rows = part.rows
    caps = agreement.tau_cap(part.preferences[rows])
    means = {
        "kl": float(one.kl[rows].mean()),
        "token_entropy": float(one.entropy[rows].mean()),
        "tokens": float(one.tokens[rows].mean()),
        "distinct_2": _distinct(one, rows),
        "points": len(rows),
        "tau_cap": dict(zip(one.names, caps, strict=True)),
    }
    return cast(PartReport, {**statistics, **means})  # the keys are those of `_statistics`


def _distinct(one: Evaluation, rows: NDArray[np.intp]) -> float | None:
    """Mean over some preferences of the distinct-2 of the completions under each."""
    each = [distinct_n(one.completions[row]) for row in rows]
    known = [share for share in each if share is not None]
    return float(np.mean(known)) if known else None


def _points(one: Evaluation) -> list[PointReport]:
    achieved = one.achieved_rewards
    front = pareto.nondominated(achieved)
    return [
        {
            "preference": one.preferences[row].tolist(),
            "seen": bool(one.seen[row]),
            "achieved_rewards": achieved[row].tolist(),
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
    """Preferences that all policies of several have in common, if some have others."""
    each = [set(_keys(one)) for one in evaluations if len(one.preferences) > 1]
    both = set.intersection(*each) if each else set()
    return both if len(both) > 1 and any(own != both for own in each) else set()


def _keys(one: Evaluation) -> list[tuple[float, ...]]:
    return [tuple(row) for row in one.preferences.round(5).tolist()]


def _examples(one: Evaluation) -> list[Example]:
    """Completions of the first prompts under preferences that lie far apart."""
    rows = spread(one.preferences, _SHOWN_PREFERENCES)
    return [
        {
            "prompt": prompt,
            "completions": [
                {
                    "preference": one.preferences[row].tolist(),
                    "completion": one.completions[row][place],
                }
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
        if one.policy in seen:
            raise InputError(
                f"report: found {one.policy} twice, expected a name of its own for each policy."
            )
        seen.add(one.policy)
        if one.scale != first.scale:
            raise InputError(
                f"report: {one.policy} was judged on {_stated(one.scale)}, {first.policy} on "
                f"{_stated(first.scale)}; expected the same, so evaluate one of them again."
            )
        if one.prompts != first.prompts:
            raise InputError(
                f"report: {one.policy} completed other prompts than {first.policy}; expected the "
                "same in the same order, so evaluate one of them again."
            )


def _stated(scale: RewardScale) -> str:
    ends = (
        f"{name} from {low:.4g} to {high:.4g}"
        for name, low, high in zip(scale.names, scale.low, scale.high, strict=True)
    )
    return f"the scale {scale.digest[:12]} of {', '.join(ends)}"
