"""Policies of which one answers: members of a portfolio, or one policy given preferences."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import jax
import numpy as np
from scipy.special import erf

from jaxalign.moc.policy import ConditionedPolicy
from jaxalign.moc.value_table import ValueTable
from jaxalign.models.chat import Chat, prompt_ids
from jaxalign.models.language import LanguageModel
from jaxalign.models.sampling import Sampling
from jaxalign.mrm.gains import Gains, expected_gains
from jaxalign.palm.portfolio import Portfolio
from jaxalign.personalize.policies import Conditioned, Kind, answer_as
from jaxalign.personalize.saved_members import Serving, stated_scale
from jaxalign.personalize.strategies.base import (
    Floats,
    PersonalAnswer,
    ServingRule,
    UserRequest,
    chosen_answer,
)
from jaxalign.personalize.targets import ids
from jaxalign.personalize.utility import Utility
from jaxalign.rewards.reward_scale import RewardIds

NEAR_ZERO = 0.01
"""Share of the population's typical size below which a user's weights have no direction."""


@dataclass(frozen=True, eq=False)
class PolicyValues:
    """What policies are worth to users, as far as it is known before anything is drawn.

    Attributes:
        strategy: name of the strategy that chooses among them.
        weights: [C, A] that make the C policies; zeros, the reference, first.
        words: [C] what each policy is.
        values: [C, K] its expected rewards in standard deviations.
        cost: [C] price of its KL, in logits.
        population: the population's weights, by which users without a direction are served.
    """

    strategy: str
    weights: Floats
    words: tuple[str, ...]
    values: Floats
    cost: Floats
    population: Utility

    @cached_property
    def _for_everybody(self) -> Gains:
        return expected_gains(self.population.mean, None, self.values, self.cost)

    @cached_property
    def _least_size(self) -> float:
        return NEAR_ZERO * typical_size(self.population)

    def choose(
        self, mean: np.ndarray, cov: np.ndarray | None, rule: ServingRule
    ) -> tuple[int, Gains]:
        """Return the policy that serves a user best by a rule, and what each is worth to the user.

        Args:
            mean: [K] posterior mean of the user's weights.
            cov: [K, K] posterior covariance; None where there is none.
            rule: when a policy other than the reference is served.
        """
        gains = expected_gains(mean, cov, self.values, self.cost)
        if np.abs(mean).sum() >= self._least_size:
            return rule.choose(gains), gains
        option = rule.choose(self._for_everybody)
        unsure = gains.probability is not None and (
            gains.probability[option] < rule.least_probability
        )
        return (0 if unsure else option), gains

    def describe(self, text: str, option: int, gains: Gains) -> PersonalAnswer:
        """Return the answer of a policy with its reasons."""
        return chosen_answer(text, self.strategy, self.words, option, gains)


@dataclass(frozen=True, eq=False)
class BestPolicy:
    """The policy of the largest expected gain answers; the reference is always among them.

    Attributes:
        policies: what makes a policy of A weights.
        model: the reference.
        known: the C policies, and what they are worth.
        settings: how tokens are sampled.
        batch_size: the most prompts at once.
    """

    policies: Kind = field(repr=False)
    model: LanguageModel = field(repr=False)
    known: PolicyValues
    settings: Sampling
    batch_size: int = 16

    @property
    def name(self) -> str:
        """Its name in reports."""
        return self.known.strategy

    def check(self, prompts: Sequence[str | Chat], names: Sequence[str]) -> None:
        """Refuse prompts that do not fit into the model's context under every policy."""
        reserved = self.settings.max_tokens + self.policies.prefix_tokens
        for prompt, name in zip(prompts, names, strict=True):
            # Adapters read the prompt as it is; tags of preferences make it longer.
            read = (self.policies.prompt(prompt, weight) for weight in self.known.weights)
            for text in {id(one): one for one in read}.values():
                prompt_ids(self.model, text, reserved, name)

    def answer(
        self, requests: Sequence[UserRequest], rule: ServingRule, key: jax.Array
    ) -> list[PersonalAnswer]:
        """Return the answer of each user's best policy, all of a batch in one decode call."""
        chosen = [self.known.choose(request.mean, request.cov, rule) for request in requests]
        completions = answer_as(
            self.model, self.policies, self.known.weights, [option for option, _ in chosen],
            [request.prompt for request in requests], self.settings, key,
            batch_size=self.batch_size,
        )  # fmt: skip
        return [
            self.known.describe(completion.text, option, gains)
            for completion, (option, gains) in zip(completions, chosen, strict=True)
        ]


