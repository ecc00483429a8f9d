"""What was measured of a policy under many preferences, and its file."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxalign.errors import InputError
from jaxalign.files import write_json
from jaxalign.moc.value_table import FORMAT, ValueTable, read
from jaxalign.rewards.reward_scale import RewardScale

_ARRAYS = {"preferences": "WR", "seen": "W", "rewards": "WXR", "kl": "WX", "entropy": "W",
           "tokens": "W"}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Evaluation:
    """W preferences told to one speaker, and the rewards of its answers to X prompts.

    Attributes:
        speaker: its name.
        names: [R] of the rewards.
        digest: of the scale that they are on (`RewardScale.digest`).
        preferences: [W, R] told, on the simplex.
        seen: [W] bool, False where the preference was held out of training.
        rewards: [W, X, R] in the scale's units, mean over the samples of a prompt.
        kl: [W, X] log pi(y|x,p) - log pi_ref(y|x) in nats, mean over samples; unbiased for KL, so
            at times negative. The reference is the model alone and reads the plain prompt.
        entropy: [W] nats a token, -log pi of what was drawn, temperature included.
        tokens: [W] of an answer, on average.
        prompts: [X] texts as the rewards saw them.
        answers: [W][X] texts, the first sample of each.
        samples: answers a prompt.
        temperature: they were drawn at.
    """

    speaker: str
    names: tuple[str, ...]
    digest: str
    preferences: NDArray[np.float64]
    seen: NDArray[np.bool_]
    rewards: NDArray[np.float64] = field(repr=False)
    kl: NDArray[np.float64] = field(repr=False)
    entropy: NDArray[np.float64]
    tokens: NDArray[np.float64]
    prompts: tuple[str, ...] = field(repr=False)
    answers: tuple[tuple[str, ...], ...] = field(repr=False)
    samples: int
    temperature: float

    def __post_init__(self) -> None:
        sizes = {"W": len(self.answers), "X": len(self.prompts), "R": len(self.names)}
        for name, letters in _ARRAYS.items():
            values = getattr(self, name)
            expected = tuple(sizes[letter] for letter in letters)
            if values.shape != expected or not np.isfinite(values).all():
                raise InputError(
                    f"evaluation of {self.speaker}: found {name} of shape {values.shape}, expected "
                    f"finite numbers {expected}; evaluate again."
                )
        if any(len(row) != sizes["X"] for row in self.answers):
            raise InputError(
                f"evaluation of {self.speaker}: expected an answer to each of {sizes['X']} prompts "
                "under each preference; evaluate again."
            )

    @property
    def reached(self) -> NDArray[np.float64]:
        """Mean rewards [W, R]."""
        return np.asarray(self.rewards.mean(axis=1))

    @property
    def stderr(self) -> NDArray[np.float64]:
        """Standard errors [W, R] of the means, over prompts."""
        return _stderr(self.rewards)

    @property
    def kl_stderr(self) -> NDArray[np.float64]:
        """Standard errors [W] of the mean KL, over prompts."""
        return _stderr(self.kl)

    def value_table(self, scale: RewardScale) -> ValueTable:
        """Return the value table of the policy.

        Args:
            scale: that the rewards are on.

        Raises:
            InputError: it is another scale.
        """
        if (self.names, self.digest) != (scale.names, scale.digest):
            raise InputError(
                f"value table: {self.speaker} was judged on the scale {self.digest[:12]} of "
                f"{', '.join(self.names)}, expected {scale.digest[:12]} of "
                f"{', '.join(scale.names)}; evaluate it on this one."
            )
        return ValueTable(
            told=self.preferences,
            reached=np.asarray(scale.standardise_levels(self.reached)),
            kl=self.kl.mean(axis=1),
            names=self.names,
            digest=self.digest,
        )

    def save(self, path: str | Path) -> None:
        """Write it as JSON, from which `load` makes an equal one."""
        plain = {name: value.tolist() if isinstance(value, np.ndarray) else value
                 for name, value in asdict(self).items()}  # fmt: skip
        write_json(path, {"format": FORMAT, **plain})

    @classmethod
    def load(cls, path: str | Path) -> "Evaluation":
        """Read what `save` wrote.

        Raises:
            InputError: there is no such file, or it holds something else.
        """
        stored = read(path, "an evaluation", "evaluate again")
        try:
            arrays: dict[str, Any] = {
                name: np.asarray(stored[name], bool if name == "seen" else np.float64)
                for name in _ARRAYS
            }
            return cls(
                speaker=str(stored["speaker"]),
                names=tuple(stored["names"]),
                digest=str(stored["digest"]),
                prompts=tuple(stored["prompts"]),
                answers=tuple(tuple(row) for row in stored["answers"]),
                samples=int(stored["samples"]),
                temperature=float(stored["temperature"]),
                **arrays,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path} holds no whole evaluation ({type(error).__name__}: {error}): evaluate "
                "again."
            ) from None


def _stderr(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(values.std(axis=1, ddof=1) / np.sqrt(values.shape[1]))
