"""Baselines that train nothing: the reference's best of n completions, and system prompts for it.

Both sample from the reference once for all preferences, and then choose for each.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jax
import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxalign.data.prompts import Prompt, load_prompts
from jaxalign.errors import InputError
from jaxalign.experiments.moc.evaluation import Evaluation
from jaxalign.experiments.moc.judge import summarise
from jaxalign.experiments.moc.selection import best_of_n, best_of_n_kl, best_policy, chosen
from jaxalign.models.chat import Chat
from jaxalign.models.language import LanguageModel
from jaxalign.models.sampling import Sampling
from jaxalign.progress import counted
from jaxalign.rewards.reward_scale import RewardScale
from jaxalign.rewards.vector import TextReward
from jaxalign.rollout import PolicyFamily, PolicyRollouts, ReferencePolicy, rollout_policies


@dataclass(frozen=True)
class ReferenceBaselines:
    """What the reference is judged by without training, as trained policies are.

    Attributes:
        model: the reference.
        reward: R rewards; they read the prompts without a system prompt.
        scale: scale of the rewards.
        prompts: X of them, texts or chats.
        sampling: one temperature above 0 and nothing cut off; the model's stop ids are added.
        preferences: [W, R] on the simplex.
        seen: [W] bool, False for those that policies beside these baselines were not trained on.
        key: random key.
        samples: completions of each prompt under each preference.
        batch_size: the most completions that are decoded at once.
        progress: show a bar on standard error when it takes more than a few seconds.
    """

    model: LanguageModel = field(repr=False)
    reward: TextReward
    scale: RewardScale
    prompts: Sequence[Prompt] = field(repr=False)
    sampling: Sampling
    preferences: NDArray[np.float32]
    seen: NDArray[np.bool_]
    key: jax.Array
    samples: int
    batch_size: int
    progress: bool = True

    def named(self, best_of: int, texts: tuple[str, ...]) -> dict[str, Callable[[], Evaluation]]:
        """Return the baselines that a config names, ready to be judged.

        Args:
            best_of: n of the best of n; 1 for none.
            texts: system prompts; empty for none.
        """
        found: dict[str, Callable[[], Evaluation]] = {}
        if best_of > 1:
            best = f"best of {best_of} of the reference"
            found[best] = lambda: self.best_of(best, best_of)
        if texts:
            tried = f"best of {len(texts)} system prompts"
            found[tried] = lambda: self.system_prompts(tried, texts)
        return found

    def best_of(self, name: str, n: int) -> Evaluation:
        """Judge the best of n completions for each preference, the same n for all preferences.

        The KL is its upper bound, see `best_of_n_kl`.
        """
        found = self._sampled(name, ReferencePolicy(), np.zeros((1, 0)), self.samples * n)
        choice = best_of_n(self.scale.levels(found.rewards), self.preferences, n)
        return self._judged(name, chosen(found, choice), best_of_n_kl(n))

    def system_prompts(self, name: str, texts: tuple[str, ...]) -> Evaluation:
        """Judge the best system prompt for each preference, chosen on the other half of prompts."""
        found = self._sampled(name, SystemPrompts(texts), np.eye(len(texts)), self.samples)
        halves = np.arange(len(self.prompts)) % 2
        choice = best_policy(self.scale.levels(found.rewards), self.preferences, halves)
        return self._judged(name, chosen(found, choice))

    def _sampled(
        self, name: str, policies: PolicyFamily, weights: ArrayLike, samples: int
    ) -> PolicyRollouts:
        return rollout_policies(
            self.model, policies, weights, self.prompts, self.reward, self.sampling, self.key,
            samples=samples, batch_size=self.batch_size, title=f"judging {name}",
            progress=self.progress,
        )  # fmt: skip

    def _judged(self, name: str, found: PolicyRollouts, kl: float | None = None) -> Evaluation:
        return summarise(
            name, self.preferences, self.seen, found, self.scale, self.prompts, self.sampling, kl
        )


@dataclass(frozen=True)
class SystemPrompts(ReferencePolicy):
    """The reference behind one of K system prompts; a weight [K] has a 1 at the one that is read.

    Attributes:
        texts: [K].

    Example:
        >>> from jaxalign.experiments.moc.reference_baselines import SystemPrompts
        >>> SystemPrompts(("Be kind.", "Be brief.")).prompt("Who are you?", [0.0, 1.0])
        'Be brief.\\nWho are you?'
    """

    texts: tuple[str, ...]

    def prompt(self, prompt: str | Chat, weight: ArrayLike) -> str | Chat:
        """Return the prompt behind the system prompt: a line before a text, a turn of a chat."""
        text = self.texts[int(np.argmax(weight))]
        if isinstance(prompt, str):
            return f"{text}\n{prompt}"
        return ({"role": "system", "content": text}, *prompt)


def read_system_prompts(path: str | Path) -> tuple[str, ...]:
    """Read system prompts, from any file that prompts can be read from.

    Raises:
        InputError: the file cannot be read, or holds fewer than two different texts.
    """
    texts = tuple(text for text in load_prompts(path).prompts if isinstance(text, str))
    if len(texts) < 2:
        raise InputError(
            f"{path}: found {counted(len(texts), 'text')}, expected two or more different system "
            "prompts to choose from, each on a line of its own."
        )
    return texts


def check_no_system_turn(prompts: Sequence[str | Chat]) -> None:
    """Refuse chats that begin with a system turn of their own.

    Raises:
        InputError: such a chat.
    """
    for place, prompt in enumerate(prompts):
        if not isinstance(prompt, str) and prompt[0]["role"] == "system":
            raise InputError(
                f"prompt {place + 1} begins with a system turn; expected none where system prompts "
                "are tried: leave `system_prompts` out, or these prompts."
            )
