"""The value table of a policy: the rewards that it achieves under each preference."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxalign.arrays import check_number, check_numpy
from jaxalign.errors import InputError
from jaxalign.metrics.pareto import check_points
from jaxalign.rewards.reward_scale import RewardIds
from jaxalign.runs.artifact import load_artifact, save_artifact

FILE, KIND = "value_table.safetensors", "value table"
REMEDY = "run `jaxalign moc evaluate` on the policy"


@dataclass(frozen=True, eq=False)
class ValueTable:
    """F: from the preference that a policy is given to the rewards that it achieves.

    The only way from a user's weights to a preference. Preferences and achieved rewards are on
    different scales: a preference aims at levels of a `RewardScale`, while achieved rewards are in
    standard deviations from the mean of the reference samples, as a user's weights are per standard
    deviation. `digest` says of which samples.

    Attributes:
        preferences: [W, R] on the simplex.
        achieved_rewards: [W, R] means in standard deviations, as from `RewardScale.standardise`.
        kl: [W] to the reference, nats per completion.
        names: [R] names of the rewards.
        digest: of their `RewardScale`.

    Example:
        >>> import numpy as np
        >>> from jaxalign.moc.value_table import ValueTable
        >>> table = ValueTable(np.eye(2), [[1.0, -1.0], [-1.0, 1.0]], [0.5, 2.0], ("a", "b"), "0")
        >>> table.best([0.2, 0.6]), table.best([0.2, 0.6], beta=1.0)
        (array([0., 1.]), array([1., 0.]))
    """

    preferences: NDArray[np.float64]
    achieved_rewards: NDArray[np.float64] = field(repr=False)
    kl: NDArray[np.float64] = field(repr=False)
    names: tuple[str, ...]
    digest: str

    def __post_init__(self) -> None:
        preferences = check_points(self.preferences)
        achieved = check_points(self.achieved_rewards)
        kl = check_numpy("value table: KL", self.kl, "...", finite=False)
        same = preferences.shape == achieved.shape == (len(preferences), len(self.names))
        if not same or kl.shape != (len(preferences),) or not np.isfinite(kl).all():
            raise InputError(
                f"value table: found preferences {preferences.shape}, achieved rewards "
                f"{achieved.shape} and KL {kl.shape}, expected one finite row for each preference "
                f"and {len(self.names)} columns, one for each of {', '.join(self.names)}."
            )
        object.__setattr__(self, "preferences", preferences)
        object.__setattr__(self, "achieved_rewards", achieved)
        object.__setattr__(self, "kl", kl)

    def best(self, weights: ArrayLike, beta: float = 0.0) -> NDArray[np.float64]:
        """Return the preference that serves weights best: argmax_p <w, F(p)> - beta KL(p).

        Args:
            weights: [..., R] on standardised rewards, of any sign and size.
            beta: price of one nat of KL, in the weights' units times a standard deviation.

        Returns:
            [..., R], a row of `preferences`; the first among equals.

        Raises:
            InputError: another number of weights, some that are not finite, or a negative price.
        """
        check_number("beta", beta, 0)
        wanted = check_numpy("weights", weights, "...", finite=False)
        if wanted.shape[-1:] != (len(self.names),) or not np.isfinite(wanted).all():
            raise InputError(
                f"weights: found {wanted.tolist()}, expected finite numbers, one for each of "
                f"{', '.join(self.names)}."
            )
        worth = wanted @ self.achieved_rewards.T
        price = np.broadcast_to(beta * self.kl, worth.shape)
        return np.asarray(self.preferences[np.argmax(worth - price, axis=-1)])

    def save(self, folder: str | Path) -> None:
        """Write the table into a policy's folder."""
        arrays = {
            "preferences": self.preferences, "achieved_rewards": self.achieved_rewards,
            "kl": self.kl,
        }  # fmt: skip
        save_artifact(Path(folder) / FILE, KIND, RewardIds(self.names, self.digest), arrays)

    @classmethod
    def load(cls, folder: str | Path) -> "ValueTable":
        """Read the table of a policy's folder.

        Raises:
            InputError: there is none, it is damaged, or it is of an older format.
        """
        found = load_artifact(Path(folder) / FILE, KIND, RewardIds, REMEDY)
        arrays, ids = found.arrays, found.about
        return cls(
            arrays["preferences"], arrays["achieved_rewards"], arrays["kl"], ids.names, ids.digest
        )
