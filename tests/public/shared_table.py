"""Entries of `jaxalign.rewards`, `jaxalign.personalize` and `jaxalign.kernels`."""

import jax.numpy as jnp
import numpy as np
from edge_table import Entry, refusals
from mrm_table import CHOICES, COV, MASK, MEAN, PAIRS, prior, reference_posterior
from palm_table import LOG_REF, REWARDS, VALUES, WEIGHTS, best, outcomes
from scipy.special import log_softmax

from jaxalign import personalize, rewards
from jaxalign.kernels import scalarize, token_logprob
from jaxalign.rewards import RewardIds

IDS = RewardIds(("kind", "brief"), "0" * 64)
RAW = np.array([[0.5, 1.0], [1.5, 0.25], [-1.0, 3.0]])
HIDDEN = np.array([[0.5, 1.0], [1.5, 0.25], [-1.0, 3.0]])
TABLE = np.array([[1.0, 0.5], [0.25, -1.0], [0.0, 2.0], [-0.5, 0.5]])
TARGETS = np.array([0, 3, 2])


def scale_of(raw):
    return raw.mean(0), raw.std(0), raw.mean(0), raw.mean(0) + raw.std(0)


def logprobs(hidden):
    log_p = log_softmax(hidden @ TABLE.T, axis=1)
    entropy = -(np.exp(log_p) * log_p).sum(1)
    return log_p[np.arange(len(hidden)), TARGETS[: len(hidden)]], entropy


def fitted(raw):
    found = rewards.fit_scale(raw, IDS.names, quantiles=None)
    return found.mean, found.std, found.low, found.high


def chosen(differences, mask):
    found = personalize.from_choices(prior(), differences, mask, IDS)
    return found.mean, found.cov


_SHAPE = "rewards of shape {} were given for 2 names; expected [N, 2] with N at least 2."
_BAD = (
    "reward 'brief' is not finite on 1 of 3 reference samples; remove those samples or mend the "
    "reward."
)
_USER = {
    probe: "utility: found NaN or infinity, expected finite mean and cov."
    for probe in ("nan live", "infinity live")
}

REWARDS_TABLE = {
    "fit_scale": Entry(
        fitted, {"raw": RAW}, scale_of, "raw", rows=("raw",), tolerance=1e-9,
        refused={
            "nan live": _BAD, "infinity live": _BAD, "zero rows": _SHAPE.format("(0, 2)"),
            "one row": _SHAPE.format("(1, 2)"), "wrong rank": _SHAPE.format("(1, 3, 2)"),
        },
    ),
}  # fmt: skip

PERSONALIZE = {
    "constrain": Entry(
        lambda weights: personalize.constrain(weights, np.array([-np.inf, 0.5])),
        {"weights": PAIRS[0]}, lambda weights: np.maximum(weights, [-np.inf, 0.5]), "weights",
        rows=("weights",), refused=refusals("weights", "2, 1", "", ""),
        skipped={"wrong rank": "any leading axes"},
    ),
    "known": Entry(
        lambda weights: personalize.known(weights, IDS).mean, {"weights": PAIRS[0]},
        lambda weights: weights, "weights", rows=("weights",), refused=_USER,
        skipped={"wrong rank": "any leading axes"},
    ),
    "from_choices": Entry(
        chosen, {"differences": PAIRS, "mask": MASK}, reference_posterior, "differences", "mask",
        ("differences", "mask"), CHOICES,
        {"scale 1e8": "margins of 1e8 standard deviations have no quadrature to compare with"},
        tolerance=1e-4,
    ),
    "pin": Entry(
        lambda level: personalize.pin(
            personalize.Utility(MEAN, COV, IDS), level, {"brief": 0.5}
        ).mean,
        {"level": np.array([0.25, 1.5])},
        lambda level: np.array([MEAN[0], max(level[1], 0.5)]), "level",
        refused=refusals("level", "1", "K", "1, 2"),
        skipped={"zero rows": "one population", "one row": "one population"},
    ),
}  # fmt: skip

SCALARIZE = {
    "best_member": Entry(
        scalarize.best_member, {"weights": WEIGHTS, "values": VALUES}, best, "weights",
        rows=("weights",), typed=("weights",),
        skipped=dict.fromkeys(
            ("nan live", "infinity live", "lists", "wrong rank", "zero rows"),
            "a kernel takes what palm.best_member has checked",
        ),
    ),
    "tilt": Entry(
        lambda **a: scalarize.tilt(**a, beta=0.5)[1:],
        {"rewards": REWARDS, "log_ref": LOG_REF, "weights": WEIGHTS}, outcomes, "rewards",
        rows=("rewards", "log_ref"), typed=("rewards",), least=1e-6,
        skipped=dict.fromkeys(
            ("nan live", "infinity live", "lists", "wrong rank", "zero rows", "scale 1e8"),
            "a kernel takes what palm.prompt_outcomes has checked",
        ),
    ),
}  # fmt: skip

TOKEN_LOGPROB = {
    "token_logprob": Entry(
        lambda hidden: token_logprob.token_logprob(
            jnp.asarray(hidden), jnp.asarray(TABLE), jnp.asarray(TARGETS[: len(hidden)])
        ),
        {"hidden": HIDDEN}, logprobs, "hidden", rows=("hidden",), tolerance=1e-4,
        skipped={
            "nan live": "a kernel takes states of a model", "infinity live": "the same",
            "int": "refused by type", "wrong rank": "leading axes are those of targets",
            "scale 1e8": "the entropy of a certain token", "zero rows": "no tokens",
            "lists": "arrays of the device",
        },
    ),
}  # fmt: skip
