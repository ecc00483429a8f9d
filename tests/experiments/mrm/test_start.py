"""Runs that start from an earlier one: which roles new users take."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from jaxalign.data.splits import UserSplit
from jaxalign.errors import InputError
from jaxalign.experiments.mrm import MRMRunConfig
from jaxalign.experiments.mrm.data import Encoded
from jaxalign.experiments.mrm.start import EarlierRun, earlier_projection, extended_split
from jaxalign.files import write_json
from jaxalign.mrm.config import FeatureConfig, SplitConfig
from jaxalign.mrm.reduce import standardise
from jaxalign.rewards.reward_scale import RewardScale


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


def test_another_scale_than_that_of_the_earlier_run_is_refused(tmp_path):
    """Weights of the earlier run are on its scale, so that another one would be ignored."""
    own = RewardScale(("kind", "short"), [0.0, 1.0], [1.0, 2.0], [-3, -5], [3, 7])
    other = replace(own, std=own.std * 2)
    model = SimpleNamespace(projection=standardise(own), stated_scale="", encoder_sha256="x")
    earlier = EarlierRun(Path("first"), model, UserSplit(("a",), (), (), 0))
    encoded = Encoded(np.zeros((3, 2)), own.names, "x")
    for name, scale in (("own", own), ("other", other)):
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "scale.json", scale.to_json())

    def start(stated, given):
        features = FeatureConfig(path="scores.jsonl", scale=given and str(tmp_path / given))
        config = MRMRunConfig(features=features)
        return earlier_projection(earlier, replace(encoded, scale=stated), config)

    for stated, given in ((None, ""), (own, ""), (None, "own")):
        assert start(stated, given) is model.projection
    for stated, given, words in (
        (other, "", "^scores.jsonl: found rewards on the scale"),
        (None, "other", "^features.scale .*other: found rewards on the scale"),
    ):
        with pytest.raises(InputError, match=words):
            start(stated, given)
