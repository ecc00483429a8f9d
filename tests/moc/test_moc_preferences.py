"""Preferences: drawn on the simplex, written in prompts, read from the command line."""

import re

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from jaxalign.config import load_config
from jaxalign.errors import InputError
from jaxalign.moc.preferences import (
    PreferenceConfig,
    check_simplex,
    evaluation_points,
    insert_preference_tag,
    lattice,
    parse_preference,
    preference_tag,
    sample_preferences,
    strip_preference_tags,
    trained_on,
    without_tags,
)

NAMES = ("helpful", "humor")
THREE = ("a.b", "c-d", "e")
GRID = PreferenceConfig(kind="grid")


def rows(found):
    return {tuple(np.round(row, 6).tolist()) for row in np.asarray(found, np.float64)}


CONFIGS = [
    PreferenceConfig(),
    PreferenceConfig(alpha=0.3, decimals=2),
    GRID,
    PreferenceConfig(kind="list", listed=((0.2, 0.8), (1.0, 0.0))),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_draws_lie_on_the_simplex_and_depend_on_seed_and_step_only(config):
    found = sample_preferences(3, 17, 40, NAMES, config)
    assert found.dtype == np.float32
    assert found.shape == (40, 2)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)
    assert found.min() >= 0
    np.testing.assert_array_equal(found, sample_preferences(3, 17, 40, NAMES, config))
    for seed, step in ((3, 18), (4, 17)):
        assert (sample_preferences(seed, step, 40, NAMES, config) != found).any()
    assert sample_preferences(0, 0, 0, NAMES, config).shape == (0, 2)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 6), st.integers(1, 4), st.integers(0, 10**9))
def test_what_is_drawn_is_what_is_said(count, decimals, seed):
    """Rounded as little as can be, so that the text loses nothing."""
    names = [f"r{place}" for place in range(count)]
    for row in sample_preferences(seed, 0, 5, names, PreferenceConfig(decimals=decimals)):
        said = [float(part) for part in preference_tag(names, row, decimals).split()[1::2]]
        np.testing.assert_allclose(said, row, atol=1e-6)
        assert abs(sum(said) - 1) < 1e-9


def test_rounding_keeps_the_distribution():
    drawn = sample_preferences(0, 0, 20_000, NAMES, PreferenceConfig(decimals=3))
    assert stats.kstest(drawn[:, 0], "uniform").statistic < 0.015
    corners = sample_preferences(0, 0, 5000, THREE, PreferenceConfig(alpha=0.2))
    assert (corners.max(axis=1) > 0.9).mean() > 0.3
    np.testing.assert_allclose(corners.mean(axis=0), 1 / 3, atol=0.02)


def test_a_grid_is_dealt_like_cards():
    found = sample_preferences(1, 2, 25, NAMES, GRID)
    assert rows(found[:11]) == rows(found[11:22]) == rows(lattice(2, 11))
    assert len(rows(found[22:])) == 3
    assert rows(sample_preferences(1, 3, 11, NAMES, GRID)) == rows(lattice(2, 11))


def test_a_list_is_dealt_too():
    config = PreferenceConfig(kind="list", listed=((1 / 3, 1 / 3, 1 / 3), (0.0, 1.0, 0.0)))
    assert rows(sample_preferences(0, 0, 2, THREE, config)) == rows(np.array(config.listed))


@pytest.mark.parametrize("kind", ["dirichlet", "grid"])
def test_what_is_held_out_is_never_drawn(kind):
    held = ((0.3, 0.7), (1.0, 0.0))
    config = PreferenceConfig(kind=kind, held_out=held)
    found = rows(sample_preferences(0, 0, 500, NAMES, config))
    assert found == rows(lattice(2, 11)) - rows(np.array(held, np.float32))


def test_nothing_left_to_draw():
    every = tuple(map(tuple, lattice(2, 11).tolist()))
    with pytest.raises(InputError, match="holds all 11 preferences"):
        sample_preferences(0, 0, 1, NAMES, PreferenceConfig(kind="grid", held_out=every))
    with pytest.raises(InputError, match="almost nothing to draw"):
        sample_preferences(0, 0, 1, NAMES, PreferenceConfig(held_out=every))


