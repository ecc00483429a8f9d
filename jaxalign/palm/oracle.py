"""Where policies come from: what an oracle is, and what it returns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike

from jaxalign.errors import InputError
from jaxalign.palm.domain import Floats


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

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], name: str) -> "Policies":
        """Return policies from arrays named NAME/rewards, NAME/kl and NAME/payload/..."""
        below = f"{name}/payload/"
        payload = {k.removeprefix(below): v for k, v in arrays.items() if k.startswith(below)}
        return cls(arrays[f"{name}/rewards"], arrays[f"{name}/kl"], payload)

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

    Example:
        >>> import numpy as np
        >>> from jaxalign.palm import OraclePolicy, stack
        >>> policies = stack([OraclePolicy(rewards) for rewards in np.eye(2)])
        >>> len(policies), policies.rewards.tolist()
        (2, [[1.0, 0.0], [0.0, 1.0]])
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
        num_rewards: number R of rewards.
        beta: price of one nat of KL, in units of reward; 0 for none.
        spread: [R] standard deviation of each reward under the reference.
        error: (eta, tau): a returned policy is worth at least (1 - eta) V(w) - tau. None where that
            cannot be known (fine-tuning): certificates are then relative to the pool.
        reference: the reference policy, a free member of every portfolio.
        fingerprint: digest of the data behind it, kept with the portfolio.
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
        samples: number of answers per prompt.
    """

    samples: int
