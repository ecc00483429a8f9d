"""What answers are worth to a user above a plain one, and which of them to give."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr

from jaxalign.arrays import Sizes, check_number, check_numpy
from jaxalign.errors import InputError
from jaxalign.mrm.adapted_users import own_weights, user_state
from jaxalign.mrm.calibrated import moved
from jaxalign.mrm.known_items import effects_of
from jaxalign.mrm.model import UserModel
from jaxalign.mrm.registry import require
from jaxalign.mrm.serving import answer_features, known_texts, leaves_alone, win_probability

Floats = NDArray[np.float64]


class Gains(NamedTuple):
    """What each of C options is worth to a user above the first one.

    Attributes:
        mean: [C] posterior mean of the gain over option 0, in logits of a choice.
        sd: [C] posterior standard deviation of the gain; None without a posterior.
        probability: [C] posterior probability that the gain is above 0, 1/2 for option 0; None
            without a posterior.
    """

    mean: Floats
    sd: Floats | None
    probability: Floats | None


def expected_gains(
    mean: ArrayLike, cov: ArrayLike | None, values: ArrayLike, cost: ArrayLike | None = None
) -> Gains:
    """Return what options are worth to a user above option 0, the plain one.

    The user values an option at <w, values> - cost, with w ~ N(mean, cov).

    Args:
        mean: [K] posterior mean of the user's weights.
        cov: [K, K] posterior covariance; None where it is unknown.
        values: [C, K] base rewards of the options.
        cost: [C] certain cost of each option in the same units as the gain, such as the price of
            KL; None for none.

    Returns:
        Gains of the C options.

    Raises:
        InputError: no options, shapes that disagree, NaN or infinity.

    Example:
        >>> import numpy as np
        >>> from jaxalign.mrm import expected_gains
        >>> gains = expected_gains([2.0, 0.0], np.eye(2), [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> gains.mean.tolist(), gains.sd.tolist(), gains.probability.round(3).tolist()
        ([0.0, 2.0, 0.0], [0.0, 1.0, 1.0], [0.5, 0.977, 0.5])
    """
    sizes = Sizes()
    weights = check_numpy("mean", mean, "K", sizes)
    options = check_numpy("values", values, "C K", sizes)
    beyond = options - options[:1]
    gain = beyond @ weights
    if cost is not None:
        price = check_numpy("cost", cost, "C", sizes)
        gain = gain - (price - price[0])
    if cov is None:
        return Gains(gain, None, None)
    spread = check_numpy("cov", cov, "K K", sizes)
    variance = np.einsum("CK,KJ,CJ->C", beyond, spread, beyond)
    sd = np.sqrt(np.maximum(variance, 0.0))
    certain = np.where(gain > 0, np.inf, -np.inf)
    scaled = np.divide(gain, sd, out=certain, where=sd > 0)
    return Gains(gain, sd, ndtr(np.where(gain == 0, 0.0, scaled)))


def best_option(gains: Gains, k: float = 0.0, least_probability: float = 0.0) -> int:
    """Return the option of the largest mean gain less k standard deviations.

    Args:
        gains: of C options.
        k: standard deviations of caution, 0 or more; without a posterior it has no effect.
        least_probability: option 0 is returned where the best one is better than it with a lower
            probability.

    Returns:
        Number of the option, the first among equals; 0 is the plain one.

    Raises:
        InputError: k below 0, a probability outside [0, 1], no option, or gains that are not
            finite.

    Example:
        >>> from jaxalign.mrm import best_option, expected_gains
        >>> gains = expected_gains([1.0], [[1.0]], [[0.0], [1.0]])  # 1 +- 1 logits
        >>> best_option(gains), best_option(gains, k=2), best_option(gains, least_probability=0.9)
        (1, 0, 0)
    """
    check_number("k", k, 0)
    check_number("least_probability", least_probability, 0, 1)
    sizes = Sizes()
    mean = check_numpy("gains.mean", gains.mean, "C", sizes)
    sd, probability = (
        None if values is None else check_numpy(f"gains.{name}", values, "C", sizes)
        for name, values in (("sd", gains.sd), ("probability", gains.probability))
    )
    best = int(np.argmax(mean if sd is None else mean - k * sd))
    sure = probability is None or probability[best] >= least_probability
    return best if sure else 0


class BestOf(NamedTuple):
    """The candidate that is given to a user.

    Attributes:
        position: its number among the candidates; 0 is the plain answer.
        text: the candidate.
        gains: of all candidates over the first.
    """

    position: int
    text: str
    gains: Gains


def best_of(
    model: UserModel,
    user: str | None,
    candidates: Sequence[str],
    features: ArrayLike | None = None,
    prompt: str | None = None,
    k: float = 0.0,
    least_probability: float = 0.0,
) -> BestOf:
    """Return the candidate that a user likes best: posterior mean less k standard deviations.

    Means and standard deviations are those of the gain over the first candidate, since only
    differences between answers to one prompt mean something.

    Args:
        model: whose method represents users by weights; with `users` where a user is named.
        user: whose taste; None for the population's.
        candidates: N answers to one prompt, the plain one first.
        features: [N, E] of the candidates, for a model that cannot read text.
        prompt: that the candidates are answers to, where the model was trained on choices with
            prompts.
        k: as in `best_option`.
        least_probability: as in `best_option`.

    Returns:
        BestOf.

    Raises:
        InputError: no candidates, a user who was not adapted, a method without weights, or features
            of another shape or that are not finite.

    Source: best of n by a user's own reward model; the choice by lower bounds is added here.

    Example:
        >>> import jax.numpy as jnp
        >>> import numpy as np
        >>> from jaxalign.mrm import UserModel, best_of, make_method
        >>> from jaxalign.mrm.reduce import identity
        >>> fitted = {"mean": jnp.array([1.0, 0.0]), "cov": jnp.eye(2)}
        >>> method = make_method("bayes")
        >>> candidate = {"strength": 1.0, "temperature": 1.0, "adapt": True}
        >>> model = UserModel(method, fitted, candidate, np.zeros(2), identity(2))
        >>> best = best_of(model, None, ["plain", "kind"], np.array([[0.0, 0.0], [2.0, 0.0]]))
        >>> best.text, round(float(best.gains.probability[1]), 2)
        ('kind', 0.84)
    """
    if not candidates:
        raise InputError("candidates: found none, expected one answer or more.")
    require(model.method, "weights", "a personal answer")
    state = None if user is None else user_state(model, user)
    values = answer_features(model, candidates, prompt, features)
    base = model.base(values)
    effects = effects_of(model.item_effects, known_texts(candidates, prompt))
    population = model.population()
    weights = population if state is None else own_weights(model, state)
    if state is not None and model.gate.by_pairs:
        wins, common = (
            moved(
                win_probability(mean, cov, base),
                effects[:, None] - effects[None, :],
                model.temperature,
            )
            for mean, cov in (weights, population)
        )
        if leaves_alone(model, wins, common):
            weights = population
    gains = expected_gains(*weights, base, -effects)
    position = best_option(gains, k, least_probability)
    return BestOf(position, candidates[position], gains)