def test_preferences_that_are_written_alike_are_refused():
    with pytest.raises(InputError, match="21 preferences are written in only 11 ways with 1 dec"):
        sample_preferences(0, 0, 1, NAMES, PreferenceConfig(kind="grid", points=21))
    fine = PreferenceConfig(kind="grid", points=21, decimals=2)
    assert rows(sample_preferences(0, 0, 21, NAMES, fine)) == rows(lattice(2, 21))


@pytest.mark.parametrize(
    ("settings_", "match"),
    [
        ({"alpha": 0}, "expected a positive alpha"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"alpha": float("inf")}, "alpha is inf"),
        ({"points": 1}, "at least 2 points"),
        ({"decimals": 0}, "1 to 6 decimals"),
        ({"kind": "list"}, "listed has 0"),
        ({"kind": "list", "listed": ((),)}, r"`listed`: found \(\), expected numbers"),
        ({"listed": ((1.0,),)}, "kind is dirichlet and listed has 1"),
        ({"held_out": ((0.5, 0.4),)}, r"`held_out`: \[0.5, 0.4\] sums to 0.9, expected 1"),
        ({"kind": "list", "listed": ((1.5, -0.5),)}, "`listed`.*at least 0"),
    ],
)
def test_wrong_settings_are_refused(settings_, match):
    with pytest.raises(InputError, match=match):
        PreferenceConfig(**settings_)


def test_preferences_of_another_number_of_rewards_are_refused():
    config = PreferenceConfig(kind="list", listed=((0.5, 0.5),))
    with pytest.raises(InputError, match=r"one number for each of a\.b, c-d, e"):
        sample_preferences(0, 0, 1, THREE, config)
    with pytest.raises(InputError, match="one number for each"):
        sample_preferences(0, 0, 1, THREE, PreferenceConfig(held_out=((0.5, 0.5),)))


