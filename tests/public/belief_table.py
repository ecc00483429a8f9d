"""Entries of `jaxalign.mrm`: beliefs, feedback, populations and models at work."""

import jax.numpy as jnp
import numpy as np
import reference_numpy as ref
from edge_table import Entry, empty, refusals
from mrm_table import COV, MASK, MEAN, PAIRS, prior, reference_gains, reference_posterior

from jaxalign import mrm
from jaxalign.mrm.reduce import identity

ONE = PAIRS[0]
PRECISION, SHIFT = np.array([0.25, 0.5, 0.0]), np.array([0.5, -0.25, 0.0])
CHOSEN = np.array([[[1.0, -0.5], [0.25, 2.0], [0.5, 0.0]], [[-1.5, 0.5], [0.75, 0.25], [0.0, 1.0]]])
SUPPORT = np.array([[True, False, False], [True, False, False]])
QUERY = np.array([[False, True, False], [False, True, False]])
META = mrm.MRMConfig(
    hidden_sizes=(), link="signed", inner_lr=0.25, inner_steps=1, rpo_tail=0.5, rpo_gamma=0.5,
    l2=0.0,
)  # fmt: skip
STARTED = {"base": {}, "weight_init": jnp.array([0.25, -0.5])}
EM = mrm.BayesConfig(em_steps=1, sweeps=40, pseudo_users=(0.0,), l2=0.25)
ANSWERS = np.array([[0.0, 0.5], [1.0, 0.25], [-0.5, 2.0]])
IDS = ("a", "b", "c")


def feedback_prior():
    one = jnp.ones(())
    edges = mrm.Levels(ratings=(2,)).edges(jnp.zeros(1))
    return mrm.FeedbackPrior(prior(), edges, one, 0 * one, 0.25 * one)


def of_choices(vectors, weight):
    """Feedback of choices alone, whose posterior no level and spread of ratings changes."""
    shape = np.shape(weight)
    lower, upper = np.full(shape, 2, np.int32), np.full(shape, 1, np.int32)
    return mrm.Feedback(vectors, np.zeros(shape, bool), lower, upper, weight)


def feedback_posterior(vectors, weight):
    found = mrm.feedback_posterior(feedback_prior(), of_choices(vectors, weight))
    return found.mean, found.cov


def moments(differences, weight, site_precision, site_shift):
    belief = mrm.Belief(differences, weight, site_precision, site_shift)
    return mrm.belief_moments(prior(), belief)


def normal_moments(differences, weight, site_precision, site_shift):
    """By the precision matrix of the weights."""
    live = weight > 0
    d, w = differences[live], weight[live]
    before = np.linalg.inv(COV)
    cov = np.linalg.inv(before + (d.T * (w * site_precision[live])) @ d)
    return cov @ (before @ MEAN + d.T @ (w * site_shift[live])), cov


def updated(difference):
    return mrm.belief_moments(prior(), mrm.update_belief(prior(), FRESH, difference))


def observed(vector):
    return mrm.feedback_moments(mrm.observe(mrm.init_feedback_belief(prior()), vector))


def after_one(difference=None, vector=None):
    d = difference if vector is None else vector
    return ref.posterior(MEAN, COV, d[None], np.ones(1))


def no_choice(mean):
    return np.zeros((2, 2)), np.zeros(2)


def empty_belief(mean):
    found = mrm.init_belief(mrm.Prior(mean, COV), room=2)
    return found.differences, found.weight


def prior_moments(mean):
    return mrm.feedback_moments(mrm.init_feedback_belief(mrm.Prior(mean, COV)))


FRESH = mrm.init_belief(prior(), room=1)


def meta(chosen, rejected):
    batch = {"chosen": chosen, "rejected": rejected}
    masks = {"support_mask": SUPPORT[: len(chosen)], "query_mask": QUERY[: len(chosen)]}
    objective, (losses, weights) = mrm.meta_objective(STARTED, {**batch, **masks}, META)
    return objective, losses, weights


def reference_meta(chosen, rejected):
    hyper = {
        "inner_steps": 1, "inner_lr": 0.25, "rpo_gamma": 0.5, "rpo_tail": 0.5, "input_scale": 1.0,
        "signed": True,
    }  # fmt: skip
    found = ref.mrm_meta(
        chosen, rejected, SUPPORT[: len(chosen)], QUERY[: len(chosen)], [], [0.25, -0.5], hyper
    )
    return found["objective"], found["losses"], found["adapted_train"]


def population(differences, mask):
    return mrm.fit_prior(differences, mask, EM)


def reference_population(differences, mask):
    """One cycle of EM with SQUAREM, by the NumPy reference."""
    d, m = differences[mask > 0], mask[mask > 0]
    norm = m @ (d * d).sum(1) / m.sum()
    found = ref.bradley_terry(d, m, 0.25 * norm), np.eye(2) / norm
    users = [d[m > 0] for d, m in zip(differences, mask, strict=True)]
    weights = [m[m > 0] for m in mask]

    def objective(at):
        pairs = zip(users, weights, strict=True)
        return sum(ref.sites_of(*at, d, w)[2] for d, w in pairs) / len(users)

    once = ref.em_step(*found, users, weights)
    twice = ref.em_step(*once, users, weights)
    unit = np.sqrt(np.mean(np.diagonal(twice[1])))
    places = [np.append(mean / unit, log_of(cov)) for mean, cov in (found, once, twice)]
    forward, bend = places[1] - places[0], places[2] - 2 * places[1] + places[0]
    length = np.clip(np.linalg.norm(forward) / np.linalg.norm(bend), 1, 32)
    ahead = places[0] + 2 * length * forward + length**2 * bend
    ahead = ahead[:2] * unit, exp_of(ahead[2:].reshape(2, 2))
    return ref.em_step(*ahead, users, weights) if objective(ahead) >= objective(twice) else twice


