"""Worst gaps between a portfolio and the best policies for its users, over all users at once."""

from dataclasses import dataclass

import numpy as np

from jaxalign.arrays import Sizes, check_count, check_number, check_numpy, check_scalar
from jaxalign.errors import InputError
from jaxalign.palm.domain import Floats
from jaxalign.palm.gaps import Gap, share_of, worst_gap, worst_ratio

# Contrasts resampled at a time: entries, so that memory does not grow with the draws.
_BLOCK = 2**24


@dataclass(frozen=True)
class Report:
    """Worst gaps over the whole domain, each with the weights where it occurs.

    Attributes:
        additive: gap in units of reward.
        additive_sd: gap in standard deviations of the rewards under the reference, averaged with
            the user's weights.
        share_lost: share of the improvement over the reference that is lost, where the improvement
            is at least the floor; 0 where no user can improve by that much.
        multiplicative: relative gap of the value, whose zero is that of the rewards less the price
            of KL; None where the members are worth less than 0 to some user.
    """

    additive: Gap
    additive_sd: Gap
    share_lost: Gap
    multiplicative: Gap | None

    def as_dict(self) -> dict[str, object]:
        """Return the report ready for JSON."""
        return {
            name: None if gap is None else {"value": gap.value, "weight": gap.weight.tolist()}
            for name, gap in vars(self).items()
        }


@dataclass(frozen=True)
class Certificate:
    """The guarantee of a portfolio, for every user of the domain.

    Attributes:
        pool: gaps to the best of all policies that were solved.
        optimum: gaps to the unknown optimum, by the upper bound; None where the oracle's error is
            not known: the certificate is then relative to the pool.
        error: (eta, tau) of the oracle, or None.
        floor: least improvement, in standard deviations, of the users whose share lost is reported.
        sampling: between which the additive gap against the pool lies at a level of 95 %, where
            values are means over sampled answers; from the spread over the prompts that the members
            were chosen on, so that prompts nothing was chosen on say more (`held_out`). None for
            values without such an error.
    """

    pool: Report
    optimum: Report | None
    error: tuple[float, float] | None
    floor: float
    sampling: tuple[float, float] | None = None

    @property
    def scope(self) -> str:
        """What the certificate is relative to."""
        return "relative to the pool" if self.optimum is None else "against the unknown optimum"

    def as_dict(self) -> dict[str, object]:
        """Return the certificate ready for JSON."""
        return {
            "scope": self.scope,
            "pool": self.pool.as_dict(),
            "optimum": None if self.optimum is None else self.optimum.as_dict(),
            "oracle_error": None if self.error is None else list(self.error),
            "sampling_95": None if self.sampling is None else list(self.sampling),
            "floor_sd": self.floor,
            "zero": "rewards as given, the price of KL taken off",
        }


def report(
    pool: Floats,
    members: Floats,
    reference: Floats,
    spread: Floats,
    corners: Floats,
    floor: float = 0.1,
) -> Report:
    """Return every worst gap of some members against a pool.

    Args:
        pool: [C, D] values of policies, or the linear functions of an upper bound.
        members: [M, D] values of the members; the reference is always one.
        reference: [D] value of the reference.
        spread: [R] standard deviations of the rewards under the reference.
        corners: [N, D] of the domain.
        floor: least improvement over the reference, in standard deviations, of the users whose
            share lost is reported: near 0 the share says nothing.

    Returns:
        Report.

    Raises:
        InputError: shapes that disagree, nothing to compare, NaN or infinity, or a negative floor.

    Example:
        >>> import numpy as np
        >>> from jaxalign.palm import report
        >>> members = np.array([[0.0, 0.0], [0.8, 0.6]])
        >>> found = report(np.eye(2), members, members[0], np.ones(2), np.eye(2))
        >>> round(found.additive.value, 6), found.additive.weight.tolist()
        (0.4, [0.0, 1.0])
        >>> round(found.share_lost.value, 6)
        0.4
    """
    sizes = Sizes()
    pool, members = (
        check_numpy("pool", pool, "C D", sizes),
        check_numpy("members", members, "M D", sizes),
    )
    reference = check_numpy("reference", reference, "D", sizes)
    corners = check_numpy("corners", corners, "N D", sizes)
    spread = check_numpy("spread", spread, "R", sizes)
    check_number("floor", floor, 0)
    members = np.concatenate([members, reference[None]])
    at_pool, at_members, at_reference = (x @ corners.T for x in (pool, members, reference[None]))
    units = np.abs(corners[:, : len(spread)]) @ spread
    every = np.broadcast_to(units, at_pool.shape)
    share = worst_ratio(at_pool, at_members, at_pool - at_reference, corners, floor * units)
    try:
        multiplicative = worst_gap(pool, members, "multiplicative", corners=corners)
    except InputError:
        multiplicative = None
    return Report(
        additive=worst_gap(pool, members, corners=corners),
        additive_sd=worst_ratio(at_pool, at_members, every, corners),
        share_lost=share_of(share),
        multiplicative=multiplicative,
    )


