"""A small portfolio of policies: chosen, certified, saved, and routed to."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxalign.errors import InputError
from jaxalign.files import write_json
from jaxalign.palm._search import SearchState, known_values, optimistic, search
from jaxalign.palm._sweep import best_member
from jaxalign.palm.certificate import Certificate, HeldOut, held_out, report
from jaxalign.palm.config import PalmConfig
from jaxalign.palm.domain import Floats, check_weights, coordinates, corners
from jaxalign.palm.oracle import Evaluator, Oracle, Policies, SampledOracle
from jaxalign.palm.select import Chosen, choose
from jaxalign.runs.artifact import load_arrays, save_arrays, unflatten

FORMAT = 1
# How far a recomputed certificate may be off the stored one: rounding, and another HiGHS.
_SAME = 1e-6


class Usage(NamedTuple):
    """Who is routed where: share [M] of users a member, its perplexity, members never used."""

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
        selection: how the members were chosen, and how far from optimal that may be.
        config: what was asked for.
        fingerprint: of the oracle's data.
    """

    members: Policies
    pool: Policies
    solved: Floats
    facets: Floats | None
    beta: float
    spread: Floats
    certificate: Certificate
    selection: dict[str, Any]
    config: PalmConfig
    fingerprint: str = ""

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
        """Return the best member of every user; no model is called.

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

    def usage(self, weights: ArrayLike) -> Usage:
        """Return which members some users are routed to.

        Args:
            weights: [U, R], at least one.

        Returns:
            Usage: shares, exp(-sum p ln p), and the members that nobody is routed to.

        Raises:
            InputError: as `route`, or no user.
        """
        _, index = self.route(weights)
        if len(index) == 0:
            raise InputError("weights: found no user, expected at least one.")
        share = np.bincount(np.asarray(index), minlength=len(self.members)) / len(index)
        used = share[share > 0]
        unused = tuple(int(i) for i in np.flatnonzero(share == 0))
        return Usage(share, float(np.exp(-np.sum(used * np.log(used)))), unused)

    def held_out(
        self, evaluator: Evaluator, draws: int = 1000, level: float = 0.95, seed: int = 0
    ) -> HeldOut:
        """Return the worst gaps on other prompts than the members were chosen on, with a band.

        Args:
            evaluator: makes policies from their payload and evaluates them on those prompts.
            draws: of the bootstrap over prompts.
            level: of the band, over all weights at once.
            seed: of the draws.

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

    def certify(self) -> Certificate:
        """Return the certificate, computed again from what the portfolio holds."""
        common = self.values, self.values[0], self.spread, self.corners, self.config.floor
        pool = report(self.pool_values, *common)
        optimum = None if self.facets is None else report(self.facets, *common)
        return replace(self.certificate, pool=pool, optimum=optimum)

    def save(self, path: str | Path) -> None:
        """Write the portfolio to a folder: arrays.npz and, last and so as proof, portfolio.json.

        Args:
            path: a folder, made if needed.
        """
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = {"solved": self.solved, "spread": self.spread}
        if self.facets is not None:
            arrays["facets"] = self.facets
        for name, policies in (("members", self.members), ("pool", self.pool)):
            arrays[name] = {"rewards": policies.rewards, "kl": policies.kl}
            if policies.payload:
                arrays[name]["payload"] = policies.payload
        save_arrays(folder / "arrays.npz", arrays)
        config = asdict(self.config)
        described = {
            "format": FORMAT,
            "members": len(self.members),
            "beta": self.beta,
            "certificate": self.certificate.as_dict(),
            "selection": self.selection,
            "config": config,
            "config_sha256": _digest(json.dumps(config, sort_keys=True).encode()),
            "data_fingerprint": self.fingerprint,
            "arrays_sha256": _digest((folder / "arrays.npz").read_bytes()),
        }
        write_json(folder / "portfolio.json", described)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def build(
    oracle: Oracle,
    config: PalmConfig,
    state: SearchState | None = None,
    on_call: Callable[[SearchState], None] | None = None,
) -> Portfolio:
    """Search policies, keep few of them and certify those.

    Args:
        oracle: solves one weight a call.
        config: tolerances or size, search, selection.
        state: of an earlier search, to go on from.
        on_call: told the search's state after every oracle call, to save it.

    Returns:
        Portfolio, the reference as member 0.

    Raises:
        InputError: a grid above its limit, or an oracle that returns nonsense.

    Source: PALM (arXiv 2604.04144): grid, lazy search, pruning; the certificate is ours.
    """
    found = search(oracle, config, state, on_call)
    known = known_values(oracle, config, found.policies)
    chosen = choose(known[1:], known[0], oracle.spread, config)
    return assemble(oracle, config, found, found.policies.take(chosen.members), chosen)


