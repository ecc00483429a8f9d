"""Runs of MOC: training into a folder, judging beside baselines, statistics and the report."""

from jaxalign.experiments.moc._evaluate import MocEvaluateConfig, evaluate
from jaxalign.experiments.moc._run import run
from jaxalign.experiments.moc.config import MocRunConfig

__all__ = ["MocEvaluateConfig", "MocRunConfig", "evaluate", "run"]
