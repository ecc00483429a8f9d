"""From users' choices to their utilities."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from jaxalign.arrays import check_array
from jaxalign.errors import InputError
from jaxalign.mrm import Prior, posterior
from jaxalign.personalize.protect import pin
from jaxalign.personalize.utility import LOGITS, Utility
from jaxalign.rewards.reward_scale import RewardIds
from jaxalign.train.blas import one_blas_thread


@one_blas_thread
def from_choices(
    prior: Prior,
    differences: ArrayLike,
    mask: ArrayLike,
    reward_ids: RewardIds,
    protected: Mapping[str, float] | None = None,
    units: str = LOGITS,
) -> Utility:
    """Return the utilities of users, inferred from choices between answers with named rewards.

    Args:
        prior: Gaussian prior of the weights over the population, mean [K] and cov [K, K]
            (`mrm.fit_prior`).
        differences: [U, P, K] standardised rewards, chosen minus rejected.
        mask: [U, P] bool or weights; a user without choices gets the population's weights.
        reward_ids: names and scale of the K rewards.
        protected: names of rewards whose weights choices do not change, and their floors: their
            weights are the population's mean, or the floor if that is higher. The inference itself
            leaves all rewards free, so that a dislike of a protected reward is not attributed to
            another one.
        units: units of the weights.

    Returns:
        Utility of U users: mean [U, K], cov [U, K, K], not normalised.

    Raises:
        InputError: shapes that do not fit, values that are not finite, or as `floors`.

    Example:
        >>> import jax.numpy as jnp
        >>> import numpy as np
        >>> from jaxalign import mrm, personalize
        >>> from jaxalign.rewards import RewardIds
        >>> ids = RewardIds(("kind", "brief"), "0" * 64)
        >>> prior = mrm.Prior(jnp.zeros(2), jnp.eye(2))
        >>> differences = np.array([[[1.0, 0.0], [2.0, 0.0]]])  # twice the kinder answer
        >>> utility = personalize.from_choices(prior, differences, np.ones((1, 2), bool), ids)
        >>> bool(utility.mean[0, 0] > 0.5), bool(utility.cov[0, 0, 0] < 1)
        (True, True)
    """
    size = len(reward_ids.names)
    differences = check_array("differences", differences, "...", finite=False)
    width = np.shape(differences)[-1] if np.ndim(differences) == 3 else size
    if width != size or np.shape(prior.mean) != (size,):
        raise InputError(
            f"differences: found shape {np.shape(differences)} and a prior of "
            f"{np.shape(prior.mean)}, expected (users, pairs, {size}) and ({size},) for "
            f"{', '.join(reward_ids.names)}."
        )
    found = posterior(prior, differences, mask)
    mean, cov = (np.asarray(x) for x in found)
    inferred = Utility(mean, cov, reward_ids, units)
    return pin(inferred, np.asarray(prior.mean), protected) if protected else inferred
