"""Named base rewards: what a text is like, as numbers on one scale."""

from jaxalign.rewards import normalise, rules
from jaxalign.rewards.normalise import Standardiser
from jaxalign.rewards.rules import TRAITS, measure

__all__ = ["TRAITS", "Standardiser", "measure", "normalise", "rules"]
