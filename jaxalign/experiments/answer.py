"""Personal answers from files: the users of a run, and what answers them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import jax
import numpy as np

from jaxalign import moc, mrm
from jaxalign.data.messages import as_text
from jaxalign.data.tables import read_rows
from jaxalign.errors import InputError
from jaxalign.experiments.moc._evaluate import policy_folder
from jaxalign.moc.value_table import ValueTable
from jaxalign.models.chat import Chat, generate_texts
from jaxalign.models.language import LanguageModel, load_language_model
from jaxalign.models.sampling import Sampling
from jaxalign.mrm import UserModel
from jaxalign.mrm.adapted_users import find_state, weights_of
from jaxalign.mrm.serving import encode_texts
from jaxalign.personalize import serve
from jaxalign.personalize.strategies import (
    BestOfAnswers,
    LargestGain,
    PersonalAnswer,
    PlainAnswers,
    ServingRule,
    Strategy,
    UserRequest,
    conditioned_strategy,
    member_strategy,
)
from jaxalign.personalize.strategies.base import Draw
from jaxalign.personalize.strategies.best_of import Read
from jaxalign.personalize.utility import Utility
from jaxalign.rewards.registry import registered_rewards, rule_rewards
from jaxalign.rewards.reward_model import load_reward_model, score
from jaxalign.rewards.vector import TextReward, compute_rewards, concatenate_rewards

STRATEGIES = ("auto", "best_of", "member", "conditioned", "plain")
SURE = 0.9
"""Probability of a gain from which a personal answer is called sure to help."""


@dataclass(frozen=True)
class AnswerSources:
    """What answers are made from; at least one of the first four is given.

    Attributes:
        model: language model whose draws `best_of` chooses among.
        candidates: file of answers that `best_of` chooses among instead: `prompt` and `answer`.
        portfolio: folder of `jaxalign palm build` over policies.
        policy: folder of `jaxalign moc train`, judged by `jaxalign moc evaluate`.
        reward_models: folders of the reward models that the users' named rewards come from, where
            they are not registered ones.
        samples: answers that are drawn from the model for each prompt.
        settings: how tokens are sampled.
        dtype: of weights and compute.
        batch_size: the most prompts at once.
    """

    model: str | None = None
    candidates: Path | None = None
    portfolio: Path | None = None
    policy: Path | None = None
    reward_models: tuple[str, ...] = ()
    samples: int = 8
    settings: Sampling = field(default_factory=Sampling)
    dtype: str = "float32"
    batch_size: int = 16

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise InputError(f"samples: found {self.samples}, expected at least 1; correct it.")
        if self.model and self.candidates:
            raise InputError(
                "--model and --candidates are both given; expected one of them, since each brings "
                "the answers to choose from: leave one out."
            )
        if self.model and self.samples > 1 and self.settings.temperature == 0:
            raise InputError(
                f"--temperature is 0 and --samples {self.samples}, so that all answers would be "
                "the same; expected a temperature above 0: raise it, or draw one sample."
            )


def load_user_model(run: str | Path, users: str | Path | None = None) -> UserModel:
    """Read a run of `jaxalign mrm train`, and the users that were adapted with it.

    Args:
        run: folder of the run.
        users: file of `jaxalign mrm adapt`; None for users.sqlite of the run, if any.

    Raises:
        InputError: no such run or file, users of another run, or a method without weights.
    """
    model = mrm.load(run, with_users=users is None)
    mrm.require(model.method, "weights", "jaxalign answer")
    return model if users is None else replace(model, users=mrm.open_users(users, model.digest))


def answer_users(
    model: UserModel,
    prompts: Sequence[str | Chat],
    users: Sequence[str | None],
    strategy: Strategy,
    rule: ServingRule,
    key: jax.Array,
) -> list[PersonalAnswer]:
    """Answer each prompt for its user.

    Args:
        model: with its adapted users.
        prompts: B prompts.
        users: B users; None, or a user without choices, is answered by the population's weights.
        strategy: how, as from `load_strategy`.
        rule: when an answer other than the plain one is served.
        key: random key.

    Returns:
        B answers, in order.
    """
    weights = {user: weights_of(model, find_state(model, user)) for user in dict.fromkeys(users)}
    requests = [
        UserRequest(prompt, *weights[user]) for prompt, user in zip(prompts, users, strict=True)
    ]
    return strategy.answer(requests, rule, key)


def load_strategy(
    name: str, sources: AnswerSources, model: UserModel, prompts: Sequence[str | Chat]
) -> Strategy:
    """Load what a strategy needs, and refuse what does not fit the users.

    Args:
        name: one of `STRATEGIES`; "auto" is the one of the largest expected gain among those whose
            sources are given.
        sources: what answers are made from.
        model: of the users.
        prompts: that will be answered; each must be among the candidates, where these are given.

    Raises:
        InputError: a source that is missing, or of other rewards or another scale than the users.
    """
    loaded: dict[str, LanguageModel] = {}
    drawn = sources.model or sources.candidates
    given = {"best_of": drawn, "member": sources.portfolio, "conditioned": sources.policy}
    wanted = [key for key, source in given.items() if source and name in ("auto", key)]
    if name == "plain":
        if drawn is None:
            raise InputError("--strategy plain needs --model or --candidates: add one of them.")
        one = replace(sources, samples=1)
        return PlainAnswers(_draws(one, prompts, loaded))
    if not wanted:
        options = {
            "best_of": "--model or --candidates", "member": "--portfolio", "conditioned": "--policy"
        }  # fmt: skip
        needed = options.get(name, "--model, --candidates, --portfolio or --policy")
        raise InputError(f"--strategy {name} found nothing to answer with; add {needed}.")
    strategies: list[Strategy] = []
    if "best_of" in wanted:
        read = _reader(model, sources.reward_models)
        strategies.append(BestOfAnswers(_draws(sources, prompts, loaded), read))
    if "member" in wanted and sources.portfolio:
        strategies.append(_member(sources, sources.portfolio, model, loaded))
    if "conditioned" in wanted and sources.policy:
        strategies.append(_conditioned(sources, sources.policy, model, loaded))
    return strategies[0] if len(strategies) == 1 else LargestGain(tuple(strategies))


def _language_model(name: str, dtype: str, loaded: dict[str, LanguageModel]) -> LanguageModel:
    if name not in loaded:
        loaded[name] = load_language_model(name, dtype)
    return loaded[name]


def _draws(
    sources: AnswerSources, prompts: Sequence[str | Chat], loaded: dict[str, LanguageModel]
) -> Draw:
    if sources.candidates is not None:
        return _candidates(sources.candidates, prompts)
    model, count = _language_model(str(sources.model), sources.dtype, loaded), sources.samples

    def draw(prompts: Sequence[str | Chat], key: jax.Array) -> list[list[str]]:
        repeated = [prompt for prompt in prompts for _ in range(count)]
        completions = generate_texts(
            model, repeated, sources.settings, key, batch_size=sources.batch_size
        )
        texts = [completion.text for completion in completions]
        return [texts[start : start + count] for start in range(0, len(texts), count)]

    return draw


def _candidates(path: Path, prompts: Sequence[str | Chat]) -> Draw:
    """Answers of a file, by the text of their prompts."""
    answers: dict[str, list[str]] = {}
    for row in read_rows(path):
        answers.setdefault(row.conversation("prompt", "user"), []).append(row.answer())
    for prompt in map(_as_read, prompts):
        if prompt not in answers:
            raise InputError(
                f"{path}: found no answer to the prompt {prompt!r:.60} among answers to "
                f"{len(answers)} prompts; expected one or more: add some, or give --model to draw "
                "answers."
            )
    return lambda prompts, key: [answers[_as_read(prompt)] for prompt in prompts]


def _as_read(prompt: str | Chat) -> str:
    """A prompt by the text that it has in files of answers."""
    return prompt if isinstance(prompt, str) else as_text(prompt, "user")


def _reader(model: UserModel, reward_models: Sequence[str]) -> Read:
    """Base rewards of answers, as the users' weights are on."""
    scale = model.projection.scale
    if scale is None:
        return lambda prompts, answers: model.base(encode_texts(model, answers))
    reward = _named_rewards(scale.names, reward_models)
    order = [reward.names.index(name) for name in scale.names]

    def read(prompts: Sequence[str | Chat], answers: Sequence[str]) -> np.ndarray:
        texts = [prompt if isinstance(prompt, str) else prompt[-1]["content"] for prompt in prompts]
        return model.base(compute_rewards(reward, texts, list(answers))[:, order])

    return read


