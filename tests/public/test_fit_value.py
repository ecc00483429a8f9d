"""`mrm.fit` beside a computation of the same in NumPy: training, selection and report."""

import jax
import numpy as np
import reference_numpy as ref

from jaxalign import data, mrm
from jaxalign.data.splits import episodes, split_users
from jaxalign.mrm.config import SplitConfig

USERS, ITEMS, WIDTH, LAYER = 8, 6, 3, "layer0"
CONFIG = mrm.MRMConfig(
    hidden_sizes=(2,), link="signed", input_scale=1.0, inner_lr=0.1, inner_steps=2, eval_steps=2,
    epochs=3, snapshots=1, warmup=0.0, l2=1e-2, outer_lr=0.1, rates=(0.03, 0.3),
    users_per_batch=USERS,
)  # fmt: skip
SPLIT = SplitConfig(
    validation_share=0.5, support_pairs=0, query_pairs=0, min_support=1, min_query=2
)
FEATURES = np.random.default_rng(0).normal(size=(ITEMS, WIDTH))
EPS = 1e-8


def choices():
    """Pairs of items, of which users of two kinds choose by opposite tastes."""
    rows = [(user, one, 5) for user in range(USERS) for one in range(5)]
    rows += [(user, one, one - 1) for user in range(USERS) for one in range(1, 5)]
    taste = np.array([[2.0, 1.0, 0.0], [-2.0, 1.0, 0.5]])
    margin = [(FEATURES[a] - FEATURES[b]) @ taste[user % 2] for user, a, b in rows]
    won = [pair[1:] if m > 0 else pair[:0:-1] for pair, m in zip(rows, margin, strict=True)]
    split = split_users(tuple(f"u{n}" for n in range(USERS)), SPLIT.seed, 0.0, 0.5)
    return data.from_columns({
        "user": [f"u{user}" for user, *_ in rows],
        "chosen": [f"i{a}" for a, _ in won], "rejected": [f"i{b}" for _, b in won],
        # A training user has one group, which is support and query: nothing is drawn in training.
        "group": [
            "all" if f"u{user}" in split.train else f"{row}" for row, (user, *_) in enumerate(rows)
        ],
    }), split  # fmt: skip


def differences(table, rows):
    own = FEATURES[[int(name[1:]) for name in table.items]]
    return own[table.chosen[rows]] - own[table.rejected[rows]]


def objective(flat, people):
    """The meta-objective of parameters in one array, and the mean query loss."""
    kernel, start = flat[:-2].reshape(WIDTH, 2), flat[-2:]
    zeros = [np.zeros_like(d) for d in people]
    whole = [np.ones(len(d), bool) for d in people]
    hyper = {
        "inner_steps": CONFIG.inner_steps, "inner_lr": CONFIG.inner_lr, "input_scale": 1.0,
        "rpo_tail": CONFIG.rpo_tail, "rpo_gamma": CONFIG.rpo_gamma, "signed": True,
    }  # fmt: skip
    found = ref.mrm_meta(people, zeros, whole, whole, [(kernel, None)], start, hyper)
    return found["objective"] + CONFIG.l2 * (kernel**2).sum(), found["losses"].mean()


def gradient(flat, people, step=1e-6):
    """Central differences."""
    moves = step * np.eye(len(flat))
    ends = [[objective(flat + sign * move, people)[0] for sign in (1, -1)] for move in moves]
    return np.array([(up - down) / (2 * step) for up, down in ends])


def trained(flat, people):
    """Parameters after the epochs, one step each, and their losses: clipped Adam, half a cosine."""
    first, second, losses = np.zeros_like(flat), np.zeros_like(flat), []
    for step in range(CONFIG.epochs):
        losses.append(objective(flat, people)[1])
        slope = gradient(flat, people)
        slope = slope * min(1.0, CONFIG.clip_norm / np.linalg.norm(slope))
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        rate = CONFIG.outer_lr * 0.5 * (1 + np.cos(np.pi * step / CONFIG.epochs))
        means = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.999 ** (step + 1))
        flat = flat - rate * means[0] / (np.sqrt(means[1]) + EPS)
    return flat, losses


def predictions(flat, support, query, rate, steps):
    """Probabilities of each user's query choices."""
    kernel, start = flat[:-2].reshape(WIDTH, 2), flat[-2:]
    found = []
    for known, wanted in zip(support, query, strict=True):
        weights = ref.adam_torch(
            lambda w, d=known @ kernel: ref.pair_gradient(w, d, signed=True), start, rate, steps
        )
        found.append(ref.sigmoid(wanted @ kernel @ weights))
    return found


def nll(probabilities):
    return np.mean([-np.log(user).mean() for user in probabilities])


def accuracy(probabilities):
    return np.mean([((user > 0.5) + 0.5 * (user == 0.5)).mean() for user in probabilities])


def test_a_fit_is_that_of_numpy():
    table, split = choices()
    start = mrm.init(jax.random.split(jax.random.key(3))[0], CONFIG, WIDTH)
    flat = np.concatenate([np.ravel(start["base"][LAYER]["kernel"]), start["weight_init"]])
    people = [differences(table, table.user == table.users.index(u)) for u in split.train]
    cut = episodes(table, split.validation, SPLIT.seed, 0, 0, SPLIT.query_share, 1, 2)
    flat, losses = trained(flat.astype(np.float64), people)
    parts = (cut.support, cut.query)
    support, query = ([differences(table, rows) for rows in part] for part in parts)
    tried = {
        (rate, steps): predictions(flat, support, query, rate, steps)
        for rate in CONFIG.rates for steps in (0, 1, 2, 3)
    }  # fmt: skip
    best = min(tried, key=lambda one: nll(tried[one]))
    plain = tried[(CONFIG.rates[0], 0)]

    table_features = data.Features(tuple(f"i{n}" for n in range(ITEMS)), FEATURES)
    found = mrm.fit(table, table_features, CONFIG, SPLIT, seed=3)
    kernel, weights = found.params["base"][LAYER]["kernel"], found.params["weight_init"]
    np.testing.assert_allclose(found.losses, losses, rtol=1e-5)
    np.testing.assert_allclose(np.append(np.ravel(kernel), weights), flat, rtol=1e-4)
    report = found.report
    assert (report["epoch"], report["rate"], report["steps"]) == (CONFIG.epochs, *best)
    expected = {
        "nll": nll(tried[best]), "nll_unadapted": nll(plain), "accuracy": accuracy(tried[best]),
        "accuracy_unadapted": accuracy(plain),
        "flipped": (np.concatenate(tried[best]) > 0.5) != (np.concatenate(plain) > 0.5),
    }  # fmt: skip
    for name, value in expected.items():
        np.testing.assert_allclose(report[name], np.mean(value), rtol=1e-4, err_msg=name)
