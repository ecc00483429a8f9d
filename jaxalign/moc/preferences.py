"""Preferences over rewards: how they are sampled, written into a prompt, and read."""

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxalign.arrays import check_count
from jaxalign.config_fields import checks_fields
from jaxalign.data.prompts import HUMAN, Prompt
from jaxalign.errors import InputError

_TOLERANCE = 0.015  # 0.33, 0.33, 0.33 sum to 0.99 and pass
_SALT = 0x70726566  # "pref": keeps these draws apart from the run's others, of the same seed


@dataclass(frozen=True)
@checks_fields
class PreferenceConfig:
    """Which preferences a policy is trained on.

    Attributes:
        kind: where preferences come from: "dirichlet" samples the whole simplex, "grid" evenly
            spaced points of it, "list" the preferences in `listed`.
        alpha: concentration of the Dirichlet distribution, above 0 and finite. 1 is uniform; below
            1 the corners are sampled more, which teaches the difference between preferences faster.
        points: points of the grid along one edge of the simplex, 2 or more.
        listed: preferences of "list", each one number for each reward, with a sum of 1.
        decimals: decimals that a preference is written with, 1 to 6; the written numbers sum to 1.
            Draws of "dirichlet" are rounded to as many, so that the policy reads exactly what it is
            trained for; those of "grid" and "list" are not.
        held_out: preferences that are never sampled, to judge generalisation on. All preferences
            that are written alike count as one.
    """

    kind: Literal["dirichlet", "grid", "list"] = "dirichlet"
    alpha: float = 1.0
    points: int = 11
    listed: tuple[tuple[float, ...], ...] = ()
    decimals: int = 1
    held_out: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.alpha < math.inf or self.points < 2 or not 1 <= self.decimals <= 6:
            raise InputError(
                f"alpha is {self.alpha}, points {self.points} and decimals {self.decimals}; "
                "expected a positive alpha that is finite, at least 2 points and 1 to 6 decimals."
            )
        if (self.kind == "list") != bool(self.listed):
            raise InputError(
                f"kind is {self.kind} and listed has {len(self.listed)} preferences; expected some "
                "for list, and none else."
            )
        for name in ("listed", "held_out"):
            for row in getattr(self, name):
                check_simplex(row, None, f"`{name}`")


def check_simplex(
    values: ArrayLike, names: Sequence[str] | None = None, what: str = "preference"
) -> np.ndarray:
    """Check that preferences are on the simplex, and return them as an array.

    Args:
        values: [..., R].
        names: [R] names of the rewards, None to take any number of them.
        what: what error messages call the values.

    Returns:
        [..., R] float32 that sum to 1; sums within 0.015 of it are accepted and divided out.

    Raises:
        InputError: another number of values, a negative one, or another sum.
    """
    try:
        table = np.asarray(values, np.float64)
    except (TypeError, ValueError, OverflowError):
        table = np.zeros(())
    count = len(names) if names is not None else max(table.shape[-1:], default=0)
    if not count or table.shape[-1:] != (count,):
        wanted = "numbers" if names is None else f"one number for each of {', '.join(names)}"
        raise InputError(f"{what}: found {values!r:.80}, expected {wanted}.")
    for row in table.reshape(-1, table.shape[-1]):
        if not np.isfinite(row).all() or (row < 0).any():
            raise InputError(f"{what}: found {row.tolist()}, expected numbers of at least 0.")
        if abs(row.sum() - 1) > _TOLERANCE:
            raise InputError(f"{what}: {row.tolist()} sums to {row.sum():.4g}, expected 1.")
    return (table / table.sum(axis=-1, keepdims=True)).astype(np.float32)


