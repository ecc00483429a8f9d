import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.data.batching import bucket_users, pad_pairs
from jaxalign.data.preferences import Preferences


def table(chosen, rejected, group, tie):
    count = len(chosen)
    return Preferences(
        users=("a",),
        items=tuple(str(i) for i in range(20)),
        texts=("",) * 20,
        user=np.zeros(count, np.int32),
        chosen=np.array(chosen, np.int32),
        rejected=np.array(rejected, np.int32),
        group=np.array(group, np.int32),
        prompt=np.full(count, -1, np.int32),
        tie=np.array(tie, bool),
    )


TABLE = table([1, 2, 3, 4], [5, 6, 7, 8], [40, 7, 40, 12], [False, True, False, True])


def rows(*users):
    return [np.array(user, np.int64) for user in users]


def test_ties_are_two_half_rows_and_padding_is_zero():
    pairs = pad_pairs(TABLE, rows([0, 1, 2], [], [3]))
    np.testing.assert_array_equal(pairs.chosen, [[1, 2, 3, 6], [0] * 4, [4, 8, 0, 0]])
    np.testing.assert_array_equal(pairs.rejected, [[5, 6, 7, 2], [0] * 4, [8, 4, 0, 0]])
    np.testing.assert_array_equal(pairs.weight, [[1, 0.5, 1, 0.5], [0] * 4, [0.5, 0.5, 0, 0]])
    # The rows of a tie stay together, and groups are numbered from 0 for each user.
    np.testing.assert_array_equal(pairs.group, [[1, 0, 1, 0], [0] * 4, [0] * 4])
    assert [array.dtype for array in pairs] == [np.int32, np.int32, np.float32, np.int32]


def test_width():
    users = rows([0, 1], [2])
    assert pad_pairs(TABLE, users).chosen.shape == (2, 3)
    wide = pad_pairs(TABLE, users, width=5)
    for array, narrow in zip(wide, pad_pairs(TABLE, users), strict=True):
        np.testing.assert_array_equal(array[:, :3], narrow)
        np.testing.assert_array_equal(array[:, 3:], np.zeros((2, 2)))
    # A tie counts twice.
    with pytest.raises(ValueError, match="3 pairs, more than the width 2"):
        pad_pairs(TABLE, users, width=2)


def test_nobody_and_nothing_have_a_shape():
    assert pad_pairs(TABLE, []).weight.shape == (0, 1)
    assert pad_pairs(TABLE, rows([], [])).weight.shape == (2, 1)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1))
def test_pad_pairs_keeps_every_choice(seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 40))
    items = rng.integers(0, 20, (2, count))
    preferences = table(*items, rng.integers(0, 9, count), rng.random(count) < 0.3)
    users = np.split(rng.permutation(count), np.sort(rng.integers(0, count + 1, 3)))
    pairs = pad_pairs(preferences, users)
    for index, mine in enumerate(users):
        real = pairs.weight[index] > 0
        length = len(mine) + int(preferences.tie[mine].sum())
        assert real.tolist() == [True] * length + [False] * (len(real) - length)
        assert pairs.weight[index].sum() == len(mine)
        for array, values in ((pairs.chosen, preferences.chosen),):
            np.testing.assert_array_equal(array[index, : len(mine)], values[mine])
        # A user's own numbering has the same groups, without gaps.
        own, theirs = pairs.group[index, : len(mine)], preferences.group[mine]
        assert len(set(zip(own, theirs, strict=True))) == len(set(theirs)) == len(set(own))
        assert set(own) == set(range(len(set(own))))


def test_bucket_users():
    buckets = bucket_users(np.array([0, 1, 8, 9, 16, 17, 33, 5]))
    assert {width: users.tolist() for width, users in buckets.items()} == {
        8: [0, 1, 2, 7],
        16: [3, 4],
        32: [5],
        64: [6],
    }
    assert bucket_users(np.zeros(0, int)) == {}
    assert list(bucket_users(np.array([1, 2, 3]), smallest=2)) == [2, 4]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(0, 5000), max_size=40),
    smallest=st.sampled_from([1, 8, 32]),
)
def test_every_user_is_in_the_least_bucket_that_holds_them(lengths, smallest):
    buckets = bucket_users(np.array(lengths, int), smallest)
    found = np.concatenate([*buckets.values(), np.zeros(0, int)])
    assert sorted(found.tolist()) == list(range(len(lengths)))
    for width, users in buckets.items():
        assert width & (width - 1) == 0
        for user in users:
            assert lengths[user] <= width
            assert width == smallest or lengths[user] > width / 2
