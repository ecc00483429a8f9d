"""Best of n: several answers are drawn, and the user's own reward model chooses."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from jaxalign.models.chat import Chat
from jaxalign.mrm.gains import expected_gains
from jaxalign.personalize.strategies.base import (
    PersonalAnswer,
    ServingRule,
    UserRequest,
    chosen_answer,
)
from jaxalign.personalize.strategies.draws import Draws

Read = Callable[[Sequence[str | Chat], Sequence[str]], np.ndarray]
"""Of N prompts and N answers to the base rewards [N, K] that the users' weights are on."""


@dataclass(frozen=True)
class BestOfAnswers:
    """Best of n by the user's own reward model.

    Attributes:
        draws: answers of a language model or of a file.
        read: base rewards of answers.
    """

    draws: Draws
    read: Read
    name = "best_of"

    def check(self, prompts: Sequence[str | Chat], names: Sequence[str]) -> None:
        """Refuse prompts that cannot be answered."""
        self.draws.check(prompts, names)

    def answer(
        self, requests: Sequence[UserRequest], rule: ServingRule, key: jax.Array
    ) -> list[PersonalAnswer]:
        """Return the answer of the largest gain over the first draw, for each request."""
        prompts = [request.prompt for request in requests]
        drawn = self.draws(prompts, key)
        asked = [prompt for prompt, some in zip(prompts, drawn, strict=True) for _ in some]
        values = self.read(asked, [text for some in drawn for text in some])
        ends = np.cumsum([len(some) for some in drawn])
        found = []
        for request, texts, end in zip(requests, drawn, ends, strict=True):
            options = values[end - len(texts) : end]
            gains = expected_gains(request.mean, request.cov, options)
            option = rule.choose(gains)
            words = [f"answer {place} of {len(texts)}" for place in range(1, len(texts) + 1)]
            found.append(chosen_answer(texts[option], self.name, words, option, gains))
        return found
