"""A small portfolio of policies: built, certified, saved, and routed to."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxalign.arrays import check_mask
from jaxalign.errors import InputError
from jaxalign.files import expand_user
from jaxalign.palm._search import SearchState, known_values, optimistic, search
from jaxalign.palm._sweep import best_member
from jaxalign.palm.certificate import Certificate, HeldOut, held_out, report
from jaxalign.palm.config import PalmConfig
from jaxalign.palm.domain import Floats, check_weights, coordinates, corners
from jaxalign.palm.oracle import Evaluator, Oracle, Policies, SampledOracle
from jaxalign.palm.select import Chosen, SelectionSummary, choose
from jaxalign.rewards.reward_scale import SCALE_ARRAYS, RewardScale
from jaxalign.runs.artifact import Tree, load_artifact, save_artifact

FILE = "portfolio.safetensors"
_REMEDY = "build it with `jaxalign palm build`"


class Usage(NamedTuple):
    """Which members some users are routed to.

    Attributes:
        share: [M] share of the users that each member serves.
        perplexity: exp(-sum p ln p) of the shares p: the effective number of members.
        unused: members that serve no user.
    """

    share: Floats
    perplexity: float
    unused: tuple[int, ...]


@dataclass(frozen=True)
class Portfolio:
    """Policies such that every user finds a good one; member 0 is the reference policy.

    Attributes:
        members: the M members, the reference first.
        pool: all policies that were solved, in the order of the calls.
        solved: [n, R] the weights that they were solved for.
        facets: [Y, D] upper bound of the optimum, as linear functions; None where the oracle's
            error is unknown.
        beta: price of one nat of KL, in units of reward.
        spread: [R] standard deviations of the rewards under the reference.
        certificate: worst gaps over all users.
        config: tolerances, search and selection that it was built with.
        calls: oracle calls of the search.
        search_done: whether the search's bounds met the tolerance.
        selection: how the members were chosen; None for members from elsewhere.
        fingerprint: digest of the oracle's data.
        scale: scale of the raw rewards, whose levels are the rewards here; None where it is not
            known. Weights of users are read against it.
        chosen_on: hashes of the prompts that the members were chosen on, as `Candidates.marks`.
    """

    members: Policies
    pool: Policies
    solved: Floats
    facets: Floats | None
    beta: float
    spread: Floats
    certificate: Certificate
    config: PalmConfig
    calls: int
    search_done: bool
    selection: SelectionSummary | None = None
    fingerprint: str = ""
    scale: RewardScale | None = None
    chosen_on: tuple[str, ...] = ()

    @cached_property
    def values(self) -> Floats:
        """Values [M, D] of the members in the domain's coordinates."""
        return self._values(self.members)

    @cached_property
    def corners(self) -> Floats:
        """Corners [N, D] of the domain of users' weights."""
        return corners(self.config.weights, len(self.spread))

    @cached_property
    def pool_values(self) -> Floats:
        """Values [n, D] of all policies that were solved."""
        return self._values(self.pool)

    def _values(self, policies: Policies) -> Floats:
        return coordinates(self.config.weights, policies.rewards, policies.kl, self.beta)

    def route(self, weights: ArrayLike, chunk: int | None = None) -> tuple[jax.Array, jax.Array]:
        """Return the best member for every user; no model is called.

        Args:
            weights: [U, R] on the simplex, or in the L1 ball for signed portfolios.
            chunk: users handled at once on the device, None for what suits it.

        Returns:
            value [U] in units of reward, the price of KL taken off; and member [U] int32, where 0
            is the reference.

        Raises:
            InputError: weights of another number, NaN, or off the domain.
        """
        checked = check_weights(self.config.weights, weights, len(self.spread))
        users = jnp.asarray(checked, jnp.result_type(float))
        values = jnp.asarray(self.values, users.dtype)
        if self.config.weights == "signed":
            users = jnp.concatenate([users, jnp.ones((len(users), 1), users.dtype)], axis=1)
        return best_member(users, values, chunk=chunk)

    def held_out(
        self, evaluator: Evaluator, draws: int = 1000, level: float = 0.95, seed: int = 0
    ) -> HeldOut:
        """Return the worst gaps on other prompts than the members were chosen on, with a band.

        Args:
            evaluator: makes policies from their payload and evaluates them on those prompts.
            draws: draws of the bootstrap over prompts.
            level: level of the band, over all weights at once.
            seed: seed of the draws.

        Returns:
            HeldOut; the gaps are against the pool on these prompts.
        """
        kind = self.config.weights
        pool, members = (
            coordinates(kind, *evaluator.outcomes(policies), evaluator.beta)
            for policies in (self.pool, self.members)
        )
        floor = self.config.floor
        return held_out(pool, members, self.spread, self.corners, draws, level, seed, floor)

    def save(self, path: str | Path) -> None:
        """Write the portfolio to a folder, as portfolio.safetensors.

        Args:
            path: the folder, made if needed.
        """
        arrays: dict[str, Tree | np.ndarray] = {"solved": self.solved, "spread": self.spread}
        if self.facets is not None:
            arrays["facets"] = self.facets
        if self.scale is not None:
            arrays["scale"] = {name: getattr(self.scale, name) for name in SCALE_ARRAYS}
        for name, policies in (("members", self.members), ("pool", self.pool)):
            arrays[name] = vars(policies)
        about = AboutPortfolio(
            config=self.config,
            beta=self.beta,
            fingerprint=self.fingerprint,
            calls=self.calls,
            search_done=self.search_done,
            selection=self.selection,
            error=self.certificate.error,
            sampling=self.certificate.sampling,
            rewards=None if self.scale is None else self.scale.names,
            scale_digest=None if self.scale is None else self.scale.digest,
            chosen_on=self.chosen_on,
        )
        save_artifact(Path(path) / FILE, "portfolio", about, arrays)


