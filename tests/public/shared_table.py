"""Entries of `jaxalign.data`, `runs`, `rewards`, `personalize` and `kernels`."""

import tempfile
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from edge_table import Entry, empty, refusals
from mrm_table import CHOICES, COV, MASK, MEAN, PAIRS, prior, reference_posterior
from palm_table import BETA, LOG_REF, REWARDS, VALUES, WEIGHTS, best, outcomes
from scipy.special import log_softmax, logsumexp

from jaxalign import data, personalize, rewards, runs
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


REWARD = rewards.TextReward(IDS.names, lambda prompts, answers: RAW, "test")
PROMPTS, ANSWERS = ["p", "q", "r"], ["a", "b", "c"]
PROMPT = np.array([0, 0, 1, 1, 1])
NAMED = np.array([[0.5, 1.0], [1.5, 0.25], [-1.0, 3.0], [0.25, 0.5], [2.0, -1.0]])
LEARNED = NAMED @ np.array([[0.0, 2.0], [1.0, 0.5]])


def _gave(what, row=2):
    return (
        f"the reward brief gave {what} where a finite number was expected (row {row}, prompt "
        f'"{PROMPTS[row]}", answer "{ANSWERS[row]}"); correct the reward, or leave the row out.'
    )


def _gave_shape(shape):
    return (
        f"the reward kind, brief gave shape {shape} where (3, 2) was expected (rows 0 to 2); "
        "correct the reward, or leave the row out."
    )


def checked(values):
    return rewards.check_rewards(REWARD, values, PROMPTS, ANSWERS)


def projected(mean, features, named):
    found, explained = personalize.project(
        mean, np.eye(2), features, named, PROMPT[: len(named)], IDS, least=0.0
    )
    return found.mean, found.cov, explained


def within(values):
    parts = np.split(values, np.flatnonzero(np.diff(PROMPT)) + 1)
    return np.concatenate([part - part.mean(0) for part in parts])


def regressed(mean, features, named):
    """By the normal equations."""
    basis, kept = within(features), within(named)
    onto = np.linalg.solve(kept.T @ kept, kept.T @ basis)
    function = basis @ mean
    rest = function - kept @ onto @ mean
    return onto @ mean, onto @ onto.T, 1 - rest @ rest / (function @ function)


def stored(arrays):
    with tempfile.TemporaryDirectory() as folder:
        runs.save_arrays(Path(folder) / "state", {"tree": {"leaf": arrays}})
        return runs.load_arrays(Path(folder) / "state")["tree/leaf"]


def as_artifact(arrays):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "found"
        runs.save_artifact(path, "test", IDS, {"leaf": arrays})
        return runs.load_artifact(path, "test", RewardIds, "make it anew").arrays["leaf"]


def looked_up(values):
    ids = ("a", "b", "c")[: len(values)]
    return data.lookup(data.Features(ids, values), ids)


def mean_outcomes(rewards, log_ref, weights):
    expected, kl = outcomes(rewards, log_ref, weights)
    values = logsumexp(log_ref + np.einsum("xcr,wr->wxc", rewards, weights) / BETA, axis=2)
    return values.mean(1), expected.mean(1), kl.mean(1)


_SHAPE = "rewards of shape {} were given for 2 names; expected [N, 2] with N at least 2."
_BAD = (
    "reward 'brief' is not finite on 1 of 3 reference samples; remove those samples or mend the "
    "reward."
)
_USER = {
    probe: "utility: found NaN or infinity, expected finite mean and cov."
    for probe in ("nan live", "infinity live")
}

_MEAN = "the scale's mean is {}; expected 2 finite numbers, one for each of kind, brief."
_STORED = {"lists": "a tree of arrays", "wrong rank": "any shape"}
_FEATURES = "the features of 'c' hold NaN or infinity, expected finite numbers; compute them again."

RUNS = {
    name: Entry(
        call, {"arrays": RAW}, lambda arrays: arrays, "arrays", rows=("arrays",), skipped=_STORED,
    )
    for name, call in (("save_arrays", stored), ("save_artifact", as_artifact))
}  # fmt: skip

