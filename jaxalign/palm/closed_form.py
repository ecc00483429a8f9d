"""The closed-form oracle: KL-regularised optima over sampled candidates, exact for every weight."""

from collections.abc import Sequence
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxalign.arrays import check_array
from jaxalign.errors import InputError
from jaxalign.palm._sweep import outcomes_unchecked, sweep_unchecked
from jaxalign.palm.candidates import Candidates
from jaxalign.palm.config import BuildConfig
from jaxalign.palm.domain import Floats
from jaxalign.palm.oracle import OraclePolicy, Policies
from jaxalign.rewards.reward_scale import RewardScale, fit_scale, load_scale

# Weights solved at once by the closed form, so that one shape is compiled.
_BATCH = 64


class ClosedForm:
    """Tilted reference policies over sampled candidates: exact for every weight, one softmax each.

    A policy's payload is its `weight` [R], from which `tilted_log_probs` makes the policy on any
    prompt whose candidates have rewards.

    Example:
        >>> import numpy as np
        >>> from jaxalign.palm import ClosedForm
        >>> oracle = ClosedForm(np.array([[[0.0, 1.0], [1.0, 0.0]]]), None, beta=0.5)
        >>> oracle([1.0, 0.0]).rewards.round(3).tolist()  # e^2 / (1 + e^2) of the first reward
        [0.881, 0.119]
    """

    def __init__(
        self,
        rewards: ArrayLike,
        log_ref: ArrayLike | None,
        beta: float,
        reward_range: tuple[float, float] | None = (0.0, 1.0),
        names: Sequence[str] | None = None,
        fingerprint: str = "",
    ) -> None:
        """Check the candidates.

        Args:
            rewards: [X, C, R].
            log_ref: [X, C] in nats, each prompt's probabilities sum to 1, -inf where a candidate is
                absent; None for candidates drawn from the reference, 1 / C each.
            beta: price of one nat of KL, in units of reward; positive.
            reward_range: lowest and highest reward that is accepted, None for any.
            names: [R] of the rewards, for errors and reports.
            fingerprint: digest of the data, kept with the portfolio.

        Raises:
            InputError: shapes that do not fit, NaN, a reward outside its range or constant, fewer
                than 2 candidates, log_ref that does not sum to 1, or beta not above 0.
        """
        self.rewards = check_array("rewards", rewards, "...", finite=False)
        if self.rewards.ndim != 3 or self.rewards.shape[1] < 2 or 0 in self.rewards.shape:
            raise InputError(
                f"rewards: found shape {self.rewards.shape}, expected [prompts, candidates, "
                "rewards] with at least 2 candidates per prompt."
            )
        if not beta > 0 or not np.isfinite(beta):
            raise InputError(f"beta: found {beta}, expected above 0; correct it.")
        self.names = tuple(names or (f"reward {i}" for i in range(self.rewards.shape[2])))
        if log_ref is None:
            log_ref = np.full(self.rewards.shape[:2], -np.log(self.rewards.shape[1]))
        log_p = check_array("log_ref", log_ref, "...", finite=False)
        self.log_ref = log_p.astype(self.rewards.dtype)
        self.num_rewards = self.rewards.shape[2]
        self.beta = float(beta)
        self.spread = self._check(reward_range)
        # Rounding of the sweep (its agreement with float64), carried like any oracle's error.
        self.error: tuple[float, float] | None = (
            0.0,
            0.0 if self.rewards.dtype == jnp.float64 else 1e-5 * float(jnp.abs(self.rewards).max()),
        )
        self.fingerprint = fingerprint
        self.reference = self.many(np.zeros((1, self.num_rewards)))[0]

    def _check(self, reward_range: tuple[float, float] | None) -> Floats:
        """The rewards' standard deviations [R] under the reference, after a look at everything."""
        rewards, log_ref = np.asarray(self.rewards, np.float64), np.asarray(self.log_ref)
        if log_ref.shape != rewards.shape[:2]:
            raise InputError(
                f"log_ref: found shape {log_ref.shape}, expected {rewards.shape[:2]} as the rewards"
            )
        present = log_ref > -np.inf
        if not np.isfinite(rewards).all() or np.isnan(log_ref).any():
            raise InputError("rewards, log_ref: found NaN or infinity, expected finite values.")
        mass = np.exp(log_ref.astype(np.float64))
        if (np.abs(mass.sum(axis=1) - 1) > 1e-3).any():
            row = int(np.argmax(np.abs(mass.sum(axis=1) - 1)))
            raise InputError(
                f"log_ref, prompt {row}: found probabilities that sum to {mass[row].sum():.4g}, "
                "expected 1; give -log n for n candidates drawn from the reference."
            )
        if (present.sum(axis=1) < 2).any():
            row = int(np.argmin(present.sum(axis=1)))
            raise InputError(
                f"rewards, prompt {row}: found {present[row].sum()} candidates, expected at least "
                "2; sample more, or leave the prompt out."
            )
        if reward_range is not None:
            low, high = reward_range
            off = ((rewards < low) | (rewards > high)) & present[..., None]
            if off.any():
                place = tuple(int(i) for i in np.argwhere(off)[0])
                raise InputError(
                    f"rewards, prompt {place[0]}, candidate {place[1]}, {self.names[place[2]]}: "
                    f"found {rewards[place]:.4g}, expected {low:g} to {high:g}; normalise it, or "
                    "state its range."
                )
        share = mass / len(mass)
        mean = np.einsum("XC,XCR->R", share, rewards)
        spread = np.sqrt(np.einsum("XC,XCR->R", share, (rewards - mean[None, None]) ** 2))
        flat = spread <= 1e-6 * np.abs(mean)
        if flat.any():
            raise InputError(
                f"{self.names[int(np.argmax(flat))]}: found the same reward for every candidate, "
                "expected one that varies; leave it out."
            )
        return spread

    def many(self, weights: ArrayLike) -> list[OraclePolicy]:
        """Return the policies for weights [W, R]."""
        weights = np.asarray(weights, np.float64)
        policies = []
        for start in range(0, len(weights), _BATCH):
            part = weights[start : start + _BATCH]
            padded = np.zeros((1 if len(part) == 1 else _BATCH, self.num_rewards))
            padded[: len(part)] = part
            dtype = self.rewards.dtype
            # The oracle's own arrays were checked once; a search calls this hundreds of times.
            found = sweep_unchecked(
                self.rewards, self.log_ref, jnp.asarray(padded, dtype), self.beta
            )
            expected, kl = (np.asarray(x, np.float64) for x in (found.expected, found.kl))
            policies += [
                OraclePolicy(expected[i], max(float(kl[i]), 0.0), {"weight": weight.copy()})
                for i, weight in enumerate(part)
            ]
        return policies

    def __call__(self, weight: ArrayLike) -> OraclePolicy:
        """Return the policy for weight [R]."""
        return self.many(np.asarray(weight)[None])[0]

    def outcomes(self, policies: Policies) -> tuple[Floats, Floats]:
        """Return expected rewards [n, X, R] and KL [n, X], of policies solved here or elsewhere."""
        weights = jnp.asarray(policies.payload["weight"], self.rewards.dtype)
        if not len(weights):  # a portfolio may have no member beside the reference
            prompts = len(self.rewards)
            return np.zeros((0, prompts, self.num_rewards)), np.zeros((0, prompts))
        expected, kl = outcomes_unchecked(self.rewards, self.log_ref, weights, self.beta)
        return np.asarray(expected, np.float64), np.asarray(kl, np.float64)


