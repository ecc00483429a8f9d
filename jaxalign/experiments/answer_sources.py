"""What personal answers are made from: models, files and folders, checked against the users."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from jaxalign import moc
from jaxalign.config_fields import checks_fields
from jaxalign.data import Conversation, Features, load_features
from jaxalign.data.messages import prompt_text
from jaxalign.data.tables import read_rows
from jaxalign.errors import InputError
from jaxalign.files import expand_user
from jaxalign.moc.files import policy_folder
from jaxalign.moc.value_table import ValueTable
from jaxalign.models.chat import Chat, tokenize_prompt
from jaxalign.models.language import LanguageModel, load_language_model
from jaxalign.models.sampling import Sampling
from jaxalign.mrm import UserModel
from jaxalign.mrm.serving import encode_texts, item_features
from jaxalign.personalize import saved_members
from jaxalign.personalize.policies import identity
from jaxalign.personalize.strategies import (
    BestOfAnswers,
    BestPolicy,
    Draws,
    KnownAnswers,
    LargestGain,
    ModelDraws,
    PlainAnswers,
    Strategy,
    conditioned_strategy,
    member_strategy,
)
from jaxalign.personalize.strategies.best_of import Read
from jaxalign.personalize.utility import Utility
from jaxalign.progress import counted
from jaxalign.rewards.registry import registered_rewards, rule_rewards
from jaxalign.rewards.reward_model import load_reward_model, score
from jaxalign.rewards.vector import TextReward, compute_rewards, concatenate_rewards
from jaxalign.runs.run_dir import Identity

StrategyName = Literal["auto", "best_of", "member", "conditioned", "plain"]
_NEEDED = {"best_of": "--model or --candidates", "member": "--portfolio", "conditioned": "--policy"}


@dataclass(frozen=True)
@checks_fields
class AnswerSources:
    """What answers are made from; at least one of the first four is given.

    Attributes:
        model: language model whose draws `best_of` chooses among.
        candidates: file of answers that `best_of` chooses among instead: `prompt` and `answer`, and
            perhaps the `rewards` that the users' weights are on, which are read instead of
            computed.
        portfolio: folder of `jaxalign palm build` over policies.
        policy: folder of `jaxalign moc train`, judged by `jaxalign moc evaluate`.
        reward_models: folders of the reward models that the users' named rewards come from, where
            they are not registered ones.
        samples: answers that are drawn from the model for each prompt.
        settings: how tokens are sampled.
        dtype: of weights and compute.
        batch_size: the most prompts at once.
        own_length: whether answers of the portfolio and of the policy have at most the tokens that
            they were built and trained with, where that is known, in place of those of `settings`.
    """

    model: str | None = None
    candidates: str | None = None
    portfolio: str | None = None
    policy: str | None = None
    reward_models: tuple[str, ...] = ()
    samples: int = 8
    settings: Sampling = field(default_factory=Sampling)
    dtype: str = "float32"
    batch_size: int = 16
    own_length: bool = False

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


def load_strategy(name: StrategyName, sources: AnswerSources, model: UserModel) -> Strategy:
    """Load what a strategy needs, and refuse what does not fit the users.

    Args:
        name: "auto" is the one of the largest gain by the rule among those whose sources are given.
        sources: what answers are made from.
        model: of the users.

    Raises:
        InputError: a source that is missing, or of other rewards or another scale than the users.
    """
    loaded: dict[str, LanguageModel] = {}
    drawn = sources.model or sources.candidates
    given = {"best_of": drawn, "member": sources.portfolio, "conditioned": sources.policy}
    wanted = [key for key, source in given.items() if source and name in ("auto", key)]
    if name == "plain" and drawn:
        return PlainAnswers(_draws(replace(sources, samples=1), loaded))
    if not wanted:
        needed = _NEEDED.get(name, "--model, --candidates, --portfolio or --policy")
        raise InputError(f"--strategy {name} found nothing to answer with: add {needed}.")
    strategies: list[Strategy] = []
    if "best_of" in wanted:
        read = _scores_reader(model, sources) or answer_reader(model, sources.reward_models)
        strategies.append(BestOfAnswers(_draws(sources, loaded), read))
    if "member" in wanted and sources.portfolio:
        strategies.append(_member(sources, Path(sources.portfolio), model, loaded))
    if "conditioned" in wanted and sources.policy:
        strategies.append(_conditioned(sources, Path(sources.policy), model))
    return strategies[0] if len(strategies) == 1 else LargestGain(tuple(strategies))


def source_identity(
    strategy: Strategy, sources: AnswerSources, prompts: Sequence[str | Chat]
) -> dict[str, Identity]:
    """Return the content of what a strategy answers from, by the name that messages call it.

    Args:
        strategy: of `load_strategy`.
        sources: that it was loaded from.
        prompts: that it answers; a model reads them through its template.
    """
    if isinstance(strategy, LargestGain):
        each = [source_identity(one, sources, prompts) for one in strategy.strategies]
        return {name: value for found in each for name, value in found.items()}
    if isinstance(strategy, BestPolicy):
        known = strategy.known
        return {
            f"policies of --strategy {strategy.name}": [
                *identity(strategy.policies), known.weights, known.values, known.cost
            ],
            f"base model of --strategy {strategy.name}": _model_identity(strategy.model, prompts),
        }  # fmt: skip
    found: dict[str, Identity] = {}
    if isinstance(strategy, BestOfAnswers) and isinstance(strategy.read, _NamedReader):
        found["reward models"] = strategy.read.reward.id
    if isinstance(strategy, PlainAnswers | BestOfAnswers):
        if isinstance(strategy.draws, ModelDraws):
            found["model"] = _model_identity(strategy.draws.model, prompts)
        elif sources.candidates is not None:
            rows = read_rows(Path(sources.candidates))
            found["candidates"] = [json.dumps(dict(row.values), default=str) for row in rows]
    return found


def _model_identity(model: LanguageModel, prompts: Sequence[str | Chat]) -> list[str]:
    """The weights of a model, and the prompts as it reads them, each once for all its users."""
    once = {json.dumps(prompt, default=dict): prompt for prompt in prompts}
    return [model.sha256, *(json.dumps(tokenize_prompt(model, one)) for one in once.values())]


def _language_model(name: str, dtype: str, loaded: dict[str, LanguageModel]) -> LanguageModel:
    if name not in loaded:
        loaded[name] = load_language_model(name, dtype)
    return loaded[name]


def _draws(sources: AnswerSources, loaded: dict[str, LanguageModel]) -> Draws:
    if sources.candidates is None:
        model = _language_model(str(sources.model), sources.dtype, loaded)
        return ModelDraws(model, sources.settings, sources.samples, sources.batch_size)
    answers: dict[str, list[str]] = {}
    for row in read_rows(Path(sources.candidates)):
        answers.setdefault(row.conversation("prompt", "user"), []).append(row.answer())
    return KnownAnswers(sources.candidates, answers)


def answer_reader(model: UserModel, reward_models: Sequence[str] = ()) -> Read:
    """Return what reads the base rewards of answers that a model's weights are on.

    Args:
        model: of the users.
        reward_models: folders of the reward models that its named rewards come from, where they
            are not registered ones; `NAME,...=FOLDER` where the names are not the model's labels.

    Raises:
        InputError: a named reward that nothing computes.
    """
    scale = model.projection.scale
    if scale is None:
        return partial(_read_texts, model)
    reward = _named_rewards(scale.names, reward_models)
    return _NamedReader(model, reward, [reward.names.index(name) for name in scale.names])


@dataclass(frozen=True, eq=False)
class _NamedReader:
    """Base rewards of answers from named rewards, whose columns are put in the users' order."""

    model: UserModel
    reward: TextReward
    order: Sequence[int]

    def __call__(self, prompts: Sequence[str | Chat], answers: Sequence[str]) -> np.ndarray:
        texts = list(map(prompt_text, prompts))
        rewards = compute_rewards(self.reward, texts, list(answers))
        return self.model.base(rewards[:, list(self.order)])