DATA = {
    "lookup": Entry(
        looked_up, {"values": RAW}, lambda values: values, "values", rows=("values",),
        refused={"nan live": _FEATURES, "infinity live": _FEATURES},
        skipped={"lists": "`Features` holds an array"},
    ),
}  # fmt: skip

REWARDS_TABLE = {
    "RewardScale": Entry(
        lambda mean: rewards.RewardScale(IDS.names, mean, [1.0, 2.0], [0, 0], [1, 1]).mean,
        {"mean": MEAN}, lambda mean: mean, "mean",
        refused={
            "nan live": _MEAN.format("[0.5 nan]"), "infinity live": _MEAN.format("[0.5 inf]"),
            "wrong rank": _MEAN.format("[[ 0.5  -0.25]]"),
        },
        skipped={"zero rows": "one scale", "one row": "one scale"},
    ),
    "check_rewards": Entry(
        checked, {"values": RAW}, lambda values: values, "values", rows=("values",),
        refused={
            "nan live": _gave("nan"), "infinity live": _gave("inf"),
            "zero rows": _gave_shape((0, 2)), "one row": _gave_shape((1, 2)),
            "wrong rank": _gave_shape((1, 3, 2)),
        },
    ),
    "fit_scale": Entry(
        fitted, {"raw": RAW}, scale_of, "raw", rows=("raw",), tolerance=1e-9,
        refused={
            "nan live": _BAD, "infinity live": _BAD, "zero rows": _SHAPE.format("(0, 2)"),
            "one row": _SHAPE.format("(1, 2)"), "wrong rank": _SHAPE.format("(1, 3, 2)"),
        },
    ),
}  # fmt: skip


def weights_of(mean, cov):
    found = personalize.Utility(mean, cov, IDS)
    return found.mean, found.cov


_TARGET = "target: found NaN or infinity, expected finite levels."
_ONE = {"zero rows": "one population", "one row": "one population"}

PERSONALIZE = {
    "Utility": Entry(
        weights_of, {"mean": MEAN, "cov": COV}, lambda mean, cov: (mean, cov), "mean",
        refused={
            **_USER,
            "wrong rank": "utility: found mean (1, 2) and cov (2, 2), expected (..., 2) and "
            "(..., 2, 2) for rewards kind, brief.",
        },
        skipped=_ONE,
    ),
    "Target": Entry(
        lambda values: personalize.Target(values, IDS).values, {"values": RAW},
        lambda values: values, "values", rows=("values",),
        refused={"nan live": _TARGET, "infinity live": _TARGET},
        skipped={"wrong rank": "any leading axes"},
    ),
    "project": Entry(
        projected, {"mean": np.array([1.0, 0.5]), "features": LEARNED, "named": NAMED}, regressed,
        "features", rows=("features", "named"), tolerance=1e-6,
        refused={
            **refusals("features", "4, 1", "N E", "1, 5, 2"),
            **empty("features", "0, 2", "N E", "N"),
            "one row": "named: found 0 independent rewards within prompts, expected 2; enlarge the "
            "pool of answers, or leave a reward out.",
        },
    ),
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
        jax.jit(scalarize.best_member), {"weights": WEIGHTS, "values": VALUES}, best, "weights",
        rows=("weights",), typed=("weights",),
        skipped=dict.fromkeys(
            ("nan live", "infinity live", "lists", "wrong rank", "zero rows"),
            "a kernel takes what palm.best_member has checked",
        ),
    ),
    "tilt_means": Entry(
        jax.jit(partial(scalarize.tilt_means, beta=0.5)),
        {"rewards": REWARDS, "log_ref": LOG_REF, "weights": WEIGHTS}, mean_outcomes, "rewards",
        rows=("rewards", "log_ref"), typed=("rewards",), least=1e-6,
        skipped=dict.fromkeys(
            ("nan live", "infinity live", "lists", "wrong rank", "zero rows", "scale 1e8"),
            "a kernel takes what palm.sweep has checked",
        ),
    ),
    "tilt": Entry(
        jax.jit(lambda **a: scalarize.tilt(**a, beta=0.5)[1:]),
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
        jax.jit(
            lambda hidden: token_logprob.token_logprob(
                jnp.asarray(hidden), jnp.asarray(TABLE), jnp.asarray(TARGETS[: len(hidden)])
            )
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
