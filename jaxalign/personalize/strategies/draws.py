"""Where the answers come from that a strategy chooses among: a language model, or a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import jax

from jaxalign.data.messages import prompt_text
from jaxalign.errors import InputError
from jaxalign.models.chat import Chat, generate_texts, prompt_ids
from jaxalign.models.language import LanguageModel
from jaxalign.models.sampling import Sampling
from jaxalign.progress import counted


class Draws(Protocol):
    """Answers to prompts, of which the first one is the plain answer."""

    def check(self, prompts: Sequence[str | Chat], names: Sequence[str]) -> None:
        """Refuse prompts that cannot be answered, before any work; names are for messages."""
        ...

    def __call__(self, prompts: Sequence[str | Chat], key: jax.Array) -> list[list[str]]:
        """Return one answer or more to each prompt."""
        ...


@dataclass(frozen=True, eq=False)
class ModelDraws:
    """Answers that a language model draws.

    Attributes:
        model: the reference policy.
        settings: how tokens are sampled.
        samples: answers to each prompt, 1 or more.
        batch_size: the most answers at once.
    """

    model: LanguageModel
    settings: Sampling
    samples: int = 8
    batch_size: int = 16

    def check(self, prompts: Sequence[str | Chat], names: Sequence[str]) -> None:
        """Refuse prompts that do not fit into the model's context."""
        for prompt, name in zip(prompts, names, strict=True):
            prompt_ids(self.model, prompt, self.settings.max_tokens, name)

    def __call__(self, prompts: Sequence[str | Chat], key: jax.Array) -> list[list[str]]:
        """Return `samples` answers to each prompt."""
        repeated = [prompt for prompt in prompts for _ in range(self.samples)]
        found = generate_texts(self.model, repeated, self.settings, key, batch_size=self.batch_size)
        texts = [completion.text for completion in found]
        return [texts[n : n + self.samples] for n in range(0, len(texts), self.samples)]


@dataclass(frozen=True)
class KnownAnswers:
    """Answers that are there already.

    Attributes:
        source: where they come from, for messages.
        answers: of the text of each prompt, the plain one first.
    """

    source: str
    answers: Mapping[str, Sequence[str]] = field(repr=False)

    def check(self, prompts: Sequence[str | Chat], names: Sequence[str]) -> None:
        """Refuse prompts without an answer."""
        for prompt, name in zip(prompts, names, strict=True):
            if prompt_text(prompt) not in self.answers:
                there = counted(len(self.answers), "prompt")
                raise InputError(
                    f"{name}: found {prompt!r:.60}, to which {self.source} has no answer (it has "
                    f"answers to {there}); expected one or more: add some, or give --model to draw "
                    "answers."
                )

    def __call__(self, prompts: Sequence[str | Chat], key: jax.Array) -> list[list[str]]:
        """Return all answers to each prompt."""
        return [list(self.answers[prompt_text(prompt)]) for prompt in prompts]
