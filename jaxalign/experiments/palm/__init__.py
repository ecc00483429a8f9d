"""Experiments with PALM: build a portfolio, judge it on other prompts, route files of users."""

from jaxalign.experiments.palm._run import BuiltPortfolio, evaluate, load_built, run
from jaxalign.experiments.palm.policy_run import certify_policies, run_policies
from jaxalign.experiments.palm.routing import RoutedUsers, route_users

__all__ = [
    "BuiltPortfolio",
    "RoutedUsers",
    "certify_policies",
    "evaluate",
    "load_built",
    "route_users",
    "run",
    "run_policies",
]