def _scores_reader(model: UserModel, sources: AnswerSources) -> Read | None:
    """What reads the rewards that stand beside the candidates; None where these are not there."""
    scale = model.projection.scale
    if scale is None or sources.candidates is None:
        return None
    if not _are_scored(Path(sources.candidates), scale.names):
        return None
    scores = load_features(sources.candidates)
    item_features(model, [], [], scores)  # refuses another scale before any answer
    return partial(_read_scores, model, scores)


def _are_scored(candidates: Path, names: Sequence[str]) -> bool:
    """Whether a file of answers has these rewards, as `jaxalign reward score` writes them."""
    if not candidates.name.endswith((".jsonl", ".jsonl.gz")):
        return False
    first = next(read_rows(candidates), None)
    rewards = None if first is None else first.values.get("rewards")
    return isinstance(rewards, dict) and set(names) <= rewards.keys()


def _read_scores(
    model: UserModel, scores: Features, prompts: Sequence[str | Chat], answers: Sequence[str]
) -> np.ndarray:
    """Base rewards of answers of a file of scores."""
    pairs = zip(map(prompt_text, prompts), answers, strict=True)
    texts = [Conversation(pair) for pair in pairs]
    return model.base(item_features(model, answers, texts, scores))


def _read_texts(
    model: UserModel, prompts: Sequence[str | Chat], answers: Sequence[str]
) -> np.ndarray:
    """Base rewards of answers, which the encoder reads as it read those of the choices."""
    texts: Sequence[str] = answers
    if model.with_prompts:
        pairs = zip(map(prompt_text, prompts), answers, strict=True)
        texts = [Conversation(pair) for pair in pairs]
    return model.base(encode_texts(model, texts, keep=False))


