"""Where policies come from: one small protocol, and the closed form over sampled candidates."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxalign.errors import InputError
from jaxalign.palm._sweep import prompt_outcomes, sweep
from jaxalign.palm.domain import Floats

# Weights solved at once by the closed form, so that one shape is compiled.
_BATCH = 64


@dataclass(frozen=True)
class OraclePolicy:
    """One policy as an oracle returns it.

    Attributes:
        rewards: [R] its expected rewards.
        kl: KL from the reference, nats; 0 where there is no price on it.
        payload: arrays that make it again elsewhere (weights, an adapter, mixing weights); the
            same names and shapes for every policy of an oracle.
    """

    rewards: Floats
    kl: float = 0.0
    payload: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Policies:
    """Policies side by side: rewards [n, R], kl [n], payload {name: [n, ...]}."""

    rewards: Floats
    kl: Floats
    payload: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.kl)

    def take(self, index: ArrayLike) -> "Policies":
        """Return the policies at some places."""
        index = np.asarray(index, np.intp)
        payload = {name: array[index] for name, array in self.payload.items()}
        return Policies(self.rewards[index], self.kl[index], payload)


def stack(policies: Sequence[OraclePolicy]) -> Policies:
    """Return policies side by side.

    Raises:
        InputError: rewards that are not finite or of another number, or payloads that differ in
            names or shapes.
    """
    first = policies[0]
    for index, policy in enumerate(policies):
        rewards = np.asarray(policy.rewards)
        if rewards.shape != np.shape(first.rewards) or not np.isfinite([*rewards, policy.kl]).all():
            raise InputError(
                f"policy {index}: found rewards {rewards} and KL {policy.kl}, expected "
                f"{len(first.rewards)} finite rewards and a finite KL; correct the oracle."
            )
        shapes = {name: np.shape(array) for name, array in policy.payload.items()}
        if shapes != {name: np.shape(array) for name, array in first.payload.items()}:
            raise InputError(
                f"policy {index}: found a payload {shapes}, expected the names and shapes of "
                "policy 0; correct the oracle."
            )
    return Policies(
        np.array([policy.rewards for policy in policies], np.float64),
        np.array([policy.kl for policy in policies], np.float64),
        {
            name: np.stack([np.asarray(policy.payload[name]) for policy in policies])
            for name in first.payload
        },
    )


@runtime_checkable
class Oracle(Protocol):
    """What a portfolio is built from: a weight vector in, the best policy found for it out.

    Attributes:
        num_rewards: R.
        beta: price of one nat of KL, in units of reward; 0 for none.
        spread: [R] standard deviation of each reward under the reference.
        error: (eta, tau): a returned policy is worth at least (1 - eta) V(w) - tau. None where that
            cannot be known (fine-tuning): certificates are then relative to the pool.
        reference: the reference policy, a free member of every portfolio.
        fingerprint: of the data behind it, kept with the portfolio.
    """

    num_rewards: int
    beta: float
    spread: Floats
    error: tuple[float, float] | None
    reference: OraclePolicy
    fingerprint: str

    def __call__(self, weight: Floats) -> OraclePolicy:
        """Return the policy for weight [R]: largest <weight, rewards> - beta kl."""
        ...


@runtime_checkable
class BatchOracle(Oracle, Protocol):
    """An oracle that solves many weights at about the cost of one."""

    def many(self, weights: Floats) -> list[OraclePolicy]:
        """Return the policies for weights [W, R]."""
        ...


class Evaluator(Protocol):
    """Policies on single prompts, for a certificate on prompts that they were not chosen on."""

    beta: float

    def outcomes(self, policies: Policies) -> tuple[Floats, Floats]:
        """Return expected rewards [n, X, R] and KL [n, X] of policies made from their payload."""
        ...


@runtime_checkable
class SampledOracle(Oracle, Evaluator, Protocol):
    """An oracle whose values are means over answers drawn to some prompts, `outcomes` per prompt.

    Attributes:
        samples: answers a prompt.
    """

    samples: int


class ClosedForm:
    """Tilted reference policies over sampled candidates: exact for every weight, one softmax each.

    A policy's payload is its `weight` [R]: with `tilted_log_probs` that is all it takes to serve
    it on any prompt whose candidates have rewards.
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
        """Check the candidates and take them in.

        Args:
            rewards: [X, C, R].
            log_ref: [X, C] in nats, each prompt's probabilities sum to 1, -inf where a candidate is
                absent; None for candidates drawn from the reference, 1 / C each.
            beta: price of one nat of KL, in units of reward; positive.
            reward_range: what every reward must lie in, None for any.
            names: [R] of the rewards, for errors and reports.
            fingerprint: of the data, kept with the portfolio.

        Raises:
            InputError: shapes that do not fit, NaN, a reward outside its range or constant, fewer
                than 2 candidates, log_ref that does not sum to 1, or beta not above 0.
        """
        self.rewards = jnp.asarray(rewards)
        if self.rewards.ndim != 3 or self.rewards.shape[1] < 2 or 0 in self.rewards.shape:
            raise InputError(
                f"rewards: found shape {self.rewards.shape}, expected [prompts, candidates, "
                "rewards] with at least 2 candidates a prompt."
            )
        if not beta > 0 or not np.isfinite(beta):
            raise InputError(f"beta: found {beta}, expected above 0; correct it.")
        self.names = tuple(names or (f"reward {i}" for i in range(self.rewards.shape[2])))
        if log_ref is None:
            log_ref = np.full(self.rewards.shape[:2], -np.log(self.rewards.shape[1]))
        self.log_ref = jnp.asarray(log_ref, self.rewards.dtype)
        self.num_rewards = self.rewards.shape[2]
        self.beta = float(beta)
        self.spread = self._check(reward_range)
        # Rounding of the sweep (its agreement with float64), carried like any oracle's error.
        self.error: tuple[float, float] | None = (
            0.0,
            0.0 if self.rewards.dtype == jnp.float64 else 1e-5,
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
        flat = spread <= 1e-6 * np.maximum(np.abs(mean), 1e-6)
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
            found = sweep(self.rewards, self.log_ref, jnp.asarray(padded, dtype), self.beta)
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
        expected, kl = prompt_outcomes(self.rewards, self.log_ref, weights, self.beta)
        return np.asarray(expected, np.float64), np.asarray(kl, np.float64)
