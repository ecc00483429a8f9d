"""User reward models trained, chosen on validation users, judged and reported."""

from jaxalign.experiments.mrm._evaluate import evaluate
from jaxalign.experiments.mrm._run import run

__all__ = ["evaluate", "run"]