@dataclass(frozen=True)
class AboutPortfolio:
    """What stands beside the arrays of a portfolio's file; see `Portfolio` for the fields.

    Attributes:
        rewards: [R] names of the rewards, None where the scale is not known.
        scale_digest: digest of the scale, for readers of the file's metadata.
        error: error of the oracle, as in `Certificate`.
        sampling: interval of the additive gap, as in `Certificate`.
    """

    config: PalmConfig
    beta: float
    fingerprint: str
    calls: int
    search_done: bool
    selection: SelectionSummary | None
    error: tuple[float, float] | None
    sampling: tuple[float, float] | None
    rewards: tuple[str, ...] | None
    scale_digest: str | None
    chosen_on: tuple[str, ...]


def usage(counts: ArrayLike) -> Usage:
    """Return who is routed where, from the number of users [M] of each member.

    Raises:
        InputError: no user, or a number that is not finite or below 0.

    Example:
        >>> from jaxalign.palm import usage
        >>> usage([2, 0, 2]).unused, round(usage([2, 0, 2]).perplexity, 6)
        ((1,), 2.0)
    """
    counts = np.asarray(check_mask("counts", counts, "M"), np.float64)
    if not counts.sum():
        raise InputError("weights: found no user, expected at least one.")
    share = counts / counts.sum()
    used = share[share > 0]
    unused = tuple(int(i) for i in np.flatnonzero(share == 0))
    return Usage(share, float(np.exp(-np.sum(used * np.log(used)))), unused)


def build(
    oracle: Oracle,
    config: PalmConfig,
    state: SearchState | None = None,
    on_call: Callable[[SearchState], None] | None = None,
    scale: RewardScale | None = None,
    chosen_on: Iterable[str] = (),
) -> Portfolio:
    """Search policies, keep few of them and certify those.

    Args:
        oracle: solves one weight per call.
        config: tolerances or size, search, selection.
        state: state of an earlier search, to go on from.
        on_call: called with the search's state after every oracle call, to save it.
        scale: scale whose levels the oracle's rewards are, kept with the portfolio; None where it
            is not known.
        chosen_on: hashes of the oracle's prompts, kept with the portfolio.

    Returns:
        Portfolio, the reference as member 0.

    Raises:
        InputError: a grid above its limit, or an oracle that returns nonsense.

    Source: PALM (arXiv 2604.04144): grid, lazy search, pruning; the certificate is ours.

    Example:
        >>> from jaxalign.palm import ClosedForm, PalmConfig, build
        >>> import numpy as np
        >>> rewards = np.random.default_rng(0).random((4, 3, 2))  # prompts, candidates, rewards
        >>> oracle = ClosedForm(rewards, None, beta=0.1)
        >>> portfolio = build(oracle, PalmConfig(size=2, targets="corners"))
        >>> len(portfolio.members), portfolio.selection.optimal  # the reference is free
        (3, True)
        >>> value, member = portfolio.route([[1.0, 0.0], [0.0, 1.0]])
        >>> bool((value >= portfolio.values[0] - 1e-6).all())  # no user below the reference
        True
    """
    found = search(oracle, config, state, on_call)
    return select_members(oracle, config, found, scale, chosen_on)


