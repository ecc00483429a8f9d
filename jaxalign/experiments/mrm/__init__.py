"""User reward models trained, chosen on validation users, judged and reported."""

from jaxalign.experiments.mrm._evaluate import evaluate
from jaxalign.experiments.mrm._run import run
from jaxalign.experiments.mrm.config import MRMRunConfig

__all__ = ["MRMRunConfig", "evaluate", "run"]
