"""The search for policies: lazily, between a lower and an upper bound, or everywhere."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxalign.errors import InputError
from jaxalign.palm.bounds import tie_points, upper_facets
from jaxalign.palm.config import PalmConfig
from jaxalign.palm.domain import Floats, coordinates, corners, extend
from jaxalign.palm.gaps import worst_gap
from jaxalign.palm.grid import weight_grid
from jaxalign.palm.oracle import BatchOracle, Oracle, OraclePolicy, Policies, stack
from jaxalign.runs.artifact import load_arrays, save_arrays


@dataclass(frozen=True)
class SearchState:
    """The state of a search, which can be saved after any call and continued from there.

    Attributes:
        weights: [n, R] solved weights, in the order of the calls.
        policies: the n policies found.
        gaps: [n] largest gap between the bounds when the call was made, NaN for corners.
        done: whether the bounds met the tolerance.
    """

    weights: Floats
    policies: Policies
    gaps: Floats
    done: bool = False

    def save(self, path: str | Path) -> None:
        """Write the state to a file, in one step."""
        save_arrays(
            path,
            {
                "weights": self.weights,
                "gaps": self.gaps,
                "done": np.asarray(self.done),
                "policies": vars(self.policies),
            },
        )


def load_state(path: str | Path) -> SearchState:
    """Read what `SearchState.save` wrote.

    Raises:
        InputError: no such file, or of another format.
    """
    try:
        tree = load_arrays(path)
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such file, expected the state of a search; search again."
        ) from None
    try:
        policies = Policies.from_arrays(tree, "policies")
        return SearchState(tree["weights"], policies, tree["gaps"], bool(tree["done"]))
    except (KeyError, InputError) as error:
        raise InputError(
            f"{path} holds no state of a search ({error}): delete it and search again."
        ) from None


def search(
    oracle: Oracle,
    config: PalmConfig,
    state: SearchState | None = None,
    on_call: Callable[[SearchState], None] | None = None,
) -> SearchState:
    """Return policies such that the best of them is within the tolerance of V at every target.

    Lazy: the domain's corners, then again and again the target with the largest gap between the
    best known policy and the upper bound, until L >= U - stop_eps max(U, 0) - stop_delta
    everywhere. The reference policy counts as known and costs no call.

    Args:
        oracle: solves one weight per call.
        config: tolerances, targets, and whether lazy or full.
        state: where an earlier search stopped, None to start.
        on_call: called with the state after every oracle call.

    Returns:
        SearchState; `done` is False if the limit of calls came first, or if an oracle with an error
        of its own cannot close the gap.

    Raises:
        InputError: a grid above its limit, or a state of other rewards.
    """
    if state is not None and state.weights.shape[1] != oracle.num_rewards:
        raise InputError(
            f"state: found {state.weights.shape[1]} rewards, expected {oracle.num_rewards}; "
            "start the search again."
        )
    fixed = targets(oracle.num_rewards, config)
    start = corners(config.weights, oracle.num_rewards)[:, : oracle.num_rewards]
    if config.search == "full" and fixed is not None:
        return _full(oracle, start, fixed, config, state, on_call)
    run = _Run(oracle, config, state, on_call)
    for weight in start:
        if not run.known(weight):
            run.solve(weight, np.nan)
    while len(run.weights) < config.call_limit:
        weight, gap, done = _next(run, fixed)
        if weight is None:
            return run.state(done)
        run.solve(weight, gap)
    return run.state(_next(run, fixed)[2])


def known_pool(oracle: Oracle, config: PalmConfig, policies: Policies) -> SearchState:
    """Return a pool of given policies, none of which has to be searched for.

    Args:
        oracle: the oracle whose policies they are.
        config: the domain of the users' weights.
        policies: all that there are.

    Returns:
        SearchState; the weight of a policy is the one at which it is furthest ahead of the others
        and of the reference, or the least behind.
    """
    values = known_values(oracle, config, policies)
    domain = corners(config.weights, oracle.num_rewards)
    weights = [
        worst_gap(values[[place]], np.delete(values, place, axis=0), corners=domain).weight
        for place in range(1, len(values))
    ]
    kept = np.stack(weights)[:, : oracle.num_rewards]
    return SearchState(kept, policies, np.full(len(policies), np.nan), True)


def targets(num_rewards: int, config: PalmConfig) -> Floats | None:
    """The grid [W, R] that must be served, None where tie points take its place."""
    if config.by_ties:
        return None
    return weight_grid(
        num_rewards, config.eps, config.delta, config.grid_limit, config.confirm_grid
    )


class _Run:
    """A search under way."""

    def __init__(
        self,
        oracle: Oracle,
        config: PalmConfig,
        state: SearchState | None,
        on_call: Callable[[SearchState], None] | None,
    ) -> None:
        self.oracle, self.config, self.on_call = oracle, config, on_call
        self.weights: list[Floats] = list(state.weights) if state else []
        self.gaps: list[float] = list(state.gaps) if state else []
        self.policies: list[OraclePolicy] = _unstack(state.policies) if state else []

    def known(self, weight: Floats) -> bool:
        return any(np.abs(weight - solved).max() < 1e-9 for solved in self.weights)

    def solve(self, weight: Floats, gap: float) -> None:
        self.policies.append(self.oracle(weight))
        self.weights.append(weight)
        self.gaps.append(float(gap))
        if self.on_call:
            self.on_call(self.state())

    def state(self, done: bool = False) -> SearchState:
        return SearchState(np.array(self.weights), stack(self.policies), np.array(self.gaps), done)


def _unstack(policies: Policies) -> list[OraclePolicy]:
    return [
        OraclePolicy(
            policies.rewards[i],
            float(policies.kl[i]),
            {name: array[i] for name, array in policies.payload.items()},
        )
        for i in range(len(policies))
    ]


def known_values(oracle: Oracle, config: PalmConfig, policies: Policies) -> Floats:
    """Values [1 + n, D] of the reference and of the policies found, in the domain's coordinates."""
    kind, beta, reference = config.weights, oracle.beta, oracle.reference
    found = coordinates(kind, policies.rewards, policies.kl, beta)
    return np.concatenate(
        [coordinates(kind, reference.rewards[None], np.array([reference.kl]), beta), found]
    )


