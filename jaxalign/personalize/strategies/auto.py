"""Plain answers, and whichever strategy is expected to gain most for the user."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax

from jaxalign.models.chat import Chat
from jaxalign.personalize.strategies.base import (
    ASKED_FOR,
    PersonalAnswer,
    ServingRule,
    Strategy,
    UserRequest,
)
from jaxalign.personalize.strategies.draws import Draws


@dataclass(frozen=True)
class PlainAnswers:
    """The answer that anybody gets.

    Attributes:
        draws: answers, of which the first is given.
    """

    draws: Draws
    name = "plain"

    def check(self, prompts: Sequence[str | Chat], names: Sequence[str]) -> None:
        """Refuse prompts that cannot be answered."""
        self.draws.check(prompts, names)

    def answer(
        self, requests: Sequence[UserRequest], rule: ServingRule, key: jax.Array
    ) -> list[PersonalAnswer]:
        """Return the first draw for each request."""
        drawn = self.draws([request.prompt for request in requests], key)
        return [PersonalAnswer(some[0], self.name, ASKED_FOR, 0.0, None, None) for some in drawn]


@dataclass(frozen=True)
class LargestGain:
    """Every strategy answers, and each user is given the answer of the largest gain by the rule.

    Attributes:
        strategies: one or more, the first one is preferred among equals.
    """

    strategies: tuple[Strategy, ...]
    name = "auto"

    def check(self, prompts: Sequence[str | Chat], names: Sequence[str]) -> None:
        """Refuse prompts that one of the strategies cannot answer."""
        for strategy in self.strategies:
            strategy.check(prompts, names)

    def answer(
        self, requests: Sequence[UserRequest], rule: ServingRule, key: jax.Array
    ) -> list[PersonalAnswer]:
        """Return the answer of the largest gain by the rule, the plain one where none is served."""
        each = [strategy.answer(requests, rule, key) for strategy in self.strategies]
        return [_best(some, rule) for some in zip(*each, strict=True)]


def _best(answers: Sequence[PersonalAnswer], rule: ServingRule) -> PersonalAnswer:
    """The answer to serve of those of all strategies to one request."""
    found = max(answers, key=rule.cautious_gain)
    if found.strategy != "plain":
        return found
    # What another strategy holds back is a reason for the plain answer, too.
    return replace(found, held_back=any(answer.held_back for answer in answers))
