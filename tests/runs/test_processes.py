"""What several processes of a run do for each other, each end of the exchange by itself."""

import pytest

from jaxalign.errors import InputError
from jaxalign.runs import processes


@pytest.fixture
def two(monkeypatch):
    """Be one of two processes: a function that says which, and what the exchange brings."""

    def be(number, gathered):
        monkeypatch.setattr(processes, "several_processes", lambda: True)
        monkeypatch.setattr(processes, "is_first_process", lambda: number == 0)
        monkeypatch.setattr(processes, "gather_values", gathered)

    return be


def test_one_process_exchanges_nothing():
    assert not processes.several_processes()
    assert processes.gather_values({"a": 1}) == [{"a": 1}]
    assert processes.agree_on_failure(lambda: 3) == 3
    processes.check_same({"a": 1}, "nothing to do")


def test_the_first_process_acts_for_all(two):
    acted = []
    two(1, lambda value: [{"value": [1, 2]}, value])
    assert processes.on_first_process(lambda: acted.append(1)) == [1, 2]
    assert not acted
    two(0, lambda value: [value, {}])
    assert processes.on_first_process(lambda: acted.append(1)) is None
    assert acted == [1]


@pytest.mark.parametrize("number", [0, 1])
def test_a_refusal_of_the_first_is_one_of_all(two, number):
    two(number, lambda value: [{"error": "the disk is full"}, {}])
    with pytest.raises(InputError, match="the disk is full"):
        processes.on_first_process(lambda: None)


@pytest.mark.parametrize("number", [0, 1])
def test_other_settings_are_named(two, number):
    first, second = {"rate": 0.1, "seed": 0}, {"rate": 0.2, "seed": 0}
    two(number, lambda value: [first, second])
    with pytest.raises(InputError, match=r"rate is 0.2 in process 1 and 0.1 in process 0; .*: x"):
        processes.check_same([first, second][number], "x")


def test_a_failure_of_one_is_one_of_all(two):
    def fails():
        raise InputError("the reward warm raised")

    two(1, lambda value: [value, None])
    with pytest.raises(InputError, match="process 0: the reward warm raised"):
        processes.agree_on_failure(fails)
    two(1, lambda value: ["the reward warm raised", value])
    with pytest.raises(InputError, match="process 0: the reward warm raised"):
        processes.agree_on_failure(lambda: 3)
    two(1, lambda value: [None, value])
    assert processes.agree_on_failure(lambda: 3) == 3
