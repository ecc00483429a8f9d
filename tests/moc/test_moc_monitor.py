"""What a run of MOC shows and refuses: completions, KL far above its target, bad numbers."""

import numpy as np
import pytest

from jaxalign.errors import InputError
from jaxalign.moc._train import _check_step
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
        "target of 6: the policy drifts away from the reference: raise moc.kl.coef (0.03 now), "
        "lower moc.kl.horizon to about 1,600, or lower moc.optimiser.rate, in a new folder"
    )
    for config, remedy in (
        (KLConfig(target=6.0, adaptive=False), "set moc.kl.adaptive to true"),
        (KLConfig(target=6.0, horizon=320.0), "raise moc.kl.coef (0 now), or lower moc.optimiser"),
    ):
        watch = KLWatch(config, batch=16, say=said.append)
        for step in range(5):
            watch.look(step, 13.0, 0.0)
        assert remedy in said[-1]


def test_a_kl_that_is_lost_stops_the_run_with_row_and_state():
    far = " (most in row 3, prompt 'p'; the state of step 8 is kept)"
    watch = KLWatch(KLConfig(target=6.0), batch=16, say=lambda text: None)
    kls = [125.0] * 9 + [119.0] + [130.0] * 9
    for step, kl in enumerate(kls, 1):
        watch.look(step, kl, 0.03, lambda: far)
    with pytest.raises(InputError) as refused:
        watch.look(20, 130.0, 0.03, lambda: far)
    assert str(refused.value) == (
        "step 20: the KL is 130.0 nats, and for 10 steps it has been more than 20 times its target "
        "of 6 (most in row 3, prompt 'p'; the state of step 8 is kept): the policy has left the "
        "reference: raise moc.kl.coef (0.03 now), lower moc.kl.horizon to about 1,600, or lower "
        "moc.optimiser.rate, in a new folder."
    )


@pytest.mark.parametrize(("adaptive", "coef"), [(False, 0.03), (True, 0.0)])
def test_a_run_that_does_not_aim_at_its_kl_is_only_warned_of(adaptive, coef):
    said = []
    watch = KLWatch(KLConfig(target=6.0, adaptive=adaptive), batch=16, say=said.append)
    for step in range(1, 21):
        watch.look(step, 200.0, coef)
    assert len(said) == 3


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (0, "step 4: one of the rewards red, blue is not finite (row 1, prompt 'q'; the state of "
            "step 3 is kept); correct the reward, or leave the prompt out."),
        (1, "step 4: a log-probability or value of a completion is not finite (row 1, prompt 'q'; "
            "the state of step 3 is kept); expected a finite number: lower optimiser.rate or "
            "epochs, and go on from the last checkpoint."),
        (2, "step 4: an advantage of a completion is not finite (row 1, prompt 'q'; the state of "
            "step 3 is kept); expected a finite number: lower optimiser.rate or epochs, and go on "
            "from the last checkpoint."),
    ],
)  # fmt: skip
def test_a_number_that_is_not_finite_is_named_with_its_row_and_the_last_state(part, said):
    names = ("red", "blue")
    watches = KLWatch(KLConfig(), 2, print), RewardWatch(names, print)
    values = {
        "kl": 1.0, "kl_coef": 0.1, "kl_row": 0, "bad_row": 1, "bad_part": part,
        **{f"{what}_{name}": 0.0 for what in ("alike", "reward") for name in names},
    }  # fmt: skip
    with pytest.raises(InputError) as refused:
        _check_step(names, ["p", "q"], watches, lambda: "the state of step 3 is kept", 4, values)
    assert str(refused.value) == said


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
