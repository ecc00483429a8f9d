"""Prompts and preferences of each step, which depend on seed and number of the step alone."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxalign.data.messages import prompt_text
from jaxalign.errors import InputError
from jaxalign.moc.config import MocConfig
from jaxalign.moc.policy import ConditionedPolicy, conditioned_prompts, prompt_token_ids
from jaxalign.moc.preferences import (
    PreferenceConfig,
    Prompt,
    possible_preferences,
    preference_tag,
    sample_preferences,
    without_tags,
)
from jaxalign.models.buckets import bucket_length, padded
from jaxalign.models.chat import room_for_prompts, tokenize_prompt
from jaxalign.models.language import LanguageModel

_SALT = 0x726F7773  # "rows": keeps these draws apart from the run's others, of the same seed
_MOST_TAGS = 10_000  # all tags of two rewards with 3 decimals; tokenised in less than a second


class StepPrompts(NamedTuple):
    """Prompts and preferences of one step.

    Attributes:
        arrays: "tokens", "lengths", "plain", "plain_lengths" and "preferences", the batch of
            `jaxalign.moc.step.Programs`.
        texts: B prompts as text rewards read them, without preference tags.
    """

    arrays: dict[str, np.ndarray]
    texts: list[str]


def longest_tag(
    model: LanguageModel, names: Sequence[str], config: PreferenceConfig
) -> NDArray[np.floating]:
    """Return the preference [R] whose tag has the most tokens, of those that can be sampled.

    Args:
        model: whose tokenizer counts.
        names: [R] names of the rewards.
        config: where preferences come from.

    Raises:
        InputError: as `sample_preferences`.
    """
    points = possible_preferences(names, config, _MOST_TAGS)
    tags = [f"{preference_tag(names, point, config.decimals)} " for point in points]
    lengths = [len(row) for row in model.tokenizer(tags)["input_ids"]]
    return points[int(np.argmax(lengths))]


class PromptSampler:
    """Draw prompts and preferences for every step.

    Attributes:
        prompts: the prompts that are short enough, without preference tags of their own.
        left_out: how many were too long.
        width: T, to which the prompts of a step are padded, chosen for the longest tag. A step with
            a longer one, which only happens where more preferences can be sampled than were tried,
            is padded to more, and compiled anew.
    """

    def __init__(
        self, policy: ConditionedPolicy, prompts: Sequence[Prompt], config: MocConfig
    ) -> None:
        """Tokenise every prompt, and leave out the long ones.

        Args:
            policy: to be trained.
            prompts: texts or chats; preference tags in them are removed, so that neither the
                reference nor the rewards read a preference that the writer of a prompt made up.
            config: of the run.

        Raises:
            InputError: something that is no prompt, no prompt that is short enough, or a context
                without room for prompt and completion.
        """
        self.policy, self.config = policy, config
        limit = min(config.prompt_tokens, self._room())
        prompts = [without_tags(policy.names, prompt) for prompt in prompts]
        ids = [tokenize_prompt(policy.model, p, f"prompt {n}") for n, p in enumerate(prompts)]
        longest = np.array([len(row) for row in ids], np.int64)
        if policy.conditioning == "tags":
            longest = np.maximum(longest, self._tagged_lengths(prompts))
        kept = np.flatnonzero(longest <= limit)
        if not len(kept):
            raise InputError(
                f"none of {len(ids)} prompts has at most {limit} tokens, the preference included; "
                "raise prompt_tokens, lower answer_tokens, or give shorter prompts."
            )
        self.prompts = [prompts[int(number)] for number in kept]
        self._plain = [ids[number] for number in kept]
        self.left_out = len(ids) - len(kept)
        self.width = bucket_length(int(longest[kept].max()), self._room())

    def draw(self, step: int) -> StepPrompts:
        """Return the prompts and preferences of a step.

        Args:
            step: its number; the draw depends on nothing else, so a run can be resumed.

        Raises:
            InputError: a prompt that the context has no room for with its preference.
        """
        config, names = self.config, self.policy.names
        preferences = sample_preferences(
            config.seed, step, config.groups, names, config.preferences
        )
        rows = self._rows(step)
        prompts = [self.prompts[row] for row in rows]
        plain = [self._plain[row] for row in rows]
        read = plain
        if self.policy.conditioning == "tags":
            read = prompt_token_ids(
                self.policy, prompts, np.repeat(preferences, config.rows, axis=0)
            )
        longest, room = max(map(len, read)), self._room()
        if longest > room:
            raise InputError(
                f"step {step + 1}: found a prompt of {longest} tokens, the preference included, "
                f"expected at most {room}, those that the context has beside the answer; lower "
                f"prompt_tokens by {longest - room}."
            )
        # Not kept for later steps: the width of a step does not depend on those before it.
        shape = (config.batch, max(self.width, bucket_length(longest, room)))
        arrays = {
            "tokens": padded(read, shape),
            "lengths": np.array([len(row) for row in read], np.int32),
            "plain": padded(plain, shape),
            "plain_lengths": np.array([len(row) for row in plain], np.int32),
            "preferences": preferences,
        }
        return StepPrompts(arrays, [prompt_text(prompt) for prompt in prompts])

    def _room(self) -> int:
        """Return how many tokens of the context a prompt may take."""
        soft = 1 if self.policy.conditioning == "token" else 0
        answer = self.config.answer_tokens
        return room_for_prompts(self.policy.model, answer, 1, "answer_tokens", soft)

    def _tagged_lengths(self, prompts: Sequence[Prompt]) -> np.ndarray:
        """Return the tokens of each prompt with the tag that has the most."""
        policy = self.policy
        longest = longest_tag(policy.model, policy.names, self.config.preferences)
        tagged = conditioned_prompts(policy, prompts, np.tile(longest, (len(prompts), 1)))
        return np.array([len(tokenize_prompt(policy.model, prompt)) for prompt in tagged])

    def _rows(self, step: int) -> list[int]:
        """Return indices of the prompts of a step: every prompt once before any comes again."""
        size, total = self.config.batch, len(self.prompts)
        orders: dict[int, np.ndarray] = {}
        rows = []
        for place in range(step * size, (step + 1) * size):
            epoch, number = divmod(place, total)
            if epoch not in orders:
                seeds = [self.config.seed, epoch, _SALT]
                orders[epoch] = np.random.Generator(np.random.PCG64(seeds)).permutation(total)
            rows.append(int(orders[epoch][number]))
        return rows
