"""Where the methods meet: a user's choices to a utility, a utility to a route or a target."""

from jaxalign.models.soups import Mixing, Soups, Tuned
from jaxalign.personalize._project import project
from jaxalign.personalize.ball import build_signed
from jaxalign.personalize.choices import from_choices
from jaxalign.personalize.conditioned import Conditioned, answer_told, target_for
from jaxalign.personalize.guarantee import Bound, Guarantee, guarantees
from jaxalign.personalize.policy_oracle import AnswerOracle
from jaxalign.personalize.protect import constrain, floors, pin
from jaxalign.personalize.route import Confidence, Router, Routes
from jaxalign.personalize.serve import Serving, answer, answer_as
from jaxalign.personalize.utility import Target, Utility, known, target_of

__all__ = [
    "AnswerOracle",
    "Bound",
    "Conditioned",
    "Confidence",
    "Guarantee",
    "Mixing",
    "Router",
    "Routes",
    "Serving",
    "Soups",
    "Target",
    "Tuned",
    "Utility",
    "answer",
    "answer_as",
    "answer_told",
    "build_signed",
    "constrain",
    "floors",
    "from_choices",
    "guarantees",
    "known",
    "pin",
    "project",
    "target_for",
    "target_of",
]
