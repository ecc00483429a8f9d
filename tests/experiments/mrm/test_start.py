"""Runs that start from an earlier one: which roles new users take."""

from types import SimpleNamespace

import pytest

from jaxalign.data.splits import UserSplit
from jaxalign.experiments.mrm import MRMRunConfig
from jaxalign.experiments.mrm.start import extended_split
from jaxalign.mrm.config import SplitConfig


@pytest.mark.parametrize(("fresh", "tested"), [(3, 0), (6, 0), (20, 2)])
def test_new_users_who_are_too_few_to_cut_are_trained_on(fresh, tested):
    """With a tenth of the users for tests and a tenth for validation, six cannot be cut."""
    earlier = SimpleNamespace(split=UserSplit(("a", "b"), ("c",), ("d",), 0))
    users = (*"abcd", *(f"new{number}" for number in range(fresh)))
    config = MRMRunConfig(split=SplitConfig(unseen_share=0.08, validation_share=0.1))
    found = extended_split(earlier, users, config)
    assert len(found.test) == 1 + tested
    assert (found.train[:2], found.validation[0], found.test[0]) == (("a", "b"), "c", "d")
    assert sorted((*found.train, *found.validation, *found.test)) == sorted(users)