def typical_size(population: Utility) -> float:
    """Return the expected sum of the absolute weights of a user drawn from the population.

    Args:
        population: mean [K] and covariance [K, K] of the users' weights.

    Example:
        >>> import numpy as np
        >>> from jaxalign.personalize import Utility
        >>> from jaxalign.personalize.strategies.policies import typical_size
        >>> from jaxalign.rewards import RewardIds
        >>> ids = RewardIds(("kind", "brief"), "0" * 64)
        >>> round(typical_size(Utility([0.0, 3.0], np.diag([1.0, 0.0]), ids)), 3)  # 3 + sqrt(2/pi)
        3.798
    """
    mean = np.asarray(population.mean, np.float64)
    sd = np.sqrt(np.diagonal(population.cov).astype(np.float64))
    scaled = np.divide(mean, sd, out=np.full_like(mean, np.inf), where=sd > 0)
    folded = sd * np.sqrt(2 / np.pi) * np.exp(-(scaled**2) / 2) + mean * erf(scaled / np.sqrt(2))
    return float(np.where(sd > 0, folded, np.abs(mean)).sum())


def member_values(portfolio: Portfolio, population: Utility) -> PolicyValues:
    """Return what the members of a portfolio of policies are worth to users.

    A user's value of a member is <w, rewards> less the price of its KL. The price of one nat, in
    logits, is the one at which the portfolio was built, for weights as large as they are on average
    in the population: whoever chooses more decisively pays relatively less for KL.

    Args:
        portfolio: its rewards and their scale must be those that the users' weights are on.
        population: weights of a user of whom nothing is known.

    Raises:
        InputError: a portfolio without a scale, on other rewards or on another scale.
    """
    scale = stated_scale(portfolio)
    population.reward_ids.expect(scale.ids, "portfolio")
    per_level = scale.weights_on_levels(np.ones(len(scale.names)))
    levels = Utility(
        population.mean * per_level,
        population.cov * np.outer(per_level, per_level),
        population.reward_ids,
    )
    beta = portfolio.beta * typical_size(levels)
    members = portfolio.members
    words = ("the reference, member 0", *(f"member {n}" for n in range(1, len(members))))
    return PolicyValues(
        "member",
        np.asarray(members.payload["weight"], np.float64),
        words,
        scale.standardise_levels(np.asarray(members.rewards, np.float64)),
        beta * np.asarray(members.kl, np.float64),
        population,
    )


def member_strategy(
    serving: Serving, population: Utility, settings: Sampling, batch_size: int = 16
) -> BestPolicy:
    """Return the strategy that routes each user to a member of a portfolio, by `member_values`.

    Args:
        serving: portfolio, policies and model.
        population: weights of a user of whom nothing is known.
        settings: how tokens are sampled.
        batch_size: the most prompts at once.

    Raises:
        InputError: as `member_values`.
    """
    known = member_values(serving.portfolio, population)
    return BestPolicy(serving.policies, serving.model, known, settings, batch_size)


def preference_values(known: RewardIds, table: ValueTable, population: Utility) -> PolicyValues:
    """Return what a conditioned policy is worth to users under each preference of its table.

    Args:
        known: the policy's rewards and their scale.
        table: its value table; the reference, whose standardised rewards are 0, is added.
        population: weights of a user of whom nothing is known, on the policy's rewards.

    Raises:
        InputError: a table or users of other rewards or another scale.
    """
    known.expect(RewardIds(table.names, table.digest), "value table")
    population.reward_ids.expect(known, "policy")
    none = np.zeros((1, len(table.names)))
    words = [
        ", ".join(f"{name}={share:.2g}" for name, share in zip(table.names, row, strict=True))
        for row in table.preferences
    ]
    return PolicyValues(
        "conditioned",
        np.concatenate([none, table.preferences]),
        ("the reference", *words),
        np.concatenate([none, table.achieved_rewards]),
        np.zeros(1 + len(words)),
        population,
    )


def conditioned_strategy(
    policy: ConditionedPolicy,
    table: ValueTable,
    population: Utility,
    settings: Sampling,
    batch_size: int = 16,
) -> BestPolicy:
    """Return the strategy that gives a conditioned policy the preference that serves each user.

    Args:
        policy: conditioned on preferences.
        table: its value table; the reference, whose standardised rewards are 0, is added.
        population: weights of a user of whom nothing is known, on the policy's rewards.
        settings: how tokens are sampled.
        batch_size: the most prompts at once.

    Raises:
        InputError: a policy without a scale, or a table or users of other rewards or another scale.
    """
    known = preference_values(ids(policy), table, population)
    policies = Conditioned(policy, table.preferences)
    return BestPolicy(policies, policy.model, known, settings, batch_size)
