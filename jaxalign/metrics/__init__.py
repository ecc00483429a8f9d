"""Metrics: pure functions of arrays that know no method.

`jaxalign.metrics.text` holds the scores of LaMP's tasks.
"""

from jaxalign.metrics.agreement import (
    corner_error,
    corner_movement,
    linear_regret,
    squared_error,
    tau_b,
    tau_cap,
)
from jaxalign.metrics.bootstrap import Interval, mean_interval, paired_bootstrap
from jaxalign.metrics.calibration import Reliability, calibration_error, reliability
from jaxalign.metrics.conflicts import Conflict, best_of_front, conflict
from jaxalign.metrics.groups import worst_groups
from jaxalign.metrics.harm import harm_floor, harmed
from jaxalign.metrics.pareto import entropy, hypervolume, nondominated, sparsity
from jaxalign.metrics.scores import (
    accuracy,
    flipped,
    nll,
    share_of_gap,
    user_accuracy,
    user_gain,
    user_nll,
)
from jaxalign.metrics.users import judge

__all__ = [
    "Conflict",
    "Interval",
    "Reliability",
    "accuracy",
    "best_of_front",
    "calibration_error",
    "conflict",
    "corner_error",
    "corner_movement",
    "entropy",
    "flipped",
    "harm_floor",
    "harmed",
    "hypervolume",
    "judge",
    "linear_regret",
    "mean_interval",
    "nll",
    "nondominated",
    "paired_bootstrap",
    "reliability",
    "share_of_gap",
    "sparsity",
    "squared_error",
    "tau_b",
    "tau_cap",
    "user_accuracy",
    "user_gain",
    "user_nll",
    "worst_groups",
]
