"""UKPConvArg1 as a choice with reasons as history: who is in which part, and what is right."""

import gzip
import json

import numpy as np
import pytest

from jaxalign.data.arguments import argued_choices
from jaxalign.errors import InputError
from jaxalign.experiments.pplug.data import HistoryDataConfig, read_parts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twenty people with reasons for eight votes each, on arguments of two lengths."""
    place, rng = tmp_path_factory.mktemp("arguments"), np.random.default_rng(0)
    arguments = [
        {"id": f"t/a{n}", "title": "Cats", "text": " ".join([f"word{n}"] * (5 + 60 * (n % 2)))}
        for n in range(12)
    ]
    votes = []
    for user in range(20):
        for number in range(8):
            first, second = rng.permutation(12)[:2]
            votes.append({
                "user": f"u{user}", "topic": "t", "a1": f"a{first}", "a2": f"a{second}",
                "label": "a1" if first < second else "a2", "time": f"{number}",
                "reason": f"reason {user} {number}",
            })  # fmt: skip
    votes[0]["label"], votes[1]["reason"] = "equal", None
    for name, rows in (("arguments", arguments), ("judgments", votes)):
        with gzip.open(place / f"{name}.jsonl.gz", "wt") as file:
            file.write("\n".join(map(json.dumps, rows)) + "\n")
    return place


def test_each_person_is_in_one_part_with_own_reasons(folder):
    parts = argued_choices(folder, history=3, seed=1)
    people = [set(part.users) for part in parts.values()]
    assert sum(map(len, people)) == len(set.union(*people)) == 20
    for part in parts.values():
        for one in part.samples:
            texts = [part.items[place].fields["text"] for place in one.profile]
            target = part.items[[item.id for item in part.items].index(one.id.split("/")[1])]
            assert target.fields["text"] not in texts
            assert all(text.split()[1] == one.user[1:] for text in texts)
            assert 0 < len(texts) <= 3


def test_the_convincing_argument_has_its_letter_and_long_ones_are_cut(folder):
    letters = []
    for part in argued_choices(folder, history=3).values():
        for one in part.samples:
            first, second = one.input.split(" A: ")[1].split(" B: ")
            numbers = [int(text.split()[0].removeprefix("word")) for text in (first, second)]
            assert one.output == ("A" if numbers[0] < numbers[1] else "B")
            for text, number in zip((first, second), numbers, strict=True):
                assert len(text.split()) == (41 if number % 2 else 5)
            letters.append(one.output)
    assert {"A", "B"} == set(letters)


def test_too_few_reasons_are_named(folder):
    with pytest.raises(InputError, match="0 people wrote at least 102 reasons"):
        argued_choices(folder, history=100)
    with pytest.raises(InputError, match=r"^data\.history is 0; expected at least 1\.$"):
        argued_choices(folder, history=0)


def test_a_part_that_the_data_do_not_have_is_named(folder):
    config = HistoryDataConfig("ukpconvarg1", history=3)
    with pytest.raises(InputError) as refused:
        read_parts(folder, config, ("test_new",))
    assert str(refused.value) == (
        "data.kind ukpconvarg1 has no part test_new, expected train, validation or test; choose "
        "another with --split."
    )
