"""Prompts and preferences of each step, which depend on seed and number of the step alone."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxalign.data.messages import prompt_text
from jaxalign.errors import InputError
from jaxalign.moc.config import MocConfig
from jaxalign.moc.policy import ConditionedPolicy, conditioned_prompts, prompt_token_ids
from jaxalign.moc.preferences import Prompt, sample_preferences, without_tags
from jaxalign.models.buckets import bucket_length, padded
from jaxalign.models.chat import room_for_prompts, tokenize_prompt

_SALT = 0x726F7773  # "rows": keeps these draws apart from the run's others, of the same seed


class StepPrompts(NamedTuple):
    """Prompts and preferences of one step.

    Attributes:
        arrays: "tokens", "lengths", "plain", "plain_lengths" and "preferences", the batch of
            `jaxalign.moc.step.Programs`.
        texts: B prompts as text rewards read them, without preference tags.
    """

    arrays: dict[str, np.ndarray]
    texts: list[str]


class PromptSampler:
    """Draw prompts and preferences for every step.

    Attributes:
        prompts: the prompts that are short enough.
        left_out: how many were too long.
        width: T, to which the prompts of a step are padded. It grows, and the step is compiled
            anew, only where a preference takes more tokens than those that it was chosen for.
    """

    def __init__(
        self, policy: ConditionedPolicy, prompts: Sequence[Prompt], config: MocConfig
    ) -> None:
        """Tokenise every prompt, and leave out the long ones.

        Raises:
            InputError: something that is no prompt, no prompt that is short enough, or a context
                without room for prompt and completion.
        """
        self.policy, self.config = policy, config
        limit = min(config.prompt_tokens, self._room())
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
        longest = max(map(len, read))
        if longest > self.width:  # a tag of more tokens than those of `_tagged_lengths`
            self.width = bucket_length(longest, self._room())
        shape = (config.batch, self.width)
        arrays = {
            "tokens": padded(read, shape),
            "lengths": np.array([len(row) for row in read], np.int32),
            "plain": padded(plain, shape),
            "plain_lengths": np.array([len(row) for row in plain], np.int32),
            "preferences": preferences,
        }
        return StepPrompts(arrays, [prompt_text(without_tags(names, prompt)) for prompt in prompts])

    def _room(self) -> int:
        """Return how many tokens of the context a prompt may take."""
        soft = 1 if self.policy.conditioning == "token" else 0
        answer = self.config.answer_tokens
        return room_for_prompts(self.policy.model, answer, 1, "answer_tokens", soft)

    def _tagged_lengths(self, prompts: Sequence[Prompt]) -> np.ndarray:
        """Return the tokens of each prompt with a tag: the most for the corners and the centre."""
        count = len(self.policy.names)
        points = np.concatenate([np.eye(count), np.full((1, count), 1 / count)])
        longest = np.zeros(len(prompts), np.int64)
        for point in points.astype(np.float32):
            tagged = conditioned_prompts(self.policy, prompts, np.tile(point, (len(prompts), 1)))
            lengths = [len(tokenize_prompt(self.policy.model, prompt)) for prompt in tagged]
            longest = np.maximum(longest, lengths)
        return longest

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
