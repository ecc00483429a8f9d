"""Experiments with PALM: build and certify a portfolio, judge it on other prompts, route users."""

from jaxalign.experiments.palm._run import run
from jaxalign.experiments.palm.routing import route_file

__all__ = ["route_file", "run"]