def sample_preferences(
    seed: int, step: int, count: int, names: Sequence[str], config: PreferenceConfig
) -> np.ndarray:
    """Sample the preferences of one step.

    Args:
        seed: of the run.
        step: number of the step; preferences depend on nothing else, so a run can be resumed.
        count: how many.
        names: [R] names of the rewards.
        config: where they come from. Points of a grid or list are dealt like cards: none comes
            twice before each has come once.

    Returns:
        [count, R] float32 on the simplex, none of them held out.

    Raises:
        InputError: all preferences are held out, two points of a grid or list are written alike,
            a preference is not of R rewards, or a number is negative.

    Example:
        >>> from jaxalign.moc import PreferenceConfig, sample_preferences
        >>> grid = PreferenceConfig(kind="grid", points=2)
        >>> found = sample_preferences(0, step=0, count=2, names=("a", "b"), config=grid)
        >>> sorted(found.tolist())
        [[0.0, 1.0], [1.0, 0.0]]
    """
    seed, step, count = (
        check_count(name, value, 0)
        for name, value in (("seed", seed), ("step", step), ("count", count))
    )
    random = np.random.Generator(np.random.PCG64([seed, step, _SALT]))
    if config.kind == "dirichlet":
        return _dirichlet(random, count, names, config)
    points = _points(names, config)
    kept = points[~held_out(names, points, config)]
    if not len(kept):
        raise InputError(f"held_out holds all {len(points)} preferences; leave some to train on.")
    rounds = [random.permutation(len(kept)) for _ in range(-(-count // len(kept)))]
    return kept[np.concatenate(rounds)[:count]] if rounds else kept[:0]


def _dirichlet(
    random: np.random.Generator, count: int, names: Sequence[str], config: PreferenceConfig
) -> np.ndarray:
    """Sample, round, and leave out what is held out, until there are `count` preferences."""
    kept: list[np.ndarray] = []
    for _ in range(1000):
        if len(kept) >= count:
            return np.array(kept[:count], np.float32).reshape(count, len(names))
        drawn = random.dirichlet(np.full(len(names), config.alpha), count)
        rounded = _rounded(drawn, 10**config.decimals)
        kept += list(rounded[~held_out(names, rounded, config)])
    raise InputError(
        f"held_out leaves almost nothing to draw: {len(kept)} of {1000 * count} draws are not in "
        "it; hold out fewer, or raise decimals."
    )


def possible_preferences(
    names: Sequence[str], config: PreferenceConfig, most: int
) -> NDArray[np.floating]:
    """Return the preferences that can be sampled, those held out among them.

    Args:
        names: [R] names of the rewards.
        config: where they come from.
        most: how many are returned at most, where they are of "dirichlet"; of more, as many drawn.

    Returns:
        [W, R] on the simplex.

    Raises:
        InputError: as `sample_preferences`.

    Example:
        >>> from jaxalign.moc.preferences import PreferenceConfig, possible_preferences
        >>> possible_preferences(("a", "b"), PreferenceConfig(), most=100).shape
        (11, 2)
    """
    if config.kind != "dirichlet":
        return _points(names, config)
    units = 10**config.decimals
    if math.comb(units + len(names) - 1, units) <= most:
        return lattice(len(names), units + 1)
    return sample_preferences(0, 0, most, names, replace(config, held_out=()))


def held_out(
    names: Sequence[str], preferences: np.ndarray, config: PreferenceConfig
) -> NDArray[np.bool_]:
    """Return which preferences a run holds out: those that are written as one that it names.

    Args:
        names: [R] names of the rewards.
        preferences: [W, R] on the simplex.
        config: of the run.

    Returns:
        [W] bool.

    Raises:
        InputError: a preference is not of R rewards.

    Example:
        >>> import numpy as np
        >>> from jaxalign.moc.preferences import PreferenceConfig, held_out
        >>> config = PreferenceConfig(held_out=((0.3, 0.7),))
        >>> held_out(("a", "b"), np.array([[0.31, 0.69], [1.0, 0.0]]), config).tolist()
        [True, False]
    """
    return _written_as(names, preferences, config.held_out, config.decimals)


def trained_on(
    names: Sequence[str], preferences: np.ndarray, config: PreferenceConfig
) -> NDArray[np.bool_]:
    """Return which preferences are written as one that a run can sample.

    Args:
        names: [R] names of the rewards.
        preferences: [W, R] on the simplex.
        config: of the run.

    Returns:
        [W] bool.

    Raises:
        InputError: as `sample_preferences`.

    Example:
        >>> import numpy as np
        >>> from jaxalign.moc.preferences import PreferenceConfig, trained_on
        >>> config = PreferenceConfig(kind="list", listed=((0.5, 0.5), (1.0, 0.0)))
        >>> trained_on(("a", "b"), np.array([[0.3, 0.7], [1.0, 0.0]]), config).tolist()
        [False, True]
    """
    kept = ~held_out(names, preferences, config)
    if config.kind == "dirichlet":
        return kept
    return kept & _written_as(names, preferences, _points(names, config), config.decimals)


def _written_as(
    names: Sequence[str], preferences: np.ndarray, others: Iterable[ArrayLike], decimals: int
) -> NDArray[np.bool_]:
    tags = {preference_tag(names, row, decimals) for row in others}
    return np.array([preference_tag(names, row, decimals) in tags for row in preferences], bool)


def _rounded(values: np.ndarray, units: int) -> np.ndarray:
    """Round preferences [N, R] to 1 / units so that they still sum to 1, by largest remainders."""
    shares = values * units
    floor = np.floor(shares)
    missing = units - floor.sum(axis=1, keepdims=True)
    rank = np.argsort(np.argsort(floor - shares, axis=1, kind="stable"), axis=1, kind="stable")
    return (floor + (rank < missing)) / units


def _points(names: Sequence[str], config: PreferenceConfig) -> np.ndarray:
    if config.kind == "list":
        points = np.stack([check_simplex(row, names, "`listed`") for row in config.listed])
    else:
        points = lattice(len(names), config.points)
    written = {preference_tag(names, row, config.decimals) for row in points}
    if len(written) < len(points):
        raise InputError(
            f"{len(points)} preferences are written in only {len(written)} ways with "
            f"{config.decimals} decimals; raise decimals, or train on fewer."
        )
    return points


def lattice(count: int, points: int) -> np.ndarray:
    """Return evenly spaced preferences, corners included.

    Args:
        count: R, the number of rewards.
        points: along one edge of the simplex.

    Returns:
        [W, R] float32, W = (points + R - 2 choose R - 1), from the last reward's corner on.

    Example:
        >>> from jaxalign.moc.preferences import lattice
        >>> lattice(2, points=3).tolist()
        [[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]
    """
    units, bars = points - 1, range(points + count - 2)
    rows = []
    for chosen in itertools.combinations(bars, count - 1):
        edges = np.array([-1, *chosen, units + count - 1])
        rows.append(np.diff(edges) - 1)
    return (np.array(rows, np.float64) / units).astype(np.float32)


def evaluation_points(count: int) -> np.ndarray:
    """Return the preferences that results are reported at.

    Args:
        count: R, the number of rewards.

    Returns:
        [W, R] float32: for two rewards 11 points, 0, 0.1, ... 1 of the first; for three the 13 of
        the literature; for more, corners, middles of edges, and the centre.

    Source: Yang et al. 2024 (Rewards-in-Context), https://arxiv.org/abs/2402.10207, for three.

    Example:
        >>> from jaxalign.moc import evaluation_points
        >>> evaluation_points(2).shape, evaluation_points(3).shape
        ((11, 2), (13, 3))
    """
    count = check_count("count", count, 0)
    if count < 2:
        raise InputError(f"found {count} rewards; expected at least 2 to choose between.")
    if count == 2:
        return lattice(2, 11)
    centre = np.full((1, count), 1 / count, np.float32)
    if count > 3:
        return np.concatenate([lattice(count, 3), centre])
    tenths = {
        permuted for row in ((0, 0, 10), (1, 1, 8), (2, 2, 6), (2, 4, 4))
        for permuted in itertools.permutations(row)
    }  # fmt: skip
    return np.concatenate([np.array(sorted(tenths), np.float32) / np.float32(10), centre])


def preference_tag(names: Sequence[str], preference: ArrayLike, decimals: int = 1) -> str:
    """Return a preference as it is written in a prompt, in numbers that sum to 1.

    Args:
        names: [R] names of the rewards.
        preference: [R] on the simplex; rounded by largest remainders, as sampled preferences are.
        decimals: of each number, 0 or more.

    Raises:
        InputError: it is no preference over these rewards, or the decimals are no count.

    Example:
        >>> from jaxalign.moc import preference_tag
        >>> preference_tag(("helpful", "humor"), [0.3, 0.7])
        '<pref_helpful> 0.3 <pref_humor> 0.7'
    """
    decimals = check_count("decimals", decimals, 0)
    values = check_simplex(preference, names)
    if values.ndim != 1:
        raise InputError(f"preference: found shape {values.shape}, expected [R], one preference.")
    written = _rounded(values[None].astype(np.float64), 10**decimals)[0]
    pairs = zip(names, written.tolist(), strict=True)
    return " ".join(f"<pref_{name}> {value:.{decimals}f}" for name, value in pairs)


def insert_preference_tag(
    names: Sequence[str], preference: ArrayLike, prompt: Prompt, decimals: int = 1
) -> Prompt:
    """Return a prompt with the preference's tag at the head of the user's last turn.

    Args:
        names: [R] names of the rewards.
        preference: [R] on the simplex.
        prompt: a text, in which turns may begin with `Human:`; or a chat of {"role", "content"}.
        decimals: of each number.

    Returns:
        The prompt, of the same kind, with the tag in it. Tags that it held before are removed: who
        writes a prompt does not choose the preference.

    Raises:
        InputError: it is no preference over these rewards, or a chat without a turn of the user.

    Example:
        >>> from jaxalign.moc import insert_preference_tag
        >>> insert_preference_tag(("helpful", "humor"), [0.3, 0.7], "Tell me a joke.")
        '<pref_helpful> 0.3 <pref_humor> 0.7 Tell me a joke.'
    """
    label = preference_tag(names, preference, decimals)
    bare = without_tags(names, prompt)
    if isinstance(bare, str):
        place = bare.rfind(HUMAN)
        cut = 0 if place < 0 else place + len(HUMAN) + bare.startswith(" ", place + len(HUMAN))
        return f"{bare[:cut]}{label} {bare[cut:]}"
    turns = [dict(turn) for turn in bare]
    own = [place for place, turn in enumerate(turns) if turn.get("role") == "user"]
    if not own:
        raise InputError(
            f"a chat of {len(turns)} messages has none of the user, before which the preference "
            "could stand; add one."
        )
    turns[own[-1]]["content"] = f"{label} {turns[own[-1]]['content']}"
    return turns


def without_tags(names: Sequence[str], prompt: Prompt) -> Prompt:
    """Return a prompt, a text or a chat, without preference tags.

    Raises:
        InputError: it is neither, or a message is no object with the text `content`.

    Example:
        >>> from jaxalign.moc.preferences import without_tags
        >>> without_tags(("a", "b"), [{"role": "user", "content": "<pref_a> 1 <pref_b> 0 Hello."}])
        [{'role': 'user', 'content': 'Hello.'}]
    """
    if isinstance(prompt, str):
        return strip_preference_tags(names, prompt)
    for turn in prompt if isinstance(prompt, Sequence) else [prompt]:
        if not isinstance(turn, Mapping) or not isinstance(turn.get("content"), str):
            raise InputError(
                f"found {turn!r:.80} in a prompt, expected a text, or a list of messages with "
                "`role` and the text `content`; correct it."
            )
    return [{**turn, "content": strip_preference_tags(names, turn["content"])} for turn in prompt]


def strip_preference_tags(names: Sequence[str], text: str) -> str:
    """Return a text without preference tags, each with the space behind it, as rewards read it.

    The tags of some of the rewards, in any order, with any spaces or without a number, are removed
    too: who writes a prompt does not choose the preference.

    Args:
        names: [R] names of the rewards; without any, nothing is a tag.
        text: of a prompt.

    Example:
        >>> from jaxalign.moc import strip_preference_tags
        >>> strip_preference_tags(("a", "b"), "<pref_a> 0.3 <pref_b> 0.7 Hello.")
        'Hello.'
    """
    if not names:
        return text
    named = "|".join(re.escape(name) for name in names)
    pair = rf"<pref_(?:{named})>(?:[ \t]*(?:\d+\.?\d*|\.\d+))?"
    count = 1
    while count:  # again, as a tag cut in two by another one is whole without it
        text, count = re.subn(rf"{pair}(?:[ \t]*{pair})* ?", "", text)
    return text


def parse_preference(text: str, names: Sequence[str]) -> np.ndarray:
    """Read a preference such as `helpful=0.3,humor=0.7`.

    Args:
        text: names with their shares; a reward that is left out has a share of 0.
        names: [R] names of the rewards.

    Returns:
        [R] float32.

    Raises:
        InputError: a part is no `name=number`, a name is unknown or comes twice, a number is
            negative, or they do not sum to 1.

    Example:
        >>> from jaxalign.moc import parse_preference
        >>> parse_preference("humor=1", ("helpful", "humor")).tolist()
        [0.0, 1.0]
    """
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = (piece.strip() for piece in part.partition("="))
        try:
            value = float(number)
        except ValueError:
            raise InputError(
                f"preference: found {part.strip()!r}, expected name=number, such as "
                f"{_example(names)}."
            ) from None
        if name not in names:
            raise InputError(
                f"preference: there is no reward {name!r}; choose among {', '.join(names)}."
            )
        if name in shares:
            raise InputError(f"preference: {name} comes twice; give it once.")
        if not 0 <= value < float("inf"):
            raise InputError(
                f"preference: {name} is {number}, expected 0 or more; a dislike is a weight of a "
                "utility, not a preference."
            )
        shares[name] = value
    values = np.array([shares.get(name, 0.0) for name in names])
    total = values.sum()
    if total > 0 and abs(total - 1) > _TOLERANCE:
        meant = ",".join(
            f"{name}={share:.3g}" for name, share in zip(names, values / total, strict=True)
        )
        raise InputError(
            f"preference: {text} sums to {total:.4g}, expected 1; perhaps {meant} is meant."
        )
    return check_simplex(values, names)


def _example(names: Sequence[str]) -> str:
    return ",".join(f"{name}={share:g}" for name, share in zip(names, (0.3, 0.7), strict=False))