def optimistic(oracle: Oracle, config: PalmConfig, state: SearchState) -> Floats | None:
    """Upper bound of V as linear functions [Y, D]; None for an oracle whose error is unknown."""
    if oracle.error is None:
        return None
    return _facets(
        oracle.error, config, state.weights, known_values(oracle, config, state.policies)
    )


def _facets(
    error: tuple[float, float], config: PalmConfig, weights: Floats, known: Floats
) -> Floats:
    eta, tau = error
    points = extend(config.weights, weights)
    values = np.einsum("nD,nD->n", points, known[1:])
    return upper_facets(points, (values + tau) / (1 - eta))


def _next(run: _Run, fixed: Floats | None) -> tuple[Floats | None, float, bool]:
    """The weight to solve next, its gap; no weight when there is none, and whether that is good."""
    config, rewards = run.config, run.oracle.num_rewards
    found, weights = stack(run.policies), np.array(run.weights)
    known = known_values(run.oracle, config, found)
    # An oracle of unknown error is searched as if it were exact; only the certificate says less.
    functions = _facets(run.oracle.error or (0.0, 0.0), config, weights, known)
    if fixed is None:
        points = tie_points(known, corners(config.weights, rewards))
    else:
        points = extend(config.weights, fixed)
    lower, upper = np.max(points @ known.T, axis=1), np.max(points @ functions.T, axis=1)
    eps, delta = config.tolerance
    over = upper - eps * np.maximum(upper, 0) - delta - lower
    open_targets = over > 1e-12 * np.abs(lower).max()
    if not open_targets.any():
        return None, 0.0, True
    for index in np.argsort(lower - upper, kind="stable"):
        if open_targets[index] and not run.known(points[index, :rewards]):
            return points[index, :rewards], float(upper[index] - lower[index]), False
    return None, 0.0, False


def _full(
    oracle: Oracle,
    start: Floats,
    fixed: Floats,
    config: PalmConfig,
    state: SearchState | None,
    on_call: Callable[[SearchState], None] | None,
) -> SearchState:
    """The corners and every target solved, all at once where the oracle can."""
    weights = np.concatenate([start, fixed])
    _, first = np.unique(np.round(weights, 12), axis=0, return_index=True)
    weights = weights[np.sort(first)]
    limit = max(config.call_limit, len(start))  # without the corners there is no upper bound
    if isinstance(oracle, BatchOracle) and state is None and len(weights) <= limit:
        policies = stack(oracle.many(weights))
        return SearchState(weights, policies, np.full(len(weights), np.nan), True)
    run = _Run(oracle, config, state, on_call)
    left = [weight for weight in weights if state is None or not run.known(weight)]
    room = max(limit - len(run.weights), 0)
    for weight in left[:room]:
        run.solve(weight, np.nan)
    return run.state(len(left) <= room)