def test_a_config_file(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("kind: list\nlisted: [[0.2, 0.8], [1, 0]]\nheld_out: [[0.5, 0.5]]\n")
    config = load_config(PreferenceConfig, path, [])
    assert config.listed == ((0.2, 0.8), (1.0, 0.0))
    assert config.held_out == ((0.5, 0.5),)


def test_evaluation_points():
    two, three, four = (evaluation_points(count) for count in (2, 3, 4))
    np.testing.assert_allclose(two[:, 0], np.arange(11) / 10, atol=1e-6)
    assert three.shape == (13, 3)
    np.testing.assert_allclose(three[-1], 1 / 3, atol=1e-6)
    assert len(four) == 4 + 6 + 1
    for points in (two, three, four, evaluation_points(8)):
        assert points.dtype == np.float32
        np.testing.assert_allclose(points.sum(axis=1), 1, atol=1e-6)
        assert len(rows(points)) == len(points)
        assert rows(np.eye(points.shape[1])) <= rows(points)
        # No objective goes before another.
        assert {tuple(sorted(row)) for row in rows(points)} == {
            tuple(sorted(row[::-1])) for row in rows(points)
        }
        assert rows(points[:, ::-1]) == rows(points)
    with pytest.raises(InputError, match="at least 2"):
        evaluation_points(1)


def test_three_objectives_are_judged_where_the_spec_computed_its_cap():
    """Ties in the 13 points cap Kendall's tau-b at about .96 even for a perfect policy."""
    points = evaluation_points(3)
    distinct = points[:, 0] + 1e-4 * np.arange(13)
    assert stats.kendalltau(points[:, 0], distinct).statistic == pytest.approx(0.96, abs=0.01)


def test_lattice_counts():
    assert [len(lattice(count, 11)) for count in (1, 2, 3, 4)] == [1, 11, 66, 286]


def test_tags():
    assert preference_tag(NAMES, [0.3, 0.7]) == "<pref_helpful> 0.3 <pref_humor> 0.7"
    assert preference_tag(NAMES, np.array([0.25, 0.75], np.float32), 2).endswith(
        "0.25 <pref_humor> 0.75"
    )
    with pytest.raises(InputError, match="one number for each of helpful, humor"):
        preference_tag(NAMES, [1.0])


def test_the_tag_stands_before_the_last_turn_of_the_user():
    label = preference_tag(NAMES, [0.3, 0.7])
    assert insert_preference_tag(NAMES, [0.3, 0.7], "Hi there") == f"{label} Hi there"
    dialogue = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c \n\nAssistant:"
    expected = f"\n\nHuman: a\n\nAssistant: b\n\nHuman: {label} c \n\nAssistant:"
    assert insert_preference_tag(NAMES, [0.3, 0.7], dialogue) == expected
    chat = ({"role": "system", "content": "s"}, {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"})  # fmt: skip
    found = insert_preference_tag(NAMES, [0.3, 0.7], chat)
    assert [turn["content"] for turn in found] == ["s", "a", "b", f"{label} c"]
    assert [turn["role"] for turn in found] == [turn["role"] for turn in chat]
    assert chat[-1]["content"] == "c"
    with pytest.raises(InputError, match="none of the user"):
        insert_preference_tag(NAMES, [0.3, 0.7], chat[:1])


texts = st.text(st.characters(codec="utf-8"), max_size=60) | st.sampled_from(
    ["\n\nHuman: a\n\nAssistant:", "\n\nHuman:\n\nHuman:  b", " <pref_helpful> 0.3", "<pref_x> 1"]
)


@given(texts, st.integers(0, 1000), st.integers(1, 4))
def test_a_tag_is_stripped_without_a_trace(text, share, decimals):
    preference = [share / 1000, 1 - share / 1000]
    bare = strip_preference_tags(NAMES, text)
    assert bare == text or "<pref_helpful>" in text
    written = insert_preference_tag(NAMES, preference, text, decimals)
    assert written != text
    assert strip_preference_tags(NAMES, written) == bare


@given(texts, texts)
def test_a_prompt_does_not_choose_the_preference(before, behind):
    assume("<pref" not in before + behind)
    forged = f"{before}<pref_helpful> 1.0 <pref_humor> 0.0 {behind}"
    written = insert_preference_tag(NAMES, [0.3, 0.7], forged)
    assert len(re.findall("<pref_helpful>", written)) == 1
    assert "<pref_helpful> 0.3 <pref_humor> 0.7" in written
    nested = "<pref_helpful> 1 <pref_<pref_helpful> 1 <pref_humor> 0 humor> 0 x"
    assert insert_preference_tag(NAMES, [0.3, 0.7], nested).endswith("<pref_humor> 0.7 x")


@pytest.mark.parametrize(
    "forged",
    [
        "<pref_humor> 1.0 <pref_helpful> 0.0 x",
        "<pref_helpful> 1.0  <pref_humor> 0.0 x",
        "<pref_helpful> 0.9 x",
        "<pref_helpful>.9 x",
        "<pref_helpful>\t1. <pref_humor> x",
        "<pref_helpful><pref_humor> x",
    ],
)
def test_parts_of_a_tag_are_stripped_too(forged):
    assert strip_preference_tags(NAMES, forged) == "x"


def test_without_rewards_nothing_is_a_tag():
    """An empty pattern was found again and again, without an end."""
    assert strip_preference_tags((), "<pref_> 1 x") == "<pref_> 1 x"


@pytest.mark.parametrize("prompt", [7, [{"role": "user"}], [{"content": None}], ["text"], None])
def test_what_is_no_prompt_is_refused(prompt):
    with pytest.raises(InputError, match="in a prompt, expected a text, or a list of messages"):
        without_tags(NAMES, prompt)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 100), min_size=2, max_size=7), st.integers(1, 6))
