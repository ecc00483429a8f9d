"""What a built portfolio was made from: the scale of its rewards, its data, its prompts."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxalign.errors import InputError
from jaxalign.files import write_json
from jaxalign.palm.candidates import Candidates
from jaxalign.palm.config import ScaleKind
from jaxalign.palm.domain import Floats
from jaxalign.palm.oracle import ClosedForm
from jaxalign.palm.portfolio import Portfolio, load
from jaxalign.rewards.reward_scale import RewardScale, fit_scale

FILE = "rewards.json"
FORMAT = 2


@dataclass(frozen=True)
class Provenance:
    """What `jaxalign palm build` made a portfolio from.

    Attributes:
        scale: scale of the raw rewards; the portfolio's rewards are its levels, clipped to [0, 1].
        beta: price of one nat of KL, in units of a level.
        data_sha256: digest of all candidates.
        chosen_on: hashes of the prompts that the members were chosen on.
    """

    scale: RewardScale
    beta: float
    data_sha256: str
    chosen_on: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """The sha256 of all of it: the portfolio's fingerprint of its data."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, object]:
        """Return plain values for JSON."""
        return {
            "scale": self.scale.to_json(),
            "beta": self.beta,
            "data_sha256": self.data_sha256,
            "chosen_on": list(self.chosen_on),
        }

    def save(self, folder: Path) -> None:
        """Write rewards.json."""
        write_json(folder / FILE, {"format": FORMAT, **self.to_json()})


def candidate_scale(
    candidates: Candidates,
    kind: ScaleKind,
    clip: float = 3.0,
    reward_range: tuple[float, float] | None = None,
) -> RewardScale:
    """Return the scale of rewards, learned on the prompts that members are chosen on.

    Args:
        candidates: candidates of those prompts.
        kind: "standard": `clip` standard deviations either side of the mean become 0 and 1, the
            same for all rewards, so that weights mean what they mean on standardised rewards;
            "range": the stated range becomes 0 to 1; "none": as they are, already in [0, 1].
        clip: standard deviations of "standard".
        reward_range: the range of "range".

    Returns:
        RewardScale.

    Raises:
        InputError: a reward that is the same for all candidates.
    """
    rows = candidates.rewards[candidates.log_ref > -np.inf]
    if kind == "standard":
        mean, std = rows.mean(axis=0), rows.std(axis=0)
        ends = list(zip(mean - clip * std, mean + clip * std, strict=True))
    else:
        ends = [reward_range if kind == "range" and reward_range else (0.0, 1.0)] * rows.shape[1]
    names = candidates.names
    return fit_scale(rows, names, None, dict(zip(names, ends, strict=True)))


def scaled(scale: RewardScale, raw: Floats) -> Floats:
    """Return rewards [..., R] in [0, 1]: levels, clipped."""
    return np.clip(scale.levels(raw), 0.0, 1.0)


def closed_form(candidates: Candidates, provenance: Provenance) -> ClosedForm:
    """Return the oracle over candidates, their raw rewards scaled."""
    return ClosedForm(
        scaled(provenance.scale, candidates.rewards).astype(np.float32),
        candidates.log_ref.astype(np.float32),
        provenance.beta,
        names=provenance.scale.names,
        fingerprint=provenance.fingerprint,
    )


def load_served(path: str | Path) -> tuple[Portfolio, Provenance]:
    """Read a built portfolio with the names and scale of its rewards.

    Args:
        path: output folder of `jaxalign palm build`.

    Returns:
        Portfolio, Provenance.

    Raises:
        InputError: there is none, it fails its own certificate, or its rewards are not those that
            it was built with.
    """
    portfolio, place = load(path), Path(path) / FILE
    try:
        stored = json.loads(place.read_text())
        if stored.pop("format") != FORMAT:
            raise ValueError("another format")
        provenance = Provenance(
            RewardScale.from_json(stored["scale"], str(place)),
            stored["beta"],
            stored["data_sha256"],
            tuple(stored["chosen_on"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{place} is missing or damaged ({error}): give the output folder of "
            "`jaxalign palm build`."
        ) from None
    if provenance.fingerprint != portfolio.fingerprint or provenance.beta != portfolio.beta:
        raise InputError(
            f"{place} does not belong to the portfolio beside it (its fingerprint differs): copy "
            "the folder again."
        )
    return portfolio, provenance