def of_eigenvalues(matrix, function):
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * function(values)) @ vectors.T


def log_of(cov):
    return of_eigenvalues(cov, np.log).ravel()


def exp_of(matrix):
    return of_eigenvalues(matrix, np.exp)


MODEL = mrm.UserModel(
    mrm.make_method("bayes"), {"mean": np.float32(MEAN), "cov": np.float32(COV)},
    {"strength": 1.0, "temperature": 1.0, "adapt": True}, np.zeros(2), identity(2),
)  # fmt: skip


def ranked(features):
    found = mrm.rank(MODEL, None, IDS[: len(features)], features)
    return np.array([entry.position for entry in found]), np.array([e.score for e in found])


def reference_ranked(features):
    score = features @ MEAN
    order = np.argsort(-score, kind="stable")
    return order, score[order]


def best(features):
    found = mrm.best_of(MODEL, None, IDS, features)
    return found.position, found.gains.mean


def reference_best(features):
    gains = reference_gains(MEAN, COV, features)[0]
    return np.argmax(gains), gains


def _feedback():
    found = refusals("vectors", "1, 1, 0", "U P E", "1, 2, 3, 2", "weight", "1, 2")
    return {probe: f"feedback.{words}" for probe, words in found.items()}


_HERE = refusals("differences", "1, 0", "N E", "1, 3, 2", "weight", "2")
_CHOICE = "a choice holds NaN, infinity or a negative weight: compute its features again"
_ROW = "a row holds NaN, infinity or a weight that is not above 0: compute its features again."
_ALONE = {"zero rows": "one choice", "one row": "one choice"}
_ONE = {"zero rows": "one population", "one row": "one population"}
_EXTREME = {"scale 1e8": "margins of 1e8 standard deviations have no quadrature to compare with"}
_OF_ANSWERS = {
    **refusals("features", "2, 1", "N E", "1, 3, 2"),
}


def _after_row(vector):
    """The entry of a function that is called after one row."""
    return Entry(
        observed, {"vector": vector}, after_one, "vector", tolerance=2e-3,
        refused={
            "nan live": _ROW, "infinity live": _ROW,
            "wrong rank": "a row has shape (1, 2), expected (2,), as the prior.",
        },
        skipped=_ALONE | _EXTREME,
    )  # fmt: skip


BELIEFS = {
    "belief_moments": Entry(
        moments,
        {"differences": ONE, "weight": MASK[0], "site_precision": PRECISION, "site_shift": SHIFT},
        normal_moments, "differences", "weight",
        ("differences", "weight", "site_precision", "site_shift"),
        {probe: f"belief.{words}" for probe, words in _HERE.items()}, tolerance=1e-4,
        least=1e-5,  # against prior weights of about 1
    ),
    "update_belief": Entry(
        updated, {"difference": ONE[1]}, after_one, "difference", tolerance=1e-3,
        refused={
            "nan live": _CHOICE, "infinity live": _CHOICE,
            "wrong rank": "a choice has shape (1, 2) and weight (), expected (2,) and a number: "
            "chosen minus rejected, as the belief",
        },
        skipped=_ALONE | _EXTREME,
    ),
    "init_belief": Entry(
        empty_belief, {"mean": MEAN}, no_choice, "mean",
        refused=refusals("prior.mean", "1", "E", "1, 2"), skipped=_ONE,
    ),
    "init_feedback_belief": Entry(
        prior_moments, {"mean": MEAN}, lambda mean: (mean, COV), "mean",
        refused=refusals("prior.mean", "1", "E", "1, 2"), skipped=_ONE,
    ),
    "observe": _after_row(ONE[1]),
    "feedback_moments": _after_row(ONE[0]),
    "feedback_posterior": Entry(
        feedback_posterior, {"vectors": PAIRS, "weight": MASK},
        lambda vectors, weight: reference_posterior(vectors, weight), "vectors", "weight",
        ("vectors", "weight"), _feedback(), _EXTREME, tolerance=1e-3,
    ),
    "fit_prior": Entry(
        population, {"differences": CHOSEN, "mask": np.array([[1.0, 0.5, 0.0], [1.0, 1.0, 1.0]])},
        reference_population, "differences", "mask", ("differences", "mask"),
        {
            **refusals("differences", "1, 2, 0", "U P E", "1, 2, 3, 2", "mask", "1, 2"),
            "zero rows": "mask: found no weight above 0, expected a choice or more; give choices.",
        },
        {"scale 1e8": "the reference has no units to find its start in"}, tolerance=5e-3,
    ),
    "meta_objective": Entry(
        meta, {"chosen": CHOSEN, "rejected": -0.5 * CHOSEN}, reference_meta, "chosen",
        rows=("chosen", "rejected"), scaled=("chosen", "rejected"), tolerance=1e-4,
        refused={
            **empty('batch["support_mask"]', "0, 3", "U P", "U"),
            "wrong rank": refusals('batch["chosen"]', "", "U P E", "1, 2, 3, 2")["wrong rank"],
        },
        skipped={"nan live": "the last pair counts in neither mask", "infinity live": "the same",
                 "scale 1e-8": "gradients as small as Adam's eps of 1e-8"},
    ),
    "rank": Entry(
        ranked, {"features": ANSWERS}, reference_ranked, "features", rows=("features",),
        refused={**_OF_ANSWERS, "zero rows": "there are no texts to rank."}, tolerance=1e-5,
        skipped=_EXTREME,
    ),
    "best_of": Entry(
        best, {"features": ANSWERS}, reference_best, "features", tolerance=1e-5,
        refused=_OF_ANSWERS, skipped={"zero rows": "as rank", "one row": "as rank"},
    ),
}  # fmt: skip
