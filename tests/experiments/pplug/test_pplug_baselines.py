"""Baselines: whose history a sample gets, and that it is never its own."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.data import lamp
from jaxalign.data.histories import Histories, Item, Sample, leading_category
from jaxalign.errors import InputError
from jaxalign.experiments.pplug import baselines
from jaxalign.experiments.pplug._evaluate import _jobs
from jaxalign.experiments.pplug.config import PPlugEvaluateConfig
from jaxalign.pplug.config import PersonaConfig


def world(sizes, samples=3, dated=False, sections=1, empty=()):
    """Users with their own items; the last `samples` of each are asked about."""
    items, asked = [], []
    for user, size in enumerate(sizes):
        first = len(items)
        for place in range(size):
            told = {"text": f"{user} {place}", "category": f"C{user % sections}"}
            items.append(Item(f"{user}-{place}", told, str(2000 + place) if dated else None))
        for number in range(samples):
            length = 0 if user in empty else size - samples + number
            profile = tuple(range(first, first + max(length, 0)))
            date = str(2000 + length) if dated else None
            asked.append(Sample(f"{user}/{number}", f"u{user}", "ask", "a", profile, None, date))
    return Histories(tuple(asked), tuple(items), "text")


def writers(histories, sample):
    return {histories.items[place].id.split("-")[0] for place in sample.profile}


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(4, 9), min_size=2, max_size=6),
    st.integers(0, 5),
    st.booleans(),
    st.booleans(),
)
def test_nobody_gets_their_own(sizes, seed, dated, within):
    told = world(sizes, dated=dated, sections=2)
    found = baselines.shuffle_histories(told, seed, "category" if within else None)
    assert found.items is told.items
    for one, other in zip(told.samples, found.samples, strict=True):
        assert (one.id, one.user, one.input, one.output) == (
            other.id, other.user, other.input, other.output,
        )  # fmt: skip
        assert len(writers(told, other)) == 1
        assert one.user[1:] not in writers(told, other)
        if dated:
            assert max(told.items[place].date for place in other.profile) < one.date
        assert list(other.profile) == sorted(other.profile)


def test_draws_follow_the_seed():
    told = world([9] * 12)
    one, again, other = (baselines.shuffle_histories(told, seed) for seed in (3, 3, 4))
    assert one == again
    assert one != other


def test_donors_differ_between_the_samples_of_a_user():
    told = world([9] * 12)
    found = baselines.shuffle_histories(told, 0)
    donors = [writers(told, sample).pop() for sample in found.samples]
    kinds = [len(set(donors[first : first + 3])) for first in range(0, len(donors), 3)]
    assert np.mean(kinds) > 2
    assert len(set(donors)) > 9


def test_dated_histories_are_what_the_donor_had_by_then():
    told = world([9, 9], samples=1, dated=True)
    late = told.samples[1]
    early = Sample("x", "u0", "ask", "a", (0, 1), None, "2004")
    told = Histories((early, late), told.items, "text")
    found = baselines.shuffle_histories(told, 0)
    assert found.samples[0].profile == (9, 10, 11, 12)  # of 2000 to 2003
    assert found.samples[1].profile == (0, 1)  # all that is known of the other user


def test_categories_stay():
    told = world([9] * 12, sections=3)
    found = baselines.shuffle_histories(told, 0, "category")
    for one, other in zip(told.samples, found.samples, strict=True):
        assert leading_category(told, one) == leading_category(told, other)
    assert found.notes == ()
    loose = baselines.shuffle_histories(told, 0)
    same = [
        leading_category(told, one) == leading_category(told, other)
        for one, other in zip(told.samples, loose.samples, strict=True)
    ]
    assert 0.1 < np.mean(same) < 0.6


def test_a_category_of_one_user_draws_from_all_and_says_so():
    told = world([9] * 3, sections=2)  # u1 is alone in C1
    found = baselines.shuffle_histories(told, 0, "category")
    assert found.notes == (
        "histories drawn from another category, for no other user has theirs: 3 of 9",
    )


def test_empty_histories_stay_empty():
    told = world([9] * 4, empty=(2,))
    found = baselines.shuffle_histories(told, 0)
    assert [bool(one.profile) for one in found.samples] == [
        bool(one.profile) for one in told.samples
    ]


def test_one_user_with_nearly_all_samples():
    told = world([9, 9], samples=1)
    many = tuple(
        Sample(f"m{place}", "u0", "ask", "a", told.samples[0].profile) for place in range(500)
    )
    found = baselines.shuffle_histories(Histories((*many, told.samples[1]), told.items, "text"), 0)
    assert {writers(found, one).pop() for one in found.samples[:-1]} == {"1"}


def test_refuses_what_cannot_be_shuffled():
    with pytest.raises(InputError, match="no other user than 'u0' has a history"):
        baselines.shuffle_histories(world([9]), 0)
    told = world([9, 9], samples=1)
    bare = Histories(told.samples, tuple(Item(one.id, {"text": "x"}) for one in told.items), "text")
    with pytest.raises(InputError, match="no item with a category"):
        baselines.shuffle_histories(bare, 0, "category")


def test_top_items_keep_their_order():
    told = world([6, 6], samples=1)
    found = baselines.keep_items(told, [(4, 0), (7,)])
    assert [one.profile for one in found.samples] == [(0, 4), (7,)]


def test_every_method_has_its_training_and_every_training_its_method():
    for spec in baselines.TRAININGS.values():
        config = PersonaConfig(tokens=2, sharpness=3.0)
        persona = spec.persona(config)
        assert (persona.tokens, persona.sharpness) == (2, 3.0)
    assert baselines.TRAININGS["pplug"].persona(config) == config
    assert baselines.TRAININGS["input"].persona(config).source == "input"
    assert baselines.TRAININGS["mean"].persona(config).mean
    trained = {method.training for method in baselines.METHODS.values()}
    assert trained == {None, *baselines.TRAININGS}
    assert set(baselines.BASELINES) <= set(baselines.METHODS)


@pytest.mark.parametrize("rating", ["good", "nan", None])
def test_a_rating_that_is_no_number_is_refused_by_its_item(rating):
    fields = {"text": "a"} | ({} if rating is None else {"stars": rating})
    items = (Item("one", {"text": "a", "stars": "4"}), Item("two", fields))
    samples = tuple(Sample(str(n), f"u{n}", "ask", "1", (n,)) for n in range(2))
    task = lamp.Task("stars", label="stars", kind="rating", labels=("1", "2"), encode="{text}")
    data = Histories(samples, items, "stars", own_task=task)
    assert baselines.rounded_level(data, samples[0]) == "4.0"
    with pytest.raises(InputError, match=r"item 'two' has the stars .*, expected a number"):
        baselines.shuffle_histories(data, 0, "level")


def test_a_named_method_of_ratings_is_noted_where_there_are_none():
    settings = PPlugEvaluateConfig(methods=("zero-shot", "persona of another, same level"))
    samples = world((4, 4))
    evaluator = SimpleNamespace(samples=samples, config=SimpleNamespace(evaluate=settings))
    jobs, notes = _jobs(SimpleNamespace(plugs={}), evaluator)
    assert [job.name for job in jobs] == ["zero-shot"]
    assert notes == ["persona of another, same level: left out, as the task text has no ratings"]
