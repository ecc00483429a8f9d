"""Where the methods meet: from choices to a utility, from a utility to a member or a target."""

from jaxalign.personalize._project import project
from jaxalign.personalize.ball import build_signed
from jaxalign.personalize.choices import from_choices
from jaxalign.personalize.guarantee import Bound, Guarantee, guarantees
from jaxalign.personalize.policies import Conditioned, Mixing, Separate, Soups, answer_as
from jaxalign.personalize.policy_oracle import AnswerOracle
from jaxalign.personalize.protect import constrain, floors, pin
from jaxalign.personalize.route import Confidence, Router, Routes
from jaxalign.personalize.saved_members import Serving
from jaxalign.personalize.strategies import (
    BestOfAnswers,
    BestPolicy,
    KnownAnswers,
    LargestGain,
    ModelDraws,
    PersonalAnswer,
    PlainAnswers,
    ServingRule,
    Strategy,
    UserRequest,
    conditioned_strategy,
    member_strategy,
)
from jaxalign.personalize.targets import answer_conditioned, target_for
from jaxalign.personalize.taste import RewardTaste, Taste, describe_taste, describe_user
from jaxalign.personalize.utility import Target, Utility, known

__all__ = [
    "AnswerOracle",
    "BestOfAnswers",
    "BestPolicy",
    "Bound",
    "Conditioned",
    "Confidence",
    "Guarantee",
    "KnownAnswers",
    "LargestGain",
    "Mixing",
    "ModelDraws",
    "PersonalAnswer",
    "PlainAnswers",
    "RewardTaste",
    "Router",
    "Routes",
    "Separate",
    "Serving",
    "ServingRule",
    "Soups",
    "Strategy",
    "Target",
    "Taste",
    "UserRequest",
    "Utility",
    "answer_as",
    "answer_conditioned",
    "build_signed",
    "conditioned_strategy",
    "constrain",
    "describe_taste",
    "describe_user",
    "floors",
    "from_choices",
    "guarantees",
    "known",
    "member_strategy",
    "pin",
    "project",
    "target_for",
]
