"""Completions from a file, scored by a run's rewards, under the preferences that they meet."""

from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxalign.data.chat_template import answer_turn
from jaxalign.data.messages import prompt_text
from jaxalign.data.prompts import Prompt, as_chat
from jaxalign.data.tables import read_rows
from jaxalign.errors import InputError
from jaxalign.moc.config import MocConfig
from jaxalign.moc.fine_tuning import ConditionedCompletions
from jaxalign.moc.modpo import ScoredPairs, scored_pairs
from jaxalign.moc.policy import ConditionedPolicy, prompt_token_ids
from jaxalign.moc.preferences import held_out, lattice, without_tags
from jaxalign.moc.warm_start import met_preferences
from jaxalign.models.chat import stop_ids, text_of
from jaxalign.models.language import LanguageModel
from jaxalign.progress import counted
from jaxalign.rewards.vector import TextReward, compute_rewards

_POINTS = 11  # along an edge of the simplex, as many as one decimal can write


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


def completions_of(
    rows: Sequence[PromptCompletion],
    prompts: Sequence[Prompt],
    names: Sequence[str],
    say: Callable[[str], None],
) -> tuple[PromptCompletion, ...]:
    """Return the rows that complete one of some prompts, with that prompt's text.

    Args:
        rows: prompts as in a file of prompts; what a run changes in its prompts, see
            `prompts_for`, is changed in them too.
        prompts: those that the run trains on.
        names: [R] names of the rewards.
        say: where it is said how many rows complete no prompt.

    Raises:
        InputError: there is none.
    """
    known = {prompt_text(prompt) for prompt in prompts}
    found = []
    for row in rows:
        bare = without_tags(names, row.prompt)
        for text in (prompt_text(bare), prompt_text(as_chat(bare))):
            if text in known:
                found.append(row._replace(prompt=text))
                break
    if not found:
        raise InputError(
            f"warm_start.data: none of {counted(len(rows), 'row')} completes a prompt that the run "
            "trains on; expected completions of the prompts in --data, those that are not held out."
        )
    if len(found) < len(rows):
        say(
            f"warm_start.data: {len(rows) - len(found):,} of {counted(len(rows), 'row')} complete "
            "no prompt that the run trains on"
        )
    return tuple(found)


class ScoredCompletions(NamedTuple):
    """Completions as the policy could write them, and their rewards.

    Attributes:
        prompts: [N] as the model takes them.
        texts: [N] the same as texts.
        ids: [N] token ids of each completion, its stop token included.
        levels: [N, R].
    """

    prompts: Sequence[Prompt]
    texts: Sequence[str]
    ids: Sequence[Sequence[int]]
    levels: NDArray[np.float64]


def score_completions(
    rows: Sequence[PromptCompletion],
    policy: ConditionedPolicy,
    rewards: TextReward,
    prompts: Sequence[Prompt],
    config: MocConfig,
) -> ScoredCompletions:
    """Score completions of the prompts of a run.

    A completion that is longer than `config.answer_tokens` is cut there, and judged so.

    Args:
        rows: completions of these prompts, see `completions_of`.
        policy: to be trained; its scale turns rewards into levels.
        rewards: R rewards.
        prompts: those that the run trains on.
        config: of the run.

    Raises:
        InputError: a reward that fails, or no completion with a token before its end.
    """
    known = {prompt_text(prompt): prompt for prompt in prompts}
    stops = stop_ids(policy.model)
    ends = {text: _end(policy.model, prompt, stops) for text, prompt in known.items()}
    cut = _cut(policy.model, [row.completion for row in rows], stops, config.answer_tokens)
    used = [
        (row, _ended(ids, ends[row.prompt], config.answer_tokens))
        for row, ids in zip(rows, cut, strict=True)
        if ids
    ]
    if not used:
        raise InputError(
            f"warm_start.data: found {counted(len(rows), 'completion')}, all of which end at their "
            "first token; expected some text before the token that ends a completion."
        )
    texts = [row.prompt for row, _ in used]
    ids = [tokens for _, tokens in used]
    raw = compute_rewards(rewards, texts, [text_of(policy.model, tokens) for tokens in ids], 0)
    levels = raw if policy.scale is None else policy.scale.levels(raw)
    return ScoredCompletions(
        [known[text] for text in texts], texts, ids, np.asarray(levels, np.float64)
    )