def _named_rewards(names: Sequence[str], reward_models: Sequence[str]) -> TextReward:
    """The rewards of some names, from reward models, else from the registered ones."""
    parts = list(map(_reward_of_model, reward_models))
    found = [name for part in parts for name in part.names]
    missing = [name for name in names if name not in found]
    unknown = [name for name in missing if name not in registered_rewards()]
    if unknown:
        given = f" (the models given compute {', '.join(found)})" if found else ""
        raise InputError(
            f"the users' weights are on the rewards {', '.join(names)}; found nothing that "
            f"computes {', '.join(unknown)} of a new answer{given}: add --reward-model with the "
            "reward model that scored the answers that the run was trained on, as NAME=FOLDER "
            "where `jaxalign reward score --names` has named its reward."
        )
    return concatenate_rewards(*parts, *([rule_rewards(missing)] if missing else []))


def _reward_of_model(given: str) -> TextReward:
    """The rewards of the reward model `FOLDER`, or of `NAME,...=FOLDER` under these names."""
    names, equals, folder = given.partition("=")
    if not equals or expand_user(given).exists():
        names, folder = "", given
    model = load_reward_model(folder)
    labels = tuple(names.split(",")) if names else tuple(model.labels)
    if len(labels) != len(model.labels) or not all(labels):
        raise InputError(
            f"--reward-model {given}: found the names {names}, expected "
            f"{counted(len(model.labels), 'name')}, for {', '.join(model.labels)}; correct them."
        )
    return TextReward(labels, partial(score, model), model.sha256)


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
    about = saved_members.about_policies(folder)
    base = _language_model(about.base, sources.dtype, loaded)
    serving = saved_members.load(folder, base)
    names = serving.portfolio.scale.names if serving.portfolio.scale else ()
    population = _population(model, folder, names)
    settings = sources.settings
    if sources.own_length:
        from jaxalign.experiments.palm.policy_run import built_config  # with plots; for this alone

        if (config := built_config(folder)) is not None:
            settings = replace(settings, max_tokens=config.policies.answer_tokens)
    return member_strategy(serving, population, settings, sources.batch_size)


def _conditioned(sources: AnswerSources, folder: Path, model: UserModel) -> Strategy:
    place = policy_folder(folder)
    table = ValueTable.load(place)
    population = _population(model, folder, table.names)
    policy = moc.load(place, dtype=sources.dtype)
    settings = sources.settings
    if sources.own_length:
        from jaxalign.experiments.moc.config import trained_config  # with plots; for this alone

        if (run := trained_config(folder)) is not None:
            settings = replace(settings, max_tokens=run.moc.answer_tokens)
    return conditioned_strategy(policy, table, population, settings, sources.batch_size)
