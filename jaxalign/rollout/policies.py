"""What judging and serving need of policies under weights.

`jaxalign.personalize.policies` has the kinds: soups, mixing, separate policies, and one policy that
is conditioned on preferences. Weights of zero are the reference, the model alone, for every kind.
"""

from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from jaxalign.models.chat import Chat
from jaxalign.models.generate import GenerationArguments
from jaxalign.models.params import Params


class PolicyBatch(Protocol):
    """W policies side by side, ready for one decode call."""

    @property
    def params(self) -> Params | None:
        """Parameters that take the place of the model's; None for the model's own."""
        ...

    def arguments(self, policy: ArrayLike) -> GenerationArguments:
        """Return what `generate` needs for a batch whose rows are of policy [B], 0 to W - 1."""
        ...


class PolicyFamily(Protocol):
    """A policy under a weight: makes policies of weights [A] over one language model."""

    @property
    def prefix_tokens(self) -> int:
        """How many soft tokens stand before a prompt."""
        ...

    @property
    def one_at_a_time(self) -> bool:
        """Whether `stacked` takes a single policy, which has parameters of its own."""
        ...

    def prompt(self, prompt: str | Chat, weight: np.ndarray) -> str | Chat:
        """Return the prompt as the policy of a weight [A] reads it."""
        ...

    def stacked(self, weights: ArrayLike) -> PolicyBatch:
        """Return the policies of weights [W, A] side by side."""
        ...


class ReferencePolicy:
    """The model alone, whose weights have no entries.

    Example:
        >>> import numpy as np
        >>> from jaxalign.rollout import ReferencePolicy
        >>> ReferencePolicy().stacked(np.zeros((1, 0))).arguments([0, 0])
        {}
    """

    prefix_tokens = 0
    one_at_a_time = False
    params = None

    def prompt(self, prompt: str | Chat, weight: np.ndarray) -> str | Chat:
        """Return the prompt as it is."""
        return prompt

    def stacked(self, weights: ArrayLike) -> "ReferencePolicy":
        """Return the model itself, whatever the weights."""
        return self

    def arguments(self, policy: ArrayLike) -> GenerationArguments:
        """Return no arguments: the model has no adapter."""
        return {}
