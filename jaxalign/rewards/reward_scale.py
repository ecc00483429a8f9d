"""One scale for named rewards: raw values to standard deviations, and to levels between 0 and 1.

Weights over rewards mean something only next to the scale that they were learned on, so whatever
holds weights, or values that weights are multiplied with, holds the scale's digest as well.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxalign.arrays import check_numpy
from jaxalign.data.features import scale_file
from jaxalign.errors import InputError
from jaxalign.files import expand_user, read_json

Array = TypeVar("Array", np.ndarray, jax.Array)
SCALE_ARRAYS = ("mean", "std", "low", "high")
"""Names of the arrays [R] of a `RewardScale`."""
SCALE_FILE = "scale.json"
"""Name of the file that holds the scale of a run."""


@dataclass(frozen=True)
class RewardIds:
    """Which rewards a vector is about, and on what scale.

    Attributes:
        names: [R] names of the rewards, in order.
        digest: digest of their `RewardScale`.

    Example:
        >>> from jaxalign.rewards import RewardIds
        >>> RewardIds(("brevity", "warmth"), "0" * 64).names
        ('brevity', 'warmth')
    """

    names: tuple[str, ...]
    digest: str

    def __post_init__(self) -> None:
        if not self.names or len(set(self.names)) < len(self.names):
            raise InputError(f"names: found {self.names}, expected one or more, no two alike.")

    def expect(self, other: "RewardIds", what: str) -> None:
        """Refuse rewards of other names, in another order or on another scale.

        Args:
            other: the ids that were found.
            what: whose they are, for the error.

        Raises:
            InputError: they are not these.
        """
        if other.names != self.names:
            raise InputError(
                f"{what}: found rewards {', '.join(other.names)}, expected "
                f"{', '.join(self.names)}, in this order, since weights on one set mean nothing on "
                "another; give both sides the same ones (`jaxalign reward score` adds rewards to "
                "scores, and --rewards chooses those of `jaxalign palm build`)."
            )
        if other.digest != self.digest:
            raise InputError(
                f"{what}: found the scale {other.digest[:12]}, expected {self.digest[:12]}; "
                "train the users on scores that are put on the other's scale (`jaxalign reward "
                "score --scale-from RUN`, or `jaxalign mrm train --features.scale RUN`)."
            )


@dataclass(frozen=True, eq=False)
class RewardScale:
    """Where R named rewards lie: their mean and standard deviation, and what is level 0 and 1.

    A raw reward is read in two ways. Standardised, (raw - mean) / std, it is in the units that
    users' weights are learned in. As a level, (raw - low) / (high - low), it is what a preference
    over rewards is compared with.

    Attributes:
        names: [R] names of the rewards, in order, each once.
        mean: [R] float64, mean of the raw rewards over the reference samples.
        std: [R] float64, their standard deviation, positive.
        low: [R] float64, the raw reward that is level 0.
        high: [R] float64, the raw reward that is level 1, above `low`.

    Example:
        >>> import numpy as np
        >>> from jaxalign.rewards import RewardScale
        >>> scale = RewardScale(("brevity",), [-10.0], [2.0], [-14.0], [-4.0])
        >>> scale.standardise(np.array([-8.0])), scale.levels(np.array([-8.0]))
        (array([1.]), array([0.6]))
    """

    names: tuple[str, ...]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        listed = ", ".join(self.names)
        for name in SCALE_ARRAYS:
            values = check_numpy(f"the scale's {name}", getattr(self, name), "...", finite=False)
            if values.shape != (len(self.names),) or not np.isfinite(values).all():
                raise InputError(
                    f"the scale's {name} is {values}; expected {len(self.names)} finite numbers, "
                    f"one for each of {listed}."
                )
            object.__setattr__(self, name, values)
        if len(set(self.names)) < len(self.names):
            raise InputError(f"reward names must differ, got {listed}.")
        if not (self.std > 0).all():
            raise InputError(f"the scale's std is {self.std}; expected numbers above 0.")
        for name, low, high in zip(self.names, self.low, self.high, strict=True):
            if not high > low:
                raise InputError(
                    f"the reward {name} has level 0 at {low:g} and level 1 at {high:g}; expected "
                    "the second above the first: state its `levels`, or use more varied samples."
                )

    @property
    def digest(self) -> str:
        """The sha256 over names, mean and std, in hexadecimal: the units of weights.

        Weights that were learned on standardised rewards stay valid as long as these three stay the
        same. The ends of the levels are left out, since they say nothing about weights: two scales
        that differ only in `low` and `high` have one digest.
        """
        names = json.dumps(list(self.names)).encode()
        # Little-endian float64 whatever the machine: one scale, one digest.
        numbers = np.stack([self.mean, self.std]).astype("<f8").tobytes()
        return hashlib.sha256(names + b"\0" + numbers).hexdigest()

    @property
    def ids(self) -> RewardIds:
        """Names and digest: what weights on these rewards are known by."""
        return RewardIds(self.names, self.digest)

    def standardise(self, raw: ArrayLike) -> NDArray[np.floating]:
        """Return raw rewards in standard deviations from the mean of the reference samples.

        Args:
            raw: [..., R] raw rewards, columns in the order of `names`.

        Returns:
            [..., R] on the host, float32, or float64 if the raw rewards are.

        Raises:
            InputError: another number of columns.
        """
        raw = np.asarray(raw)
        self._check(raw)
        dtype = np.promote_types(raw.dtype, np.float32)
        return ((raw - self.mean) / self.std).astype(dtype)

    def levels(self, raw: Array) -> Array:
        """Return the levels of raw rewards; outside of the range they are below 0 or above 1.

        Args:
            raw: [..., R] raw rewards, on the host or on the device.

        Returns:
            [..., R], at least float32.

        Raises:
            InputError: another number of columns.
        """
        low, width = self._at(self.low, raw), self._at(self.high - self.low, raw)
        return (raw - low) / width

    def standardise_levels(self, levels: Array) -> Array:
        """Return levels in standard deviations from the mean of the reference samples.

        Args:
            levels: [..., R], as from `levels`, on the host or on the device.

        Returns:
            [..., R], at least float32.

        Raises:
            InputError: another number of columns.
        """
        return levels * self._at((self.high - self.low) / self.std, levels) + self._at(
            (self.low - self.mean) / self.std, levels
        )

    def weights_on_levels(self, weights: ArrayLike) -> NDArray[np.float64]:
        """Return weights per level that are worth the same as weights per standard deviation.

        Args:
            weights: [..., R] weights on standardised rewards.

        Returns:
            [..., R] weights on levels: <weights, standardised> and <returned, levels> differ by a
            constant only.

        Example:
            >>> from jaxalign.rewards import RewardScale
            >>> scale = RewardScale(("kind", "brief"), [0.0, 0.0], [1.0, 2.0], [-3, -3], [3, 3])
            >>> scale.weights_on_levels([1.0, 1.0])
            array([6., 3.])
        """
        weights = np.asarray(weights, np.float64)
        return weights * self._at((self.high - self.low) / self.std, weights)

    def take(self, names: Sequence[str]) -> "RewardScale":
        """Return the scale of some of the rewards, in another order perhaps.

        Args:
            names: of the rewards, each once.

        Raises:
            InputError: a reward that the scale is not of.

        Example:
            >>> from jaxalign.rewards import RewardScale
            >>> scale = RewardScale(("kind", "brief"), [0.0, 5.0], [1.0, 2.0], [-3, -3], [3, 3])
            >>> scale.take(["brief"]).mean
            array([5.])
        """
        if unknown := [name for name in names if name not in self.names]:
            raise InputError(
                f"found a scale of {', '.join(self.names)}, expected one of {unknown[0]!r} as well."
            )
        order = [self.names.index(name) for name in names]
        return RewardScale(tuple(names), *(getattr(self, name)[order] for name in SCALE_ARRAYS))

    def to_json(self) -> dict[str, list[str] | list[float]]:
        """Return plain numbers, from which `from_json` makes an equal scale, digest included."""
        numbers = {name: getattr(self, name).tolist() for name in SCALE_ARRAYS}
        return {"names": list(self.names), **numbers}

    @classmethod
    def from_json(cls, value: object, source: str = "scale") -> "RewardScale":
        """Read what `to_json` wrote.

        Args:
            value: parsed JSON.
            source: what to call it in messages.

        Raises:
            InputError: a field is missing or wrong.
        """
        if not isinstance(value, Mapping) or not {"names", *SCALE_ARRAYS} <= value.keys():
            found = ", ".join(map(str, value)) if isinstance(value, Mapping) else repr(value)[:40]
            raise InputError(
                f"{source}: expected names, mean, std, low and high of each reward, found "
                f"{found or 'nothing'}; estimate the scale again."
            )
        try:
            arrays = [np.asarray(value[name], np.float64) for name in SCALE_ARRAYS]
            return cls(tuple(str(name) for name in value["names"]), *arrays)
        except InputError as error:
            raise InputError(f"{source}: {error}") from None
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{source}: is no scale of rewards ({error}); expected a list of names, and lists "
                "of numbers for mean, std, low and high: estimate the scale again."
            ) from None

    def __eq__(self, other: object) -> bool:
        """Compare by content; the generated comparison of arrays would raise."""
        return isinstance(other, RewardScale) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash((self.digest, self.low.tobytes(), self.high.tobytes()))

    def _check(self, values: np.ndarray | jax.Array) -> None:
        if values.ndim == 0 or values.shape[-1] != len(self.names):
            raise InputError(
                f"rewards of shape {values.shape} have no last axis of {len(self.names)}, one for "
                f"each of {', '.join(self.names)}."
            )

    def _at(self, values: NDArray[np.float64], like: np.ndarray | jax.Array) -> np.ndarray:
        """Constants [R] in the dtype and rank of [..., R]."""
        self._check(like)
        dtype = np.promote_types(like.dtype, np.float32)
        return values.astype(dtype).reshape((1,) * (like.ndim - 1) + (len(self.names),))


def load_scale(path: str | Path) -> RewardScale:
    """Read the scale of a run.

    Args:
        path: folder of a run that estimated a scale (`jaxalign moc train`, `jaxalign palm build`,
            `jaxalign mrm train` on named rewards), or its scale.json; or a file of scores, whose
            scale stands beside it (`scale_file`).

    Returns:
        RewardScale.

    Raises:
        InputError: there is none, or it is damaged.
    """
    path = expand_user(path)
    if path.is_dir():
        path = path / SCALE_FILE
    elif path.suffix != ".json" and path.is_file():
        path = scale_file(path)
    remedy = f"give the folder of a run that holds {SCALE_FILE}, or scores of `reward score`"
    return RewardScale.from_json(read_json(path, "a scale of rewards", remedy), str(path))


def stated_scale(
    stated: Mapping[str, object] | None, names: Sequence[str], source: str | Path
) -> RewardScale | None:
    """Return the scale that a file of scores states for some rewards.

    Args:
        stated: what the file beside it holds (`jaxalign.data.Features.scale`), None for no file.
        names: of the rewards, in order.
        source: the file of scores, for messages.

    Returns:
        RewardScale; None where the scale of some reward is not stated.

    Raises:
        InputError: the file is damaged.
    """
    if stated is None:
        return None
    scale = RewardScale.from_json(stated, f"the scale beside {source}")
    return scale.take(names) if set(names) <= set(scale.names) else None


def expect_scale(found: RewardScale | None, digests: Collection[str], source: str, of: str) -> None:
    """Refuse scores that state another scale than the one that weights are on.

    Args:
        found: what the scores state, None where they state nothing.
        digests: of the scales that are accepted, the right one first.
        source: the scores, for messages.
        of: folder or words of what the scale belongs to, for messages.

    Raises:
        InputError: another scale.

    Example:
        >>> from jaxalign.errors import InputError
        >>> from jaxalign.rewards import RewardScale
        >>> from jaxalign.rewards.reward_scale import expect_scale
        >>> scale = RewardScale(("kind",), [0.0], [1.0], [-3], [3])
        >>> expect_scale(scale, [scale.digest], "scores.jsonl", "the portfolio")
        >>> expect_scale(None, [scale.digest], "scores.jsonl", "the portfolio")
        >>> try:
        ...     expect_scale(scale, ["0" * 64], "scores.jsonl", "the portfolio")
        ... except InputError as error:
        ...     print(str(error)[:40])
        scores.jsonl: found rewards on the scale
    """
    if found is None or found.digest in digests:
        return
    wanted = next(iter(digests))
    raise InputError(
        f"{source}: found rewards on the scale {found.digest[:12]}, expected {wanted[:12]}, that "
        f"of {of}; if the same rewards have scored both, say so with `jaxalign reward score --data "
        "SCORES --scale-from RUN --out NEW`, where RUN is the folder of that scale."
    )


def fit_scale(
    raw: ArrayLike,
    names: Sequence[str],
    quantiles: tuple[float, float] | None = (0.05, 0.95),
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> RewardScale:
    """Estimate where rewards lie from reference samples.

    Args:
        raw: [N, R] raw rewards of N >= 2 samples, such as answers of the reference policy.
        names: [R] names of the rewards, each once.
        quantiles: quantiles of the samples that become levels 0 and 1; with None, level 0 is the
            mean and level 1 one standard deviation above it.
        ranges: name of a reward to the raw values that become levels 0 and 1 instead, where they
            are known.

    Returns:
        RewardScale, with means and population standard deviations in float64.

    Raises:
        InputError: a reward is not finite, constant, or without a range; shapes and names do not
            fit; quantiles are no increasing pair in [0, 1]; or a range is of an unknown reward.

    Example:
        >>> import numpy as np
        >>> from jaxalign.rewards import fit_scale
        >>> raw = np.array([[0.0, 10.0], [1.0, 20.0], [2.0, 30.0]])
        >>> scale = fit_scale(raw, ("kind", "brief"), ranges={"kind": (0.0, 4.0)})
        >>> scale.mean, scale.low, scale.high
        (array([ 1., 20.]), array([ 0., 11.]), array([ 4., 29.]))
    """
    if quantiles is not None:
        check_quantiles(quantiles)
    raw, names = check_numpy("raw", raw, "...", finite=False), tuple(names)
    _check_samples(raw, names)
    known = dict(ranges or {})
    if unknown := sorted(known.keys() - set(names)):
        raise InputError(
            f"ranges has {unknown[0]!r}, which is no reward; the rewards are {', '.join(names)}."
        )
    mean, std = raw.mean(axis=0), raw.std(axis=0)
    if quantiles is None:
        low, high = mean.copy(), mean + std
    else:
        low, high = np.quantile(raw, quantiles, axis=0)
    for place, name in enumerate(names):
        if name in known:
            low[place], high[place] = known[name]
    return RewardScale(names, mean, std, low, high)


def check_quantiles(quantiles: tuple[float, float]) -> None:
    """Refuse quantiles that are no increasing pair in [0, 1].

    Raises:
        InputError: they are none.

    Example:
        >>> from jaxalign.rewards.reward_scale import check_quantiles
        >>> check_quantiles((0.05, 0.95))
    """
    if not 0 <= quantiles[0] < quantiles[1] <= 1:
        raise InputError(
            f"quantiles are {quantiles[0]} and {quantiles[1]}; expected 0 <= first < last <= 1."
        )


def varies(column: NDArray[np.float64]) -> bool:
    """Return whether the values [N] of a reward differ, so that it can be standardised."""
    # Rounding leaves a constant column a standard deviation of about 1e-16 of its size.
    return bool(np.std(column) > 1e-12 * max(1.0, float(np.max(np.abs(column)))))


def join_scales(scales: Sequence[RewardScale]) -> RewardScale:
    """Return the scale of the rewards of several scales, in their order.

    Raises:
        InputError: two of them are of one reward.

    Example:
        >>> from jaxalign.rewards import RewardScale
        >>> from jaxalign.rewards.reward_scale import join_scales
        >>> kind, brief = (RewardScale((name,), [0], [1], [0], [1]) for name in ("kind", "brief"))
        >>> join_scales([kind, brief]).names
        ('kind', 'brief')
    """
    names = tuple(name for scale in scales for name in scale.names)
    arrays = (np.concatenate([getattr(one, name) for one in scales]) for name in SCALE_ARRAYS)
    return RewardScale(names, *arrays)


def _check_samples(raw: NDArray[np.float64], names: tuple[str, ...]) -> None:
    """Refuse samples that no scale can be estimated from."""
    if raw.ndim != 2 or raw.shape[1] != len(names) or len(raw) < 2:
        raise InputError(
            f"rewards of shape {raw.shape} were given for {len(names)} names; expected "
            f"[N, {len(names)}] with N at least 2."
        )
    if len(set(names)) < len(names):
        raise InputError(f"reward names must differ, got {', '.join(names)}.")
    for name, column in zip(names, raw.T, strict=True):
        bad = int(np.sum(~np.isfinite(column)))
        if bad:
            raise InputError(
                f"reward {name!r} is not finite on {bad} of {len(column)} reference samples; "
                "remove those samples or mend the reward."
            )
        if not varies(column):
            raise InputError(
                f"reward {name!r} is constant ({column[0]:g}) on all {len(column)} reference "
                "samples and cannot be standardised; leave it out or use more varied samples."
            )