def _named_rewards(names: Sequence[str], reward_models: Sequence[str]) -> TextReward:
    """The rewards of some names, from reward models, else from the registered ones."""
    models = [load_reward_model(folder) for folder in reward_models]
    parts = [TextReward(model.labels, partial(score, model), model.sha256) for model in models]
    found = [name for part in parts for name in part.names]
    missing = [name for name in names if name not in found]
    unknown = [name for name in missing if name not in registered_rewards()]
    if unknown:
        raise InputError(
            f"the users' weights are on the rewards {', '.join(names)}; found nothing that "
            f"computes {', '.join(unknown)} of a new answer: add --reward-model with the reward "
            "model that scored the answers that the run was trained on."
        )
    return concatenate_rewards(*parts, *([rule_rewards(missing)] if missing else []))


def _population(model: UserModel, folder: Path, names: Sequence[str]) -> Utility:
    """The population's utility on named rewards."""
    if model.reward_ids is None:
        raise InputError(
            f"the users' weights are on learned features, and {folder} is on the rewards "
            f"{', '.join(names)}; expected weights on these: train the user model on their scores "
            f"(`jaxalign mrm train --features.path SCORES --features.scale {folder}`)."
        )
    mean, cov = model.population()
    return Utility(mean, np.zeros((len(mean),) * 2) if cov is None else cov, model.reward_ids)


