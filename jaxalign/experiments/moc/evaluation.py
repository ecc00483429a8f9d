"""What was measured of a policy under many preferences, and its file."""

from dataclasses import dataclass, field
from os import PathLike

import numpy as np
from numpy.typing import NDArray

from jaxalign.errors import InputError
from jaxalign.moc.value_table import ValueTable
from jaxalign.rewards.reward_scale import RewardScale
from jaxalign.runs.artifact import load_artifact, save_artifact

KIND, REMEDY = "MOC evaluation", "run `jaxalign moc evaluate` into a new folder"
_ARRAYS = {"preferences": "WR", "seen": "W", "rewards": "WXR", "kl": "WX", "entropy": "W",
           "tokens": "W"}  # fmt: skip


@dataclass(frozen=True)
class EvaluationInfo:
    """What an evaluation's file says of its arrays, see `Evaluation`."""

    policy: str
    scale: dict[str, list[str] | list[float]]
    samples: int
    temperature: float


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Rewards of one policy's completions of X prompts under W preferences.

    Attributes:
        policy: its name.
        scale: of the R rewards, whose levels `rewards` are.
        preferences: [W, R] that the policy was given, on the simplex.
        seen: [W] bool, False for preferences that training did not sample, the held-out ones.
        rewards: [W, X, R] in levels of the scale, mean over the samples of a prompt.
        kl: [W, X] log pi(y|x,p) - log pi_ref(y|x) in nats, mean over samples; unbiased for the KL,
            so at times negative. The reference is the model alone and reads the plain prompt.
        entropy: [W] nats per token, -log pi of what was drawn, temperature included.
        tokens: [W] mean length of a completion.
        prompts: [X] texts as the rewards read them.
        completions: [W][X] texts, the first sample of each.
        samples: completions of each prompt.
        temperature: that they were drawn at.
    """

    policy: str
    scale: RewardScale
    preferences: NDArray[np.float64]
    seen: NDArray[np.bool_]
    rewards: NDArray[np.float64] = field(repr=False)
    kl: NDArray[np.float64] = field(repr=False)
    entropy: NDArray[np.float64]
    tokens: NDArray[np.float64]
    prompts: tuple[str, ...] = field(repr=False)
    completions: tuple[tuple[str, ...], ...] = field(repr=False)
    samples: int
    temperature: float

    def __post_init__(self) -> None:
        sizes = {"W": len(self.completions), "X": len(self.prompts), "R": len(self.names)}
        for name, letters in _ARRAYS.items():
            values = getattr(self, name)
            expected = tuple(sizes[letter] for letter in letters)
            if values.shape != expected or not np.isfinite(values).all():
                raise InputError(
                    f"evaluation of {self.policy}: found {name} of shape {values.shape}, expected "
                    f"finite numbers {expected}; evaluate again."
                )
        if any(len(row) != sizes["X"] for row in self.completions):
            raise InputError(
                f"evaluation of {self.policy}: expected a completion of each of {sizes['X']} "
                "prompts under each preference; evaluate again."
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Names [R] of the rewards."""
        return self.scale.names

    @property
    def achieved_rewards(self) -> NDArray[np.float64]:
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

    def value_table(self) -> ValueTable:
        """Return the value table of the policy."""
        return ValueTable(
            preferences=self.preferences,
            achieved_rewards=np.asarray(self.scale.standardise_levels(self.achieved_rewards)),
            kl=self.kl.mean(axis=1),
            names=self.names,
            digest=self.scale.digest,
        )

    def save(self, path: str | PathLike[str]) -> None:
        """Write an artifact, from which `load` makes an equal evaluation."""
        info = EvaluationInfo(self.policy, self.scale.to_json(), self.samples, self.temperature)
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        texts = {"prompts": np.array(self.prompts), "completions": np.array(self.completions)}
        save_artifact(path, KIND, info, {**arrays, **texts})

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "Evaluation":
        """Read what `save` wrote.

        Raises:
            InputError: the file is missing, damaged or of another kind.
        """
        found = load_artifact(path, KIND, EvaluationInfo, REMEDY)
        info, arrays = found.about, found.arrays
        return cls(
            policy=info.policy,
            scale=RewardScale.from_json(info.scale, str(path)),
            prompts=tuple(arrays["prompts"].tolist()),
            completions=tuple(tuple(row) for row in arrays["completions"].tolist()),
            samples=info.samples,
            temperature=info.temperature,
            **{name: arrays[name] for name in _ARRAYS},
        )


def _stderr(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(values.std(axis=1, ddof=1) / np.sqrt(values.shape[1]))