def candidate_scale(candidates: Candidates, config: BuildConfig) -> RewardScale:
    """Return the scale whose levels a portfolio over candidates is built on.

    Args:
        candidates: candidates of the prompts that members are chosen on.
        config: `scale`, `clip`, `reward_range` and `scale_from`, without which the scale that the
            candidates' file states is taken.

    Raises:
        InputError: as `level_scale`.
    """
    rows = candidates.rewards[candidates.log_ref > -np.inf]
    return level_scale(rows, candidates.names, config, candidates.scale)


def stated_units(config: BuildConfig, names: tuple[str, ...]) -> RewardScale | None:
    """Return the scale that `scale_from` names, None where there is none.

    Args:
        config: of the build.
        names: [R] of the rewards.

    Raises:
        InputError: no such scale, or one of other rewards.

    Example:
        >>> from jaxalign.palm.closed_form import stated_units
        >>> from jaxalign.palm.config import BuildConfig
        >>> stated_units(BuildConfig(), ("brevity",))
    """
    units = load_scale(config.scale_from) if config.scale_from else None
    _check_names(units, names)
    return units


def _check_names(units: RewardScale | None, names: tuple[str, ...]) -> None:
    """Refuse a scale of other rewards."""
    if units is not None and units.names != names:
        raise InputError(
            f"scale_from: found a scale of the rewards {', '.join(units.names)}, expected "
            f"{', '.join(names)}, in this order; name the columns with --rewards, or give the "
            "scale of these rewards."
        )


def level_scale(
    rows: Floats, names: tuple[str, ...], config: BuildConfig, units: RewardScale | None = None
) -> RewardScale:
    """Return the scale whose levels a portfolio is built on.

    Args:
        rows: [N, R] raw rewards of the reference's answers.
        names: [R] of the rewards.
        config: `scale` says what becomes levels 0 and 1. "standard": `clip` standard deviations
            below and above the mean, the same for all rewards, so that weights mean what they mean
            on standardised rewards; "range": the ends of `reward_range`; "none": 0 and 1. Mean and
            standard deviation are those of `scale_from` where it is given, so that weights that
            were learned on it mean the same here.
        units: scale whose mean and standard deviation are taken without `scale_from`; None for
            those of the rows.

    Returns:
        RewardScale; its digest is that of `scale_from` or `units` where there is one.

    Raises:
        InputError: a reward that is the same in all rows, or `scale_from` of other rewards.
    """
    units = stated_units(config, names) or units
    _check_names(units, names)
    fitted = units or fit_scale(rows, names, quantiles=None)
    if config.scale == "standard":
        low, high = fitted.mean - config.clip * fitted.std, fitted.mean + config.clip * fitted.std
    else:
        stated = config.reward_range if config.scale == "range" else None
        low, high = (np.full(len(names), end) for end in stated or (0.0, 1.0))
    return replace(fitted, low=low, high=high)


def candidate_oracle(candidates: Candidates, scale: RewardScale, beta: float) -> ClosedForm:
    """Return the closed-form oracle over candidates.

    Args:
        candidates: raw rewards of sampled answers.
        scale: scale of the rewards; the oracle's rewards are its levels, clipped to [0, 1].
        beta: price of one nat of KL, in units of a level.

    Returns:
        ClosedForm.

    Raises:
        InputError: as `ClosedForm`.
    """
    return ClosedForm(
        np.clip(scale.levels(candidates.rewards), 0.0, 1.0).astype(np.float32),
        candidates.log_ref.astype(np.float32),
        beta,
        names=scale.names,
        fingerprint=candidates.digest,
    )
