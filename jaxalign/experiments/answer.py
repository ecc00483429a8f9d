"""Personal answers to prompts of users, with their reasons, onto the terminal or into a file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import jax
import numpy as np

from jaxalign import mrm
from jaxalign.config_fields import checks_fields
from jaxalign.data.prompt_rows import PromptRow, as_prompt
from jaxalign.errors import InputError
from jaxalign.experiments.answer_sources import AnswerSources, source_identity
from jaxalign.models.chat import Chat
from jaxalign.mrm import UserModel
from jaxalign.mrm.adapted_users import find_state, is_alike, weights_of
from jaxalign.personalize.strategies import (
    ASKED_FOR,
    PersonalAnswer,
    ServingRule,
    Strategy,
    UserRequest,
)
from jaxalign.runs.row_file import RowFile, json_line, open_row_file
from jaxalign.runs.run_dir import Identity

KIND = "answer"
SURE = 0.9
"""Probability of a gain from which a personal answer is called sure to help."""
_SPAN = 4  # batches between two writes of the output


@dataclass(frozen=True)
@checks_fields
class AnswerConfig:
    """All settings that decide the answers of a file.

    Attributes:
        strategy: name of the strategy.
        sources: what answers are made from.
        rule: when an answer other than the plain one is served.
        seed: of the sampling.
    """

    strategy: str = "auto"
    sources: AnswerSources = field(default_factory=AnswerSources)
    rule: ServingRule = field(default_factory=ServingRule)
    seed: int = 0


def load_user_model(
    run: str | Path, users: str | Path | None = None, command: str = "jaxalign answer"
) -> UserModel:
    """Read a run of `jaxalign mrm train`, and the users that were adapted with it.

    Args:
        run: folder of the run.
        users: file of `jaxalign mrm adapt`; None for users.sqlite of the run, if any.
        command: that needs the users' weights, for messages.

    Raises:
        InputError: no such run or file, users of another run, or a method without weights.
    """
    model = mrm.load(run, with_users=users is None)
    mrm.require(model.method, "weights", command)
    return model if users is None else replace(model, users=mrm.open_users(users, model.digest))


def check_rule(model: UserModel, rule: ServingRule) -> None:
    """Refuse a cautious rule where the uncertainty of the users' weights is not known.

    Raises:
        InputError: the rule needs a posterior, which the method of the run does not have.
    """
    if rule.caution > 0 or rule.least_probability > 0.5:
        mrm.require(model.method, "posterior", "--caution or --least-probability above 0.5")


@dataclass(frozen=True)
class UserPrompts:
    """Prompts, each with its user.

    Attributes:
        prompts: B prompts as a model takes them.
        users: B users, None for nobody in particular.
        weights: of each user, mean [K] and covariance [K, K] (or None); the population's where no
            choices of the user are known.
        known: users whose choices are known.
        alike: those of them to whom the run does not adapt: they have the population's weights.
    """

    prompts: Sequence[str | Chat]
    users: Sequence[str | None]
    weights: Mapping[str | None, tuple[np.ndarray, np.ndarray | None]]
    known: frozenset[str]
    alike: frozenset[str] = frozenset()

    def requests(self, rows: slice = slice(None)) -> list[UserRequest]:
        """Return some rows as a strategy takes them."""
        pairs = zip(self.prompts[rows], self.users[rows], strict=True)
        return [UserRequest(prompt, *self.weights[user]) for prompt, user in pairs]

    def reason(self, row: int, answer: PersonalAnswer) -> str:
        """Return why the answer of a row was chosen."""
        user = self.users[row]
        return reason(answer, user, user in self.known, user in self.alike)


def user_prompts(
    model: UserModel,
    rows: Sequence[PromptRow],
    user: str | None = None,
    chat: bool = False,
    system: str | None = None,
) -> UserPrompts:
    """Return the rows of a prompt file with the weights of their users.

    Args:
        model: with its adapted users.
        rows: B prompts.
        user: of rows that name none.
        chat: make a chat of a plain prompt.
        system: system message before a plain prompt; implies `chat`.

    Raises:
        InputError: the name of the user is empty.
    """
    if user is not None and not user.strip():
        raise InputError(
            f"--user is {user!r}, expected the id of a user as in the choices; leave it out for an "
            "answer to the taste of the whole population."
        )
    users = [row.user(user) for row in rows]
    states = {one: find_state(model, one) for one in dict.fromkeys(users)}
    known = frozenset(one for one, state in states.items() if one and state is not None)
    weights = {one: weights_of(model, state) for one, state in states.items()}
    common = model.population()[0]
    alike = frozenset(one for one in known if is_alike(weights[one][0], common))
    prompts = [as_prompt(row, chat, system) for row in rows]
    return UserPrompts(prompts, users, weights, known, alike)


def write_answers(
    digest: str,
    batch: UserPrompts,
    strategy: Strategy,
    config: AnswerConfig,
    out: Path | None,
    resume: bool = False,
) -> int:
    """Write answers with their reasons as JSON lines, some batches at a time.

    Args:
        digest: of the user model.
        batch: the prompts, which the strategy has checked.
        strategy: how, as from `load_strategy`.
        config: the settings that the strategy was made with.
        out: file to write; None for standard output.
        resume: go on with a file that was interrupted, of the same settings, users, prompts and
            content of the sources.

    Returns:
        How many of the answers are plain, of a file those of an earlier run included.
    """
    span, first = _SPAN * config.sources.batch_size, 0
    file = None
    if out is not None:
        identity: dict[str, Identity] = {
            "user model": digest,
            "prompts": [json.dumps(prompt, default=dict) for prompt in batch.prompts],
            "users": [str(user) for user in batch.users],
            "weights of the users": [
                array for pair in batch.weights.values() for array in pair if array is not None
            ],
            **source_identity(strategy, config.sources, batch.prompts),
        }
        file = open_row_file(out, KIND, config, identity, resume)
        if file.finished:
            return _count_plain(file)
        first = file.kept(span)
    plain = 0
    for start in range(first, len(batch.prompts), span):
        rows = slice(start, start + span)
        key = jax.random.fold_in(jax.random.key(config.seed), start)
        answers = strategy.answer(batch.requests(rows), config.rule, key)
        plain += sum(answer.strategy == "plain" for answer in answers)
        lines = [described(batch, start + n, answer) for n, answer in enumerate(answers)]
        if file is not None:
            file.append(lines)
            continue
        for line in lines:
            print(json_line(line), end="", flush=True)
    if file is None:
        return plain
    file.finish()
    return _count_plain(file)


def _count_plain(file: RowFile) -> int:
    return sum(row["strategy"] == "plain" for row in file.rows())


def reason(answer: PersonalAnswer, user: str | None, known: bool, alike: bool = False) -> str:
    """Return in a sentence what was chosen for a user, why, and how sure it is to help.

    Args:
        answer: of a strategy.
        user: whose prompt it is, None for nobody in particular.
        known: whether choices of the user are known.
        alike: whether the user has the population's weights all the same.

    Example:
        >>> from jaxalign.experiments.answer import reason
        >>> from jaxalign.personalize import PersonalAnswer
        >>> found = PersonalAnswer("Hi.", "member", "member 2", 1.5, 1.0, 0.933)
        >>> reason(found, "ann", True)
        'member 2 (member), better than the plain answer with probability 0.93 (gain 1.50 ...'
    """
    if answer.strategy == "plain":
        words = f"the plain answer ({answer.choice})"
        if answer.held_back:
            words += ": no other one is likely enough to be better"
        elif answer.choice != ASKED_FOR:
            words += ": no other one is expected to be better"
    else:
        words = f"{answer.choice} ({answer.strategy}), "
        if answer.sd is None or answer.probability is None:
            words += f"gain {answer.gain:.2f} logits over the plain answer, how sure is not known"
        else:
            words += f"better than the plain answer with probability {answer.probability:.2f}"
            words += f" (gain {answer.gain:.2f} +- {answer.sd:.2f} logits)"
            words += "" if answer.probability >= SURE else ": not sure to help"
    if known and not alike:
        return words
    if known:
        who = f"the run does not adapt to {user!r}"
    else:
        who = "no user was named" if user is None else f"no choices of {user!r} are known"
    return f"{words}; {who}, so the taste of the whole population decided"


def described(batch: UserPrompts, row: int, answer: PersonalAnswer) -> Mapping[str, object]:
    """Return an answer as a row to write."""
    prompt, user = batch.prompts[row], batch.users[row]
    return {
        "row": row,
        "user": user,
        **({"prompt": prompt} if isinstance(prompt, str) else {"messages": prompt}),
        "answer": answer.text,
        "strategy": answer.strategy,
        "choice": answer.choice,
        "gain": answer.gain,
        "gain_sd": answer.sd,
        "probability": answer.probability,
        "why": batch.reason(row, answer),
    }
