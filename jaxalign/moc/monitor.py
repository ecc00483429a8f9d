"""What a run of MOC shows: completions, a KL that runs away, and rewards that do not vary.

A KL that stays very far above its target stops the run: its later steps would only lead further
away, and would replace the last states that are near the reference. Rewards that do not vary are
warned of and no more: a reward that every completion has is also what a trained policy reaches, and
one that no completion has at first may be found later. A reward that is constant from the start is
refused before training, when its scale is estimated.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from jaxalign.errors import InputError
from jaxalign.moc.config import HORIZON_STEPS, KLConfig
from jaxalign.moc.prompt_sampler import StepPrompts
from jaxalign.runs.log import Where
from jaxalign.train.failures import Streak

KL_FACTOR = 2.0
"""How many times its target the KL may be before it counts as having run away."""
KL_LIMIT, KL_LIMIT_STEPS = 20.0, 10
"""How many times its target the KL may be, and for how many steps in a row, before a run stops."""
_SHOWN = 160  # characters of a prompt or completion


def sample_lines(
    step: int,
    drawn: StepPrompts,
    answers: Sequence[str],
    rewards: np.ndarray,
    names: Sequence[str],
) -> list[str]:
    """Return lines that show a completion of the first and of the last group of a step.

    Args:
        step: its number.
        drawn: prompts [B] and preferences [G, R] of the step.
        answers: [B] completions.
        rewards: [B, R] rewards, as levels where there is a scale.
        names: [R] of the rewards.
    """
    preferences = drawn.arrays["preferences"]
    size = len(answers) // len(preferences)
    lines = []
    for group in sorted({0, len(preferences) - 1}):
        row = group * size
        levels = ", ".join(
            f"{name} {share:.2f} -> {reward:.2f}"
            for name, share, reward in zip(names, preferences[group], rewards[row], strict=True)
        )
        lines.append(
            f"step {step}, preference -> level: {levels}; prompt {_short(drawn.texts[row])}; "
            f"completion {_short(answers[row])}"
        )
    return lines


class KLWatch:
    """Warns while the KL to the reference stays far above its target, and stops a lost run.

    A run whose coefficient is fixed is only warned of: it does not aim at the target.
    """

    def __init__(self, config: KLConfig, batch: int, say: Callable[[str], None]) -> None:
        """Start to watch.

        Args:
            config: target and coefficient.
            batch: completions of a step.
            say: called with a warning.
        """
        self._config, self._batch, self._say = config, batch, say
        self._above, self._lost = Streak(), 0

    def look(self, step: int, kl: float, coef: float, where: Where = lambda: "") -> None:
        """Take the KL of a step, and warn where it has been too high for several steps.

        Args:
            step: its number.
            kl: nats of a completion to the reference.
            coef: the KL coefficient that the step used.
            where: returns the completion that is furthest from the reference, and the last state
                on disk.

        Raises:
            InputError: an adaptive coefficient above 0, and for `KL_LIMIT_STEPS` steps in a row a
                KL of more than `KL_LIMIT` times the target.
        """
        target = self._config.target
        remedies = [f"raise moc.kl.coef ({coef:.3g} now)"]
        horizon = HORIZON_STEPS * self._batch
        if not self._config.adaptive:
            remedies.append("set moc.kl.adaptive to true")
        elif self._config.horizon > horizon:
            remedies.append(f"lower moc.kl.horizon to about {horizon:,}")
        remedy = f"{', '.join(remedies)}, or lower moc.optimiser.rate"
        self._lost = self._lost + 1 if kl > KL_LIMIT * target else 0
        if self._lost >= KL_LIMIT_STEPS and self._config.adaptive and coef > 0:
            raise InputError(
                f"step {step}: the KL is {kl:.1f} nats, and for {self._lost} steps it has been "
                f"more than {KL_LIMIT:g} times its target of {target:g}{where()}: the policy has "
                f"left the reference: {remedy}, in a new folder."
            )
        if self._above.is_due(kl > KL_FACTOR * target):
            self._say(
                f"warning: step {step}: the KL is {kl:.1f} nats, and for {self._above.length} "
                f"steps it has been more than {KL_FACTOR:g} times its target of {target:g}: the "
                f"policy drifts away from the reference: {remedy}, in a new folder"
            )


class RewardWatch:
    """Warns while all completions of a step have the same reward, from which nothing is learned."""

    def __init__(self, names: Sequence[str], say: Callable[[str], None]) -> None:
        """Start to watch.

        Args:
            names: [R] of the rewards.
            say: called with a warning.
        """
        self._say, self._alike = say, {name: Streak() for name in names}

    def look(self, step: int, alike: Mapping[str, bool], levels: Mapping[str, float]) -> None:
        """Take which rewards were the same for all completions of a step, and warn of those.

        Args:
            step: its number.
            alike: name of a reward -> whether it was.
            levels: name of a reward -> its mean level.
        """
        for name, same in alike.items():
            if self._alike[name].is_due(same):
                self._say(
                    f"warning: step {step}: for {self._alike[name].length} steps the reward {name} "
                    f"was the same for all completions (level {levels[name]:.3g} now): nothing is "
                    "learned from it. Correct the reward or its scale, or raise moc.temperature, "
                    "in a new folder"
                )


def _short(text: str) -> str:
    shown = repr(text)
    return shown if len(shown) <= _SHOWN else f"{shown[: _SHOWN - 4]}...'"