def select_members(
    oracle: Oracle,
    config: PalmConfig,
    found: SearchState,
    scale: RewardScale | None = None,
    chosen_on: Iterable[str] = (),
) -> Portfolio:
    """Return the portfolio of the members to keep of policies that are known.

    Args:
        oracle: the oracle whose policies they are.
        config: tolerances or size, selection.
        found: the policies, as of `search` or `known_pool`.
        scale, chosen_on: as in `build`.

    Returns:
        Portfolio, the reference as member 0.
    """
    known = known_values(oracle, config, found.policies)
    chosen = choose(known[1:], known[0], oracle.spread, config)
    portfolio = assemble(oracle, config, found, found.policies.take(chosen.members), chosen)
    return replace(portfolio, scale=scale, chosen_on=tuple(chosen_on))


def assemble(
    oracle: Oracle,
    config: PalmConfig,
    found: SearchState,
    members: Policies,
    chosen: Chosen | None = None,
) -> Portfolio:
    """Return a portfolio of given members, certified against what a search has found.

    Args:
        oracle: the oracle whose policies they are.
        config: kept with the portfolio.
        found: the search whose pool and upper bound it is judged against.
        members: members without the reference, which is added.
        chosen: how they were chosen, None for members from elsewhere.

    Returns:
        Portfolio.
    """
    reference = oracle.reference
    with_reference = Policies(
        np.concatenate([np.asarray(reference.rewards)[None], members.rewards]),
        np.append(reference.kl, members.kl),
        {
            name: np.concatenate([np.asarray(reference.payload[name])[None], array])
            for name, array in members.payload.items()
        },
    )
    known = known_values(oracle, config, found.policies)
    facets = optimistic(oracle, config, found)
    values = coordinates(config.weights, with_reference.rewards, with_reference.kl, oracle.beta)
    certificate = _certify(values, known, facets, oracle.spread, config, oracle.error)
    portfolio = Portfolio(
        members=with_reference,
        pool=found.policies,
        solved=found.weights,
        facets=facets,
        beta=oracle.beta,
        spread=np.asarray(oracle.spread, np.float64),
        certificate=certificate,
        config=config,
        calls=len(found.weights),
        search_done=found.done,
        selection=None if chosen is None else chosen.summary,
        fingerprint=oracle.fingerprint,
    )
    if isinstance(oracle, SampledOracle):
        band = portfolio.held_out(oracle)
        sampling = band.additive_low, band.additive_high
        portfolio = replace(portfolio, certificate=replace(certificate, sampling=sampling))
    return portfolio


def load(path: str | Path) -> Portfolio:
    """Read a portfolio; its certificate is computed again from its members.

    Args:
        path: the folder that `Portfolio.save` wrote.

    Returns:
        Portfolio.

    Raises:
        InputError: the folder holds no portfolio, or one that is damaged or of another format.
    """
    place = expand_user(path) / FILE
    found = load_artifact(place, "portfolio", AboutPortfolio, _REMEDY)
    about, arrays = found.about, found.arrays
    members, pool = (Policies.from_arrays(arrays, name) for name in ("members", "pool"))
    facets, spread = arrays.get("facets"), arrays["spread"]
    ends = {name: arrays.get(f"scale/{name}", np.zeros(0)) for name in SCALE_ARRAYS}
    values, known = (
        coordinates(about.config.weights, policies.rewards, policies.kl, about.beta)
        for policies in (members, pool)
    )
    known = np.concatenate([values[:1], known])
    return Portfolio(
        members=members,
        pool=pool,
        solved=arrays["solved"],
        facets=facets,
        beta=about.beta,
        spread=spread,
        certificate=_certify(
            values, known, facets, spread, about.config, about.error, about.sampling
        ),
        config=about.config,
        calls=about.calls,
        search_done=about.search_done,
        selection=about.selection,
        fingerprint=about.fingerprint,
        scale=None if about.rewards is None else RewardScale(about.rewards, **ends),
        chosen_on=about.chosen_on,
    )


def _certify(
    values: Floats,
    known: Floats,
    facets: Floats | None,
    spread: Floats,
    config: PalmConfig,
    error: tuple[float, float] | None,
    sampling: tuple[float, float] | None = None,
) -> Certificate:
    """The certificate of members [M, D] against known policies [C, D] and an upper bound."""
    common = values, values[0], spread, corners(config.weights, len(spread)), config.floor
    optimum = None if facets is None else report(facets, *common)
    return Certificate(report(known, *common), optimum, error, config.floor, sampling)
