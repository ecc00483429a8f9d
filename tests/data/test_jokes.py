"""Jester as a rating task: who is in which part, and what is asked about."""

import gzip
import json

import numpy as np
import pytest

from jaxalign.data.jokes import rated_jokes
from jaxalign.errors import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Thirty people who rate all of twenty jokes, and one who rates two."""
    place, rng = tmp_path_factory.mktemp("jester"), np.random.default_rng(0)
    jokes = [json.dumps({"id": f"j{n}", "text": f"Joke number {n}."}) for n in range(20)]
    (place / "jokes.jsonl").write_text("\n".join(jokes))
    rows = ["user,joke,rating"]
    rows += [f"u{u},j{n},{rng.uniform(-10, 10):.2f}" for u in range(30) for n in range(20)]
    rows += ["few,j0,-10", "few,j1,10"]
    with gzip.open(place / "ratings.csv.gz", "wt") as file:
        file.write("\n".join(rows) + "\n")
    return place


def test_people_and_new_jokes_are_in_one_part_alone(folder):
    parts = rated_jokes(folder, history=8, seed=1)
    people = [
        {one.user for one in getattr(parts, name).samples}
        for name in ("train", "validation", "test")
    ]
    assert sum(map(len, people)) == len(set.union(*people)) == 30
    assert {one.user for one in parts.test_new.samples} == people[2]
    known = {one.input for name in ("train", "validation", "test")
             for one in getattr(parts, name).samples}  # fmt: skip
    new = {one.input for one in parts.test_new.samples}
    assert new
    assert not known & new
    items = parts.test_new.items
    shown = {items[place].fields["text"] for one in parts.test_new.samples for place in one.profile}
    assert not any(text in question for text in shown for question in new)
    for part in (parts.train, parts.test, parts.test_new):
        for one in part.samples:
            texts = [items[place].fields["text"] for place in one.profile]
            assert len(set(texts)) == 8
            assert not any(one.input.endswith(text) for text in texts)


def test_ratings_are_fifths_of_the_scale_in_words(folder):
    parts = rated_jokes(folder, history=8)
    ratings = {}
    with gzip.open(folder / "ratings.csv.gz", "rt") as file:
        for line in list(file)[1:]:
            user, joke, rating = line.strip().split(",")
            ratings[user, f"Joke number {joke[1:]}."] = float(rating)
    words = parts.train.item_texts(labels=True)
    for one in parts.train.samples:
        for place in one.profile:
            item = parts.train.items[place]
            value = ratings[one.user, item.fields["text"]]
            label = int(item.fields["rating"])
            assert -10 + 4 * (label - 1) <= value <= -10 + 4 * label
            verdict = ("hated", "disliked", "was indifferent to", "liked", "loved")[label - 1]
            assert words[place] == f"I {verdict} this joke: {item.fields['text']}"
        joke = one.input.partition("Joke: ")[2]
        assert abs(ratings[one.user, joke] - (-12 + 4 * int(one.output))) <= 2


def test_the_seed_decides_and_what_leaves_nothing_is_refused(folder):
    assert rated_jokes(folder, history=8) == rated_jokes(folder, history=8)
    assert rated_jokes(folder, history=8) != rated_jokes(folder, history=8, seed=1)
    with pytest.raises(InputError, match="expected at least one of each and room for both"):
        rated_jokes(folder, history=19)
    with pytest.raises(InputError, match="expected some for each part"):
        rated_jokes(folder, history=8, validation_share=0.001)
