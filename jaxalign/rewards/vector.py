"""Several rewards as one function: named columns, from tokens on the device or from text.

A reward that raises, or gives something else than a finite number for each answer, is refused by
name, with the row, the prompt and the answer it failed on.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from numpy.typing import ArrayLike

from jaxalign.errors import InputError
from jaxalign.models.classifier import Classifier, classify, load_classifier

TokenFunction = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]
TextFunction = Callable[[list[str], list[str]], ArrayLike]

_NAME = re.compile(r"[^\s<>=,]+")  # as it stands in a tag and in `helpful=0.3,humor=0.7`


@dataclass(frozen=True)
class TokenReward:
    """R rewards that are computed from tokens, inside a compiled program.

    Attributes:
        names: [R] of the rewards.
        function: pure, of prompts [B, T] int32, their lengths [B] int32, answers [B, M] int32 and
            their lengths [B] int32 (padding on the right), to rewards [B, R] of at least float32.
        id: what tells these rewards from others, their version included.
    """

    names: tuple[str, ...]
    function: TokenFunction
    id: str

    def __post_init__(self) -> None:
        check_reward_names(self.names)


@dataclass(frozen=True)
class TextReward:
    """R rewards that are computed from text, on the host or by a model of their own.

    Attributes:
        names: [R] of the rewards.
        function: of B prompts and B answers to rewards [B, R] (or [B] of one reward); the prompts
            hold no preference tags.
        id: what tells these rewards from others, their version included.

    Example:
        >>> from jaxalign.rewards import TextReward, compute_rewards
        >>> def lengths(prompts, answers):
        ...     return [len(answer) for answer in answers]
        >>> length = TextReward(("length",), lengths, "length:1")
        >>> compute_rewards(length, ["Why?"], ["So."]).tolist()
        [[3.0]]
    """

    names: tuple[str, ...]
    function: TextFunction
    id: str

    def __post_init__(self) -> None:
        check_reward_names(self.names)


def concatenate_rewards(*rewards: TextReward) -> TextReward:
    """Rewards side by side, columns in the order given.

    Raises:
        InputError: none is given, or a name comes twice.

    Example:
        >>> from jaxalign.rewards import concatenate_rewards, rule_rewards
        >>> concatenate_rewards(rule_rewards(["brevity"]), rule_rewards(["warmth"])).names
        ('brevity', 'warmth')
    """
    names = tuple(name for reward in rewards for name in reward.names)
    if len(rewards) == 1:
        return rewards[0]

    def function(prompts: list[str], answers: list[str]) -> np.ndarray:
        return side_by_side(rewards, prompts, answers)

    return TextReward(names, function, "+".join(reward.id for reward in rewards))


def side_by_side(
    rewards: Sequence[TextReward], prompts: list[str], answers: list[str]
) -> np.ndarray:
    """Return the columns [B, R] of several rewards; one that fails is known by its own name."""
    return np.concatenate([_columns(reward, prompts, answers) for reward in rewards], axis=1)


def classifier_reward(
    model: str | Classifier,
    name: str,
    label: int = 0,
    pair: bool = True,
    batch_tokens: int | None = None,
    template: str | None = None,
    between: tuple[str, str] | None = None,
    dtype: str = "float32",
) -> TextReward:
    """One logit of a sequence classifier.

    Args:
        model: a classifier, or what `load_classifier` loads.
        name: of the reward.
        label: number of the logit.
        pair: classify prompt and answer, as the tokenizer joins a pair; False for the answer alone.
        batch_tokens: tokens of one batch, padding included; None to suit the backend.
        template: text to classify in place of either, with {prompt} and {answer} in it.
        between: two marks in every prompt; the model reads only what stands between them.
        dtype: of parameters and compute, where `model` is a name.

    Raises:
        InputError: as `check_classifier_options`, or the model cannot be loaded or has no such
            logit.
    """
    check_classifier_options(name, label, batch_tokens, template, between)
    loaded = load_classifier(model, dtype) if isinstance(model, str) else model
    if not 0 <= label < len(loaded.labels):
        known = ", ".join(f"{place} ({text})" for place, text in enumerate(loaded.labels))
        raise InputError(f"{loaded.name} has no logit {label} for {name}; choose among {known}.")

    def function(prompts: list[str], answers: list[str]) -> np.ndarray:
        texts: list[str] | list[tuple[str, str]]
        if between is not None:
            prompts = [_between(prompt, *between) for prompt in prompts]
        if template is not None:
            texts = [_filled(template, *pair) for pair in zip(prompts, answers, strict=True)]
        else:
            texts = list(zip(prompts, answers, strict=True)) if pair else answers
        return classify(loaded, texts, batch_tokens)[:, label]

    # What is classified counts, not where the model was found.
    reads = template if template is not None else ("pair" if pair else "answer")
    part = "" if between is None else f":{between}"
    about = f"{loaded.sha256[:16]}:{label}:{reads}{part}:{loaded.config.dtype}"
    return TextReward((name,), function, f"classifier:{about}")


def check_classifier_options(
    name: str,
    label: int,
    batch_tokens: int | None,
    template: str | None,
    between: tuple[str, str] | None,
) -> None:
    """Refuse what is wrong with any classifier, before one is loaded.

    Args:
        name: of the reward.
        label: as in `classifier_reward`.
        batch_tokens: as in `classifier_reward`.
        template: as in `classifier_reward`.
        between: as in `classifier_reward`.

    Raises:
        InputError: a negative label, no tokens in a batch, a template without {answer}, or an
            empty mark.
    """
    if label < 0 or (batch_tokens is not None and batch_tokens < 1):
        raise InputError(
            f"the reward {name} has label {label} and batch_tokens {batch_tokens}; expected a "
            "label of at least 0, and at least one token or null."
        )
    if template is not None and "{answer}" not in template:
        raise InputError(f"the template {template!r} of {name} has no {{answer}}; add it.")
    if between is not None and not all(between):
        raise InputError(
            f"the reward {name} has the marks {list(between)} in between; expected two texts that "
            "stand in every prompt: write them, or leave between out."
        )


def _between(prompt: str, before: str, behind: str) -> str:
    _, first, rest = prompt.partition(before)
    part, second, _ = rest.rpartition(behind)
    if not first or not second:
        raise InputError(f"a prompt has nothing between {before!r} and {behind!r}")
    return part.strip()


def _filled(template: str, prompt: str, answer: str) -> str:
    """A template with its {prompt} and {answer} put in; other braces stay."""
    parts = {"{prompt}": prompt, "{answer}": answer}
    return re.sub(r"\{(?:prompt|answer)\}", lambda found: parts[found.group()], template)


def compute_rewards(
    reward: TextReward,
    prompts: Sequence[str],
    answers: Sequence[str],
    first_row: int = 0,
    place: Callable[[int], str] | None = None,
) -> np.ndarray:
    """Rewards of answers, each looked at.

    Args:
        reward: what measures them.
        prompts: B of them, without preference tags.
        answers: B of them.
        first_row: number of the first, for messages.
        place: from a row's number to where it stands in a file, for messages.

    Returns:
        [B, R] float32.

    Raises:
        InputError: the reward raises, or gives another shape or a number that is not finite; the
            message names reward, row, prompt and answer.
    """
    if len(prompts) != len(answers):
        raise InputError(
            f"found {len(prompts)} prompts for {len(answers)} answers; expected one each."
        )
    try:
        return _columns(reward, list(prompts), list(answers))
    except _Faulty as fault:
        raise _refusal(fault, prompts, answers, first_row, place) from fault.__cause__


def check_rewards(
    reward: TextReward | TokenReward,
    values: ArrayLike,
    prompts: Sequence[str],
    answers: Sequence[str],
    first_row: int = 0,
) -> np.ndarray:
    """Check rewards that were computed elsewhere, such as on the device.

    Args:
        reward: whose they are.
        values: [B, R], or [B] of one reward.
        prompts: B of them, for messages.
        answers: B of them, for messages.
        first_row: number of the first, for messages.

    Returns:
        [B, R] float32.

    Raises:
        InputError: another shape, or a number that is not finite.
    """
    try:
        return _table(reward.names, values, len(answers))
    except _Faulty as fault:
        raise _refusal(fault, prompts, answers, first_row) from fault.__cause__


class _Faulty(Exception):
    """What a reward did wrong, and on which row, -1 for none in particular."""

    def __init__(self, names: tuple[str, ...], row: int, what: str) -> None:
        super().__init__(what)
        self.names, self.row, self.what = names, row, what


def _columns(reward: TextReward, prompts: list[str], answers: list[str]) -> np.ndarray:
    try:
        return _called(reward, prompts, answers)
    except _Faulty as fault:
        if fault.row >= 0:
            raise
        whole = fault
    # Not known on which row it failed: one at a time, now that something is wrong.
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        try:
            _called(reward, [prompt], [answer])
        except _Faulty as fault:
            raise _Faulty(fault.names, row, fault.what) from fault.__cause__
    raise whole


def _called(reward: TextReward, prompts: list[str], answers: list[str]) -> np.ndarray:
    if not answers:
        return np.zeros((0, len(reward.names)), np.float32)
    try:
        values = reward.function(list(prompts), list(answers))  # it may change its lists
    except _Faulty:
        raise
    except (Exception, SystemExit) as error:  # a reward is the user's code and raises what it likes
        said = f"{type(error).__name__}: {error}".removesuffix(": ")
        raise _Faulty(reward.names, -1, f"raised {said}") from error
    return _table(reward.names, values, len(answers))


def _table(names: tuple[str, ...], values: ArrayLike, rows: int) -> np.ndarray:
    try:
        with np.errstate(over="ignore"):  # too large for float32 is infinite, which is refused
            table = np.asarray(values, np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise _Faulty(names, -1, f"gave no table of numbers ({error})") from error
    expected = (rows, len(names))
    if table.shape == (rows,) and len(names) == 1:
        table = table[:, None]
    if table.shape != expected:
        raise _Faulty(names, -1, f"gave shape {table.shape} where {expected} was expected")
    if not np.isfinite(table).all():
        row, column = (int(place) for place in np.argwhere(~np.isfinite(table))[0])
        raise _Faulty(
            (names[column],), row, f"gave {table[row, column]} where a finite number was expected"
        )
    return table


def _refusal(
    fault: _Faulty,
    prompts: Sequence[str],
    answers: Sequence[str],
    first_row: int,
    place: Callable[[int], str] | None = None,
) -> InputError:
    named = f"the reward {', '.join(fault.names)}"
    if fault.row < 0:  # it fails on the batch and on no row alone, or was not asked again
        where = f"rows {first_row} to {first_row + len(answers) - 1}"
    else:
        shown = (_short(texts[fault.row]) for texts in (prompts, answers))
        row = first_row + fault.row
        named_row = f"row {row}" if place is None else place(row)
        where = "{}, prompt {}, answer {}".format(named_row, *shown)
    return InputError(f"{named} {fault.what} ({where}); correct the reward, or leave the row out.")


def _short(text: object) -> str:
    shown = json.dumps(text, ensure_ascii=False, default=str)
    return shown if len(shown) <= 80 else shown[:77] + '..."'


def check_reward_names(names: tuple[str, ...]) -> None:
    """Refuse names of rewards that are none, repeated, or cannot stand in `helpful=0.3,humor=0.7`.

    Raises:
        InputError: a name cannot be used.
    """
    if not names or len(set(names)) < len(names):
        raise InputError(f"rewards are named {names}; expected one or more names, no two alike.")
    for name in names:
        if not _NAME.fullmatch(name):
            raise InputError(
                f"a reward is named {name!r}; expected a name without spaces and <>=, in it."
            )
