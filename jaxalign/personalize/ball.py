"""A portfolio for users who like and dislike: weights in the L1 ball instead of the simplex."""

from dataclasses import replace

import numpy as np

from jaxalign.palm import Oracle, PalmConfig, Portfolio, SearchState, build, stack
from jaxalign.rewards.reward_scale import RewardScale


def build_signed(oracle: Oracle, config: PalmConfig, scale: RewardScale | None = None) -> Portfolio:
    """Return a portfolio whose pool and certificate cover the signed L1 ball, mirrors included.

    The search goes by corner weights, the points where policies tie: a grid is out of reach.

    Args:
        oracle: solves one weight a call.
        config: as for `palm.build`; `weights` is set to "signed".
        scale: scale whose levels the oracle's rewards are, None where it is not known.

    Returns:
        Portfolio, the reference as member 0.

    Raises:
        InputError: as `palm.build`.
    """
    config = replace(config, weights="signed")
    # The reference is the optimum of weights of zero: known without a call, and no corner tells.
    origin = np.zeros((1, oracle.num_rewards))
    start = SearchState(origin, stack([oracle.reference]), np.full(1, np.nan))
    return build(oracle, config, start, scale=scale)
