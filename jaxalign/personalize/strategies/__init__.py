"""Strategies of personal answers, behind one protocol: best of n, members, preferences, plain."""

from jaxalign.personalize.strategies.auto import LargestGain, PlainAnswers
from jaxalign.personalize.strategies.base import (
    ASKED_FOR,
    PersonalAnswer,
    ServingRule,
    Strategy,
    UserRequest,
)
from jaxalign.personalize.strategies.best_of import BestOfAnswers
from jaxalign.personalize.strategies.draws import Draws, KnownAnswers, ModelDraws
from jaxalign.personalize.strategies.policies import (
    BestPolicy,
    conditioned_strategy,
    member_strategy,
)

__all__ = [
    "ASKED_FOR",
    "BestOfAnswers",
    "BestPolicy",
    "Draws",
    "KnownAnswers",
    "LargestGain",
    "ModelDraws",
    "PersonalAnswer",
    "PlainAnswers",
    "ServingRule",
    "Strategy",
    "UserRequest",
    "conditioned_strategy",
    "member_strategy",
]
