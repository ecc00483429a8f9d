"""Raw rewards on the scale that a portfolio is built on, kept with it."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxalign.errors import InputError
from jaxalign.files import write_json
from jaxalign.palm.domain import Floats
from jaxalign.palm.files import Candidates
from jaxalign.palm.portfolio import Portfolio, load

Scale = Literal["standard", "range", "none"]
FILE = "rewards.json"
FORMAT = 1


@dataclass(frozen=True)
class Rewards:
    """The named rewards of a portfolio: raw ones become (raw - centre) / width, clipped to [0, 1].

    Attributes:
        names: [R].
        centre: [R] raw value that becomes 0.
        width: [R] raw difference that becomes 1.
        beta: price of one nat of KL, in units of the scaled reward.
        data_sha256: of the candidates.
        chosen_on: hashes of the prompts that the members were chosen on.
    """

    names: tuple[str, ...]
    centre: tuple[float, ...]
    width: tuple[float, ...]
    beta: float
    data_sha256: str
    chosen_on: tuple[str, ...]

    def apply(self, raw: Floats) -> Floats:
        """Return rewards [..., R] in [0, 1]."""
        shape = (1,) * (raw.ndim - 1) + (len(self.names),)
        centre, width = (np.reshape(x, shape) for x in (self.centre, self.width))
        return np.clip((raw - centre) / width, 0.0, 1.0)

    @property
    def fingerprint(self) -> str:
        """The sha256 of all of it: the portfolio's fingerprint of its data."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Write rewards.json."""
        write_json(folder / FILE, {"format": FORMAT, **asdict(self)})


def fit(
    candidates: Candidates,
    kind: Scale,
    beta: float,
    clip: float = 3.0,
    reward_range: tuple[float, float] | None = None,
    data_sha256: str = "",
) -> Rewards:
    """Return the scale of rewards, learned on the prompts that members are chosen on.

    Args:
        candidates: of those prompts.
        kind: "standard": `clip` standard deviations either side of the mean become 0 and 1, the
            same for all rewards, so that weights mean what they mean on standardised rewards;
            "range": the stated range becomes 0 to 1; "none": as they are, already in [0, 1].
        beta: price of one nat of KL, in units of the scaled reward.
        clip: of "standard".
        reward_range: of "range".
        data_sha256: of all candidates.

    Returns:
        Rewards.

    Raises:
        InputError: a reward that is the same for all candidates.
    """
    present = candidates.log_ref > -np.inf
    rows = candidates.rewards[present]
    centre, width = np.zeros(rows.shape[1]), np.ones(rows.shape[1])
    if kind == "standard":
        deviation = rows.std(axis=0)
        flat = deviation <= 1e-9 * np.maximum(np.abs(rows).max(axis=0), 1e-9)
        if flat.any():
            raise InputError(
                f"{candidates.names[int(np.argmax(flat))]}: found the same reward for every "
                "candidate of the prompts to choose on, expected one that varies; leave it out."
            )
        centre, width = rows.mean(axis=0) - clip * deviation, 2 * clip * deviation
    elif kind == "range" and reward_range is not None:
        low, high = reward_range
        centre, width = centre + low, width * (high - low)
    return Rewards(
        candidates.names,
        tuple(centre.tolist()),
        tuple(width.tolist()),
        beta,
        data_sha256,
        candidates.marks,
    )


def unseen(candidates: Candidates, rewards: Rewards, source: str) -> Candidates:
    """Return the candidates of prompts that the members were not chosen on.

    Raises:
        InputError: fewer than 2 such prompts.
    """
    known = set(rewards.chosen_on)
    other = np.array([i for i, mark in enumerate(candidates.marks) if mark not in known], int)
    if len(other) < 2:
        raise InputError(
            f"{source}: found {len(other)} prompts that the portfolio was not chosen on, expected "
            "at least 2; give other prompts."
        )
    return candidates.take(other)


def load_served(path: str | Path) -> tuple[Portfolio, Rewards]:
    """Read a built portfolio with the names and scale of its rewards.

    Args:
        path: output folder of `jaxalign palm build`.

    Returns:
        Portfolio, Rewards.

    Raises:
        InputError: there is none, it fails its own certificate, or its rewards are not those that
            it was built with.
    """
    portfolio, place = load(path), Path(path) / FILE
    try:
        stored: dict[str, Any] = json.loads(place.read_text())
        if stored.pop("format") != FORMAT:
            raise ValueError("another format")
        rewards = Rewards(
            tuple(stored["names"]),
            tuple(stored["centre"]),
            tuple(stored["width"]),
            stored["beta"],
            stored["data_sha256"],
            tuple(stored["chosen_on"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{place} is missing or damaged ({error}): give the output folder of "
            "`jaxalign palm build`."
        ) from None
    if rewards.fingerprint != portfolio.fingerprint or rewards.beta != portfolio.beta:
        raise InputError(
            f"{place} does not belong to the portfolio beside it (its fingerprint differs): copy "
            "the folder again."
        )
    return portfolio, rewards
