import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxalign.data.preferences import Preferences
from jaxalign.data.splits import (
    UserSplit,
    episodes,
    hold_out_rows,
    item_folds,
    redraw,
    rows_by_user,
    split_users,
)
from jaxalign.errors import InputError

SEEDS = st.integers(0, 2**32 - 1)
few = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
redraw_jit = jax.jit(redraw, static_argnames="most_groups")


def names(count):
    return tuple(f"user {i}" for i in range(count))


def table(rng, users, rows=None):
    """A table of the named users, rows shuffled, each group of one user, some ties."""
    rows = rows or [int(rng.integers(2, 30)) for _ in users]
    user = np.repeat(np.arange(len(users)), rows)
    within = np.concatenate([rng.integers(0, max(n // 2, 2), n) for n in rows])
    group = np.unique(user * 1000 + within, return_inverse=True)[1]
    order = rng.permutation(len(user))
    chosen, rejected = rng.integers(0, 50, (2, len(user)))
    return Preferences(
        users=tuple(users),
        items=tuple(str(i) for i in range(50)),
        texts=("",) * 50,
        user=user[order].astype(np.int32),
        chosen=chosen.astype(np.int32),
        rejected=rejected.astype(np.int32),
        group=group[order].astype(np.int32),
        prompt=np.full(len(user), -1, np.int32),
        tie=rng.random(len(user)) < 0.2,
    )


# Users.


@few
@given(
    count=st.integers(8, 200),
    seed=st.integers(0, 1000),
    unseen=st.floats(0.2, 0.6),
    validation=st.floats(0.25, 0.5),
)
def test_user_roles_are_disjoint_and_exhaustive(count, seed, unseen, validation):
    users = names(count)
    split = split_users(users, seed, unseen, validation)
    everyone = split.train + split.validation + split.test
    assert sorted(everyone) == sorted(users)
    assert min(map(len, (split.train, split.validation, split.test))) > 0
    assert abs(len(split.test) - unseen * count) <= 0.5
    seen = count - len(split.test)
    assert abs(len(split.validation) - validation * seen) <= 0.5
    shuffled = tuple(np.random.default_rng(seed).permutation(users).tolist())
    assert split_users(shuffled, seed, unseen, validation) == split


def test_seeds_cut_users_differently():
    assert split_users(names(40), 0) != split_users(names(40), 1)


def test_a_user_split_comes_back_from_its_file(tmp_path):
    split = split_users((*names(9), "ünïcode", 'quo"te\n', ""), 3)
    path = tmp_path / "split.json"
    for _ in range(2):  # over an old file too
        split.save(path)
    assert UserSplit.load(str(path)) == split
    assert [entry.name for entry in tmp_path.iterdir()] == ["split.json"]


@pytest.mark.parametrize("count", range(5))
def test_too_few_users_are_refused(count):
    with pytest.raises(InputError, match=f"choices of {count} users?, too few .*mrm adapt"):
        split_users(names(count), 0)


def test_a_role_that_is_not_wanted_may_be_empty():
    split = split_users(names(6), 0, unseen_share=0.0, validation_share=0.0)
    assert sorted(split.train) == sorted(names(6))
    assert split.validation == split.test == ()
    with pytest.raises(InputError, match="choices of 6 users, too few"):
        split_users(names(6), 0, unseen_share=1.0)


# Items.


@few
@given(num_items=st.integers(0, 300), folds=st.integers(1, 12), seed=st.integers(0, 100))
def test_item_folds_are_balanced(num_items, folds, seed):
    fold = item_folds(num_items, folds, seed)
    assert fold.shape == (num_items,)
    counts = np.bincount(fold, minlength=folds)
    assert len(counts) == folds
    assert counts.max() - counts.min() <= 1
    np.testing.assert_array_equal(fold, item_folds(num_items, folds, seed))


def test_item_folds_are_shuffled():
    assert not np.array_equal(item_folds(100, 5, 0), item_folds(100, 5, 1))
    assert not np.array_equal(item_folds(100, 5, 0), np.arange(100) % 5)


# Epochs.

USERS, PAIRS = 12, 24


def padded(rng):
    """Groups [U, P] from 0 and weights; users 0, 1 and 2 have one group, one pair, none."""
    group = np.zeros((USERS, PAIRS), np.int32)
    weight = np.zeros((USERS, PAIRS), np.float32)
    for user in range(USERS):
        length = (5, 1, 0)[user] if user < 3 else int(rng.integers(2, PAIRS + 1))
        drawn = rng.integers(0, 1 if user < 3 else 10, length)
        group[user, :length] = np.unique(drawn, return_inverse=True)[1]
        weight[user, :length] = rng.choice([0.5, 1.0], length)
    return group, weight


@few
@given(seed=SEEDS, share=st.floats(0.1, 0.9), tight=st.booleans())
def test_redraw_splits_whole_groups(seed, share, tight):
    group, weight = padded(np.random.default_rng(seed))
    bound = 10 if tight else None
    support, query = redraw_jit(jax.random.key(seed), group, weight, share, most_groups=bound)
    support, query = np.asarray(support), np.asarray(query)
    for user in range(USERS):
        real = weight[user] > 0
        groups = np.unique(group[user, real])
        np.testing.assert_array_equal(support[user, ~real], 0)
        np.testing.assert_array_equal(query[user, ~real], 0)
        if len(groups) < 2:
            np.testing.assert_array_equal(support[user], weight[user])
            np.testing.assert_array_equal(query[user], weight[user])
            continue
        # Each pair is on one side, with its weight; each group is on one side.
        np.testing.assert_array_equal(support[user] + query[user], weight[user])
        assert not np.any((support[user] > 0) & (query[user] > 0))
        asked = np.unique(group[user, query[user] > 0])
        known = np.unique(group[user, support[user] > 0])
        assert not np.intersect1d(asked, known).size
        assert len(asked) >= 1
        assert len(known) >= 1
        assert abs(len(asked) - share * len(groups)) <= 1


def test_redraw_depends_on_its_key_alone():
    group, weight = padded(np.random.default_rng(0))
    first = redraw_jit(jax.random.key(0), group, weight, 0.5)
    again = redraw(jax.random.key(0), group, weight, 0.5)
    other = redraw_jit(jax.random.key(1), group, weight, 0.5)
    np.testing.assert_array_equal(first, again)
    assert np.any(np.asarray(first) != np.asarray(other))


def test_redraw_asks_every_group_alike():
    group = np.tile(np.arange(5, dtype=np.int32), (1, 2))
    weight = np.ones((1, 10), np.float32)
    keys = jax.random.split(jax.random.key(0), 2000)
    _, query = jax.jit(jax.vmap(lambda key: redraw(key, group, weight, 0.4)))(keys)
    # Two groups of five: each is asked in 0.4 of the draws, give or take four standard errors.
    np.testing.assert_allclose(np.mean(query, axis=(0, 1)), np.full(10, 0.4), atol=0.044)


# Episodes.


def in_rows(preferences, users, **settings):
    """(support, query) rows of each user who is kept."""
    cut = episodes(preferences, users, **{"support_pairs": 0, "query_pairs": 0, **settings})
    assert cut.dropped == len(users) - len(cut.users)
    assert len(cut.users) == len(cut.support) == len(cut.query)
    pairs = zip(cut.users, cut.support, cut.query, strict=True)
    return {name: (support.tolist(), query.tolist()) for name, support, query in pairs}


@few
@given(seed=SEEDS, share=st.floats(0.0, 1.0))
def test_episodes_are_cut_by_group(seed, share):
    users = names(8)
    preferences = table(np.random.default_rng(seed), users)
    cut = in_rows(preferences, users, seed=0, query_share=share)
    for name, (support, query) in cut.items():
        own = np.flatnonzero(preferences.user == users.index(name))
        assert set(support) <= set(own.tolist())
        assert set(query) <= set(own.tolist())
        assert len(set(support)) == len(support)
        assert len(set(query)) == len(query)
        assert not preferences.tie[query].any()
        known, asked = preferences.group[support], preferences.group[query]
        assert not np.intersect1d(known, asked).size
        # Nothing is lost but the ties of query groups.
        rest = np.setdiff1d(own, support + query)
        assert preferences.tie[rest].all()
        assert not np.isin(preferences.group[rest], known).any()


def test_episodes_keep_the_share_and_the_caps():
    users = names(30)
    preferences = table(np.random.default_rng(0), users, [40] * 30)
    whole = in_rows(preferences, users, seed=0, query_share=0.25)
    for name, (support, _) in whole.items():
        groups = len(np.unique(preferences.group[preferences.user == users.index(name)]))
        known = len(np.unique(preferences.group[support]))
        assert groups - known == round(0.25 * groups)
    capped = in_rows(preferences, users, seed=0, query_share=0.25, support_pairs=7, query_pairs=3)
    assert capped.keys() == whole.keys()
    for name, (support, query) in capped.items():
        assert (len(support), len(query)) == (7, min(3, len(whole[name][1])))
        # A cap keeps the first of the same order, so that fewer shots are a part of more.
        assert (support, query) == (whole[name][0][:7], whole[name][1][: len(query)])


@few
@given(seed=SEEDS)
def test_a_users_draw_does_not_depend_on_the_others(seed):
    users = names(8)
    preferences = table(np.random.default_rng(seed), users)
    whole = in_rows(preferences, users, seed=5)
    part = users[5:1:-2]
    assert in_rows(preferences, part, seed=5) == {n: whole[n] for n in part if n in whole}
    # Nor on who else is in the table: only these users' rows, renumbered.
    kept = np.isin(preferences.user, [users.index(name) for name in part])
    number = np.flatnonzero(kept)
    alone = in_rows(preferences.take(kept), part, seed=5)
    back = {n: tuple(number[rows].tolist() for rows in pair) for n, pair in alone.items()}
    assert back == {n: whole[n] for n in part if n in whole}


def test_episodes_depend_on_the_seed():
    users = names(8)
    preferences = table(np.random.default_rng(0), users, [20] * 8)
    first = in_rows(preferences, users, seed=0)
    assert first == in_rows(preferences, users, seed=0)
    assert first != in_rows(preferences, users, seed=1)
    # Users of equal tables are not cut alike.
    relative = [np.sort(np.array(q) % 20).tolist() for _, q in first.values()]
    assert any(other != relative[0] for other in relative)


def test_users_with_too_little_are_dropped_and_counted():
    # a: nothing strict to ask; b: one group; c: fine; d: no rows; e: not in the table at all.
    user = np.array([0, 0, 1, 1, 2, 2, 2, 2], np.int32)
    item = np.arange(8, dtype=np.int32)
    preferences = Preferences(
        users=("a", "b", "c", "d"),
        items=tuple("01234567"),
        texts=("",) * 8,
        user=user,
        chosen=item,
        rejected=item[::-1].copy(),
        group=np.array([0, 1, 2, 2, 3, 4, 5, 6], np.int32),
        prompt=np.full(8, -1, np.int32),
        tie=np.array([True, True, False, False, False, False, False, False]),
    )
    everyone = ("e", "d", "c", "b", "a")
    rows = [found.tolist() for found in rows_by_user(preferences, everyone)]
    assert rows == [[], [], [4, 5, 6, 7], [2, 3], [0, 1]]
    cut = episodes(preferences, everyone, 0, 0, 0)
    assert (cut.users, cut.dropped) == (("c",), 4)
    for need in ({"min_support": 3}, {"min_query": 3}):
        assert episodes(preferences, everyone, 0, 0, 0, **need).dropped == 5
    assert episodes(preferences, everyone, 0, 0, 0, min_support=2, min_query=2).users == ("c",)


@pytest.mark.parametrize(("share", "held"), [(0.01, 1), (0.25, 2), (0.5, 5), (0.99, 9)])
def test_held_out_rows_leave_some_on_both_sides(share, held):
    rows, kept = hold_out_rows(10, share, seed=3)
    assert len(kept) == held
    assert sorted([*rows, *kept]) == list(range(10))
    assert all(np.all(np.diff(part) > 0) for part in (rows, kept))