def guarantee(eps: float, delta: float, eta: float = 0.0, tau: float = 0.0) -> tuple[float, float]:
    """Return (a, b) such that solving the whole grid leaves every user at least a V(w) - b.

    For policies of values in [0, 1]: a = (1 - eta) / (1 + eps), b = (1 - eta) delta / (1 + eps)
    + tau. A cover within (prune_eps, prune_delta) multiplies a and b by 1 - prune_eps and adds
    prune_delta to b.

    Args:
        eps: multiplicative step of the grid.
        delta: additive tolerance of the grid.
        eta: multiplicative error of the oracle.
        tau: additive error of the oracle.

    Returns:
        a, b.

    Raises:
        InputError: a number that is not finite or below 0.

    Source: ours (PALM specification: proved by rounding a user down to the grid).

    Example:
        >>> from jaxalign.palm import guarantee
        >>> a, b = guarantee(eps=0.1, delta=0.05)
        >>> round(a, 3), round(b, 3)
        (0.909, 0.045)
    """
    given = {"eps": eps, "delta": delta, "eta": eta, "tau": tau}
    for name, value in given.items():
        check_number(name, value, 0)
    # Numbers of Python, so that one of half precision does not round the others.
    eps, delta, eta, tau = (check_scalar(name, value) for name, value in given.items())
    return (1 - eta) / (1 + eps), (1 - eta) * delta / (1 + eps) + tau


@dataclass(frozen=True)
class HeldOut:
    """Worst gaps on prompts that nothing was chosen on.

    Attributes:
        report: the gaps as they are on these prompts, against the pool.
        additive_low, additive_high: between which the additive gap lies, for all weights at once.
        additive_sd_low, additive_sd_high: the same in standard deviations.
        share_low, share_high: between which the share of the improvement lost lies, of the users
            whose improvement is at least the floor all over the band; 0 where there are none.
        level: probability of the bands, over draws of prompts.
        prompts: number of prompts.
    """

    report: Report
    additive_low: float
    additive_high: float
    additive_sd_low: float
    additive_sd_high: float
    share_low: float
    share_high: float
    level: float
    prompts: int

    def as_dict(self) -> dict[str, object]:
        """Return the gaps and their bands ready for JSON."""
        bands = {name: value for name, value in vars(self).items() if name != "report"}
        return {**self.report.as_dict(), **bands}


