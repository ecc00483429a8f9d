"""Policies by which the service answers beside the engine's own model, by name."""

import functools
from dataclasses import dataclass

from jaxalign.errors import InputError
from jaxalign.mrm.gains import Gains
from jaxalign.personalize.saved import SavedMembers, SavedPolicies, policy_values
from jaxalign.personalize.strategies.base import PersonalAnswer, ServingRule
from jaxalign.personalize.strategies.policies import PolicyValues
from jaxalign.personalize.utility import Utility
from jaxalign.serve.engines import AnswerEngine
from jaxalign.serve.reward_space import RewardSpace


@dataclass(frozen=True, eq=False)
class OfferedPolicies:
    """C policies that answer; number 0 is the engine's own model.

    Attributes:
        source: option and folder that they come from, for messages.
        names: [C] names for engines and clients; the first is not used.
        known: what they are worth to users.
    """

    source: str
    names: tuple[str, ...]
    known: PolicyValues

    def choose(
        self, utility: Utility, rule: ServingRule, named: str | None = None
    ) -> tuple[str | None, PersonalAnswer]:
        """Return the policy that answers a user, and its answer, whose text is not drawn yet.

        Args:
            utility: mean and covariance of the user's weights.
            rule: when a policy other than the engine's own model answers.
            named: the policy that the request names; None for the best one by the rule.

        Returns:
            The policy's name, None for the engine's own model; and the reasons.
        """
        option, gains = _choice(self.known, utility, rule)
        if named is not None:
            option = self.names.index(named)
        answer = self.known.describe("", option, gains)
        return (self.names[option] if option else None), answer


@functools.lru_cache(maxsize=1024)
def _choice(known: PolicyValues, utility: Utility, rule: ServingRule) -> tuple[int, Gains]:
    """The best policy, computed once for each belief: it changes with the user's feedback alone."""
    return known.choose(utility.mean, utility.cov, rule)


def offer_policies(saved: SavedPolicies, space: RewardSpace) -> OfferedPolicies:
    """Return saved policies with what users gain by them; no model is loaded.

    Args:
        saved: of `EngineConfig.saved_policies`.
        space: of the users' weights.

    Raises:
        InputError: users on other rewards or another scale.
    """
    option = "--portfolio" if isinstance(saved, SavedMembers) else "--policy"
    source = f"{option} {saved.folder}"
    if not space.named:
        raise InputError(
            f"{source}: the users' weights are on learned features of {space.source}, expected "
            "weights on the policies' rewards: train the user model on their scores (`jaxalign "
            f"mrm train --features.path SCORES --features.scale {saved.folder}`)."
        )
    try:
        known = policy_values(saved, space.population)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    return OfferedPolicies(source, saved.names, known)


def check_offered(policies: OfferedPolicies, engine: AnswerEngine) -> None:
    """Refuse an engine that does not answer as each of the policies.

    Raises:
        InputError: policies that the started engine lacks.
    """
    missing = [name for name in policies.names[1:] if name not in engine.policies]
    if missing:
        found = ", ".join(sorted(set(engine.policies) - {engine.model})) or "none"
        raise InputError(
            f"{policies.source}: the engine answers as {found} besides {engine.model}, expected "
            f"{', '.join(missing)}: start the server with the command that `jaxalign export vllm` "
            "writes for this folder."
        )