def conditioned_completions(
    scored: ScoredCompletions,
    policy: ConditionedPolicy,
    config: MocConfig,
    keep: float,
    say: Callable[[str], None],
) -> ConditionedCompletions:
    """Choose the completions to be learned, each under the preference that it meets.

    Preferences that a run holds out are met by none.

    Args:
        scored: N completions.
        policy: to be trained.
        config: of the run.
        keep: as in `met_preferences`.
        say: where it is said how many are used.

    Raises:
        InputError: no completion meets a preference.
    """
    options = _options(policy.names, config)
    kept, met = met_preferences(scored.levels, options, keep)
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
        f"warm start: {counted(len(kept), 'completion')} of {len(scored.ids):,} under "
        f"{counted(len(np.unique(met)), 'preference')}"
    )
    preferences = options[met]
    prompts = prompt_token_ids(policy, [scored.prompts[row] for row in kept], preferences)
    return ConditionedCompletions(prompts, [scored.ids[row] for row in kept], preferences)


def modpo_pairs(
    scored: ScoredCompletions,
    policy: ConditionedPolicy,
    config: MocConfig,
    most: int,
    say: Callable[[str], None],
) -> tuple[ConditionedCompletions, ScoredPairs]:
    """Return all completions, and pairs of them for the one weighting of the policy.

    Args:
        scored: N completions.
        policy: to be trained, conditioned on nothing.
        config: of the run, with its one weighting.
        most: pairs of each prompt.
        say: where it is said how many there are.

    Raises:
        InputError: no prompt has two completions that the labelling reward orders.
    """
    weight = np.asarray(config.preferences.listed[0], np.float64)
    _, groups = np.unique(scored.texts, return_inverse=True)
    pairs = scored_pairs(scored.levels, groups, weight, most, config.seed)
    label = policy.names[int(np.argmax(weight))]
    if not len(pairs.chosen):
        raise InputError(
            f"warm_start.data: no prompt has two completions with different {label}; expected "
            "several completions of each prompt: give more."
        )
    say(f"MODPO: {counted(len(pairs.chosen), 'pair')} of completions, labelled by {label}")
    preferences = np.tile(weight.astype(np.float32), (len(scored.ids), 1))
    prompts = prompt_token_ids(policy, scored.prompts, preferences)
    return ConditionedCompletions(prompts, scored.ids, preferences), pairs


def _cut(
    model: LanguageModel, texts: Sequence[str], stops: Sequence[int], longest: int
) -> list[list[int]]:
    """Tokens of completions before the first stop id, at most as many as a policy writes."""
    if not texts:
        return []
    found: list[list[int]] = model.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return [list(takewhile(lambda token: token not in stops, ids))[:longest] for ids in found]


def _ended(ids: list[int], end: int | None, longest: int) -> list[int]:
    """A completion with the token that ends it, where that fits."""
    return ids if end is None or len(ids) == longest else [*ids, end]


def _end(model: LanguageModel, prompt: Prompt, stops: Sequence[int]) -> int | None:
    """The token that the model itself ends a completion of a prompt with.

    A chat template shows it behind an answer; a text ends with the end of text.
    """
    written = [model.tokenizer.eos_token_id]
    if not isinstance(prompt, str):
        answered = [*prompt, {"role": "assistant", "content": "a"}]
        _, turn = answer_turn(model.tokenizer, answered, "a prompt of the run")
        written = model.tokenizer(turn, add_special_tokens=False)["input_ids"]
    return next((token for token in [*written, *stops] if token in stops), None)


def _options(names: Sequence[str], config: MocConfig) -> np.ndarray:
    """Preferences that a completion may meet: evenly spaced ones, without those held out."""
    settings = config.preferences
    points = lattice(len(names), _POINTS)
    return points[~held_out(names, points, settings)]
