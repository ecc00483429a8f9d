"""Sampled answers with their rewards, grouped by prompt: what a portfolio is built from."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from jaxalign.data.columns import Origin
from jaxalign.data.files import encode
from jaxalign.data.messages import Conversation, prompt_text
from jaxalign.data.prompts import Prompt
from jaxalign.data.values import short
from jaxalign.errors import InputError
from jaxalign.palm.domain import Floats
from jaxalign.progress import counted
from jaxalign.rewards.reward_scale import RewardScale


@dataclass(frozen=True)
class Candidates:
    """Sampled answers with their rewards; of X prompts, at most C of each.

    Attributes:
        names: [R] of the rewards.
        prompts: [X] texts or ids; a text of several turns is a `Conversation`.
        rewards: [X, C, R] float64, 0 where a candidate is absent.
        log_ref: [X, C] in nats, -inf where absent; each prompt's probabilities sum to 1.
        answers: [X, C] texts, empty where absent; None where they are not known.
        scale: of the rewards, where their file states it.
        numbered: whether the prompts are numbers, which stand for texts that are not known.
    """

    names: tuple[str, ...]
    prompts: tuple[str, ...]
    rewards: Floats
    log_ref: Floats
    answers: NDArray[np.object_] | None = None
    scale: RewardScale | None = None
    numbered: bool = False

    def take(self, prompts: np.ndarray) -> "Candidates":
        """Return the candidates of some prompts."""
        chosen = tuple(self.prompts[i] for i in prompts)
        answers = None if self.answers is None else self.answers[prompts]
        rewards, log_ref = self.rewards[prompts], self.log_ref[prompts]
        return replace(self, prompts=chosen, rewards=rewards, log_ref=log_ref, answers=answers)

    @property
    def marks(self) -> tuple[str, ...]:
        """A short hash of every prompt, to know it again without keeping its text."""
        return prompt_marks(self.prompts)

    @property
    def digest(self) -> str:
        """The sha256 of all of it."""
        found = hashlib.sha256("\0".join((*self.names, *self.prompts)).encode())
        for array in (self.rewards, self.log_ref):
            found.update(np.ascontiguousarray(array).tobytes())
        return found.hexdigest()


def prompt_marks(prompts: Sequence[Prompt]) -> tuple[str, ...]:
    """Return a short hash of every prompt, to know it again without keeping its text.

    Example:
        >>> from jaxalign.palm.candidates import prompt_marks
        >>> prompt_marks(["Hi"]) == prompt_marks([[{"role": "user", "content": "Hi"}]])
        True
    """
    texts = (prompt_text(prompt) for prompt in prompts)
    return tuple(hashlib.sha256(text.encode()).hexdigest()[:16] for text in texts)


def from_rows(
    prompts: Sequence[str],
    rewards: Floats,
    names: Sequence[str],
    log_ref: Floats | None = None,
    origin: Origin | None = None,
    answers: Sequence[str] | None = None,
) -> Candidates:
    """Return candidates from rows, [N] each.

    Args:
        prompts: [N] whose answer a row is.
        rewards: [N, R], finite.
        names: [R].
        log_ref: [N] in nats, None for 1 / n each.
        origin: where the rows came from, for messages.
        answers: [N] texts, None where they are not known.

    Returns:
        Candidates.

    Raises:
        InputError: a prompt with fewer than 2 answers, or log_ref that does not sum to 1.

    Example:
        >>> import numpy as np
        >>> from jaxalign.palm.candidates import from_rows
        >>> rewards = np.array([[0.2], [0.9], [0.4], [0.1]])
        >>> found = from_rows(["p", "p", "q", "q"], rewards, ["brevity"])
        >>> found.prompts, found.rewards[..., 0].tolist()
        (('p', 'q'), [[0.2, 0.9], [0.4, 0.1]])
    """
    origin = origin or Origin("memory")
    code, texts = encode(list(prompts))
    counts = np.bincount(code, minlength=len(texts))
    if (counts < 2).any():
        row = int(np.flatnonzero(code == np.argmax(counts < 2))[0])
        raise InputError(
            f"{origin.at(row)}: found 1 answer to prompt {short(prompts[row])}, expected at least "
            "2 candidates per prompt; sample more, or leave the prompt out."
        )
    order = np.argsort(code, kind="stable")
    place = np.arange(len(code)) - np.repeat(np.cumsum(counts) - counts, counts)
    table = np.zeros((len(texts), int(counts.max()), rewards.shape[1]))
    table[code[order], place] = rewards[order]
    given = -np.log(counts[code]) if log_ref is None else log_ref
    logs = np.full(table.shape[:2], -np.inf)
    logs[code[order], place] = given[order]
    mass = np.exp(logs).sum(axis=1)
    if (np.abs(mass - 1) > 1e-3).any():
        worst = int(np.argmax(np.abs(mass - 1)))
        row = int(np.flatnonzero(code == worst)[0])
        raise InputError(
            f"{origin.at(row)}: `log_ref` of prompt {short(texts[worst])} gives probabilities "
            f"that sum to {mass[worst]:.4g}, expected 1; leave the column out for answers drawn "
            "from the reference."
        )
    said = None
    if answers is not None:
        said = np.full(logs.shape, "", object)
        said[code[order], place] = np.asarray(answers, object)[order]
    conversations = {str(one): one for one in prompts if isinstance(one, Conversation)}
    in_turns = tuple(conversations.get(text, text) for text in texts)
    return Candidates(tuple(names), in_turns, table, logs, said)


def split_places(
    count: int, share: float, seed: int, least: int, source: str
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the places of the prompts to choose on and of those to certify on, each ascending.

    Args:
        count: number of prompts.
        share: of those to certify on, of which there are two or more.
        seed: of the draw.
        least: fewest prompts to choose on.
        source: where the prompts came from, for messages.

    Raises:
        InputError: too few prompts.

    Example:
        >>> from jaxalign.palm.candidates import split_places
        >>> first, second = split_places(6, 0.5, seed=0, least=1, source="prompts.jsonl")
        >>> sorted([*first.tolist(), *second.tolist()])
        [0, 1, 2, 3, 4, 5]
    """
    held = max(2, round(share * count))
    if count - held < least:
        raise InputError(
            f"{source}: found {counted(count, 'prompt')}, expected at least {least + 2}, to choose "
            f"on {least} or more and certify on two or more; add prompts."
        )
    order = np.random.default_rng(seed).permutation(count)
    return np.sort(order[held:]), np.sort(order[:held])


