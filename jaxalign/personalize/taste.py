"""What is believed of a user, in words and numbers: likes, dislikes, and how sure they are."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy.special import expit, ndtr, ndtri

from jaxalign.errors import InputError
from jaxalign.mrm import UserModel
from jaxalign.mrm.adapted_users import is_alike, user_state, weights_of
from jaxalign.personalize.utility import Utility
from jaxalign.progress import counted

Certainty = Literal["clear", "likely", "open"]

_CLEAR, _LIKELY = 0.975, 0.8
_Z = float(ndtri(0.975))


@dataclass(frozen=True)
class RewardTaste:
    """What is believed of a user about one reward.

    Attributes:
        name: of the reward.
        weight: posterior mean, in logits of a choice per standard deviation of the reward.
        low, high: between which the weight lies with a probability of 95 %.
        probability: that the weight is above 0: that the user likes the reward.
        chosen: probability that the user chooses the answer with one standard deviation more of
            the reward, of two that are equal otherwise, at the mean weight.
        certainty: "clear" where like or dislike has a probability of 97.5 % or more, "likely" from
            80 %, else "open".
        population: weight of the mean user; None where it is not known.
    """

    name: str
    weight: float
    low: float
    high: float
    probability: float
    chosen: float
    certainty: Certainty
    population: float | None = None

    def sentence(self) -> str:
        """Return the belief as a sentence."""
        low, high = expit(self.low), expit(self.high)
        share = f"{self.chosen:.0%} ({low:.0%} to {high:.0%})"
        verb = "likes" if self.weight > 0 else "dislikes"
        start = {
            "clear": f"{verb} {self.name}",
            "likely": f"probably {verb} {self.name}",
            "open": f"{self.name}: no clear taste yet",
        }[self.certainty]
        return f"{start}; chooses the answer with more of it in {share} of equal pairs"


@dataclass(frozen=True)
class Taste:
    """What is believed of a user about all rewards.

    Attributes:
        user: id; None for the population's mean user.
        choices: that the user has made.
        alone: whether the run leaves the user alone, so that the belief is that of all users.
        ratings: that the user has made.
        rewards: by certainty and size, the clearest first.
    """

    user: str | None
    choices: int
    rewards: tuple[RewardTaste, ...]
    alone: bool = False
    ratings: int = 0

    def lines(self) -> list[str]:
        """Return the belief as text, a line for each reward."""
        rows = [counted(self.choices, "choice")] if self.choices or not self.ratings else []
        rows += [counted(self.ratings, "rating")] if self.ratings else []
        start = (
            "a user without choices, from all other users"
            if self.user is None
            else f"user {self.user}, from {', '.join(rows)} and all other users"
        )
        if self.alone:
            start = (
                f"user {self.user}, from all other users: the run does not adapt to this user "
                f"after {', '.join(rows)}"
            )
        return [f"{start}:", *(f"- {reward.sentence()}" for reward in self.rewards)]


def describe_taste(
    utility: Utility,
    choices: int,
    user: str | None = None,
    population: Utility | None = None,
    ratings: int = 0,
) -> Taste:
    """Return what is believed of one user, from the posterior of the user's weights.

    Args:
        utility: mean [K] and covariance [K, K] of the weights on named, standardised rewards.
        choices: number of choices that it is based on.
        user: id, None for a user without choices.
        population: the utility of the mean user.
        ratings: number of ratings that it is based on.

    Returns:
        The belief, the clearest reward first.

    Example:
        >>> import numpy as np
        >>> from jaxalign.personalize import Utility, describe_taste
        >>> from jaxalign.rewards import RewardIds
        >>> ids = RewardIds(("brief", "formal"), "0" * 64)
        >>> utility = Utility([1.1, -0.2], 0.01 * np.eye(2), ids)
        >>> taste = describe_taste(utility, choices=12, user="ann")
        >>> taste.rewards[0].sentence()
        'likes brief; chooses the answer with more of it in 75% (71% to 79%) of equal pairs'
        >>> taste.rewards[1].certainty
        'clear'
    """
    mean, spread = utility.mean, np.sqrt(np.diagonal(utility.cov))
    found = []
    for place, name in enumerate(utility.reward_ids.names):
        weight, sd = float(mean[place]), float(spread[place])
        # A weight that is known exactly is liked, disliked, or neither.
        positive = float(ndtr(weight / sd)) if sd > 0 else 0.5 * (1.0 + np.sign(weight))
        sure = max(positive, 1 - positive)
        certainty: Certainty = (
            "clear" if sure >= _CLEAR else "likely" if sure >= _LIKELY else "open"
        )
        found.append(
            RewardTaste(
                name=name,
                weight=weight,
                low=weight - _Z * sd,
                high=weight + _Z * sd,
                probability=positive,
                chosen=float(expit(weight)),
                certainty=certainty,
                population=None if population is None else float(population.mean[place]),
            )
        )
    order = {"clear": 0, "likely": 1, "open": 2}
    ranked = sorted(found, key=lambda one: (order[one.certainty], -abs(one.weight)))
    return Taste(user, choices, tuple(ranked), ratings=ratings)


def describe_user(model: UserModel, user: str | None) -> Taste:
    """Return what is believed of a user of a run, from the user's posterior.

    Args:
        model: as `mrm.load` gives it, with its users.
        user: who was adapted; None for a user without choices.

    Raises:
        InputError: the user was not adapted, the run's rewards have no names, or its method has no
            weights or no posterior.
    """
    if model.reward_ids is None:
        raise InputError(
            "the users' weights are on learned features, which have no names, expected named "
            "rewards: train the run with `--features.path SCORES` on what `jaxalign reward score` "
            "writes."
        )
    state = None if user is None else user_state(model, user)
    everyone, own = (weights_of(model, one) for one in (None, state))
    population, utility = (
        Utility(mean, np.zeros((len(mean),) * 2) if cov is None else cov, model.reward_ids)
        for mean, cov in (everyone, own)
    )
    rows, ratings = (0.0, 0) if state is None else (float(state.weight.sum()), state.ratings)
    alone = state is not None and bool(is_alike(utility.mean, population.mean))
    taste = describe_taste(utility, round(rows) - ratings, user, population, ratings)
    return replace(taste, alone=alone)
