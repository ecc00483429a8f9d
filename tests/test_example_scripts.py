"""The scripts under examples/ run, and print what they promise."""

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture
def printed(tmp_path, monkeypatch, capsys):
    def run(name):
        monkeypatch.chdir(tmp_path)
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


def numbers(text):
    return [float(x) for x in re.findall(r"-?\d+\.?\d*", text)]


def test_every_script_has_a_test():
    tested = {name.removeprefix("test_script_") for name in globals() if "test_script_" in name}
    assert {path.stem for path in EXAMPLES.glob("*.py")} == tested


def test_script_own_rewards(printed):
    assert printed("own_rewards") == "[1.0] [0.29]\n"


def test_script_new_user(printed):
    population, user, weights = printed("new_user").splitlines()
    mean, spread = (numbers(part) for part in user.split(":")[1].split("+-"))
    true = numbers(weights)
    assert all(abs(x) < 0.3 for x in [numbers(population)[2]])  # the third reward is neutral
    assert all(abs(m - t) < 3 * s for m, s, t in zip(mean, spread, true, strict=True))


def test_script_portfolio(printed):
    lines = printed("portfolio").splitlines()
    assert lines[0] == "5 members, the reference policy included"
    assert sum(numbers(lines[-1])) == 1000


def test_script_conditioned_bandit(printed):
    rows = [numbers(line) for line in printed("conditioned_bandit").splitlines()]
    assert len(rows) == 5
    for first, second, achieved_first, achieved_second in rows:
        assert abs(first - achieved_first) < 0.12
        assert abs(second - achieved_second) < 0.12


@pytest.mark.slow
def test_script_persona(printed):
    losses, share = printed("persona").splitlines()
    before, _, after = re.findall(r"\d+\.\d+|->", losses)
    assert float(after) < 0.5 * float(before)
    assert numbers(share)[-1] >= 90