def split_prompts(candidates: Candidates, share: float, seed: int) -> tuple[Candidates, Candidates]:
    """Return the candidates to choose on and those to certify on, by whole prompts."""
    first, second = split_places(len(candidates.prompts), share, seed, 1, "candidates")
    return candidates.take(first), candidates.take(second)


def unseen_places(
    marks: Sequence[str], chosen_on: Collection[str], source: str
) -> NDArray[np.intp]:
    """Return the places of the prompts that the members were not chosen on.

    Args:
        marks: [X] hashes of the prompts, as from `prompt_marks`.
        chosen_on: hashes of those that the members were chosen on.
        source: where the prompts came from, for messages.

    Raises:
        InputError: fewer than 2 such prompts.

    Example:
        >>> from jaxalign.palm.candidates import unseen_places
        >>> unseen_places(["a", "b", "c"], {"b"}, "prompts.jsonl").tolist()
        [0, 2]
    """
    known = set(chosen_on)
    found = np.array([i for i, mark in enumerate(marks) if mark not in known], np.intp)
    if len(found) < 2:
        raise InputError(
            f"{source}: found {counted(len(found), 'prompt')} that the portfolio was not chosen "
            "on, expected at least 2; give other prompts."
        )
    return found


def unseen(candidates: Candidates, marks: Collection[str], source: str) -> Candidates:
    """Return the candidates of prompts that the members were not chosen on.

    Args:
        candidates: candidates of all prompts.
        marks: hashes of the prompts that they were chosen on, as `Candidates.marks`.
        source: where the candidates came from, for the error.

    Returns:
        Candidates.

    Raises:
        InputError: fewer than 2 such prompts.
    """
    return candidates.take(unseen_places(candidates.marks, marks, source))
