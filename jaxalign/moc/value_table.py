"""The value table of a policy: what it reaches when told each preference."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxalign.errors import InputError
from jaxalign.files import write_json
from jaxalign.metrics.pareto import check_points

FORMAT = 1
FILE = "value_table.json"


@dataclass(frozen=True, eq=False)
class ValueTable:
    """F: from what a policy is told to what it reaches; the one way from weights to a target.

    What is told and what is reached are on different scales: levels of a `RewardScale` are told,
    and `reached` is in standard deviations from the mean of the reference samples, as a utility's
    weights are per standard deviation. `digest` says of which samples.

    Attributes:
        told: [W, R] preferences, on the simplex.
        reached: [W, R] mean rewards in standard deviations, as from `RewardScale.standardise`.
        kl: [W] to the reference, nats an answer.
        names: [R] of the rewards.
        digest: of the `RewardScale`.
    """

    told: NDArray[np.float64]
    reached: NDArray[np.float64] = field(repr=False)
    kl: NDArray[np.float64] = field(repr=False)
    names: tuple[str, ...]
    digest: str

    def __post_init__(self) -> None:
        told, reached = check_points(self.told), check_points(self.reached)
        kl = np.asarray(self.kl, np.float64)
        same = told.shape == reached.shape == (len(told), len(self.names))
        if not same or kl.shape != (len(told),) or not np.isfinite(kl).all():
            raise InputError(
                f"value table: found told {told.shape}, reached {reached.shape} and KL {kl.shape}, "
                f"expected one finite row a preference and {len(self.names)} columns, one a reward "
                f"of {', '.join(self.names)}."
            )
        for name, values in (("told", told), ("reached", reached), ("kl", kl)):
            object.__setattr__(self, name, values)

    def best(self, weights: ArrayLike, beta: float = 0.0) -> NDArray[np.float64]:
        """Return what to tell the policy for weights: argmax over p of <w, F(p)> - beta KL(p).

        Args:
            weights: [..., R] on standardised rewards, of any sign and size.
            beta: price of one nat of KL, in the weights' units times a standard deviation.

        Returns:
            [..., R], a preference of `told`; the first among equals.

        Raises:
            InputError: another number of weights, or some that are not finite.
        """
        wanted = np.asarray(weights, np.float64)
        if wanted.shape[-1:] != (len(self.names),) or not np.isfinite(wanted).all():
            raise InputError(
                f"weights: found {wanted.tolist()}, expected finite numbers, one a reward of "
                f"{', '.join(self.names)}."
            )
        worth = wanted @ self.reached.T
        return np.asarray(self.told[np.argmax(worth - np.broadcast_to(beta * self.kl, worth.shape),
                                              axis=-1)])  # fmt: skip

    def save(self, folder: str | Path) -> None:
        """Write it into a policy's folder."""
        write_json(
            Path(folder) / FILE,
            {
                "format": FORMAT,
                "names": list(self.names),
                "digest": self.digest,
                "units": "told: shares; reached: standard deviations of the reference samples; "
                "kl: nats an answer",
                "told": self.told.tolist(),
                "reached": self.reached.tolist(),
                "kl": self.kl.tolist(),
            },
        )

    @classmethod
    def load(cls, folder: str | Path) -> "ValueTable":
        """Read the table of a policy's folder.

        Raises:
            InputError: there is none, or it is not whole.
        """
        path = Path(folder) / FILE
        stored = read(path, "a value table", "run `jaxalign moc evaluate` on the policy")
        try:
            return cls(
                told=np.asarray(stored["told"], np.float64),
                reached=np.asarray(stored["reached"], np.float64),
                kl=np.asarray(stored["kl"], np.float64),
                names=tuple(stored["names"]),
                digest=str(stored["digest"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path} holds no whole value table ({type(error).__name__}: {error}); run "
                "`jaxalign moc evaluate` on the policy again."
            ) from None


def read(path: str | Path, what: str, remedy: str) -> dict[str, Any]:
    """Parse a JSON file of this module's format.

    Args:
        path: of the file.
        what: it should hold, for messages.
        remedy: what to do where it does not, for messages.

    Raises:
        InputError: there is no such file, it is not whole, or of another format.
    """
    try:
        stored = json.loads(Path(path).read_text("utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: found no file, expected {what}; {remedy}.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} holds no {what} ({error}); {remedy}.") from None
    found = stored.get("format") if isinstance(stored, dict) else None
    if found != FORMAT:
        raise InputError(f"{path}: found format {found}, expected {FORMAT}; {remedy}.")
    return dict(stored)