def assemble(
    oracle: Oracle,
    config: PalmConfig,
    found: SearchState,
    members: Policies,
    chosen: Chosen | None = None,
) -> Portfolio:
    """Return a portfolio of given members, certified against what a search has found.

    Args:
        oracle: whose policies they are.
        config: kept with the portfolio.
        found: the search whose pool and upper bound it is judged against.
        members: without the reference, which is added.
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
    domain = corners(config.weights, oracle.num_rewards)
    common = values, values[0], oracle.spread, domain, config.floor
    certificate = Certificate(
        report(known, *common),
        None if facets is None else report(facets, *common),
        oracle.error,
        config.floor,
    )
    selection: dict[str, Any] = {"calls": len(found.weights), "search_done": found.done}
    if chosen is not None:
        selection |= chosen.described
    portfolio = Portfolio(
        with_reference,
        found.policies,
        found.weights,
        facets,
        oracle.beta,
        np.asarray(oracle.spread, np.float64),
        certificate,
        selection,
        config,
        oracle.fingerprint,
    )
    if isinstance(oracle, SampledOracle):
        band = portfolio.held_out(oracle)
        sampling = band.additive_low, band.additive_high
        portfolio = replace(portfolio, certificate=replace(certificate, sampling=sampling))
    return portfolio


def load(path: str | Path) -> Portfolio:
    """Read a portfolio, compute its certificate again and refuse it if it says anything worse.

    Args:
        path: the folder that `Portfolio.save` wrote.

    Returns:
        Portfolio.

    Raises:
        InputError: there is none, of another format, its arrays are not those it was saved with, or
            it fails its own certificate.
    """
    folder = Path(path)
    if not (folder / "portfolio.json").exists():
        raise InputError(
            f"{path} holds no portfolio (portfolio.json is missing): give the output folder of a "
            "finished build."
        )
    try:
        described = json.loads((folder / "portfolio.json").read_text())
        content = (folder / "arrays.npz").read_bytes()
    except (OSError, ValueError) as error:
        raise InputError(f"{path} holds no whole portfolio: {error}; build it again.") from None
    if not isinstance(described, dict):
        raise InputError(f"{folder / 'portfolio.json'} is no portfolio: build it again.")
    if described.get("format") != FORMAT:
        raise InputError(
            f"{folder / 'portfolio.json'} has format {described.get('format')!r}, this version "
            f"reads {FORMAT}: build again or install the jaxalign that wrote it."
        )
    if _digest(content) != described.get("arrays_sha256"):
        raise InputError(
            f"{folder / 'arrays.npz'} is not the file that the portfolio was saved with (its "
            "SHA-256 differs): copy the folder again."
        )
    try:
        portfolio = _restored(described, unflatten(load_arrays(folder / "arrays.npz")))
        stored = described["certificate"]
        stored["pool"], stored["optimum"]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{folder / 'portfolio.json'} lacks or garbles a field ({error}): build it again."
        ) from None
    config = json.dumps(described["config"], sort_keys=True)
    if _digest(config.encode()) != described.get("config_sha256"):
        raise InputError(
            f"{folder / 'portfolio.json'}, config: is not what the portfolio was built with (its "
            "SHA-256 differs); copy the folder again."
        )
    portfolio = replace(portfolio, certificate=portfolio.certify())
    _compare(folder, stored, portfolio.certificate.as_dict())
    return portfolio


def _restored(described: dict[str, Any], tree: dict[str, Any]) -> Portfolio:
    """The portfolio as it was saved, its certificate still to be computed."""
    config = PalmConfig(**described["config"])
    policies = {
        name: Policies(tree[name]["rewards"], tree[name]["kl"], tree[name].get("payload", {}))
        for name in ("members", "pool")
    }
    eta_tau = described["certificate"]["oracle_error"]
    sampling = described["certificate"].get("sampling_95")
    # Filled by `certify`: what is stored is only compared with.
    blank = Certificate(
        None,  # type: ignore[arg-type]
        None,
        tuple(eta_tau) if eta_tau else None,
        config.floor,
        tuple(sampling) if sampling else None,
    )
    return Portfolio(
        policies["members"],
        policies["pool"],
        tree["solved"],
        tree.get("facets"),
        described["beta"],
        tree["spread"],
        blank,
        described["selection"],
        config,
        described["data_fingerprint"],
    )


def _compare(folder: Path, stored: dict[str, Any], computed: dict[str, Any]) -> None:
    for scope in ("pool", "optimum"):
        for name, gap in (stored[scope] or {}).items():
            now = (computed[scope] or {}).get(name)
            same = gap is None if now is None else gap is not None
            if not same or (now is not None and now["value"] > gap["value"] + _SAME):
                raise InputError(
                    f"{folder / 'portfolio.json'}, certificate.{scope}.{name}: found "
                    f"{None if gap is None else gap['value']}, but the members give "
                    f"{None if now is None else now['value']}; the portfolio fails its own "
                    "certificate: build it again."
                )