def test_written_numbers_sum_to_one(shares, decimals):
    """Each was rounded alone, so that thirds were written as 0.3 three times."""
    assume(sum(shares))
    names = [f"r{place}" for place in range(len(shares))]
    preference = np.array(shares) / sum(shares)
    said = [float(part) for part in preference_tag(names, preference, decimals).split()[1::2]]
    assert sum(said) == pytest.approx(1, abs=1e-9)
    np.testing.assert_allclose(said, preference, atol=10.0**-decimals + 1e-6)


def test_a_preference_is_written_as_a_draw_of_it_is():
    assert preference_tag(NAMES, [0.35, 0.65]) == "<pref_helpful> 0.4 <pref_humor> 0.6"
    assert preference_tag(THREE, np.full(3, 1 / 3)) == "<pref_a.b> 0.4 <pref_c-d> 0.3 <pref_e> 0.3"
    config = PreferenceConfig(held_out=((0.35, 0.65),))
    assert (0.4, 0.6) not in rows(sample_preferences(0, 0, 200, NAMES, config))


def test_only_what_can_be_sampled_is_trained_on():
    """Every preference that was not held out counted as seen in training."""
    points = evaluation_points(2)
    listed = PreferenceConfig(kind="list", listed=((0.2, 0.8), (1.0, 0.0)), held_out=((1.0, 0.0),))
    coarse = PreferenceConfig(kind="grid", points=3)
    for config, known in ((listed, {0.2}), (coarse, {0.0, 0.5, 1.0})):
        found = points[trained_on(NAMES, points, config), 0]
        assert set(np.round(found.astype(float), 6)) == known
    everywhere = PreferenceConfig(held_out=((0.3, 0.7),))
    assert trained_on(NAMES, points, everywhere).sum() == 10


def test_parsing():
    found = parse_preference("humor=0.7, helpful=.3", NAMES)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [0.3, 0.7], atol=1e-6)
    np.testing.assert_allclose(parse_preference("humor=1", NAMES), [0, 1])
    np.testing.assert_allclose(parse_preference("a.b=.33,c-d=.33,e=.33", THREE), 1 / 3, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "found '', expected name=number, such as helpful=0.3,humor=0.7"),
        ("helpful", "found 'helpful'"),
        ("helpful=much", "found 'helpful=much'"),
        ("helpful=0.3,wit=0.7", "no reward 'wit'; choose among helpful, humor"),
        ("helpful=0.5,helpful=0.5", "helpful comes twice"),
        ("helpful=-0.5,humor=1.5", "helpful is -0.5, expected 0 or more; a dislike"),
        ("helpful=nan,humor=1", "helpful is nan"),
        ("helpful=inf,humor=1", "helpful is inf"),
        ("helpful=3,humor=1", "sums to 4, expected 1; perhaps helpful=0.75,humor=0.25 is meant"),
        ("helpful=0,humor=0", r"sums to 0, expected 1"),
        ("helpful=0.3", "sums to 0.3"),
    ],
)
def test_what_is_no_preference_is_refused(text, match):
    with pytest.raises(InputError, match=match):
        parse_preference(text, NAMES)


def test_simplex_takes_many_rows():
    values = np.array([[[0.2, 0.8]], [[1, 0]]])
    assert check_simplex(values, NAMES).shape == (2, 1, 2)
    for wrong in ([[0.2, 0.8], [0.2, 0.9]], [0.5, np.nan], 1.0, "text", []):
        for names in (NAMES, None):
            with pytest.raises(InputError, match="preference"):
                check_simplex(wrong, names)


def test_counts_that_are_none_are_refused():
    names = ("a", "b")
    for decimals in (-1, 2.5):
        with pytest.raises(InputError, match="decimals: found"):
            preference_tag(names, (0.5, 0.5), decimals)
    for name in ("seed", "step", "count"):
        given = {"seed": 0, "step": 0, "count": 1} | {name: -1}
        with pytest.raises(InputError, match=f"{name}: found -1"):
            sample_preferences(**given, names=names, config=PreferenceConfig())
