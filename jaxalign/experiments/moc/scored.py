"""Completions from a file, scored by a run's rewards, under the preferences that they meet."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxalign.data.messages import prompt_text
from jaxalign.data.prompts import Prompt
from jaxalign.data.tables import read_rows
from jaxalign.errors import InputError
from jaxalign.moc.config import MocConfig
from jaxalign.moc.policy import ConditionedPolicy, prompt_token_ids
from jaxalign.moc.preferences import lattice, preference_tag
from jaxalign.moc.warm_start import ConditionedCompletions, met_preferences
from jaxalign.models.chat import stop_ids, text_of
from jaxalign.models.language import LanguageModel
from jaxalign.progress import counted
from jaxalign.rewards.vector import TextReward, compute_rewards

_MOST_POINTS = 11  # along an edge of the simplex, where preferences are written more finely


class PromptCompletion(NamedTuple):
    """A prompt with a completion, both texts."""

    prompt: str
    completion: str


def read_completions(source: str | Path) -> tuple[PromptCompletion, ...]:
    """Read the columns `prompt` and `completion` of a file or data set.

    Raises:
        InputError: the source cannot be read, or a row lacks one of the texts.
    """
    return tuple(
        PromptCompletion(row.text("prompt"), row.text("completion")) for row in read_rows(source)
    )


def conditioned_completions(
    rows: Sequence[PromptCompletion],
    policy: ConditionedPolicy,
    rewards: TextReward,
    prompts: Sequence[Prompt],
    config: MocConfig,
    keep: float,
    say: Callable[[str], None],
) -> ConditionedCompletions:
    """Score completions as the policy could write them, and choose those to be learned.

    A completion that is longer than `config.answer_tokens` is cut there, and judged so. Preferences
    that a run holds out are met by none.

    Args:
        rows: prompts with completions.
        policy: to be trained; its scale turns rewards into levels.
        rewards: R rewards.
        prompts: those that the run trains on; rows of other prompts are left out.
        config: of the run.
        keep: as in `met_preferences`.
        say: where it is said how many are used.

    Raises:
        InputError: no row is of these prompts, or a reward fails.
    """
    known = {prompt_text(prompt): prompt for prompt in prompts}
    used = [row for row in rows if row.prompt in known]
    ids = [_cut(policy.model, row.completion, config.answer_tokens) for row in used]
    filled = [place for place, tokens in enumerate(ids) if tokens]
    if not filled:
        raise InputError(
            f"warm_start.data: none of {counted(len(rows), 'row')} completes a prompt that the run "
            "trains on; expected completions of the prompts in --data, those that are not held out."
        )
    texts = [text_of(policy.model, ids[place]) for place in filled]
    raw = compute_rewards(rewards, [used[place].prompt for place in filled], texts, 0)
    levels = raw if policy.scale is None else policy.scale.levels(raw.astype(np.float64))
    options = _options(policy.names, config)
    kept, met = met_preferences(np.asarray(levels), options, keep)
    if policy.conditioning == "none":  # for one weighting, it learns what meets that alone
        weight = np.asarray(config.preferences.listed[0], np.float32)
        nearest = np.abs(options - weight[None]).sum(axis=1).argmin()
        kept = kept[met == nearest]
        options, met = weight[None], np.zeros(len(kept), np.intp)
    if not len(kept):
        raise InputError(
            "warm_start.data: no completion has levels of rewards that meet a preference of the "
            "run; give more completions, or others."
        )
    say(
        f"warm start: {counted(len(kept), 'completion')} of {len(rows):,} under "
        f"{counted(len(np.unique(met)), 'preference')}"
    )
    chosen = [filled[place] for place in kept]
    preferences = options[met]
    own = [known[used[place].prompt] for place in chosen]
    return ConditionedCompletions(
        prompt_token_ids(policy, own, preferences), [ids[place] for place in chosen], preferences
    )


def _cut(model: LanguageModel, text: str, longest: int) -> list[int]:
    """Tokens of a completion, at most as many as a policy writes; its stop token if it fits."""
    ids: list[int] = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    stops = stop_ids(model)
    if not ids or len(ids) >= longest or not stops:
        return ids[:longest]
    return [*ids, stops[0]]


def _options(names: Sequence[str], config: MocConfig) -> np.ndarray:
    """Preferences that a completion may meet: evenly spaced ones, without those held out."""
    settings = config.preferences
    points = lattice(len(names), min(10**settings.decimals + 1, _MOST_POINTS))
    held: Collection[str] = {
        preference_tag(names, row, settings.decimals) for row in settings.held_out
    }
    return points[[preference_tag(names, row, settings.decimals) not in held for row in points]]
