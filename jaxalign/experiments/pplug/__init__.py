"""PPlug experiments: train plugs and baselines on users' histories, and evaluate them."""

from jaxalign.experiments.pplug._evaluate import evaluate
from jaxalign.experiments.pplug._run import run

__all__ = ["evaluate", "run"]
