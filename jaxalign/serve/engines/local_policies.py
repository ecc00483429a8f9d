"""Policies that the engine `local` answers as, side by side in one decode batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jaxalign.errors import InputError
from jaxalign.models.chat import Chat
from jaxalign.models.language import LanguageModel
from jaxalign.personalize.saved import SavedPolicies
from jaxalign.rollout import GenerationArguments, PolicyBatch, PolicyFamily, ReferencePolicy


@dataclass(frozen=True, eq=False)
class LocalPolicies:
    """C policies over one language model, of which number 0 is the model alone.

    Attributes:
        family: what makes a policy of A weights.
        weights: [C, A] of the policies; zeros first.
        batch: all of them, as generation takes them.
        numbers: of the policies, by name.
    """

    family: PolicyFamily
    weights: NDArray[np.float64]
    batch: PolicyBatch
    numbers: Mapping[str, int]

    @classmethod
    def of_reference(cls) -> "LocalPolicies":
        """Return the model alone, without a name."""
        family, weights = ReferencePolicy(), np.zeros((1, 0))
        return cls(family, weights, family.stacked(weights), {})

    @property
    def prefix_tokens(self) -> int:
        """Soft tokens that stand before a prompt."""
        return self.family.prefix_tokens

    def number(self, name: str | None) -> int:
        """Return the number of a policy; None is the model alone."""
        return 0 if name is None else self.numbers[name]

    def prompt(self, prompt: str | Chat, number: int) -> str | Chat:
        """Return a prompt as a policy reads it."""
        return self.family.prompt(prompt, self.weights[number])

    def arguments(self, numbers: Sequence[int]) -> GenerationArguments:
        """Return what `generate` needs for a batch whose rows are of these policies."""
        return self.batch.arguments(numbers)


def load_policies(saved: SavedPolicies, model: LanguageModel) -> LocalPolicies:
    """Return the policies of a folder over their base model.

    Raises:
        InputError: they are of another model, or whole models.
    """
    family = saved.adapt(model)
    if family.one_at_a_time:
        raise InputError(
            f"--portfolio {saved.folder}: found members that are whole models, which cannot share "
            "a decode batch, expected adapters or a MOC policy: answer with `jaxalign answer "
            "--portfolio`, or fine-tune adapters (`jaxalign sft --trunk.method lora`) and build a "
            "portfolio over these."
        )
    numbers = {name: number for number, name in enumerate(saved.names)}
    return LocalPolicies(family, saved.weights, family.stacked(saved.weights), numbers)
