"""Rewards by name: a function of texts that a config, `moc train` or `reward score` can name."""

import hashlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from jaxalign.errors import InputError
from jaxalign.rewards.vector import TextFunction, TextReward, check_reward_names, side_by_side

Function = TypeVar("Function", bound=TextFunction)
_REGISTERED: dict[str, TextFunction] = {}


def register_reward(name: str) -> Callable[[Function], Function]:
    """Register a function of texts as a reward, for use by name wherever rewards are named.

    A config names it as `rewards: [{name: NAME}]`, the command line as `--rewards NAME`.

    Args:
        name: of the reward, without spaces and any of `<>=,`.

    Returns:
        A decorator for a function of B prompts and B answers that returns B finite numbers. It
        returns the function unchanged.

    Raises:
        InputError: the name cannot be used, or another function has it.

    Example:
        >>> from jaxalign.rewards import (
        ...     RewardSpec, build_rewards, compute_rewards, register_reward)
        >>> @register_reward("exclamations")
        ... def count_exclamations(prompts, answers):
        ...     return [answer.count("!") for answer in answers]
        >>> reward = build_rewards([RewardSpec("exclamations"), RewardSpec("brevity")])
        >>> compute_rewards(reward, ["Well?"], ["No!!"]).round(3)
        array([[ 2.   , -0.693]], dtype=float32)
    """
    check_reward_names((name,))

    def register(function: Function) -> Function:
        known = _REGISTERED.get(name)
        if known is not None and _place(known) != _place(function):
            raise InputError(
                f"the reward {name!r} is registered by {_place(known)} and by {_place(function)}; "
                "rename one of them."
            )
        _REGISTERED[name] = function
        return function

    return register


def registered_rewards() -> tuple[str, ...]:
    """Return the names of the registered rewards, in order of registration.

    Example:
        >>> from jaxalign.rewards import registered_rewards
        >>> registered_rewards()[:5]
        ('brevity', 'positivity', 'simplicity', 'warmth', 'structure')
    """
    return tuple(_REGISTERED)


def check_registered(name: str) -> None:
    """Refuse a name that no registered reward has.

    Raises:
        InputError: there is no such reward.
    """
    if name not in _REGISTERED:
        raise InputError(
            f"no reward is registered as {name!r}; choose among {', '.join(_REGISTERED)}."
        )


def rule_rewards(names: Sequence[str]) -> TextReward:
    """Return registered rewards as one function.

    Args:
        names: R names of registered rewards, in the order of the columns.

    Raises:
        InputError: no reward is registered under a name.

    Example:
        >>> from jaxalign.rewards import rule_rewards
        >>> reward = rule_rewards(["structure", "brevity"])
        >>> reward.names, float(reward.function(["Why?"], ["- one\\n- two"])[0, 0])
        (('structure', 'brevity'), 0.75)
    """
    for name in names:
        check_registered(name)
    functions = [_REGISTERED[name] for name in names]
    # Side by side, each is refused by its own name; a lone one has no column to stand beside.
    apart = [TextReward((name,), one, name) for name, one in zip(names, functions, strict=True)]

    def function(prompts: list[str], answers: list[str]) -> np.ndarray:
        return side_by_side(apart, prompts, answers)

    versions = "".join(map(_version, functions))
    return TextReward(tuple(names), function, f"rules:{','.join(names)}{versions}")


def file_digest(module: str) -> str:
    """Return what tells one text of a loaded module from another, "built in" without a file."""
    file = getattr(sys.modules.get(module), "__file__", None)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16] if file else "built in"


def _place(function: TextFunction) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def _version(function: TextFunction) -> str:
    """Name the text of a module outside the package, whose own version does not cover it."""
    module = function.__module__
    return "" if module.startswith("jaxalign.") else f":{file_digest(module)}"
