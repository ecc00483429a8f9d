"""What a run of MOC shows: completions of a step, and warnings of a KL far above its target."""

import numpy as np

from jaxalign.moc.config import KLConfig
from jaxalign.moc.monitor import KLWatch, RewardWatch, sample_lines
from jaxalign.moc.prompt_sampler import StepPrompts


def test_completions_of_the_first_and_the_last_group_are_shown():
    preferences = np.array([[1.0, 0.0], [0.5, 0.5], [0.25, 0.75]])
    drawn = StepPrompts({"preferences": preferences}, [f"p{row}" for row in range(6)])
    answers = [f"[b]answer {row}\n" + "x" * 300 * (row == 4) for row in range(6)]
    rewards = np.arange(12).reshape(6, 2) / 10
    first, last = sample_lines(7, drawn, answers, rewards, ("red", "blue"))
    assert first == (
        "step 7, preference -> level: red 1.00 -> 0.00, blue 0.00 -> 0.10; prompt 'p0'; completion "
        r"'[b]answer 0\n'"
    )
    assert "red 0.25 -> 0.80, blue 0.75 -> 0.90; prompt 'p4'" in last
    assert last.endswith("xxx...'")
    assert len(last) < 300


def test_a_kl_that_stays_far_above_its_target_is_warned_of():
    said = []
    watch = KLWatch(KLConfig(target=6.0), batch=16, say=said.append)
    for step, kl in enumerate([13.0] * 4 + [11.0] + [23.0] * 12, 1):
        watch.look(step, kl, 0.03)
    assert [line.split(":")[1].strip() for line in said] == ["step 10", "step 15"]
    assert said[0] == (
        "warning: step 10: the KL is 23.0 nats, and for 5 steps it has been more than 2 times its "
        "target of 6: the policy drifts away from the reference. Raise moc.kl.coef (0.03 now), "
        "lower moc.kl.horizon to about 1,600, or lower moc.optimiser.rate, in a new folder"
    )
    watch = KLWatch(KLConfig(target=6.0, adaptive=False), batch=16, say=said.append)
    for step in range(5):
        watch.look(step, 13.0, 0.0)
    assert "set moc.kl.adaptive to true" in said[-1]


def test_a_reward_that_is_the_same_for_all_completions_is_warned_of():
    said = []
    watch = RewardWatch(("red", "blue"), said.append)
    for step in range(1, 13):
        watch.look(step, {"red": step != 3, "blue": False}, {"red": 0.25, "blue": 1.0})
    assert said == [
        "warning: step 8: for 5 steps the reward red was the same for all completions (level 0.25 "
        "now): nothing is learned from it. Correct the reward or its scale, or raise "
        "moc.temperature, in a new folder"
    ]
