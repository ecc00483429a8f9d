"""A portfolio for users who like and dislike: weights in the L1 ball instead of the simplex."""

from dataclasses import replace

import numpy as np

from jaxalign.palm import Oracle, PalmConfig, Portfolio, SearchState, build, stack
from jaxalign.rewards.reward_scale import RewardScale


def build_signed(oracle: Oracle, config: PalmConfig, scale: RewardScale | None = None) -> Portfolio:
    """Return a portfolio whose pool and certificate cover the signed L1 ball.

    The search goes by corner weights, the points where policies tie, since a grid over signed
    weights would be too large.

    Args:
        oracle: solves one weight per call.
        config: as for `palm.build`; `weights` is set to "signed".
        scale: scale whose levels the oracle's rewards are, None where it is not known.

    Returns:
        Portfolio, the reference as member 0.

    Raises:
        InputError: as `palm.build`.

    Example:
        >>> import numpy as np
        >>> from jaxalign.palm import ClosedForm, PalmConfig
        >>> from jaxalign.personalize import build_signed
        >>> rewards = np.random.default_rng(0).random((4, 3, 2))  # prompts, candidates, rewards
        >>> oracle = ClosedForm(rewards, None, beta=0.1)
        >>> portfolio = build_signed(oracle, PalmConfig(size=3, stop_delta=0.05))
        >>> value, member = portfolio.route([[0.5, -0.5], [0.0, 0.0]])
        >>> member.tolist()[1]  # no preference: the reference
        0
    """
    config = replace(config, weights="signed")
    # The reference is the optimum of weights of zero: known without a call, and no corner tells.
    origin = np.zeros((1, oracle.num_rewards))
    start = SearchState(origin, stack([oracle.reference]), np.full(1, np.nan))
    return build(oracle, config, start, scale=scale)