def _member(
    sources: AnswerSources, folder: Path, model: UserModel, loaded: dict[str, LanguageModel]
) -> Strategy:
    about = serve.about_policies(folder)
    base = _language_model(about.base, sources.dtype, loaded)
    serving = serve.load(folder, base)
    names = serving.portfolio.scale.names if serving.portfolio.scale else ()
    population = _population(model, folder, names)
    return member_strategy(serving, population, sources.settings, sources.batch_size)


def _conditioned(
    sources: AnswerSources, folder: Path, model: UserModel, loaded: dict[str, LanguageModel]
) -> Strategy:
    place = policy_folder(folder)
    table = ValueTable.load(place)
    population = _population(model, folder, table.names)
    policy = moc.load(place, dtype=sources.dtype)
    return conditioned_strategy(policy, table, population, sources.settings, sources.batch_size)


def reason(answer: PersonalAnswer, user: str | None, known: bool) -> str:
    """Return in a sentence what was chosen for a user, why, and how sure it is to help.

    Args:
        answer: of a strategy.
        user: who asked, None for nobody in particular.
        known: whether choices of the user are known.

    Example:
        >>> from jaxalign.experiments.answer import reason
        >>> from jaxalign.personalize import PersonalAnswer
        >>> found = PersonalAnswer("Hi.", "member", "member 2", 1.5, 1.0, 0.933)
        >>> reason(found, "ann", True)
        'member 2 (member), better than the plain answer with probability 0.93 (gain 1.50 ...'
    """
    if answer.strategy == "plain":
        words = f"the plain answer ({answer.choice}): no other one is likely enough to be better"
    else:
        words = f"{answer.choice} ({answer.strategy}), "
        if answer.sd is None or answer.probability is None:
            words += f"gain {answer.gain:.2f} logits over the plain answer, how sure is not known"
        else:
            words += f"better than the plain answer with probability {answer.probability:.2f}"
            words += f" (gain {answer.gain:.2f} +- {answer.sd:.2f} logits)"
            words += "" if answer.probability >= SURE else ": not sure to help"
    if known:
        return words
    who = "no user was named" if user is None else f"no choices of {user!r} are known"
    return f"{words}; {who}, so the taste of the whole population decided"


def described(
    row: int, prompt: str | Chat, user: str | None, known: bool, answer: PersonalAnswer
) -> Mapping[str, object]:
    """Return an answer as a row to write."""
    asked = {"prompt": prompt} if isinstance(prompt, str) else {"messages": prompt}
    return {
        "row": row,
        "user": user,
        **asked,
        "answer": answer.text,
        "strategy": answer.strategy,
        "choice": answer.choice,
        "gain": answer.gain,
        "gain_sd": answer.sd,
        "probability": answer.probability,
        "why": reason(answer, user, known),
    }
