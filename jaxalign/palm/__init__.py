"""A small portfolio of policies for every preference, certified: PALM (arXiv 2604.04144)."""

from jaxalign.palm._cover import Cover, Selection, best_of_size, cover
from jaxalign.palm._search import SearchState, known_pool, load_state, search
from jaxalign.palm._sweep import Sweep, best_member, prompt_outcomes, sweep, tilted_log_probs
from jaxalign.palm.baselines import Baseline, baseline, baseline_weights
from jaxalign.palm.bounds import tie_points, upper_facets
from jaxalign.palm.certificate import Certificate, HeldOut, Report, guarantee, held_out, report
from jaxalign.palm.closed_form import ClosedForm
from jaxalign.palm.config import PalmConfig
from jaxalign.palm.domain import check_weights, coordinates, corners
from jaxalign.palm.gaps import Gap, worst_gap
from jaxalign.palm.grid import grid_size, weight_grid
from jaxalign.palm.oracle import (
    BatchOracle,
    Evaluator,
    Oracle,
    OraclePolicy,
    Policies,
    SampledOracle,
    stack,
)
from jaxalign.palm.portfolio import Portfolio, Usage, assemble, build, load, select_members, usage
from jaxalign.palm.select import SelectionSummary

__all__ = [
    "Baseline",
    "BatchOracle",
    "Certificate",
    "ClosedForm",
    "Cover",
    "Evaluator",
    "Gap",
    "HeldOut",
    "Oracle",
    "OraclePolicy",
    "PalmConfig",
    "Policies",
    "Portfolio",
    "Report",
    "SampledOracle",
    "SearchState",
    "Selection",
    "SelectionSummary",
    "Sweep",
    "Usage",
    "assemble",
    "baseline",
    "baseline_weights",
    "best_member",
    "best_of_size",
    "build",
    "check_weights",
    "coordinates",
    "corners",
    "cover",
    "grid_size",
    "guarantee",
    "held_out",
    "known_pool",
    "load",
    "load_state",
    "prompt_outcomes",
    "report",
    "search",
    "select_members",
    "stack",
    "sweep",
    "tie_points",
    "tilted_log_probs",
    "upper_facets",
    "usage",
    "weight_grid",
    "worst_gap",
]
