"""Runs of MOC: training into a folder, judging beside baselines, statistics and the report."""

from jaxalign.experiments.moc._evaluate import MocEvaluateConfig, evaluate
from jaxalign.experiments.moc._run import MocRunConfig, run

__all__ = ["MocEvaluateConfig", "MocRunConfig", "evaluate", "run"]
