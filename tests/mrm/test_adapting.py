"""Users' states in one file: exact, small, updated as a fit of all choices, whole or absent."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import mrm
from jaxalign.data import Conversation, Features, from_columns, lookup
from jaxalign.errors import InputError
from jaxalign.mrm import serving
from jaxalign.mrm.config import FeatureConfig
from jaxalign.mrm.reduce import identity

ITEMS, WIDTH = 40, 6


def table_of(width=WIDTH):
    values = np.random.default_rng(0).standard_normal((ITEMS, width)).astype(np.float32)
    return Features(tuple(f"i{n}" for n in range(ITEMS)), values)


def oriented(one, two):
    """The same pairs, each always in one of its two orders."""
    low, high = np.minimum(one, two), np.maximum(one, two)
    odd = (one + two) % 2 == 1
    return np.where(odd, low, high), np.where(odd, high, low)


def choices_of(users, count, seed=0, ties=False):
    """`count` choices of each of some users, a third of them ties where asked for."""
    rng = np.random.default_rng(seed)
    user = np.repeat(users, count).tolist()
    chosen = rng.integers(0, ITEMS, len(user))
    rejected = (chosen + rng.integers(1, ITEMS, len(user))) % ITEMS
    chosen, rejected = oriented(chosen, rejected)
    both = {"chosen": chosen, "rejected": rejected}
    columns = {"user": user} | {name: [f"i{n}" for n in items] for name, items in both.items()}
    if ties:
        columns["tie"] = (rng.random(len(user)) < 1 / 3).tolist()
    return from_columns(columns, "memory")


def bayes_model(width=WIDTH):
    rng = np.random.default_rng(1)
    root = rng.standard_normal((width, width)) / np.sqrt(width)
    fitted = {
        "mean": rng.standard_normal(width).astype(np.float32),
        "cov": (root @ root.T).astype(np.float32),
    }
    method = mrm.make_method("bayes")
    candidate = {"strength": 1.0, "temperature": 1.0, "adapt": True}
    return mrm.UserModel(
        method, method.load(fitted), candidate, np.zeros(width), identity(width),
        FeatureConfig(path="given"),
    )  # fmt: skip


def weights_of(model, users, name):
    return mrm.weights_of(model, mrm.read_state(model, users.get(name)))


def test_a_users_state_gives_the_posterior():
    model, table, names = bayes_model(), table_of(), ("ann", "bob")
    choices = choices_of(names, 9, ties=True)
    users, values = mrm.adapt_users(model, choices, table), lookup(table, choices.items)
    for number, name in enumerate(names):
        rows = np.flatnonzero(choices.user == number)
        both = np.concatenate([rows, rows[choices.tie[rows]]])
        turned = np.where(np.arange(len(both)) < len(rows), 1, -1)
        one, two = (values[items[both]] for items in (choices.chosen, choices.rejected))
        weight = jnp.where(choices.tie[both], 0.5, 1.0)
        d = jnp.asarray(turned[:, None] * (one - two))
        mean, cov = mrm.posterior(model.prior(), d[None], weight[None])
        found = weights_of(model, users, name)
        np.testing.assert_allclose(found[0], mean[0], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(found[1], cov[0], rtol=1e-3, atol=1e-4)


def test_a_user_takes_half_a_kilobyte_per_choice(tmp_path):
    count, each = 40, 20
    names = [f"user {n:03d}" for n in range(count)]
    model = bayes_model(128)
    path = tmp_path / "users.sqlite"
    mrm.adapt_users(model, choices_of(names, each), table_of(128), path, accuracy=False)
    record = mrm.open_users(path).get(names[0])
    assert record.weights.nbytes + record.rows.nbytes <= 1024 + 0.55 * 1024 * each
    assert path.stat().st_size / count < 1.15 * (1024 + 0.55 * 1024 * each)


@pytest.mark.parametrize("accuracy", [True, False])
def test_an_update_is_a_fit_of_all_choices(tmp_path, accuracy):
    """Of users who are in the file, who are new, and who make no new choices."""
    model, table, path = bayes_model(), table_of(), tmp_path / "users.sqlite"
    parts = choices_of(["ann", "bob"], 7), choices_of(["bob", "eve"], 5, seed=1)
    rows = [
        {"user": p.users[u], "chosen": p.items[c], "rejected": p.items[r]}
        for p in parts
        for u, c, r in zip(p.user, p.chosen, p.rejected, strict=True)
    ]
    whole = from_columns({k: [row[k] for row in rows] for k in rows[0]}, "memory")
    first = mrm.adapt_users(model, parts[0], table, path, accuracy=accuracy)
    ann = first.get("ann")
    first.close()
    users = mrm.adapt_users(model, parts[1], table, path, update=True, accuracy=accuracy)
    expected = mrm.adapt_users(model, whole, table, accuracy=accuracy)
    assert sorted(users.names()) == sorted(expected.names()) == ["ann", "bob", "eve"]
    for name in expected.names():
        both = (weights_of(model, some, name) for some in (users, expected))
        for one, other in zip(*both, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
        assert users.get(name).choices == expected.get(name).choices
        assert np.isnan(users.get(name).accuracy) != accuracy
    np.testing.assert_array_equal(users.get("ann").rows, ann.rows)


def test_an_update_that_is_stopped_changes_nothing(tmp_path, monkeypatch):
    model, table, path = bayes_model(), table_of(), tmp_path / "users.sqlite"
    mrm.adapt_users(model, choices_of(["ann"], 7), table, path).close()
    before = path.read_bytes()
    put = mrm.open_users(path).put.__func__

    def stopped(store, records):
        put(store, list(records)[:1])
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxalign.runs.user_store.UserStore.put", stopped)
    with pytest.raises(KeyboardInterrupt):
        mrm.adapt_users(model, choices_of(["bob", "eve"], 3, 1), table, path, update=True)
    assert path.read_bytes() == before
    assert mrm.open_users(path).names() == ["ann"]
    with pytest.raises(KeyboardInterrupt):
        mrm.adapt_users(model, choices_of(["bob"], 3, 1), table, tmp_path / "new.sqlite")
    assert [file.name for file in tmp_path.iterdir()] == ["users.sqlite"]


def test_users_of_many_choices_are_adapted_as_alone():
    """Whoever has 300 choices is in a batch with others of as many."""
    model, table = bayes_model(), table_of()
    few, many = choices_of(["ann", "bob"], 5), choices_of(["eve"], 300, seed=1)
    rows = [
        {"user": p.users[u], "chosen": p.items[c], "rejected": p.items[r]}
        for p in (few, many)
        for u, c, r in zip(p.user, p.chosen, p.rejected, strict=True)
    ]
    whole = from_columns({k: [row[k] for row in rows] for k in rows[0]}, "memory")
    users = mrm.adapt_users(model, whole, table)
    alone = mrm.adapt_users(model, few, table)
    assert len(users.get("eve").rows) == 300
    assert len(users.get("ann").rows) == 5
    np.testing.assert_allclose(
        users.get("ann").weights, alone.get("ann").weights, rtol=1e-4, atol=1e-5
    )


def test_ranking_by_a_belief_is_ranking_by_the_users_state():
    model, table = bayes_model(), table_of()
    choices = choices_of(["ann"], 6)
    model = replace(model, users=mrm.adapt_users(model, choices, table))
    belief, values = mrm.init_belief(model.prior()), lookup(table, choices.items)
    for chosen, rejected in zip(choices.chosen, choices.rejected, strict=True):
        difference = values[chosen] - values[rejected]
        belief = mrm.update_belief(model.prior(), belief, difference)
    answers, texts = np.random.default_rng(3).standard_normal((4, WIDTH)), list("abcd")
    by_belief, by_state = (mrm.rank(model, user, texts, answers) for user in (belief, "ann"))
    assert [entry.text for entry in by_belief] == [entry.text for entry in by_state]
    for one, other in zip(by_belief, by_state, strict=True):
        assert one.score == pytest.approx(other.score, rel=1e-4, abs=1e-4)
        assert one.probability == pytest.approx(other.probability, abs=1e-4)
    with pytest.raises(InputError, match="declares no posterior"):
        mrm.rank(replace(model, method=mrm.make_method("mrm")), belief, texts, answers)


def test_answers_are_encoded_with_their_prompt_by_an_encoder_that_is_loaded_once(monkeypatch):
    loaded, read = [], []
    monkeypatch.setattr(
        "jaxalign.models.embed.load_encoder", lambda name, sha256: loaded.append(name) or name
    )

    def encode(encoder, texts, progress, pooling):
        read.append(texts)
        return np.random.default_rng(len(texts)).standard_normal((len(texts), WIDTH))

    monkeypatch.setattr("jaxalign.models.embed.encode_unkept", encode)
    serving._encoder.cache_clear()
    model = replace(bayes_model(), features=FeatureConfig(model="some encoder"))
    mrm.rank(model, None, ["yes", "no"], prompt="Tea?")
    mrm.rank(model, None, ["yes", "no"])
    serving._encoder.cache_clear()
    assert loaded == ["some encoder"]
    assert read == [["Tea?\n\nyes", "Tea?\n\nno"], ["yes", "no"]]
    assert [text.turns for text in read[0]] == [("Tea?", "yes"), ("Tea?", "no")]
    assert not isinstance(read[1][0], Conversation)


@pytest.mark.parametrize("weight", [1.0, 0.9, 0.5])
def test_a_choice_is_judged_however_much_it_counts(weight):
    columns = {
        "user": ["u"] * 10, "chosen": ["i0"] * 9 + ["i1"], "rejected": ["i1"] * 9 + ["i0"],
        "weight": [weight] * 9 + [1.0],
    }  # fmt: skip
    users = mrm.adapt_users(bayes_model(), from_columns(columns, "memory"), table_of())
    assert users.get("u").accuracy == pytest.approx(0.9)
    columns |= {"tie": [False] * 9 + [True]}
    users = mrm.adapt_users(bayes_model(), from_columns(columns, "memory"), table_of())
    assert users.get("u").accuracy == 1