def held_out(
    values: Floats,
    member_values: Floats,
    spread: Floats,
    corners: Floats,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    floor: float = 0.1,
) -> HeldOut:
    """Return the worst gaps on other prompts, with one max-t band for all weights at once.

    The mean differences of every pool policy to every member, at every corner of the domain, lie
    in one band with the given probability. A gap is linear in them with weights of a mixture, so
    the band's upper and lower edges bound it for every user.

    Args:
        values: [C, X, D] of the pool on single prompts, in the domain's coordinates.
        member_values: [M, X, D] of the members, the reference first.
        spread: [R] standard deviations of the rewards.
        corners: [N, D] of the domain.
        draws: draws of the bootstrap over prompts.
        level: level of the band.
        seed: seed of the draws.
        floor: as in `report`.

    Returns:
        HeldOut.

    Raises:
        InputError: fewer than 2 prompts, shapes that disagree, NaN or infinity, no draws, or a
            level outside [0, 1].

    Source: Romano and Wolf (2005), studentised maximum; the reduction to corners is ours.

    Example:
        >>> import numpy as np
        >>> from jaxalign.palm import held_out
        >>> prompts = np.arange(8.0)[None, :, None] / 8 * np.ones(2)
        >>> members = np.concatenate([0 * prompts, prompts])
        >>> found = held_out(prompts + 0.1, members, np.ones(2), np.eye(2), draws=50)
        >>> round(found.report.additive.value, 6), found.prompts
        (0.1, 8)
    """
    sizes = Sizes()
    values = check_numpy("values", values, "C X D", sizes)
    member_values = check_numpy("member_values", member_values, "M X D", sizes)
    corners = check_numpy("corners", corners, "N D", sizes)
    spread = check_numpy("spread", spread, "R", sizes)
    draws = check_count("draws", draws)
    check_number("level", level, 0, 1)
    prompts = values.shape[1]
    if prompts < 2:
        raise InputError(f"prompts: found {prompts}, expected at least 2 to certify on.")
    pool, members = values.mean(axis=1), member_values.mean(axis=1)
    found = report(pool, members, members[0], spread, corners, floor)
    by_prompt = values @ corners.T, member_values @ corners.T
    contrasts = by_prompt[0][:, None] - by_prompt[1][None]  # [C, M, X, N]
    flat = np.moveaxis(contrasts, 2, -1).reshape(-1, prompts)
    mean, error = flat.mean(axis=1), flat.std(axis=1, ddof=1) / np.sqrt(prompts)
    width = _max_t(flat - mean[:, None], error, draws, level, seed) * error
    shape = (len(pool), len(members), len(corners))
    middle, width = mean.reshape(shape), width.reshape(shape)
    nothing = np.zeros((1, len(corners)))
    units = np.abs(corners[:, : len(spread)]) @ spread
    edges = []
    for unit in (np.ones(len(corners)), units):
        every = np.broadcast_to(unit, (len(pool), len(corners)))
        edges += [
            worst_ratio(middle + sign * width, nothing, every, corners).value for sign in (-1, 1)
        ]
    # The reference is the first member: what is gained over it lies in the same band.
    gained = middle[:, 0] - width[:, 0], middle[:, 0] + width[:, 0]
    ends = (middle - width, gained[1]), (middle + width, gained[0])
    for lost, gain in ends:
        # <floor units - least gain, lambda> <= 0, said where <gain, lambda> = 1.
        cap = floor * units - gained[0] + gain
        # No more than all: the reference is a member.
        edges.append(min(worst_ratio(lost, nothing, gain, corners, cap).value, 1.0))
    low, high, low_sd, high_sd, share_low, share_high = (max(edge, 0.0) for edge in edges)
    return HeldOut(found, low, high, low_sd, high_sd, share_low, share_high, level, prompts)


def _max_t(centred: Floats, error: Floats, draws: int, level: float, seed: int) -> float:
    """Quantile of the largest studentised deviation of a resampled mean, rows [n, X] centred."""
    varies = error > 1e-12 * error.max()
    if not varies.any():
        return 0.0
    scaled = (centred[varies] / error[varies, None]).astype(np.float32)
    prompts = centred.shape[1]
    rng = np.random.default_rng(seed)
    size, largest = max(1, _BLOCK // len(scaled)), []
    for start in range(0, draws, size):
        counts = rng.multinomial(prompts, np.full(prompts, 1 / prompts), min(size, draws - start))
        largest.append(np.abs(counts.astype(np.float32) / prompts @ scaled.T).max(axis=1))
    return float(np.quantile(np.concatenate(largest), level))
